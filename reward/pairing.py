"""What a preference pair is, and whether two judged replies to one prompt make one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reward.confidence import DUST, RepeatNoise, confidence, tie_band
from reward.evaluator import Assessment, direct_verdict
from sft.candidates import Candidate
from sft.data import Message, Prompt
from sft.pair_settings import PairSection

# Of a pair by safety, where 1 plus the difference of quality is nothing or nearly so: the worst
# safe reply against the best unsafe one is still a pair, and a pair has a margin.
LEAST_SAFETY_MARGIN = 0.01
WITHOUT_REPEATS = RepeatNoise(sd=0.0, degrees=0, repeated=0)


@dataclass(frozen=True)
class Pair:
    """A preference in TRL's conversational format, with where it came from.

    Attributes:
        margin: chosen quality minus rejected quality, in (0, 1]; for rule "safety" 1 plus that
            difference and at least `LEAST_SAFETY_MARGIN`, so in (0, 2].
        confidence: how far the pair is trusted to be the right way round, in (0.5, 1], see
            `reward.confidence.confidence`; with single verdicts 1 for a safety verdict, else
            0.5 + margin / 2.
        rule: "safety" where the safety flow decided, "quality" where both replies are safe.
    """

    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    margin: float
    confidence: float
    chosen_id: str
    rejected_id: str
    rule: Literal["safety", "quality"]

    def __post_init__(self) -> None:
        if self.chosen == self.rejected or self.chosen_id == self.rejected_id:
            raise ValueError(f"chosen equals rejected in a pair of prompt {self.prompt_id}")
        if self.margin <= 0:
            raise ValueError(
                f"margin {self.margin} of a pair of prompt {self.prompt_id} is not positive"
            )

    @property
    def lengthening(self) -> float:
        """Words of the chosen reply per word of the rejected one."""
        return words(self.chosen[0]["content"]) / max(1, words(self.rejected[0]["content"]))


@dataclass(frozen=True)
class Judged:
    """A candidate beside its assessment."""

    candidate: Candidate
    assessment: Assessment


def words(text: str) -> int:
    """Length of a reply: what white space separates."""
    return len(text.split())


def compare(
    a: Judged,
    b: Judged,
    prompt: Prompt,
    section: PairSection,
    noise: RepeatNoise = WITHOUT_REPEATS,
) -> Pair | str:
    """The pair that two judged replies to one prompt make, or the reason why they make none.

    Symmetric: `compare(b, a)` gives the same pair, because only the verdicts decide which is
    chosen.

    Raises:
        UserError: the margin is "auto" and the noise is not known.
    """
    if a.candidate.text.strip() == b.candidate.text.strip():
        return "identical texts"
    first, second = a.assessment, b.assessment
    if not first.safe and not second.safe:
        return "both unsafe"
    if first.quality is None or second.quality is None:
        return "unscored"
    difference = first.quality - second.quality
    if first.safe != second.safe:
        winner, loser = (a, b) if first.safe else (b, a)
        margin = max(1 + (difference if first.safe else -difference), LEAST_SAFETY_MARGIN)
        rule: Literal["safety", "quality"] = "safety"
    else:
        if undecided := _undecided(first, second, difference):
            return undecided
        if abs(difference) < max(DUST, tie_band(first, second, section.margin, noise)):
            return "tie (margin too small)"
        winner, loser = (a, b) if difference > 0 else (b, a)
        margin, rule = abs(difference), "quality"
    pair = Pair(
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=[{"role": "assistant", "content": winner.candidate.text}],
        rejected=[{"role": "assistant", "content": loser.candidate.text}],
        margin=margin,
        confidence=confidence(winner.assessment, loser.assessment, noise),
        chosen_id=winner.candidate.id,
        rejected_id=loser.candidate.id,
        rule=rule,
    )
    if rule == "quality" and 0 < section.max_length_ratio < pair.lengthening:
        return "chosen too much longer"
    return pair


def _undecided(first: Assessment, second: Assessment, difference: float) -> str | None:
    """Why replies that were compared with each other make no pair by quality; None = they may.

    Quality is then the share of all comparisons won, which can order two replies that tied with
    each other, or against what their own comparison said: neither is a preference.
    """
    verdict = direct_verdict(first, second)
    if verdict is None:
        return None
    if verdict == "missing":
        return "not compared with each other"
    if verdict in ("tie", "order"):
        return "tie (both orders)" if verdict == "tie" else "tie (changed with the order)"
    if abs(difference) >= DUST and (verdict == "better") != (difference > 0):
        return "comparisons in a circle"
    return None
