"""Means with an interval that is always there, for reports whose tables have no gaps.

Where a card says why a figure is missing (`reward.figures`), a report of many groups says how
little a small one tells: 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from reward import figures


@dataclass(frozen=True)
class Share:
    """A mean of n cases with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def clustered(scored: Sequence[tuple[str, float]]) -> Share:
    """Return a mean over (cluster, value), its interval from resampling whole clusters.

    No case, or cases of one cluster alone, say nothing: 0..1.
    """
    return _always(scored, figures.clustered(scored, share=False))


def hit_rate(scored: Sequence[tuple[str, float]]) -> Share:
    """Return a mean over (cluster, hit 0..1).

    As `clustered`; where all are hits or none is, the interval is Wilson's, with clusters as
    trials, because drawing them again could only give the same.
    """
    return _always(scored, figures.clustered(scored))


def _always(scored: Sequence[tuple[str, float]], found: figures.Figure) -> Share:
    if found.value is None or found.low is None or found.high is None:
        return Share(fmean(value for _, value in scored) if scored else 0.0, 0.0, 1.0, found.n)
    return Share(found.value, found.low, found.high, found.n)
