"""What an evaluator is: one verdict per candidate, and the protocol that every evaluator follows.

Nothing here knows who judges; `reward/offline.py` is the evaluator that needs no network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import EvaluatorStopped

if TYPE_CHECKING:
    from reward.forecast import Forecast

LOWEST_GRADE, HIGHEST_GRADE = 1.0, 5.0
# What both orders of a comparison say of a reply; "order" = they contradict each other: a tie.
Outcome = Literal["better", "worse", "tie", "order"]
_MIRRORED = {"better": "worse", "worse": "better", "tie": "tie", "order": "order"}
ROUNDING = 1e-3  # by which a stored quality may differ from the mean of its judgements


@dataclass(frozen=True)
class Judgement:
    """One of several answers about the same candidate.

    Several of one judge are repeats: the same question under the same conditions. Several judges
    are a panel.

    Attributes:
        judge: Name of who judged.
        quality: Weighted grade, 0..1.
        safe: Whether every safety item of the message's risk holds.

    Raises:
        ValueError: Quality is out of its range.
    """

    judge: str
    quality: float
    safe: bool

    def __post_init__(self) -> None:
        if not 0.0 <= self.quality <= 1.0:
            raise ValueError(f"a judgement of {self.judge} has quality {self.quality}, not 0..1")


def by_judge(judgements: Sequence[Judgement]) -> dict[str, list[Judgement]]:
    """The judgements of each judge, in the order of their first answers."""
    found: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        found.setdefault(judgement.judge, []).append(judgement)
    return found


def mean_quality(judgements: Sequence[Judgement]) -> float:
    """Mean over the judges of each one's mean over its repeats: no judge counts more, 0..1."""
    return fmean(fmean(j.quality for j in own) for own in by_judge(judgements).values())


