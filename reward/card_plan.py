"""What a judge card would ask of a service and cost, before anybody is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reward.asking import Asking
from reward.cases import Case, assess_each, draw_cases, labelled, told_apart
from reward.evaluator import Assessment, BulkEvaluator, Evaluator
from reward.evaluators import make_evaluator
from reward.forecast import Forecast
from reward.labels import Labels
from reward.probes import injection_suite, order_lines, padding_attack
from reward.service import Service
from sft.candidates import Candidate
from sft.data import Prompt

NOT_ASKED = "not asked"
# Settings of a service that a card is given as in a recipe's section.
SERVICE = (
    *("base_url", "allow_remote", "redact_names", "max_in_flight", "timeout"),
    *("price_in", "price_out", "max_cost"),
)


def measured_service(given: Mapping[str, Any]) -> Service | None:
    """The service that a card is to measure; None = there is none, or its model is not named.

    Args:
        given: `evaluator`, `model` and the settings of `SERVICE`, by name.

    Raises:
        UserError: settings that exclude each other, or a host that nobody allowed.
    """
    if given["evaluator"] != "openai" or not given["model"]:
        return None
    return Service.allowed(given["model"], {name: given[name] for name in SERVICE})


def measured_evaluator(
    given: Mapping[str, Any], service: Service | None, ledger: Path
) -> Evaluator:
    """The evaluator that a card measures; a repeat of a question is asked anew.

    Args:
        given: `evaluator`, `rubric`, `ask`, `repeats` and `dry_run`, by name.
        service: as `measured_service` has it.
        ledger: where a service's answers are kept; a dry run makes none.

    Raises:
        UserError: settings that exclude each other.
    """
    dry = given["dry_run"]
    return make_evaluator(
        given["evaluator"],
        rubric=given["rubric"],
        service=service,
        ledger=ledger if ledger.is_file() or not dry else None,
        offline=dry,
        afresh=True,  # a repeat that gets the first answer would tell nothing
        asking=Asking(given["ask"], given["repeats"], structured="auto"),
    )


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
