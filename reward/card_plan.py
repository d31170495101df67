"""What a judge card would ask of a service and cost, before anybody is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from reward.cases import Case, assess_each, draw_cases, labelled, told_apart
from reward.evaluator import Assessment, BulkEvaluator, Evaluator
from reward.forecast import Forecast
from reward.labels import Labels
from reward.probes import injection_suite, order_lines, padding_attack
from sft.candidates import Candidate
from sft.data import Prompt

NOT_ASKED = "not asked"


@dataclass
class _Noting:
    """An evaluator that notes what it is asked and judges nothing."""

    rubric: str
    name: str = "nobody"
    cases: list[Case] = field(default_factory=list)

    def assess(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Assessment]:
        self.cases.append(Case(prompt, tuple(candidates)))
        return [
            Assessment.without_score(c, NOT_ASKED, evaluator=self.name, rubric=self.rubric)
            for c in candidates
        ]


def card_plan_line(evaluator: Evaluator, labels: Labels, n_probed: int) -> str:
    """What the card would ask and cost, in one line; see `card_forecast`."""
    if isinstance(evaluator, BulkEvaluator):
        return card_forecast(evaluator, labels, n_probed).line()
    return f"dry run: {evaluator.name} asks nobody and costs nothing"


def card_forecast(evaluator: BulkEvaluator, labels: Labels, n_probed: int) -> Forecast:
    """What `make_card` would ask that the evaluator's ledger does not answer.

    Which prompts are probed depends on which replies have a score: one that nobody was asked about
    yet is taken to have one.

    Args:
        evaluator: who is to be measured; it asks afresh, and is offline.
        labels: what people said.
        n_probed: prompts that are probed, at most.

    Raises:
        UserError: another process works with the ledger.
    """
    cases = labelled(labels)
    found = [each for made in assess_each(evaluator, cases, _nothing) for each in made]
    scored = {a.candidate_id for a in found if a.scored or a.unscored == NOT_ASKED}
    drawn = draw_cases(labels, scored, n_probed)
    noting = _Noting(evaluator.rubric)
    order_lines(noting, drawn, _nothing)
    padding_attack(noting, drawn, _nothing)
    injection_suite(noting, drawn, _nothing)
    return evaluator.forecast(*told_apart([*cases, *noting.cases]))


def _nothing(count: int) -> None:
    """Nobody watches."""
