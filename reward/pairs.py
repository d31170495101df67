"""From assessments to preference pairs, and a reason for every candidate that is in none.

Laws: an unscored candidate is in no pair; a candidate that failed the safety flow is never
`chosen`; where one reply is safe and the other is not, safety decides whatever the quality;
swapping the verdict swaps the pair; ties are dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from reward.evaluator import Assessment
from sft.candidates import Candidate
from sft.config import PairSection
from sft.data import Message, Prompt


@dataclass(frozen=True)
class Pair:
    """A preference in TRL's conversational format, with where it came from.

    Attributes:
        margin: chosen quality minus rejected quality, in (0, 1]; for rule "safety" 1 plus that
            difference, in (0, 2].
        confidence: how far the margin is trusted, in (0.5, 1]: 1 for a safety verdict, else 0.5 +
            margin / 2.
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


@dataclass(frozen=True)
class Judged:
    """A candidate beside its assessment."""

    candidate: Candidate
    assessment: Assessment


@dataclass
class Pairing:
    """Pairs, and why the rest became none: `dropped.json`."""

    pairs: list[Pair] = field(default_factory=list)
    candidates: Counter[str] = field(default_factory=Counter)
    comparisons: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    by_risk: Counter[str] = field(default_factory=Counter)
    by_rule: Counter[str] = field(default_factory=Counter)
    borrowed: int = 0

    def report(self) -> dict[str, object]:
        """Counts by reason, each group adding up to the total that is given beside it."""
        return {
            "pairs": len(self.pairs),
            "pairs_by_rule": dict(self.by_rule),
            "pairs_by_risk": dict(self.by_risk),
            "pairs_against_borrowed": self.borrowed,
            "candidates": _with_total(self.candidates),
            "comparisons": _with_total(self.comparisons),
            "prompts": _with_total(self.prompts),
        }


def _with_total(counts: Counter[str]) -> dict[str, object]:
    arithmetic = " + ".join(f"{n} {name}" for name, n in counts.items())
    return {
        "total": sum(counts.values()),
        **counts,
        "arithmetic": f"{arithmetic} = {sum(counts.values())}",
    }


def trust(difference: float) -> float:
    """How far a difference of quality is trusted, in 0.5..1: 0.5 + |difference| / 2."""
    return 0.5 + abs(difference) / 2


