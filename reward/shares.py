"""Means with an interval that is always there, for reports whose tables have no gaps.

Where a card says why a figure is missing (`reward.figures`), a report of many groups says how
little a small one tells: 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from reward import figures
from reward.intervals import wilson


@dataclass(frozen=True)
class Share:
    """A mean of n cases with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def share_of(hits: int, n: int) -> Share:
    """Return hits / n with Wilson's interval; n = 0 says nothing: 0..1."""
    return Share(*wilson(hits, n), n) if n else Share(0.0, 0.0, 1.0, 0)


def clustered(scored: Sequence[tuple[str, float]], seed: int = 0) -> Share:
    """Return a mean over (cluster, value), its interval from resampling whole clusters.

    No case, or cases of one cluster alone, say nothing: 0..1.
    """
    found = figures.clustered(scored, share=False, seed=seed)
    if found.value is None or found.low is None or found.high is None:
        return Share(fmean(value for _, value in scored) if scored else 0.0, 0.0, 1.0, found.n)
    return Share(found.value, found.low, found.high, found.n)
