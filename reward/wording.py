"""A linear reading of wording: how far a text sounds like those of one sort that it was fitted on.

It stands beside the patterns of `reward/lexicon.py`, which know what somebody thought of; this one
generalises over words and their spelling, and is as blind to meaning. Logistic regression on which
words, pairs, triples and letter groups occur (`reward/wording_fit.py`). Three are in use: of crises
(`reward/risk.py`, fitted by `scripts/fit_risk.py`), of text for the judge (`reward/injection.py`,
`scripts/fit_injection.py`), and of what a reply must and must not do (`reward/passages.py`,
`scripts/fit_flow.py`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from reward.lexicon import ASSETS
from sft.files import to_json, write_text

WEIGHTS = ASSETS / "risk_words.json"
KIND = "%"  # stands between a word and its kind, and before a kind; in no canonical word
LETTERS = (3, 4, 5)  # lengths of letter groups within a word
WINDOW = 3  # sentences read together, at most

Features = frozenset[str]
# The words of each sentence, see `reward.risk.plain_words`. "reply%text" is a word with its kind:
# what stands beside a word of this kind is learned of all of them together.
Message = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Wording:
    """Weights of a linear reading.

    Attributes:
        weights: Of each feature that is known.
        bias: Of a window without any.
        threshold: Score from which on a window sounds like the texts that were sought.
        letters: Lengths of the letter groups that are read.
    """

    weights: Mapping[str, float]
    bias: float
    threshold: float
    letters: tuple[int, ...] = LETTERS

    def score(self, features: Features) -> float:
        """Return the log-odds of one window: the weights' sum over the root of their number."""
        known = [self.weights[name] for name in features if name in self.weights]
        return self._log_odds(math.fsum(known), len(known))

    def highest(self, message: Message) -> float:
        """Return the highest score of any window, minus infinity where there is no word.

        Sentences before and after add windows and take none away, so more text never lowers it.
        """
        weights, weight = self.weights, self.weights.__getitem__
        found = [features_of(words, self.letters) for words in message]
        each = [frozenset(name for name in names if name in weights) for names in found]
        sums = [math.fsum(map(weight, names)) for names in each]
        best = -math.inf
        # As `score` of each of `windows`, without summing what sentences share more than once.
        for start in range(len(each)):
            seen, total = frozenset[str](), 0.0
            for at in range(start, min(start + WINDOW, len(each))):
                total += sums[at] - math.fsum(map(weight, seen & each[at]))
                seen |= each[at]
                best = max(best, self._log_odds(total, len(seen)))
        return best

    def _log_odds(self, total: float, n: int) -> float:
        return self.bias + total / math.sqrt(max(1, n))


@lru_cache(maxsize=8192)
def features_of(said: tuple[str, ...], letters: tuple[int, ...]) -> Features:
    """Return the features of one sentence; see `windows`."""
    parts = [word.partition(KIND) for word in said]
    words = [word for word, _, _ in parts]
    found = {*words, *_neighbours(words)}
    kinds = [KIND + kind for _, _, kind in parts if kind]
    if kinds:
        mixed = [KIND + kind if kind else word for word, _, kind in parts]
        found.update(kinds, (name for name in _neighbours(mixed) if KIND in name))
        found.update(f"{first} .. {second}" for first, second in combinations(kinds, 2))
    for word in set(words):
        found |= _letter_groups(word, letters)
    return frozenset(found)


def _neighbours(said: Sequence[str]) -> list[str]:
    words = ("^", *said, "$")
    found = [f"{first} {second}" for first, second in pairwise(words)]
    for first, second, third in zip(words, words[1:], words[2:], strict=False):
        found += [f"{first} {second} {third}", f"{first} _ {third}"]
    return found


@lru_cache(maxsize=65536)
def _letter_groups(word: str, letters: tuple[int, ...]) -> Features:
    marked = f"<{word}>"
    return frozenset(f"~{marked[i : i + n]}" for n in letters for i in range(len(marked) - n + 1))


def windows(message: Message, letters: tuple[int, ...] = LETTERS) -> list[Features]:
    """Return the features of every run of one to three sentences.

    A word is itself, "a b" and "a b c" neighbours, "a _ c" with one word between, "~abc" letters
    within a word, "^" and "$" the sentence's edges. A kind is "%kind", also among neighbours, and
    "%one .. %other" are kinds in this order in one sentence.
    """
    each = [features_of(words, letters) for words in message]
    return [
        frozenset().union(*each[start:end])
        for start in range(len(each))
        for end in range(start + 1, min(start + WINDOW, len(each)) + 1)
    ]


def n_windows(n_sentences: int) -> int:
    """Return how many runs of one to three sentences there are."""
    return sum(min(WINDOW, n_sentences - start) for start in range(n_sentences))


@cache
def load_wording(path: Path = WEIGHTS) -> Wording:
    """Read the fitted weights: JSON, nothing is unpickled."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    letters = tuple(stored.get("letters", LETTERS))
    return Wording(stored["weights"], stored["bias"], stored["threshold"], letters)


def save_wording(wording: Wording, path: Path) -> None:
    """Write weights that `load_wording` reads, in thousandths."""
    weights = {name: round(weight, 3) for name, weight in wording.weights.items()}
    about = {"threshold": wording.threshold, "bias": round(wording.bias, 4)}
    write_text(path, to_json(about | {"letters": wording.letters, "weights": weights}) + "\n")
