"""What the refine stage made, pass by pass: `report.json` and the terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import fmean

from reward.evaluator import Assessment
from reward.pairing import Judged, Pair, words
from sft.candidates import Candidate


@dataclass
class Pass:
    """What came of one pass of rewriting.

    Attributes:
        outcomes: rewritten replies by what became of them: "preferred", or why not.
        before: (quality, words) of the replies that were rewritten and judged.
        after: the same of what they became, in the same order.
    """

    number: int
    outcomes: Counter[str] = field(default_factory=Counter)
    before: list[tuple[float, int]] = field(default_factory=list)
    after: list[tuple[float, int]] = field(default_factory=list)

    def measure(self, before: Judged, after: Judged) -> None:
        """Note quality and words of a reply and of what it became, where both have a score."""
        qualities = (before.assessment.quality, after.assessment.quality)
        if qualities[0] is not None and qualities[1] is not None:
            self.before.append((qualities[0], words(before.candidate.text)))
            self.after.append((qualities[1], words(after.candidate.text)))

    def figures(self) -> dict[str, float]:
        """The figures for metrics and report; means are over all that were judged."""
        found: dict[str, float] = {
            "rewritten": sum(self.outcomes.values()),
            "preferred": self.outcomes["preferred"],
            "judged": len(self.after),
        }
        for name, each in (("before", self.before), ("after", self.after)):
            if each:
                found[f"quality_{name}"] = fmean(quality for quality, _ in each)
                found[f"words_{name}"] = fmean(count for _, count in each)
        return found

    def line(self) -> str:
        """The figures in one line, with their arithmetic."""
        listed = " + ".join(f"{n} {what}" for what, n in self.outcomes.most_common())
        text = f"pass {self.number}: {listed} = {sum(self.outcomes.values())} rewritten"
        if not self.after:
            return text
        f = self.figures()
        return (
            f"{text}; quality {f['quality_before']:.2f} -> {f['quality_after']:.2f}, words "
            f"{f['words_before']:.0f} -> {f['words_after']:.0f}"
        )


@dataclass
class Refined:
    """What the stage made.

    Attributes:
        candidates: rewritten replies, each with the one that it was made from.
        assessments: of those that were judged.
        pairs: the last preferred reply of a prompt against the first one.
        skipped: prompts without a reply to rewrite, by reason.
    """

    candidates: list[Candidate] = field(default_factory=list)
    assessments: list[Assessment] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """What the terminal says: a line per pass, and how many pairs there are."""
        last = f"{len(self.pairs)} pairs of a rewritten reply against the first one"
        return "\n".join([*(each.line() for each in self.passes), last])

    def report(self) -> dict[str, object]:
        """`report.json`."""
        return {
            "pairs": len(self.pairs),
            "by_rule": Counter(pair.rule for pair in self.pairs),
            "skipped": self.skipped,
            "passes": [each.figures() | {"outcomes": each.outcomes} for each in self.passes],
        }
