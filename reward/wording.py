"""A linear reading of wording: how far a text sounds like those of one sort that it was fitted on.

It stands beside the patterns of `reward/lexicon.py`, which know what somebody thought of; this one
generalises over words and their spelling, and is as blind to meaning. Logistic regression on which
words, pairs, triples and letter groups occur. Two are in use: of crises (`reward/risk.py`, fitted
by `scripts/fit_risk.py`) and of text for the judge (`reward/injection.py`,
`scripts/fit_injection.py`).
"""

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, sparse

from reward.lexicon import ASSETS

WEIGHTS = ASSETS / "risk_words.json"
KIND = "%"  # stands between a word and its kind, and before a kind; in no canonical word
LETTERS = (3, 4, 5)  # lengths of letter groups within a word
_WINDOW = 3  # sentences read together, at most
_LEAST_SEEN = 2  # messages that a feature must occur in
PENALTY = 0.1  # of the squared weights
FOLDS = 5

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
        found = [_of_sentence(words, self.letters) for words in message]
        each = [frozenset(name for name in names if name in weights) for names in found]
        sums = [math.fsum(map(weight, names)) for names in each]
        best = -math.inf
        # As `score` of each of `windows`, without summing what sentences share more than once.
        for start in range(len(each)):
            seen, total = frozenset[str](), 0.0
            for at in range(start, min(start + _WINDOW, len(each))):
                total += sums[at] - math.fsum(map(weight, seen & each[at]))
                seen |= each[at]
                best = max(best, self._log_odds(total, len(seen)))
        return best

    def _log_odds(self, total: float, n: int) -> float:
        return self.bias + total / math.sqrt(max(1, n))


@lru_cache(maxsize=8192)
def _of_sentence(said: tuple[str, ...], letters: tuple[int, ...]) -> Features:
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
    each = [_of_sentence(words, letters) for words in message]
    return [
        frozenset().union(*each[start:end])
        for start in range(len(each))
        for end in range(start + 1, min(start + _WINDOW, len(each)) + 1)
    ]


@cache
def load_wording(path: Path = WEIGHTS) -> Wording:
    """Read the fitted weights: JSON, nothing is unpickled."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    letters = tuple(stored.get("letters", LETTERS))
    return Wording(stored["weights"], stored["bias"], stored["threshold"], letters)


def fit(
    messages: Sequence[Message], sought: Sequence[bool], letters: tuple[int, ...] = LETTERS
) -> Wording:
    """Fit weights; the threshold is left at 0.

    A message that is sought (a crisis, a text for the judge) is one example, with all its
    sentences; of any other each window is one, because none of them is of the sort.

    Args:
        messages: Messages.
        sought: Whether each is of the sort to be found.
        letters: Lengths of the letter groups that are read.
    """
    examples, signs = [], []
    seen: Counter[str] = Counter()
    for message, is_sought in zip(messages, sought, strict=True):
        each = windows(message, letters)
        whole = frozenset().union(*each)
        seen.update(whole)
        examples += [whole] if is_sought else each
        signs += [1.0] if is_sought else [-1.0] * len(each)
    names = sorted(name for name, n in seen.items() if n >= _LEAST_SEEN)
    place = {name: at for at, name in enumerate(names)}
    known = [sorted(place[name] for name in each if name in place) for each in examples]
    counts = np.array([len(each) for each in known])
    matrix = sparse.csr_matrix(
        (
            np.repeat(1 / np.sqrt(np.maximum(1, counts)), counts),
            np.array([at for each in known for at in each], dtype=np.int64),
            np.concatenate([[0], np.cumsum(counts)]),
        ),
        shape=(len(examples), len(names)),
    )
    solution = _logistic(matrix, np.array(signs))
    weights = dict(zip(names, solution[:-1].tolist(), strict=True))
    return Wording(weights, float(solution[-1]), 0.0, letters)


def _logistic(matrix: sparse.csr_matrix, signs: np.ndarray) -> np.ndarray:
    """Minimise the logistic loss of rows with signs -1 or 1, plus PENALTY / 2 of squared weights.

    Returns the weights, the bias last.
    """

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights = point[:-1]
        margin = signs * (matrix @ weights + point[-1])
        pull = -signs / (1 + np.exp(margin))
        value = np.logaddexp(0, -margin).sum() + PENALTY / 2 * weights @ weights
        return float(value), np.append(matrix.T @ pull + PENALTY * weights, pull.sum())

    start = np.zeros(matrix.shape[1] + 1)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(found.x)


def cross_scores(
    messages: Sequence[Message],
    sought: Sequence[bool],
    more: Sequence[tuple[Message, bool]],
    seed: int = 0,
    families: Sequence[str] | None = None,
    letters: tuple[int, ...] = LETTERS,
) -> list[float]:
    """Return each message's highest score by weights that were fitted without it, in folds.

    Args:
        messages: Messages.
        sought: Whether each is of the sort to be found.
        more: Messages that every fold is fitted on besides.
        seed: Of the folds.
        families: Of each message; a family is left out as a whole. None = each message by itself.
        letters: Lengths of the letter groups that are read.
    """
    units = list(families) if families is not None else [str(i) for i in range(len(messages))]
    order = list(dict.fromkeys(units))
    random.Random(seed).shuffle(order)
    found = [0.0] * len(messages)
    for fold in range(FOLDS):
        left_out = set(order[fold::FOLDS])
        rows = [
            (message, is_sought)
            for message, is_sought, unit in zip(messages, sought, units, strict=True)
            if unit not in left_out
        ]
        rows += more
        fitted = fit([message for message, _ in rows], [told for _, told in rows], letters)
        for i, unit in enumerate(units):
            if unit in left_out:
                found[i] = fitted.highest(messages[i])
    return found
