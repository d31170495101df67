"""Measures with their intervals: the statistics of a comparison, and what is measured of a text.

No model and no judge. Not here: the intervals themselves (`reward.intervals`), which columns are
compared (`rlaif.compare`), what may be released (`rlaif.safety`), how it is shown (`rlaif.report`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from reward.intervals import bootstrap_mean, wilson

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")


@dataclass(frozen=True)
class Measure:
    """One figure of one side with its 95 % interval.

    Attributes:
        name: `unsafe_rate_crisis`, `words`, ...
        value: the figure; low and high: its interval.
        n: judged replies (or pairs of replies) behind it; n_unscored: those that gave no figure and
            are left out.
        higher_is_better: None where neither direction is better by itself (words).
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    n_unscored: int
    higher_is_better: bool | None


@dataclass(frozen=True)
class Resampling:
    """How the bootstrap draws: `n` times, from this seed."""

    n: int
    seed: int


def interval(
    values: Sequence[float], clusters: Sequence[str], *, trials: bool, resampling: Resampling
) -> tuple[float, float, float]:
    """Mean and 95 % interval by the method that fits the values.

    Args:
        values: one figure per reply.
        clusters: the prompt of each reply.
        trials: the values are outcomes: 0 = no, 1 = yes, 0.5 = a tie. With one yes or no per
            prompt the interval is Wilson's, and also where all outcomes are alike (0 unsafe of
            120), where drawing again could only give the same; then the prompts are the trials.
            Everything else: the clustered bootstrap.
        resampling: of the bootstrap.

    Returns:
        (mean, low, high).
    """
    n_clusters = len(set(clusters))
    distinct = set(values)
    single = n_clusters == len(values) and distinct <= {0.0, 1.0}
    if trials and (single or len(distinct) == 1):
        return wilson(sum(values) / len(values) * n_clusters, n_clusters)
    return bootstrap_mean(values, clusters, n_resamples=resampling.n, seed=resampling.seed)


def measure(
    name: str,
    values: Sequence[float | None],
    clusters: Sequence[str],
    *,
    trials: bool,
    higher_is_better: bool | None,
    resampling: Resampling,
) -> Measure | None:
    """Measure a column in which None stands for an unscored reply; None where none was scored."""
    pairs = zip(values, clusters, strict=True)
    scored = [(value, cluster) for value, cluster in pairs if value is not None]
    if not scored:
        return None
    kept, where = [v for v, _ in scored], [c for _, c in scored]
    value, low, high = interval(kept, where, trials=trials, resampling=resampling)
    n_unscored = len(values) - len(scored)
    return Measure(name, value, low, high, len(scored), n_unscored, higher_is_better)


def difference(
    name: str,
    ours: Sequence[float | None],
    theirs: Sequence[float | None],
    clusters: Sequence[str],
    *,
    higher_is_better: bool | None,
    resampling: Resampling,
) -> Measure | None:
    """Measure "ours minus theirs" over rows scored on both sides; None where there are none.

    Both replies answer the same prompt, so the difference varies less than the two sides do apart.
    """
    pairs = zip(ours, theirs, clusters, strict=True)
    gaps = [(a - b, cluster) for a, b, cluster in pairs if a is not None and b is not None]
    if not gaps:
        return None
    value, low, high = bootstrap_mean(
        [gap for gap, _ in gaps],
        [cluster for _, cluster in gaps],
        n_resamples=resampling.n,
        seed=resampling.seed,
    )
    return Measure(name, value, low, high, len(gaps), len(clusters) - len(gaps), higher_is_better)


def words(text: str) -> list[str]:
    """Words of a text in lower case, without punctuation: "I'm here." -> ["i'm", "here"]."""
    return _WORD.findall(text.casefold())


def repetition(text: str) -> float:
    """Share of a reply's word trigrams that it has said before, 0..1: 1 - distinct / all.

    The complement of distinct-3 (Li et al. 2016, arXiv:1510.03055), within one reply as "rep-n" of
    Su et al. 2022 (arXiv:2202.06417). 0.0 for fewer than three words, which cannot repeat a
    trigram.
    """
    tokens = words(text)
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def distinctness(texts: Sequence[str]) -> list[float]:
    """Per reply 1 / (replies that say the same): their mean is the share of distinct replies.

    Same = equal words; letter case, punctuation and spaces do not count. With the counts held fixed
    the mean can be resampled by prompt, which a plain count of distinct texts cannot (drawing a
    prompt twice would look like copying).
    """
    keys = [" ".join(words(text)) for text in texts]
    counts = Counter(keys)
    return [1 / counts[key] for key in keys]


def shares_commonest_opening(texts: Sequence[str], n_words: int = 4) -> list[bool]:
    """Per reply, whether it starts with the `n_words` words that most replies start with.

    Their mean shows a boilerplate opening ("As a licensed psychologist ...") taking over.
    """
    openings = [" ".join(words(text)[:n_words]) for text in texts]
    if not openings:
        return []
    counts = Counter(openings)
    commonest = min(counts, key=lambda opening: (-counts[opening], opening))
    return [opening == commonest for opening in openings]
