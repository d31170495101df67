"""Shares and means with their 95 % intervals: Wilson's, and the bootstrap that draws clusters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959964  # 97.5 % quantile of the normal distribution: two-sided 95 %
_CHUNK = 4_000_000  # drawn indices held at once: 32 MB
_UNDEFINED = 0.05  # of the draws may have no value; with more there is no interval


def bootstrap_mean(
    values: Sequence[float], clusters: Sequence[str], *, n_resamples: int, seed: int
) -> tuple[float, float, float]:
    """Mean and its 95 % percentile-bootstrap interval, whole clusters drawn with replacement.

    Replies to one prompt are not independent, so prompts are drawn, not replies: Davison & Hinkley
    (1997), "Bootstrap Methods and their Application", section 3.8; percentile interval: Efron &
    Tibshirani (1993), eq. 13.5.

    Args:
        values: one figure per reply, shape (n,), n >= 1.
        clusters: the prompt of each reply, shape (n,).
        n_resamples: how often the clusters are drawn.
        seed: of the draw; the same input gives the same interval.

    Returns:
        (mean, low, high), in the unit of the values.
    """
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.bincount(codes, weights=np.asarray(values, dtype=float))
    counts = np.bincount(codes)
    n = len(counts)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    means: list[NDArray[np.float64]] = []
    for start in range(0, n_resamples, step):
        drawn = rng.integers(0, n, size=(min(step, n_resamples - start), n))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(sums.sum() / counts.sum()), float(low), float(high)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float],
    clusters: Sequence[str],
    *,
    n_resamples: int,
    seed: int,
) -> tuple[float, float, float]:
    """Any statistic and its 95 % percentile-bootstrap interval; clusters as in `bootstrap_mean`.

    Args:
        statistic: takes row numbers, shape (m,), a drawn cluster's rows as often as it was drawn;
            NaN where it is undefined (a correlation of constants).
        clusters: the cluster of each row, shape (n,), n >= 1.
        n_resamples: how often the clusters are drawn.
        seed: of the draw.

    Returns:
        (value, low, high); NaN for both ends where over 5 % of the draws are undefined.
    """
    codes = np.unique(np.asarray(clusters), return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            statistic(
                np.concatenate([members[c] for c in rng.integers(0, len(members), len(members))])
            )
            for _ in range(n_resamples)
        ]
    )
    value = float(statistic(np.arange(len(codes))))
    known = drawn[np.isfinite(drawn)]
    if len(known) < (1 - _UNDEFINED) * n_resamples:
        return value, math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return value, float(low), float(high)


def wilson(k: float, n: int) -> tuple[float, float, float]:
    """Share k / n and its 95 % score interval.

    Wilson (1927), JASA 22:209: it holds at 0 and 1 and for small n.

    Args:
        k: successes, 0..n.
        n: independent trials, >= 1.

    Returns:
        (share, low, high), within 0..1.
    """
    p = k / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))