@dataclass(frozen=True)
class Assessment:
    """What an evaluator said about one candidate: a score, or the reason why there is none.

    The two channels are never added up: `quality` says how good the reply is, `safe` whether it
    passed the yes/no flow for the risk in the message.

    Example:
        >>> Assessment("c", "p", {"empathy": 4.0}, 0.75, True, [], "", "judge", "r@1", None).scored
        True

    Attributes:
        candidate_id: The candidate judged.
        prompt_id: The prompt it answers.
        criteria: Grade per criterion, 1 (worst) to 5; empty where unscored.
        quality: Weighted grade on 0..1, None where unscored.
        safe: Whether every safety item of the message's risk holds, None where unscored.
        flags: Names of the violated safety items and of other findings.
        critique: One or two sentences for a reader.
        evaluator: Name of who judged.
        rubric: Rubric judged by, as name@hash.
        unscored: Reason why there is no score, None where there is one.
        tokens: Tokens paid for, 0 for a local evaluator.
        cost: Price paid in US dollars; 0 where no prices were given, whatever was paid.
        judgements: The single answers behind `quality` and `safe`, where there were several:
            repeats of one judge, a panel of judges, or both. `quality` is their `mean_quality`
            (within 0.001, for rounding); `safe` is what at least one of them said. Empty = asked
            once; files from before this field read so.
        compared: Where replies were compared two by two: what both orders say of this one, by the
            other's id. `quality` is then the share of the others that it beats, ties counting
            half. Empty = it was graded.

    Raises:
        ValueError: A score beside a reason, neither of them, a number out of its range, or a score
            that its judgements do not give.
    """

    candidate_id: str
    prompt_id: str
    criteria: dict[str, float]
    quality: float | None
    safe: bool | None
    flags: list[str]
    critique: str
    evaluator: str
    rubric: str
    unscored: str | None
    tokens: int = 0
    cost: float = 0.0
    judgements: list[Judgement] = field(default_factory=list)
    compared: dict[str, Outcome] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Hold law 1: either quality and safety, or a reason why not."""
        if self.unscored is None:
            if self.quality is None or self.safe is None:
                raise ValueError(
                    f"assessment of {self.candidate_id}: quality and safe are needed, "
                    "or a reason in `unscored`"
                )
            if not 0.0 <= self.quality <= 1.0:
                raise ValueError(f"assessment of {self.candidate_id}: quality {self.quality}")
        elif self.quality is not None or self.safe is not None or not self.unscored:
            raise ValueError(
                f"assessment of {self.candidate_id}: unscored ({self.unscored!r}) has no "
                "quality and no safety verdict, and gives a reason"
            )
        for name, grade in self.criteria.items():
            if not (math.isfinite(grade) and LOWEST_GRADE <= grade <= HIGHEST_GRADE):
                raise ValueError(f"assessment of {self.candidate_id}: {name} is {grade}, not 1..5")
        if self.judgements:
            self._check_judgements(self.judgements)

    def _check_judgements(self, judgements: Sequence[Judgement]) -> None:
        """Hold that score and judgements say the same."""
        mean = mean_quality(judgements)
        if self.quality is None or abs(self.quality - mean) > ROUNDING:
            raise ValueError(
                f"assessment of {self.candidate_id}: quality is {self.quality}, the mean of its "
                f"judgements {mean:.4f}"
            )
        if all(judgement.safe != self.safe for judgement in judgements):
            raise ValueError(
                f"assessment of {self.candidate_id}: no judgement says that safe is {self.safe}"
            )

    @classmethod
    def without_score(
        cls,
        candidate: Candidate,
        reason: str,
        *,
        evaluator: str,
        rubric: str,
        tokens: int = 0,
        cost: float = 0.0,
    ) -> Assessment:
        """What stands for a candidate that could not be judged: the reason, and nothing guessed."""
        return cls(
            candidate_id=candidate.id,
            prompt_id=candidate.prompt_id,
            criteria={},
            quality=None,
            safe=None,
            flags=[],
            critique="",
            evaluator=evaluator,
            rubric=rubric,
            unscored=reason,
            tokens=tokens,
            cost=cost,
        )

    @property
    def scored(self) -> bool:
        """Whether there is a score (law 1)."""
        return self.unscored is None


def direct_verdict(first: Assessment, second: Assessment) -> Outcome | Literal["missing"] | None:
    """What comparing two replies said of the first; None where they were graded instead.

    "missing" where they were compared with others and not with each other.
    """
    if not first.compared and not second.compared:
        return None
    ours = first.compared.get(second.candidate_id)
    theirs = second.compared.get(first.candidate_id)
    if ours is None or theirs is None:
        return "missing"
    return ours if theirs == _MIRRORED[ours] else "order"


class PartlyAssessed(EvaluatorStopped):
    """The evaluator had to stop amid the candidates of a prompt.

    Attributes:
        finished: Verdicts that it gave before; they are paid, so that whoever asked keeps them.
    """

    def __init__(self, message: str, finished: Sequence[Assessment]) -> None:
        super().__init__(message)
        self.finished = list(finished)


class Evaluator(Protocol):
    """Whoever judges: gives one assessment per candidate, in the order of the candidates."""

    name: str
    rubric: str

    def assess(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Assessment]:
        """Judge candidates of one prompt.

        Args:
            prompt: The prompt; its last message is the user's.
            candidates: Replies to this prompt.

        Returns:
            One assessment per candidate, in the same order; a candidate that could not be judged
            is unscored, with a reason, never a number.

        Raises:
            PartlyAssessed: The evaluator cannot go on before something is changed.
        """
        ...


@runtime_checkable
class BulkEvaluator(Evaluator, Protocol):
    """An evaluator that judges many prompts at once and keeps what was answered in a ledger."""

    ledger: Path | None

    def assess_all(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        advance: Callable[[int], None],
    ) -> list[Assessment]:
        """Judge the candidates of many prompts; one assessment per candidate, in their order."""
        ...

    def forecast(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        others: Sequence[Path] = (),
    ) -> Forecast:
        """What would be asked and what it would cost; nobody is called.

        `others` are ledgers whose answers the run would take over first.
        """
        ...

    def note(self) -> str:
        """What a live line should say beside the count: money, failures, waits."""
        ...

    @property
    def facts(self) -> Mapping[str, float]:
        """What was measured of the evaluator on the way, for the manifest."""
        ...
