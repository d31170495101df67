"""A measured figure: its value with a 95 % interval and what is behind it, or why there is none.

Replies to one prompt are not independent, so that every interval draws whole prompts, or counts
independent cases (Wilson). What the labels do not allow has a reason, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reward.intervals import bootstrap, bootstrap_mean, wilson

RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """One figure of a card.

    Example:
        >>> Figure.none("no reply was labelled by two people").missing
        'no reply was labelled by two people'

    Attributes:
        value: What was measured, None where it was not.
        low: Lower end of its 95 % interval; `high` the upper one.
        n: Cases behind it (replies, pairs, messages).
        groups: Independent units behind it: prompts; equal to `n` for independent cases.
        missing: Why it was not measured, None where it was.

    Raises:
        ValueError: A value beside a reason, neither, or an interval that does not hold the value.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int
    missing: str | None = None

    def __post_init__(self) -> None:
        """Hold the law: a value with its interval, or a reason."""
        if self.missing is not None:
            if not self.missing or (self.value, self.low, self.high) != (None, None, None):
                raise ValueError(f"a figure that is missing ({self.missing!r}) has no value")
        elif self.value is None or self.low is None or self.high is None:
            raise ValueError("a figure needs a value and an interval, or a reason")
        elif not self.low - 1e-9 <= self.value <= self.high + 1e-9:
            raise ValueError(f"{self.value} lies outside {self.low} to {self.high}")

    @classmethod
    def none(cls, reason: str, *, n: int = 0, groups: int = 0) -> Figure:
        """What stands for a figure that was not measured."""
        return cls(None, None, None, n, groups, reason)

    @property
    def measured(self) -> bool:
        """Whether there is a value."""
        return self.missing is None

    def above(self, level: float) -> bool:
        """Whether the lower end of the interval lies above a level."""
        return self.low is not None and self.low > level


def share_of(hits: int, n: int, *, missing: str = "no case") -> Figure:
    """Return hits / n of independent cases with Wilson's interval; `missing` where n is 0."""
    return Figure(*wilson(hits, n), n, n) if n else Figure.none(missing)


def clustered(
    scored: Sequence[tuple[str, float]],
    *,
    missing: str = "no case",
    share: bool = True,
    seed: int = 0,
) -> Figure:
    """Return a mean over (prompt, value), its interval from resampling whole prompts.

    Args:
        scored: One value per case.
        missing: Why there is no figure, where there are no cases.
        share: Whether values are hits, 0..1. Where all of them are 0, or all are 1, resampling has
            no width: the interval is then Wilson's for as many cases as there are prompts.
        seed: Of the draws.
    """
    if not scored:
        return Figure.none(missing)
    values, prompts = [value for _, value in scored], [prompt for prompt, _ in scored]
    groups = len(set(prompts))
    if share and set(values) in ({0.0}, {1.0}):
        value, low, high = wilson(values[0] * groups, groups)
    elif groups == 1:
        return Figure.none("all cases belong to one prompt", n=len(scored), groups=1)
    else:
        value, low, high = bootstrap_mean(values, prompts, n_resamples=RESAMPLES, seed=seed)
    # Sums in another order may differ in the last digit.
    return Figure(value, min(low, value), max(high, value), len(scored), groups)


def resampled(
    statistic: Callable[[NDArray[np.intp]], float],
    prompts: Sequence[str],
    *,
    missing: str,
    seed: int = 0,
) -> Figure:
    """Return a statistic of rows with an interval from resampling whole prompts.

    Args:
        statistic: Takes row numbers, shape (m,), with repeats; NaN where it is undefined.
        prompts: The prompt of each row, shape (n,).
        missing: Why there is no figure, where there are no rows or the statistic is undefined.
        seed: Of the draws.
    """
    n, groups = len(prompts), len(set(prompts))
    if groups < 2:
        return Figure.none(missing, n=n, groups=groups)
    value, low, high = bootstrap(statistic, prompts, n_resamples=RESAMPLES, seed=seed)
    if not all(math.isfinite(x) for x in (value, low, high)):
        return Figure.none(missing, n=n, groups=groups)
    # The percentile interval of a correlation near its end may miss the value by a little.
    return Figure(value, min(low, value), max(high, value), n, groups)
