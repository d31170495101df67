"""Which candidates are compared, and which of the pairs found are taken."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import combinations

from reward.pairing import Judged, Pair, words
from sft.pair_settings import LONGER, PairSection
from sft.split import normalised

SHINGLE = 3  # words
_WORD = re.compile(r"\w+")


def rank(judged: Judged) -> tuple[bool, float, str]:
    """Sorts the candidates of a prompt: safe ones first, then by falling quality."""
    quality = judged.assessment.quality
    return (
        not judged.assessment.safe,
        -(quality if quality is not None else 0.0),
        judged.candidate.id,
    )


def comparisons(ranked: Sequence[Judged], section: PairSection) -> list[tuple[Judged, Judged]]:
    """The comparisons that the strategy asks for among ranked candidates of a prompt.

    With `length_match`, best_worst compares the best with every other reply, of which `take` then
    takes one.
    """
    if len(ranked) < 2:
        return []
    strategy = section.strategy
    if strategy == "best_worst" and section.length_match == 0:
        return [(ranked[0], ranked[-1])]
    if strategy in ("best_worst", "best_rest"):
        return [(ranked[0], other) for other in ranked[1:]]
    every = list(combinations(ranked, 2))
    if strategy == "best_rest_safe_unsafe":
        return [
            (a, b) for a, b in every if a is ranked[0] or a.assessment.safe != b.assessment.safe
        ]
    return every


def limit(section: PairSection) -> int:
    """Pairs that a prompt may have at most; 0 = no limit."""
    return 1 if section.strategy == "best_worst" else section.max_pairs_per_prompt


def take(found: Sequence[Pair], section: PairSection) -> list[Pair]:
    """The pairs of a prompt that are taken, by falling margin, up to `limit`.

    With `length_match` each next pair is the one of the likest lengths, by |ln| of the quotient of
    words, among those whose margin is within `length_match` of the largest that is left.
    """
    left = sorted(found, key=lambda pair: (-pair.margin, pair.chosen_id, pair.rejected_id))
    most = limit(section) or len(left)
    if section.length_match == 0:
        return left[:most]
    taken: list[Pair] = []
    while left and len(taken) < most:
        alike = [p for p in left if p.margin >= left[0].margin - section.length_match]
        best = min(alike, key=_unlike)
        left.remove(best)
        taken.append(best)
    return taken


def _unlike(pair: Pair) -> float:
    """How unlike in length a pair's replies are: 0 = as many words; the same both ways round."""
    chosen, rejected = (max(1, words(side[0]["content"])) for side in (pair.chosen, pair.rejected))
    return abs(math.log(chosen / rejected))


def over_longer_share(pairs: Sequence[Pair], share: float) -> list[Pair]:
    """The pairs to drop so that at most `share` of those by quality have a much longer chosen side.

    Much longer is more than 1.5 times as many words. Those of the smallest margin go first, then by
    ids; shorter ones and pairs by safety never go.
    """
    quality = [pair for pair in pairs if pair.rule == "quality"]
    longer = [pair for pair in quality if pair.lengthening > LONGER]
    longer.sort(key=lambda pair: (-pair.margin, pair.chosen_id, pair.rejected_id))
    dropped: list[Pair] = []
    # A hair of tolerance: 0.1 * 30 is above 3 in floats, 0.7 * 10 below 7.
    while longer and len(longer) > share * (len(quality) - len(dropped)) + 1e-9:
        dropped.append(longer.pop())
    return dropped


def without_near_duplicates(
    judged: Sequence[Judged], threshold: float
) -> tuple[list[Judged], list[Judged]]:
    """Split the candidates of a prompt into those that stay and near duplicates of one that stays.

    Of near duplicates an unsafe one stays before safe ones, because a verdict that a few words turn
    is in doubt, and so no safe twin of a failed reply is chosen; then the prompt's own before
    borrowed ones; then by id, not by quality, which would prefer lucky grades. No two that stay are
    near, and each that goes is near one that stays. Threshold 0 = all stay.
    """
    if threshold == 0:
        return list(judged), []
    kept: list[tuple[Judged, frozenset[tuple[str, ...]]]] = []
    gone: set[str] = set()
    order = sorted(
        judged, key=lambda j: (j.assessment.safe is True, j.candidate.borrowed, j.candidate.id)
    )
    for each in order:
        own = shingles(each.candidate.text)
        if any(similarity(own, other) >= threshold for _, other in kept):
            gone.add(each.candidate.id)
        else:
            kept.append((each, own))
    stay = [each for each in judged if each.candidate.id not in gone]
    return stay, [each for each in judged if each.candidate.id in gone]


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """The three-word sequences of a normalised text; a shorter text is one sequence.

    Broder 1997, "On the resemblance and containment of documents".
    """
    # Signs count where there is no word: ":)" is not "...".
    found = _WORD.findall(normalised(text)) or normalised(text).split()
    last = max(1, len(found) - SHINGLE + 1)
    return frozenset(tuple(found[i : i + SHINGLE]) for i in range(last))


def similarity(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Jaccard similarity (resemblance) of two sets of shingles, 0..1."""
    return len(one & other) / len(one | other)
