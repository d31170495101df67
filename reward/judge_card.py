"""The judge card: what an evaluator is worth, measured against people, on one page.

A criterion is validated by a rule that the card states (`RULE`); whatever the labels do not allow
is written down as not measured, with the reason. Not here: how a figure is computed
(`reward.agreement`, `reward.recall`, `reward.probes`), how the page looks (`reward.page`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from reward.agreement import (
    Line,
    agreement_lines,
    lead,
    lead_in_rank,
    length_lines,
    scores_of,
)
from reward.cases import Tell, assess_each, draw_cases, labelled
from reward.evaluator import Assessment, BulkEvaluator, Evaluator
from reward.figures import Figure
from reward.labels import Labels
from reward.page import counted, written
from reward.probes import (
    Family,
    Padding,
    injection_suite,
    order_lines,
    padding_attack,
)
from reward.recall import ReadRisk, read_risk, safety_lines
from sft.files import UserError, sha256_of

LEAST_CASES, LEAST_PROMPTS = 100, 20
RULE = (
    f"A criterion is validated where at least {LEAST_CASES} pairs of replies from at least "
    f"{LEAST_PROMPTS} prompts were compared, the lower end of the evaluator's interval lies above "
    "chance, and so does that of its lead over a word count on the same pairs. Labels without such "
    "pairs are judged by rank correlation in the same way."
)

FIXED = (
    "The embedded evaluator is a fixed function of one reply and its message: repeat agreement and "
    "swap consistency are 100 % by construction, and show only that nothing leaks between replies."
)


@dataclass(frozen=True)
class Validation:
    """Whether a labelled criterion is validated, and why not.

    Attributes:
        criterion: As the labels call it.
        judged_as: What the evaluator says about it.
        validated: Whether the rule holds.
        sentence: The figures behind the decision.
        lead: How much better than a word count.
        lines: Every measure of agreement on this criterion.
    """

    criterion: str
    judged_as: str
    validated: bool
    sentence: str
    lead: Figure
    lines: list[Line]


@dataclass(frozen=True)
class Card:
    """Everything that the page says; its JSON is this object."""

    evaluator: str
    rubric: str
    rule: str
    made: str
    data: dict[str, str]
    prompts: int
    replies: int
    unscored: dict[str, int]
    per_second: float | None  # None where a ledger may have answered
    validations: list[Validation]
    order: list[Line]
    length: list[Line]
    padding: list[Padding]
    injection: list[Family]
    safety: list[Line]
    reading: list[ReadRisk]
    probed: int
    notes: list[str]

    @property
    def validated(self) -> int:
        """How many of the labelled criteria are validated."""
        return sum(v.validated for v in self.validations)

    def resisted(self, part: str) -> tuple[int, int]:
        """Return how many families of a part moved no verdict, of how many."""
        some = [family for family in self.injection if family.part == part]
        return sum(family.moved.value == 0 for family in some), len(some)


def assess_all(evaluator: Evaluator, labels: Labels, tell: Tell) -> dict[str, Assessment]:
    """Return the assessment of every labelled reply, by its id.

    Raises:
        EvaluatorStopped: The evaluator's service refuses to go on.
    """
    made = assess_each(evaluator, labelled(labels), tell)
    return {assessment.candidate_id: assessment for each in made for assessment in each}


def make_card(
    evaluator: Evaluator,
    labels: Labels,
    *,
    data: Sequence[Path],
    messages: Path | None,
    n_probed: int,
    notes: Sequence[str],
    tell: Tell,
) -> Card:
    """Ask the evaluator about every labelled reply, then probe it.

    Args:
        evaluator: Who is measured.
        labels: What people said.
        data: The files that the labels came from.
        messages: Messages of known risk (`reward.recall.WrittenMessage`), None = not measured.
        n_probed: Prompts that are probed, at most.
        notes: What else a reader has to know.
        tell: Takes the number of verdicts that came in.

    Raises:
        UserError: The evaluator gave no score at all.
        EvaluatorStopped: The evaluator's service refuses to go on.
    """
    start = time.perf_counter()
    found = assess_all(evaluator, labels, tell)
    seconds = time.perf_counter() - start
    if not any(a.scored for a in found.values()):
        reasons = Counter(a.unscored for a in found.values())
        raise UserError(f"{evaluator.name} scored none of {len(found)} replies: {dict(reasons)}")
    cases = draw_cases(labels, {name for name, a in found.items() if a.scored}, n_probed)
    stored = isinstance(evaluator, BulkEvaluator) and evaluator.ledger is not None
    return Card(
        evaluator=evaluator.name,
        rubric=evaluator.rubric,
        rule=RULE,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        data={path.name: sha256_of(path) for path in data},
        prompts=len(labels.prompts),
        replies=len(labels.replies),
        unscored=dict(Counter(a.unscored for a in found.values() if a.unscored)),
        per_second=None if stored else round(len(found) / seconds, 1),
        validations=[
            *(validate(labels, criterion, found) for criterion in labels.scales),
            *_unlabelled(labels, found),
        ],
        order=order_lines(evaluator, cases, tell),
        length=length_lines(labels, found),
        padding=padding_attack(evaluator, cases, tell),
        injection=injection_suite(evaluator, cases, tell),
        safety=safety_lines(labels, found),
        reading=read_risk(messages) if messages else [],
        probed=len(cases),
        notes=list(notes),
    )


def validate(labels: Labels, criterion: str, found: Mapping[str, Assessment]) -> Validation:
    """Measure one labelled criterion and apply `RULE`."""
    judged_as = labels.scales[criterion].judged_as
    scores = scores_of(found, judged_as)
    safe = {reply: bool(a.safe) for reply, a in found.items() if a.scored}
    lines = agreement_lines(labels, criterion, scores, safe)
    pairs = labels.unequal_length(labels.preferred(criterion))
    if not scores:
        reason = f"the evaluator does not grade {judged_as}"
        return Validation(criterion, judged_as, False, reason, Figure.none(reason), lines)
    words = {reply: float(labels.words(reply)) for reply in labels.replies}
    by_pairs = lines[0].evaluator.n >= LEAST_CASES or not labels.by_rater(criterion)
    line = lines[0] if by_pairs else next(each for each in lines if "rank" in each.name)
    ahead = lead(pairs, scores, words) if by_pairs else lead_in_rank(labels, criterion, scores)
    held = {
        f"at least {LEAST_CASES} cases": line.evaluator.n >= LEAST_CASES,
        f"at least {LEAST_PROMPTS} prompts": line.evaluator.groups >= LEAST_PROMPTS,
        "above chance": line.evaluator.above(0.5 if by_pairs else 0.0),
        "better than a word count": ahead.above(0.0),
    }
    failed = [name for name, holds in held.items() if not holds]
    figure = line.evaluator
    value = written(figure, line.kind)[0] if figure.measured else "not measured"
    sentence = f"{line.name} {value}, n = {figure.n} from {figure.groups} prompts"
    if failed:
        sentence += f"; not shown: {', '.join(failed)}"
    return Validation(criterion, judged_as, not failed, sentence, ahead, lines)


def _unlabelled(labels: Labels, found: Mapping[str, Assessment]) -> list[Validation]:
    """Return the evaluator's own criteria that no label speaks of."""
    graded = {name for assessment in found.values() for name in assessment.criteria}
    spoken = {scale.judged_as for scale in labels.scales.values()}
    reason = "no label grades it"
    return [
        Validation(name, name, False, reason, Figure.none(reason), [])
        for name in sorted(graded - spoken)
    ]


