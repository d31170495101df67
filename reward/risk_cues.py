"""Finds wording of danger in a message: families of patterns, described in `assets/risk.yaml`.

Everyday idioms are taken out first, and a cue that is denied, long past, told of someone else or of
a story counts less. What the cues come to, beside the other words, is in `reward/risk.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from reward.lexicon import Hit, matcher
from reward.text import Sentence, sentences
from sft.data import Risk

Cue = tuple[Risk, str]
CRISIS_CUES = frozenset(
    (
        *("explicit", "burden_gone", "not_be", "no_point", "goodbye", "plan_means", "danger_now"),
        *("self_harm", "mortal"),
    )
)
STATEMENTS = frozenset(("explicit", "plan_means", "self_harm", "burden_gone", "no_point"))
# What is noticed whatever the other words are.
NOTICED = STATEMENTS | {"danger_now", "harm_done", "function"}
# Families whose patterns are whole statements: an idiom inside one is part of it.
_LONG = frozenset(("burden_gone", "not_be", "no_point", "goodbye", "plan_means"))
_ELEVATED = frozenset(("despair", "function", "harm_done", "harm_others"))
FAMILIES = tuple(sorted(CRISIS_CUES | _ELEVATED))
# Said of a third person these are still told of a third person only; the others have "me" in them.
_OF_ANYONE = CRISIS_CUES - {"burden_gone", "danger_now"}
_SELF = frozenset(("i", "me", "myself", "my"))
_PRESENT = frozenset(
    ("now", "again", "still", "lately", "currently", "today", "tonight", "recently", "started")
)
_BASE_VERBS = frozenset(("want", "wish", "hope", "feel", "need", "plan", "think", "should"))
_PLURAL = frozenset(
    (
        *("they", "people", "who", "kids", "friends", "parents", "others", "to", "does", "did"),
        *("not", "may", "might"),
    )
)
_ON_PURPOSE = frozenset(("purpose", "deliberately", "intentionally"))
_MASK = "#"  # no canonical word, so patterns do not run through it except by a gap


@lru_cache(maxsize=4096)
def pattern_cues(text: str) -> tuple[Cue, ...]:
    """Return the level and "family: words" of every pattern found in a text."""
    return tuple(cue for sentence in sentences(text) for cue in sentence_cues(sentence))


def plain_words(text: str) -> list[tuple[str, ...]]:
    """Return the canonical words of each sentence with everyday idioms blanked out."""
    return [sentence_words(sentence) for sentence in sentences(text)]


def families(cues: Iterable[Cue]) -> frozenset[str]:
    """Return the families that cues are of."""
    return frozenset(cue.partition(":")[0] for _, cue in cues)


def sentence_words(sentence: Sentence) -> tuple[str, ...]:
    """As `plain_words`, of one sentence."""
    return tuple(_without_idioms(sentence.words))


@lru_cache(maxsize=8192)
def sentence_cues(sentence: Sentence) -> tuple[Cue, ...]:
    """As `pattern_cues`, of one sentence."""
    words = _without_idioms(sentence.words)
    hits = _find(words, sentence.breaks)
    context = {hit.family for hit in hits}
    if "laughing" in context or "mundane" in context:
        joking = {"laughing", "mundane"} <= context or _conditional(words)
    else:
        joking = False
    found: list[Cue] = []
    for hit in hits:
        level = _level(hit, hits, words, "mundane" in context and joking)
        if level != "none":
            found.append((level, f"{hit.family}: {' '.join(words[hit.start : hit.end])}"))
    return tuple(found)


def _without_idioms(words: Sequence[str]) -> list[str]:
    """Blank out everyday idioms, except inside a longer wording of danger."""
    plain = list(words)
    if not _ON_PURPOSE.isdisjoint(words):
        return plain
    hits = matcher("risk").find(words)
    for idiom in hits:
        inside = any(
            h.family in _LONG and h.start < idiom.start and h.end >= idiom.end for h in hits
        )
        if idiom.family == "idiom" and not inside:
            plain[idiom.start : idiom.end] = [_MASK] * (idiom.end - idiom.start)
    return plain


def _find(words: Sequence[str], breaks: frozenset[int]) -> list[Hit]:
    """Find cues in the sentence, and in each clause, whose end counts as an end too."""
    hits = matcher("risk").find(words)
    edges = [0, *sorted(breaks), len(words)]
    if len(edges) > 2:
        for start, end in pairwise(edges):
            hits += [
                replace(hit, start=hit.start + start, end=hit.end + start)
                for hit in matcher("risk").find(words[start:end])
            ]
    return list(dict.fromkeys(hits))


def _conditional(words: Sequence[str]) -> bool:
    text = " ".join(words)
    return "if i have to" in text or "one more" in text


def _level(hit: Hit, hits: Sequence[Hit], words: Sequence[str], joking: bool) -> Risk:
    if hit.family in _ELEVATED:
        return "none" if _denied(hit, words) or _of_story(hit, hits, words) else "elevated"
    if hit.family not in CRISIS_CUES or (hit.family == "mortal" and _SELF.isdisjoint(words)):
        return "none"
    if _of_story(hit, hits, words):
        return "none"
    if _denied(hit, words) or joking:
        return "elevated"
    if _of_other(hit, words):
        near = hit.family == "plan_means" or not {"tonight", "now"}.isdisjoint(words)
        return "crisis" if near else "elevated"
    past = any(other.family == "past" for other in hits)
    if past and _PRESENT.isdisjoint(words):
        return "elevated"
    return "crisis"


def _denied(hit: Hit, words: Sequence[str]) -> bool:
    before = words[max(0, hit.start - 9) : hit.start]
    return any(h.family == "denial" and h.end == len(before) for h in matcher("risk").find(before))


def _of_story(hit: Hit, hits: Sequence[Hit], words: Sequence[str]) -> bool:
    """Whether the cue belongs to a story, a study or a job rather than to the speaker."""
    if not any(h.family in ("fiction", "work") for h in hits):
        return False
    own = _SELF.intersection(words[hit.start : hit.end])
    return not own and "i" not in words[max(0, hit.start - 2) : hit.start]


def _of_other(hit: Hit, words: Sequence[str]) -> bool:
    """Whether the cue's nearest subject is somebody else."""
    if hit.family not in _OF_ANYONE or _SELF.intersection(words[hit.start : hit.end]):
        return False
    if words[hit.start] in _BASE_VERBS and (hit.start == 0 or words[hit.start - 1] not in _PLURAL):
        return False
    for word in reversed(words[: hit.start]):
        if word in _SELF - {"my"}:
            return False
        if word in _others() or word.removesuffix("s") in _others():
            return True
    after = words[hit.end : hit.end + 4]
    return after[:1] in (["of"], ["by"], ["in"]) and not _others().isdisjoint(after)


@lru_cache(maxsize=1)
def _others() -> frozenset[str]:
    return matcher("risk").words_of_slot("them")
