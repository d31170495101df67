"""What the training benchmark measured: seconds, memory, the longest prompt, what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rlaif.bench.rules import Equality, Ratio, paired_ratio
from rlaif.bench.work import OURS, Ready, Work


@dataclass(frozen=True)
class Timing:
    """What one contestant took for updates of one work.

    Attributes:
        amount: useful work of an update, in the work's unit.
        prompts: of an update.
        seconds: of each measured round.
        peak: bytes of its process, or of the GPU, at their most.
    """

    work: Work
    who: str
    amount: int
    prompts: int
    seconds: Sequence[float]
    peak: int

    @property
    def per_second(self) -> Ratio:
        """Useful work per second: median, least and greatest."""
        rates = [self.amount / each for each in self.seconds]
        return Ratio(median(rates), min(rates), max(rates))

    @property
    def prompts_per_second(self) -> float:
        """The same work in prompts: median."""
        return self.per_second.value * self.prompts / self.amount

    def line(self) -> str:
        """The figures in one line."""
        rate = self.per_second
        return (
            f"{self.work.key}: {self.who}, {rate.value:.2f} {self.work.unit} per second "
            f"({rate.low:.2f} to {rate.high:.2f}), peak {self.peak / 2**20:.0f} MiB"
        )


@dataclass(frozen=True)
class Longest:
    """The longest prompt of ours in the memory that an opponent takes for a prompt of `base`.

    Attributes:
        cap: bytes that the opponent needs beyond its start.
        base: words of the opponent's prompt.
        fits: words of our longest prompt that was tried and fits; None = not even the shortest.
        beyond: words of the next one that was tried, which does not; None = all fit.
    """

    work: Work
    against: str
    cap: int
    base: int
    fits: int | None
    beyond: int | None


@dataclass(frozen=True)
class Missing:
    """A work that was not measured, or not against somebody, and why."""

    work: Work
    reason: str
    against: str | None = None


@dataclass(frozen=True)
class Row:
    """One ratio: the opponent's time over ours, or our longest prompt over the opponent's."""

    work: Work
    against: str
    ratio: Ratio


@dataclass(frozen=True)
class Figures:
    """Everything that a run found."""

    ready: Ready
    gates: Mapping[Work, Sequence[Equality]]
    timings: Sequence[Timing]
    longest: Sequence[Longest]
    missing: Sequence[Missing]

    def rows(self) -> list[Row]:
        """All ratios, in the order in which they were measured."""
        ours = {each.work: each.seconds for each in self.timings if each.who == OURS}
        found = [
            Row(each.work, each.who, paired_ratio(each.seconds, ours[each.work]))
            for each in self.timings
            if each.who != OURS
        ]
        for each in self.longest:
            if each.fits is not None:
                reached = each.fits / each.base
                # What is the longest lies between the last that fits and the first that does not.
                next_one = each.beyond / each.base if each.beyond else reached
                found.append(Row(each.work, each.against, Ratio(reached, reached, next_one)))
        return found

    def not_measured(self) -> list[Missing]:
        """What has no ratio, and why."""
        short = [
            Missing(each.work, "not even the shortest prompt that was tried fits", each.against)
            for each in self.longest
            if each.fits is None
        ]
        return [*self.missing, *short]
