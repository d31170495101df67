"""How far a difference of quality is trusted: repeat noise, the tie band, a pair's confidence.

Noise is what one judge says differently when it is asked the same again. A judge's own severity
cancels in the difference of two replies that it judged both; what judges see differently in a reply
does not, and counts as disagreement of the panel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from reward.evaluator import Assessment, by_judge
from sft.files import UserError

TIE_Z = 1.96  # standard errors; 95 % of differences between equal replies are smaller
DUST = 1e-9  # differences of quality below this are rounding
# Degrees of freedom from which s is used: Student's t has its 97.5 % point at 2.04 there, 4 % above
# TIE_Z; with 5 degrees it is 2.57 and the band would be a quarter too narrow.
LEAST_DEGREES = 30


@dataclass(frozen=True)
class RepeatNoise:
    """The evaluator's repeatability.

    Attributes:
        sd: pooled standard deviation of quality between repeats, on the scale of quality (0..1).
        degrees: its degrees of freedom, the sum of (repeats - 1).
        repeated: candidates that one judge judged more than once.
    """

    sd: float
    degrees: int
    repeated: int

    @property
    def known(self) -> bool:
        """Whether there are enough repeats, and any two of them differ."""
        return self.degrees >= LEAST_DEGREES and self.sd > DUST

    def standard_error(self, first: Assessment, second: Assessment) -> float:
        """Standard error of the difference of two qualities, each a mean over its repeats."""
        return self.sd * math.sqrt(variance_share(first) + variance_share(second))


def repeat_noise(assessments: Sequence[Assessment]) -> RepeatNoise:
    """Pool the repeats of all candidates.

    s^2 = sum over candidates and judges of sum_j (q_j - mean)^2, over the sum of (n - 1): the mean
    square within groups of a one-way analysis of variance, and the repeatability variance of ISO
    5725-2. Candidates may have unequal numbers of repeats, or none.
    """
    squares, degrees, repeated = 0.0, 0, 0
    for assessment in assessments:
        groups = [own for own in by_judge(assessment.judgements).values() if len(own) > 1]
        repeated += bool(groups)
        for own in groups:
            mean = fmean(j.quality for j in own)
            squares += sum((j.quality - mean) ** 2 for j in own)
            degrees += len(own) - 1
    return RepeatNoise(math.sqrt(squares / degrees) if degrees else 0.0, degrees, repeated)


def variance_share(assessment: Assessment) -> float:
    """Variance of `quality` in units of s^2, in (0, 1]: 1 asked once, 1/n for n repeats.

    For a panel of M judges with n_m repeats (1/M^2) sum_m 1/n_m, as for any mean of means.
    """
    if not assessment.judgements:
        return 1.0
    repeats = [len(own) for own in by_judge(assessment.judgements).values()]
    return sum(1 / n for n in repeats) / len(repeats) ** 2


def tie_band(
    first: Assessment, second: Assessment, margin: float | str, noise: RepeatNoise
) -> float:
    """Difference of quality below which two replies are a tie.

    A number is itself. "auto" is the critical difference of two means under repeatability
    conditions (ISO 5725-6), 1.96 * s * sqrt(1/n_1 + 1/n_2); with n repeats of both it is
    1.96 * s * sqrt(2/n).

    Raises:
        UserError: "auto", and the noise is not known.
    """
    if not isinstance(margin, str):
        return margin
    require_known(noise)
    return TIE_Z * noise.standard_error(first, second)


def require_known(noise: RepeatNoise) -> None:
    """Refuse a tie band from repeats that are not there.

    Raises:
        UserError: too few repeats, or repeats that never differ; says what to do.
    """
    number = "or set pair.margin to a number (0.05)"
    if noise.degrees < LEAST_DEGREES:
        raise UserError(
            "pair.margin auto needs the evaluator's repeats: "
            f"{noise.repeated} candidates were judged more than once by the same judge, which "
            f"gives {noise.degrees} degrees of freedom of the {LEAST_DEGREES} needed. Have "
            f"candidates judged twice or more (score.repeats 2; 30 of them are enough), {number}"
        )
    if not noise.known:
        raise UserError(
            f"pair.margin auto: the {noise.repeated} candidates judged again got the same quality "
            "each time, so that the repeats tell nothing of noise (an evaluator without chance, or "
            f"stored answers read twice). Have them judged afresh, {number}"
        )


def trust(difference: float) -> float:
    """How far a difference of quality is trusted without repeats: 0.5 + |difference| / 2."""
    return 0.5 + abs(difference) / 2


def confidence(chosen: Assessment, rejected: Assessment, noise: RepeatNoise) -> float:
    """How likely a pair is the right way round, in (0.5, 1].

    0.5 + (p - 0.5) * agreement. For two safe replies p is the probability that the true difference
    has the sign of d = chosen - rejected quality under normal noise and a flat prior,
    Phi(d / (s sqrt(1/n_1 + 1/n_2))), or `trust(d)` where noise is not known; it rises with d. Where
    the safety flow decided p is 1. Agreement, in (0, 1], is the share of verdicts that call the
    chosen reply safe, times that of those that call the rejected one unsafe or, of two safe
    replies, times the panel's vote for the chosen one. The shrinking by agreement is a choice of
    this project: a panel that is split in two says half as much.

    Both are scored, the chosen one is safe, and of two safe replies it has the higher quality.
    """
    if chosen.quality is None or rejected.quality is None:
        raise ValueError("a pair has two scored replies")
    agreement = verdict_share(chosen)
    if not rejected.safe:
        return 0.5 + 0.5 * agreement * verdict_share(rejected)
    return 0.5 + (quality_confidence(chosen, rejected, noise) - 0.5) * agreement


def quality_confidence(better: Assessment, worse: Assessment, noise: RepeatNoise) -> float:
    """How likely one reply is of higher quality than another, in (0.5, 1], safety apart.

    `confidence` has the formula; the panel's vote counts, its safety verdicts do not.
    """
    if better.quality is None or worse.quality is None:
        raise ValueError("a comparison has two scored replies")
    difference = better.quality - worse.quality
    if noise.known:
        likely = NormalDist().cdf(difference / noise.standard_error(better, worse))
    else:
        likely = trust(difference)
    return 0.5 + (likely - 0.5) * vote_share(better, worse)


def verdict_share(assessment: Assessment) -> float:
    """Share of safety verdicts that say what the assessment says, each judge counting 1, (0, 1]."""
    if not assessment.judgements:
        return 1.0
    return fmean(
        fmean(j.safe == assessment.safe for j in own)
        for own in by_judge(assessment.judgements).values()
    )


def vote_share(chosen: Assessment, rejected: Assessment) -> float:
    """Share of a panel's judges that grade the chosen reply higher, in (0, 1].

    Judges are those who judged both replies; one who sees no difference counts half. Their mean,
    which decided, votes too, so that the share is never 0. 1 where fewer than two judged both.
    """
    ours, theirs = by_judge(chosen.judgements), by_judge(rejected.judgements)
    both = ours.keys() & theirs.keys()
    if len(both) < 2:
        return 1.0
    votes = 1.0
    for judge in both:
        lead = fmean(j.quality for j in ours[judge]) - fmean(j.quality for j in theirs[judge])
        votes += 0.5 if abs(lead) < DUST else float(lead > 0)
    return votes / (len(both) + 1)