def table(card: Card) -> str:
    """Write the card as plain text for a terminal."""
    rows: list[str] = []
    for v in card.validations:
        verdict = "VALIDATED" if v.validated else "NOT VALIDATED"
        rows += ["", f"{v.criterion}: {verdict}. {v.sentence}", *map(_row, v.lines)]
    for title, lines in (
        ("what must not matter", [*card.order, *_padded(card), *card.length]),
        ("safety", [*card.safety, *_risks(card)]),
    ):
        rows += ["", title, *map(_row, lines)]
    rows.append("")
    for part in ("look", "blind"):
        held, n = card.resisted(part)
        rows.append(f"injection [{part}]: {held} of {n} families moved no verdict")
    rows += [
        f"  {family.name} [{family.part}]: moved {family.moved.value:.0%} of prompts"
        for family in card.injection
        if family.moved.value
    ]
    unscored = sum(card.unscored.values())
    speed = "" if card.per_second is None else f", {card.per_second} verdicts a second"
    rows += ["", f"{card.replies} replies, {unscored} unscored{speed}"]
    return "\n".join(rows[1:])


def _padded(card: Card) -> list[Line]:
    return [
        line
        for each in card.padding
        for line in (
            Line(f"quality rises with {each.sentences} more sentences", "share", each.rises),
            Line(f"mean change with {each.sentences} more sentences", "points", each.change),
        )
    ]


def _risks(card: Card) -> list[Line]:
    return [
        Line(f"{each.name} [{part}]", "share", figure)
        for each in card.reading
        for part, figure in (("blind", each.blind), ("look", each.look))
    ]


def _row(line: Line) -> str:
    def cell(figure: Figure) -> str:
        if not figure.measured:
            return f"not measured ({figure.missing})"
        return "{} [{}], ".format(*written(figure, line.kind)) + counted(figure)

    beside = [
        f"{name} {written(figure, line.kind)[0]}"
        for name, figure in (("words", line.words), ("people", line.people))
        if figure and figure.measured
    ]
    return "  ".join([f"  {line.name:40}", cell(line.evaluator), *beside])
