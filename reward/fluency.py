"""Is it English? Repetition, non-words, impossible word sequences and broken endings.

No list of good sentences and no fitted model: a reply is compared with how English is spelt and
with sequences of small words that no sentence has ("the of", "your is").
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from reward.lexicon import ASSETS
from reward.reading import Reading, topic_words
from reward.text import stem

_DETERMINERS = frozenset("the a an my your his its our their every".split())
_SUBJECTS = frozenset("i he she they we".split())
_FINITE = frozenset("is am are was were has have had do does did will would can could".split())
_PREPOSITIONS = frozenset("of to from with into at by for about between during than".split())
_NOT_AFTER_DETERMINER = (
    _DETERMINERS | _SUBJECTS | _PREPOSITIONS | (_FINITE - {"will", "can"}) | {"and", "or", "but"}
)
_MODALS = frozenset("will would can could should must might may shall".split())
_BE = frozenset("is am are was were".split())
# After these words a sentence is not over.
_OPEN_END = _DETERMINERS | frozenset(
    "of to from with into at by and or but because if than that is are was were am very so i "
    "which who what how when while as for be being been can could would will should".split()
) - {"to", "am", "is", "are", "be", "can", "so", "that", "what", "how", "as", "if"}
_VOWELLESS = re.compile(r"^[^aeiouy]+$")
_CLUSTER = re.compile(
    r"[bcdfghjklmnpqrstvwxz]{6,}|[aeiou]{5,}|^(?!kn|gn|pn|pt|ct)[bcdfgkpt][bcdfgkptmn]"
)
_KNOWN_SHORT = frozenset(
    "mr mrs ms dr hr tv ptsd ocd adhd dbt cbt nhs ok hmm pm vs st th nd rd gps lgbt lgbtq".split()
)


@dataclass(frozen=True)
class Fluency:
    """How much of a reply is English; each share from 0 (none) to 1 (all of it).

    Attributes:
        repeated: Share of four-word sequences said before; plain prose has hardly any.
        strange: Share of words that are no English words.
        broken: Impossible neighbours per word, times ten, at most 1.
        cut_off: Whether the last sentence breaks off.
        factor: What is left of the reply's grades, 1 for plain English, near 0 for garbled text.
    """

    repeated: float
    strange: float
    broken: float
    cut_off: bool
    factor: float


@cache
def _known() -> frozenset[str]:
    words = (ASSETS / "words.txt").read_text(encoding="utf-8").split()
    return frozenset(stem(word) for word in words) | frozenset(topic_words())


@lru_cache(maxsize=65536)
def _strange(word: str) -> float:
    """Return how little a word looks like English: 0 known, 0.25 unknown, 1 impossible."""
    if word.isdigit() or len(word) == 1 or word in _KNOWN_SHORT:
        return 0.0
    if _is_known(word):
        return 0.0
    if _VOWELLESS.match(word) or _CLUSTER.search(word) or len(word) > 18:
        return 1.0
    return 0.25


def _is_known(word: str) -> bool:
    known = _known()
    base = stem(word)
    if base in known:
        return True
    for ending in ("er", "or", "est", "ful", "less", "able", "ible", "ment", "ion", "ation", "al"):
        if base.endswith(ending) and len(base) - len(ending) >= 3:
            rest = base[: -len(ending)]
            if {rest, stem(rest), stem(rest + "e")} & known:
                return True
    return any(
        base.startswith(start) and base[len(start) :] in known
        for start in ("un", "re", "dis", "over", "under", "in", "im", "self", "non", "out", "mis")
    )


def _impossible(words: Sequence[str]) -> int:
    """Count neighbours that no English sentence has."""
    count = 0
    for a, b in zip(words, words[1:], strict=False):
        count += (
            (a in _DETERMINERS and b in _NOT_AFTER_DETERMINER)
            or (a in _MODALS and (b in _MODALS or b in _BE or b in _DETERMINERS))
            or (a in _BE and b in _BE)
            or (a == "i" and b in ("is", "are", "has", "does"))
            or (a in ("we", "they") and b in ("is", "am", "was", "has", "does"))
            or (a == "you" and b in ("am", "has", "does"))
            or (a in ("he", "she") and b in ("am", "are", "were", "have", "do"))
            or (a == "to" and (b in _BE or b in ("of", "and", "has", "had", "did")))
            or (a == "of" and (b in _BE or b in ("of", "to", "and")))
            or (a == b and a not in ("that", "had", "very", "so", "really", "no", "is", "far"))
        )
    return count


def fluency(reply: Reading, stopped: bool) -> Fluency:
    """Measure a reply.

    Args:
        reply: The reply.
        stopped: Whether the writer ended it; False where it ran out of length.
    """
    words = [word for part in reply.sentences for word in part.words]
    grams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    repeated = 1 - len(set(grams)) / len(grams) if grams else 0.0
    strange = sum(map(_strange, words)) / max(1, len(words))
    faults = sum(_impossible(part.words) for part in reply.sentences)
    broken = min(1.0, 10 * faults / max(12, len(words)))
    last = reply.sentences[-1]
    ended = last.raw.rstrip("\"')]*").endswith((".", "!", "?", "\u2026", ":"))
    cut_off = not stopped or last.words[-1] in _OPEN_END or not ended
    # A few unknown names and one slip are normal; beyond that the reply melts quickly.
    factor = math.exp(
        -3.0 * max(0.0, repeated - 0.03) - 5.0 * max(0.0, strange - 0.05) - 2.0 * broken
    )
    return Fluency(repeated, strange, broken, cut_off, factor)
