"""Whether probabilities hold: of what is said with 70 %, 70 % should come true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BINS = 5  # of equal width between the least probability and 1


@dataclass(frozen=True)
class Calibration:
    """How well probabilities hold, in bins of equal width.

    Attributes:
        error: expected calibration error: mean over cases of the distance between a bin's mean
            probability and its share of outcomes (Guo et al. 2017, arXiv:1706.04599, equation 3).
        bins: low and high end, cases, mean probability and mean outcome of each bin that has any.
    """

    error: float
    bins: list[dict[str, float]]


def calibration(cases: Sequence[tuple[float, float]], least: float) -> Calibration:
    """Calibration of (probability, outcome) cases.

    Args:
        cases: probabilities from `least` to 1, and outcomes from 0 to 1.
        least: 0.5 where the probability is that of the side that was chosen; else 0.
    """
    width, bins, error = (1 - least) / BINS, [], 0.0
    for i in range(BINS):
        low = least + i * width
        inside = [(p, hit) for p, hit in cases if min(BINS - 1, int((p - least) / width)) == i]
        if inside:
            p = sum(p for p, _ in inside) / len(inside)
            hit = sum(hit for _, hit in inside) / len(inside)
            error += abs(p - hit) * len(inside) / len(cases)
            bins.append({"low": low, "high": low + width, "n": len(inside), "p": p, "hits": hit})
    return Calibration(error, bins)
