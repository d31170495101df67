"""The rules of the training benchmark, as pure functions: equal first, turns, ratios, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from sft.files import CheckFailed

LOSS_TOLERANCE = 1e-5  # relative, in float32
COSINE = 0.99999  # of the gradients of what learns
NORM_TOLERANCE = 1e-4  # of their lengths, relative: a cosine does not see a factor

Name = TypeVar("Name")


@dataclass(frozen=True)
class Equality:
    """How far a contestant is from the first one on the same material.

    Attributes:
        loss: relative difference of the losses.
        cosine: of the gradients.
        norm: relative difference of the gradients' lengths.
    """

    who: str
    loss: float
    cosine: float
    norm: float

    @property
    def holds(self) -> bool:
        """Whether the contestant computes the same; NaN does not."""
        return self.loss <= LOSS_TOLERANCE and self.cosine >= COSINE and self.norm <= NORM_TOLERANCE


def check_equal(work: str, first: str, found: Sequence[Equality]) -> None:
    """The gate: nothing is timed unless all contestants compute the same.

    Raises:
        CheckFailed: one does not.
    """
    wrong = [each for each in found if not each.holds]
    if wrong:
        lines = "; ".join(
            f"{e.who}: loss differs by {e.loss:.1e}, cosine of gradients {e.cosine:.7f}, their "
            f"lengths differ by {e.norm:.1e}"
            for e in wrong
        )
        raise CheckFailed(f"{work}: not the work of '{first}', so nothing is timed: {lines}")


def turns(names: Sequence[Name], rounds: int) -> list[list[Name]]:
    """The order of each round: everybody once, and another one first each time.

    Example:
        >>> turns(["a", "b", "c"], 2)
        [['a', 'b', 'c'], ['b', 'c', 'a']]
    """
    starts = (number % len(names) for number in range(rounds))
    return [[*names[start:], *names[:start]] for start in starts]


@dataclass(frozen=True)
class Ratio:
    """How many times as fast, with the range that it is known to."""

    value: float
    low: float
    high: float


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Median, least and greatest of the rounds' ratios theirs / ours.

    What slows a machine for a while slows both sides of a round. From least to greatest of five
    independent rounds holds the true median with 1 - 2 / 2^5 = 94 % (order statistics: David &
    Nagaraja 2003, section 7.1).

    Args:
        theirs: seconds of each measured round.
        ours: seconds of the same rounds.

    Raises:
        ValueError: no rounds, or not the same number of them.
    """
    each = [a / b for a, b in zip(theirs, ours, strict=True)]
    if not each:
        raise ValueError("a ratio needs a round")
    return Ratio(median(each), min(each), max(each))


def longest_fitting(
    sizes: Sequence[int], memory: Callable[[int], float], cap: float
) -> tuple[int | None, int | None]:
    """Last size whose memory is within the cap, and the first whose is not, by bisection.

    Args:
        sizes: rising; memory is taken to rise with them.
        memory: of a size.
        cap: in the same unit.

    Returns:
        Two neighbours of `sizes`; None in place of one that is beyond the list's end.
    """
    fits, too_large = -1, len(sizes)
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        if memory(sizes[middle]) <= cap:
            fits = middle
        else:
            too_large = middle
    return (
        sizes[fits] if fits >= 0 else None,
        sizes[too_large] if too_large < len(sizes) else None,
    )