def compare(a: Judged, b: Judged, prompt: Prompt, section: PairSection) -> Pair | str:
    """The pair that two judged replies to one prompt make, or the reason why they make none.

    Symmetric: `compare(b, a)` gives the same pair, because only the verdicts decide which is
    chosen.
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
        margin = 1 + (difference if first.safe else -difference)
        if margin <= 0:
            return "quality contradicts safety fully"
        rule: Literal["safety", "quality"] = "safety"
        confidence = 1.0
    else:
        if abs(difference) < section.margin or difference == 0:
            return "tie (margin too small)"
        winner, loser = (a, b) if difference > 0 else (b, a)
        margin, rule, confidence = abs(difference), "quality", trust(difference)
    if section.max_length_ratio > 0 and rule == "quality":
        longer = len(winner.candidate.text.split()) / max(1, len(loser.candidate.text.split()))
        if longer > section.max_length_ratio:
            return "chosen too much longer"
    return Pair(
        prompt_id=prompt.id,
        prompt=prompt.messages,
        chosen=[{"role": "assistant", "content": winner.candidate.text}],
        rejected=[{"role": "assistant", "content": loser.candidate.text}],
        margin=margin,
        confidence=confidence,
        chosen_id=winner.candidate.id,
        rejected_id=loser.candidate.id,
        rule=rule,
    )


def make_pairs(
    prompts: Sequence[Prompt],
    candidates: Sequence[Candidate],
    assessments: Sequence[Assessment],
    section: PairSection,
) -> Pairing:
    """Pair the candidates of each prompt by the recipe's strategy, and one misfit with the best.

    A borrowed reply that the safety flow fails for this prompt makes one more pair, beyond
    `max_pairs_per_prompt`: more of them are told apart too easily, and crowd out what a policy has
    still to learn from its own replies.

    Strategies: "best_worst" one pair a prompt; "best_rest" the best against each other reply;
    "best_rest_safe_unsafe" also every other safe reply against each unsafe one, because the flow's
    verdicts are firmer than the grades between middling replies; "all" every comparison. The best
    is a safe reply of the highest quality, never a borrowed one. A prompt's pairs are taken by
    falling margin, up to `max_pairs_per_prompt`.
    """
    texts = {candidate.id: candidate for candidate in candidates}
    by_prompt: dict[str, list[Judged]] = {}
    result = Pairing()
    for assessment in assessments:
        judged = Judged(texts[assessment.candidate_id], assessment)
        if assessment.unscored is not None:
            result.candidates[f"unscored: {assessment.unscored}"] += 1
        elif judged.candidate.stop == "length":
            # A reply that was cut off says nothing about what the model meant to say, and teaches
            # not to stop.
            result.candidates["cut off at max_new_tokens"] += 1
        else:
            borrowed = judged.candidate.borrowed
            result.candidates["borrowed" if borrowed else "paired with others"] += 1
            by_prompt.setdefault(assessment.prompt_id, []).append(judged)
    for prompt in prompts:
        _pair_one(prompt, by_prompt.get(prompt.id, []), section, result)
    return result


def _pair_one(
    prompt: Prompt, judged: Sequence[Judged], section: PairSection, result: Pairing
) -> None:
    ranked = sorted(judged, key=_rank)
    own = [j for j in ranked if not j.candidate.borrowed]
    misfits = [j for j in ranked if j.candidate.borrowed and not j.assessment.safe]
    found: list[Pair] = []
    for a, b in _comparisons(own, section.strategy):
        pair = compare(a, b, prompt, section)
        if isinstance(pair, Pair):
            found.append(pair)
        else:
            result.comparisons[pair] += 1
    found.sort(key=lambda pair: (-pair.margin, pair.chosen_id, pair.rejected_id))
    kept = found[: section.max_pairs_per_prompt] if section.max_pairs_per_prompt else found
    result.comparisons["kept"] += len(kept)
    if len(found) > len(kept):
        result.comparisons["over max_pairs_per_prompt"] += len(found) - len(kept)
    if own and own[0].assessment.safe and misfits:
        # The misfit of the lowest quality: the last of the ranking.
        pair = compare(own[0], misfits[-1], prompt, section)
        if isinstance(pair, Pair):
            kept = [*kept, pair]
            result.borrowed += 1
    result.prompts["with pairs" if kept else _why_none(own)] += 1
    result.by_risk[prompt.risk] += len(kept)
    result.by_rule.update(pair.rule for pair in kept)
    result.pairs += kept


def _why_none(own: Sequence[Judged]) -> str:
    if not any(judged.assessment.safe for judged in own):
        return "without a safe candidate"
    return "without two usable candidates" if len(own) < 2 else "without a pair that counts"


def _rank(judged: Judged) -> tuple[bool, float, str]:
    quality = judged.assessment.quality
    return (
        not judged.assessment.safe,
        -(quality if quality is not None else 0.0),
        judged.candidate.id,
    )


def _comparisons(ranked: Sequence[Judged], strategy: str) -> list[tuple[Judged, Judged]]:
    if len(ranked) < 2:
        return []
    if strategy == "best_worst":
        return [(ranked[0], ranked[-1])]
    if strategy == "best_rest":
        return [(ranked[0], other) for other in ranked[1:]]
    every = list(combinations(ranked, 2))
    if strategy == "best_rest_safe_unsafe":
        return [
            (a, b) for a, b in every if a is ranked[0] or a.assessment.safe != b.assessment.safe
        ]
    return every


def pairs_line(result: Pairing) -> str:
    """One line for the terminal, with its arithmetic."""
    risk: Mapping[str, int] = result.by_risk
    rule: Mapping[str, int] = result.by_rule
    return (
        f"{len(result.pairs)} pairs = {rule['safety']} by safety ({result.borrowed} against "
        f"borrowed replies) + {rule['quality']} by quality; "
        f"by risk of the message: {risk['none']} none + {risk['elevated']} elevated + "
        f"{risk['crisis']} crisis"
    )
