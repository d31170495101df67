"""Coefficients of agreement: ranks, and levels corrected for chance; intervals draw prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import krippendorff
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from reward.figures import Figure, clustered, resampled

Rated = Sequence[tuple[str, float, float]]  # (prompt, one's level, another's) of each unit
Statistic = Callable[[NDArray[np.intp]], float]


def rank_correlation(
    x: Sequence[float], y: Sequence[float], prompts: Sequence[str], *, within: bool, missing: str
) -> Figure:
    """Return Spearman's rank correlation, over all rows or within prompts.

    Spearman (1904), Am. J. Psychol. 15:72. Within: ranks are taken per prompt and centred there, so
    that only replies to one prompt are compared.

    Args:
        x: One figure per row, shape (n,).
        y: The other figure per row, shape (n,).
        prompts: The prompt of each row, shape (n,).
        within: Whether figures of different prompts are not comparable.
        missing: Why there is none, where rows are too few or all equal.
    """
    (statistic,), kept = _correlations([x], y, prompts, within)
    return resampled(statistic, kept, missing=missing)


def rank_lead(
    x: Sequence[float],
    baseline: Sequence[float],
    y: Sequence[float],
    prompts: Sequence[str],
    *,
    within: bool,
    missing: str,
) -> Figure:
    """Return how much higher x correlates with y than a baseline does, on the same draws.

    Args and shapes as in `rank_correlation`.
    """
    (ours, theirs), kept = _correlations([x, baseline], y, prompts, within)
    return resampled(lambda rows: ours(rows) - theirs(rows), kept, missing=missing)


def _correlations(
    xs: Sequence[Sequence[float]], y: Sequence[float], prompts: Sequence[str], within: bool
) -> tuple[list[Statistic], list[str]]:
    """Return for each x its correlation with y as a function of rows, and the rows' prompts."""
    values = [np.asarray(v, dtype=float) for v in (*xs, y)]
    if not within:

        def over_all(a: NDArray[np.float64], rows: NDArray[np.intp]) -> float:
            return _pearson(_centred(a[rows]), _centred(values[-1][rows]))

        return [partial(over_all, a) for a in values[:-1]], list(prompts)
    members: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        members.setdefault(prompt, []).append(row)
    groups = [rows for rows in members.values() if len(rows) > 1]
    kept = [prompts[row] for rows in groups for row in rows]
    ranks = [np.concatenate([np.zeros(0), *(_centred(v[rows]) for rows in groups)]) for v in values]

    def in_prompts(a: NDArray[np.float64], rows: NDArray[np.intp]) -> float:
        return _pearson(a[rows], ranks[-1][rows])

    return [partial(in_prompts, a) for a in ranks[:-1]], kept


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks: NDArray[np.float64] = rankdata(values)
    return ranks - ranks.mean()


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else math.nan


def weighted_kappa(table: NDArray[np.float64]) -> float:
    """Return kappa with quadratic weights; NaN where chance agreement is complete.

    Cohen (1968), Psychol. Bull. 70:213: 1 - sum(w * observed) / sum(w * expected), w = (i - j)^2.

    Args:
        table: Counts, shape (levels, levels): the one's level by the other's.
    """
    levels = np.arange(len(table))
    weights = (levels[:, None] - levels[None, :]) ** 2
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    by_chance = float((weights * expected).sum())
    return 1 - float((weights * table).sum()) / by_chance if by_chance > 0 else math.nan


def chance_corrected(rated: Rated, levels: Sequence[float], missing: str) -> dict[str, Figure]:
    """Return percent agreement, weighted kappa and Krippendorff's alpha of two raters of each unit.

    Alpha is ordinal: Krippendorff (2011), "Computing Krippendorff's alpha-reliability".

    Args:
        rated: Every unit with both levels, which are among `levels`.
        levels: All levels in order.
        missing: Why there is none, where there are no units.
    """
    names = ("percent agreement", "weighted kappa", "Krippendorff alpha")
    if not rated:
        return {name: Figure.none(missing) for name in names}
    prompts = [prompt for prompt, _, _ in rated]
    place = {level: i for i, level in enumerate(levels)}
    one = np.array([place[level] for _, level, _ in rated])
    other = np.array([place[level] for _, _, level in rated])
    size = len(levels)

    def kappa(rows: NDArray[np.intp]) -> float:
        flat = np.bincount(one[rows] * size + other[rows], minlength=size * size)
        return weighted_kappa(flat.reshape(size, size).astype(float))

    counts = np.zeros((len(rated), size))
    np.add.at(counts, (np.arange(len(rated)), one), 1)
    np.add.at(counts, (np.arange(len(rated)), other), 1)

    def alpha(rows: NDArray[np.intp]) -> float:
        drawn = counts[rows]
        if (drawn.sum(axis=0) > 0).sum() < 2:
            return math.nan
        return krippendorff.alpha(value_counts=drawn, level_of_measurement="ordinal")

    same = [(prompt, float(a == b)) for prompt, a, b in zip(prompts, one, other, strict=True)]
    constant = "all levels are equal: nothing to correct for"
    return {
        names[0]: clustered(same, missing=missing),
        names[1]: resampled(kappa, prompts, missing=constant),
        names[2]: resampled(alpha, prompts, missing=constant),
    }
