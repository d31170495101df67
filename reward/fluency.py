"""Is it English? Repetition, non-words, impossible word sequences and broken endings.

A reply is compared with how English is spelt, with sequences of small words that no sentence has
("the of", "your is"), and with which kinds of words were seen side by side in plain English:
`assets/neighbours.txt`, counted by `neighbours` in the project's own demonstrations and messages.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from reward.lexicon import ASSETS, load_asset
from reward.reading import Reading, topic_words
from reward.text import stem

_VOWELLESS = re.compile(r"^[^aeiouy]+$")
_CLUSTER = re.compile(
    r"[bcdfghjklmnpqrstvwxz]{6,}|[aeiou]{5,}|^(?!kn|gn|pn|pt|ct)[bcdfgkpt][bcdfgkptmn]"
)
_ENDINGS = ("ing", "ed", "ly", "ness", "tion", "ful", "ous")
_UNSEEN = 0.05  # share of neighbours that plain English has and the reference has not
_SPREAD = 1.0  # standard deviations of that share that a short reply is allowed


@dataclass(frozen=True)
class Fluency:
    """How much of a reply is English; each share from 0 (none) to 1 (all of it).

    Attributes:
        repeated: Share of four-word sequences said before; plain prose has hardly any.
        strange: Share of words that are no English words.
        broken: Impossible neighbours per word, times ten, at most 1.
        scrambled: Share of neighbours never seen in plain English, beyond what is usual.
        broken_off: Whether the last sentence breaks off.
        cut_off: Whether it does or has no end mark, which may be forgotten.
        factor: What is left of the reply's grades, 1 for plain English, near 0 for garbled text.
    """

    repeated: float
    strange: float
    broken: float
    scrambled: float
    broken_off: bool
    cut_off: bool
    factor: float


@cache
def _words(group: str) -> frozenset[str]:
    return frozenset(load_asset("english")["words"][group].split())


@cache
def _not_after_determiner() -> frozenset[str]:
    groups = ("determiners", "subjects", "prepositions", "finite")
    never = frozenset(word for group in groups for word in _words(group))
    return (never - {"will", "can"}) | {"and", "or", "but"}


@cache
def _known() -> frozenset[str]:
    words = (ASSETS / "words.txt").read_text(encoding="utf-8").split()
    return frozenset(stem(word) for word in words) | frozenset(topic_words())


@lru_cache(maxsize=65536)
def _strange(word: str) -> float:
    """Return how little a word looks like English: 0 known, 0.25 unknown, 1 impossible."""
    if word.isdigit() or len(word) == 1 or word in _words("short"):
        return 0.0
    if _is_known(word):
        return 0.0
    if _VOWELLESS.match(word) or _CLUSTER.search(word) or len(word) > 18:
        return 1.0
    return 0.25


def is_common(word: str) -> bool:
    """Return whether a word in small letters, or its stem, is in the list of common words."""
    return stem(word) in _known()


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
    return sum(_never_together(a, b) for a, b in pairwise(words))


@lru_cache(maxsize=65536)
def _never_together(a: str, b: str) -> bool:
    be, modals = _words("be"), _words("modals")
    return (
        (a in _words("determiners") and b in _not_after_determiner())
        or (a in modals and (b in modals or b in be or b in _words("determiners")))
        or (a in be and b in be)
        or (a == "i" and b in ("is", "are", "has", "does"))
        or (a in ("we", "they") and b in ("is", "am", "was", "has", "does"))
        or (a == "you" and b in ("am", "has", "does"))
        or (a in ("he", "she") and b in ("am", "are", "were", "have", "do"))
        or (a == "to" and (b in be or b in ("of", "and", "has", "had", "did")))
        or (a == "of" and (b in be or b in ("of", "to", "and")))
        or (a == b and a not in ("that", "had", "very", "so", "really", "no", "is", "far"))
    )


def _kind(word: str) -> str:
    """Return a small word itself, or the ending of any other."""
    if word in _words("small"):
        return word
    if word.isdigit():
        return "#"
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return f"-{ending}"
    return "-s" if word.endswith("s") and not word.endswith("ss") else "-"


def neighbours(words: Sequence[str]) -> list[str]:
    """Return the kinds of every two words side by side in a sentence, its edges included.

    Example:
        >>> neighbours(["you", "walked", "home"])
        ['^ you', 'you -ed', '-ed -', '- $']
    """
    kinds = ["^", *map(_kind, words), "$"]
    return [f"{a} {b}" for a, b in pairwise(kinds)]


@cache
def _seen() -> frozenset[str]:
    return frozenset((ASSETS / "neighbours.txt").read_text(encoding="utf-8").split("\n"))


def _scrambled(reply: Reading) -> float:
    found = [pair for part in reply.sentences for pair in neighbours(part.words)]
    unseen = sum(pair not in _seen() for pair in found)
    usual = _UNSEEN * len(found) + _SPREAD * math.sqrt(_UNSEEN * (1 - _UNSEEN) * len(found))
    return max(0.0, unseen - usual) / len(found)


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
    scrambled = _scrambled(reply)
    last = reply.sentences[-1]
    ended = last.raw.rstrip("\"')]*").endswith((".", "!", "?", "\u2026", ":"))
    broken_off = not stopped or last.words[-1] in _words("open_end")
    # A few unknown names and one slip are normal; beyond that the reply melts quickly.
    factor = math.exp(
        -3.0 * max(0.0, repeated - 0.03)
        - 5.0 * max(0.0, strange - 0.05)
        - 2.0 * broken
        - 12.0 * scrambled
    )
    return Fluency(
        repeated, strange, broken, scrambled, broken_off, broken_off or not ended, factor
    )
