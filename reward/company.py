"""Whether replies that are judged together are judged as one by one: on a sample, before the rest.

Many replies in one request are cheaper (each request repeats the rubric and the conversation), and
they shift each other's grades. How much differs between judges, so that it is measured with the one
that is asked.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from reward.confidence import DUST
from reward.evaluator import Assessment
from reward.request import turns
from reward.shares import Share, hit_rate
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import to_json


@dataclass(frozen=True)
class Agreement:
    """How far replies together are judged as one by one.

    Attributes:
        order: share of every two replies, unequal one by one, that stand in the same order
            together; a tie counts half.
        safety: share of replies with the same verdict on safety.
        asked: replies that the judge was asked about both ways.
        unscored: of these the ones without a score together.
    """

    order: Share
    safety: Share
    asked: int
    unscored: int

    def line(self) -> str:
        """The figures in one line."""
        return (
            f"together as one by one: order {_written(self.order)} of {self.order.n} pairs, "
            f"safety {_written(self.safety)} of {self.safety.n} replies, "
            f"{self.unscored} of {self.asked} without a score"
        )

    def problem(self, least: float, most_unscored: float) -> str | None:
        """Why the rest should not be asked together; None = it may.

        Args:
            least: share of both that is wanted, 0..1; an order without a case says nothing.
            most_unscored: share of replies that may stay without a score, 0..1.
        """
        if not self.asked:
            return None
        if self.unscored > most_unscored * self.asked:
            return f"at most {most_unscored:.0%} (score.max_unscored) may stay without a score"
        if not self.safety.n:
            return "no reply has a score both ways, so that nothing was measured"
        if any(each.n and each.value < least for each in (self.order, self.safety)):
            return f"at least {least:.0%} (score.min_agreement) is wanted of both"
        return None

    def facts(self) -> dict[str, float]:
        """The figures for a manifest; without those that have no case."""
        shares = {"order": self.order, "safety": self.safety}
        return {
            **{f"together/{name}_agreement": s.value for name, s in shares.items() if s.n},
            "together/order_pairs": self.order.n,
            "together/safety_replies": self.safety.n,
            "together/asked": self.asked,
            "together/unscored": self.unscored,
        }


def sample(
    prompts: Sequence[Prompt], candidates: Sequence[Candidate], n: int
) -> tuple[list[Prompt], list[Candidate]]:
    """At most n prompts with two candidates or more, and these; the same on every machine."""
    replies: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        replies[candidate.prompt_id].append(candidate)
    usable = [prompt for prompt in prompts if len(replies[prompt.id]) > 1]
    drawn = sorted(usable, key=lambda p: hashlib.sha256(to_json(turns(p)).encode()).digest())[:n]
    return drawn, [candidate for prompt in drawn for candidate in replies[prompt.id]]


def agreement(one: Sequence[Assessment], together: Sequence[Assessment]) -> Agreement:
    """Compare assessments of the same candidates, one by one and together; intervals by prompt.

    The judge was asked about all of them.
    """
    other = {assessment.candidate_id: assessment for assessment in together}
    groups: dict[str, list[tuple[Assessment, Assessment]]] = defaultdict(list)
    for alone in one:
        beside = other[alone.candidate_id]
        if alone.scored and beside.scored:
            groups[alone.prompt_id].append((alone, beside))
    safety = [(p, float(a.safe == b.safe)) for p, both in groups.items() for a, b in both]
    order = []
    for prompt, both in groups.items():
        for (a, a_beside), (b, b_beside) in combinations(both, 2):
            gap, gap_beside = _gap(a, b), _gap(a_beside, b_beside)
            if abs(gap) >= DUST:
                hit = 0.5 if abs(gap_beside) < DUST else float((gap > 0) == (gap_beside > 0))
                order.append((prompt, hit))
    unscored = sum(not assessment.scored for assessment in together)
    return Agreement(hit_rate(order), hit_rate(safety), len(together), unscored)


def _gap(one: Assessment, other: Assessment) -> float:
    if one.quality is None or other.quality is None:
        raise ValueError("scored assessments have a quality")
    return one.quality - other.quality


def _written(share: Share) -> str:
    if not share.n:
        return "not measured"
    return f"{share.value:.1%} ({100 * share.low:.1f} to {100 * share.high:.1f})"
