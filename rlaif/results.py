"""What the proof is written in: judged replies, comparisons, conditions, and the report.

Frozen types only. Not here: how a figure is computed (`rlaif.measures`), which figures are compared
(`rlaif.compare`), how they are shown (`rlaif.report`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from rlaif.measures import Measure
from sft.data import Risk
from sft.files import UserError

RISKS: tuple[str, ...] = get_args(Risk)


@dataclass(frozen=True)
class JudgedReply:
    """One reply to one held-out prompt, with the verdict of what judges the result.

    Either there is a verdict (`safe` is not None) or a reason why not (`unscored` is not None).

    Attributes:
        prompt_id: of the prompt, as are `risk` (of the message, never of a person) and `topic`.
        text: the reply.
        safe: passed the safety flow for this risk; None where there is no verdict.
        empathy: 0..1, None where there is no verdict; so are `helpfulness` and `fluent`.
        overcautious: refused, or forced a referral, where the message carried no risk; no meaning
            where there is no verdict.
        unscored: why there is no verdict; None where there is one.
        words: number of words in the text.
        repetition: `rlaif.measures.repetition` of the text.
        stop: "eos" where the reply ended by itself, "length" where it was cut off.
        violations: rules of the safety flow that the reply broke.
    """

    prompt_id: str
    risk: str
    topic: str
    text: str
    safe: bool | None
    empathy: float | None
    helpfulness: float | None
    overcautious: bool
    unscored: str | None
    words: int
    repetition: float
    stop: str
    fluent: float | None = None
    violations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse rows that are neither judged nor unscored, or of an unknown risk."""
        if (self.safe is None) != (self.unscored is not None):
            raise ValueError(
                f"reply to {self.prompt_id}: a verdict or a reason why not, never both or neither"
            )
        if self.risk not in RISKS:
            raise ValueError(
                f"reply to {self.prompt_id}: risk is {self.risk!r}, not one of {RISKS}"
            )


@dataclass(frozen=True)
class Comparison:
    """One measure of the policy against the baseline.

    Attributes:
        name: of the measure.
        policy: the policy's side.
        baseline: None where the baseline has no judged reply.
        difference: policy minus baseline over replies to the same prompts; None where no pair of
            replies was judged on both sides.
    """

    name: str
    policy: Measure
    baseline: Measure | None
    difference: Measure | None


@dataclass(frozen=True)
class Check:
    """One condition of the release gate: `sentence` states it with its figures."""

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True)
class Report:
    """The proof: what was compared by whom on what, with which result, and whether it may go out.

    Attributes:
        policy: name of what was trained; `baseline` of what it started from.
        policy_hash: sha256 of the judged adapter's folder, so that no other adapter is released on
            this report.
        evaluator: who judged; `rubric` by what (`name@hash`).
        prompts_hash: of the held-out prompts; `n_prompts` how many.
        measures: comparisons over all prompts.
        by_risk: comparisons among the prompts of one risk.
        findings: plain sentences with their arithmetic; those that speak against the policy come
            first and start with "Warning: ".
        checks: the conditions of the gate; passed: all of them hold.
    """

    policy: str
    baseline: str
    policy_hash: str
    evaluator: str
    rubric: str
    prompts_hash: str
    n_prompts: int
    measures: list[Comparison]
    by_risk: dict[str, list[Comparison]]
    findings: list[str]
    checks: list[Check]
    passed: bool

    def reasons(self) -> list[str]:
        """Return the sentences of the conditions that failed; empty where the report passes."""
        return [check.sentence for check in self.checks if not check.passed]

    def find(self, name: str, risk: str | None = None) -> Comparison | None:
        """Find a comparison, over all prompts or those of one risk; None where unmeasured."""
        among = self.measures if risk is None else self.by_risk.get(risk, [])
        return next((comparison for comparison in among if comparison.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `report.json` holds."""
        return asdict(self)


def report_from_json(obj: object, source: str) -> Report:
    """Read back what `Report.to_json` gave.

    Args:
        obj: the parsed JSON.
        source: names the file in the message of an error.

    Raises:
        UserError: it is not such an object.
    """
    try:
        return TypeAdapter(Report).validate_python(obj)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{source} is not a report of an evaluation ({where}: {first['msg']}). Write it again: "
            "python scripts/evaluate_policy.py --config <recipe> --overwrite true"
        ) from error
