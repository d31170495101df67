"""Which texts are paraphrases of each other, and on which side of a split each text falls."""

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

NEAR = 0.8  # share of common words (Jaccard) from which two texts count as one, 0..1
_WORD = re.compile(r"\w+")


def normalised(text: str) -> str:
    """Return the text without differences of case, white space and Unicode compatibility forms."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words_of(text: str) -> frozenset[str]:
    """Return the distinct normalised words of a text."""
    return frozenset(_WORD.findall(normalised(text)))


class NearIndex:
    """Finds the word sets whose Jaccard similarity to a given one is at least `NEAR`.

    Exact, by prefix filtering (Chaudhuri, Ganti and Kaushik 2006): put the words of every set into
    one order; two sets that are this similar share a word among the first n - ceil(NEAR * n) + 1 of
    each. With rare words first, few sets share one.
    """

    def __init__(self, sets: Sequence[frozenset[str]]) -> None:
        """Index the sets; `near` answers with their numbers in this sequence."""
        self._sets = sets
        self._count = Counter(word for words in sets for word in words)
        self._holders: dict[str, list[int]] = defaultdict(list)
        for number, words in enumerate(sets):
            for word in self._prefix(words):
                self._holders[word].append(number)

    def _prefix(self, words: frozenset[str]) -> list[str]:
        length = len(words) - math.ceil(NEAR * len(words)) + 1
        return sorted(words, key=lambda word: (self._count[word], word))[:length]

    def near(self, words: frozenset[str]) -> list[int]:
        """Return the numbers of the indexed sets that are near `words`, in order."""
        seen = {n for word in self._prefix(words) for n in self._holders.get(word, ())}
        return sorted(n for n in seen if _jaccard(words, self._sets[n]) >= NEAR)


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    common = len(one & other)
    return common / (len(one) + len(other) - common)


def groups(sets: Sequence[frozenset[str]], labels: Sequence[Iterable[str]]) -> list[int]:
    """Return for each text the number of its group: near ones and ones with a common label join.

    Joining is transitive: where A is near B and B near C, the three are one group.
    """
    parent = list(range(len(sets)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    index = NearIndex(sets)
    first: dict[str, int] = {}
    for number, words in enumerate(sets):
        same = [first.setdefault(label, number) for label in labels[number]]
        for other in (*same, *index.near(words)):
            low, high = sorted((root(number), root(other)))
            parent[high] = low
    return [root(number) for number in range(len(sets))]


def position(key: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on nothing but the content key and the seed."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
