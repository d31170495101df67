"""A linear reading of wording: how far a text sounds like the crises that it was fitted on.

It stands beside the patterns of `reward/lexicon.py`, which know what somebody thought of; this one
generalises over words and their spelling, and is as blind to meaning. Logistic regression on which
words, pairs, triples and letter groups occur, fitted by `scripts/fit_risk.py`.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize, sparse

from reward.lexicon import ASSETS

WEIGHTS = ASSETS / "risk_words.json"
_WINDOW = 3  # sentences read together, at most
_LETTERS = (3, 4, 5)  # lengths of letter groups within a word
_LEAST_SEEN = 2  # messages that a feature must occur in
PENALTY = 0.1  # of the squared weights
FOLDS = 5

Features = frozenset[str]
Message = Sequence[tuple[str, ...]]  # the words of each sentence, see `reward.risk.plain_words`


@dataclass(frozen=True)
class Wording:
    """Weights of a linear reading.

    Attributes:
        weights: Of each feature that is known.
        bias: Of a window without any.
        threshold: Score from which on a window sounds like a crisis.
    """

    weights: Mapping[str, float]
    bias: float
    threshold: float

    def score(self, features: Features) -> float:
        """Return the log-odds of one window: the weights' sum over the root of their number."""
        known = [self.weights[name] for name in features if name in self.weights]
        return self.bias + math.fsum(known) / math.sqrt(max(1, len(known)))

    def highest(self, message: Message) -> float:
        """Return the highest score of any window, minus infinity where there is no word.

        Sentences before and after add windows and take none away, so more text never lowers it.
        """
        return max(map(self.score, windows(message)), default=-math.inf)


@lru_cache(maxsize=8192)
def _of_sentence(said: tuple[str, ...]) -> Features:
    words = ("^", *said, "$")
    found = set(words[1:-1])
    for i, word in enumerate(words[:-1]):
        found.add(f"{word} {words[i + 1]}")
        if i + 2 < len(words):
            found.add(f"{word} {words[i + 1]} {words[i + 2]}")
            found.add(f"{word} _ {words[i + 2]}")
    for word in set(said):
        marked = f"<{word}>"
        for n in _LETTERS:
            found.update(f"~{marked[i : i + n]}" for i in range(len(marked) - n + 1))
    return frozenset(found)


def windows(message: Message) -> list[Features]:
    """Return the features of every run of one to three sentences.

    A word is itself, "a b" and "a b c" neighbours, "a _ c" with one word between, "~abc" letters
    within a word, "^" and "$" the sentence's edges.
    """
    each = [_of_sentence(words) for words in message]
    return [
        frozenset().union(*each[start:end])
        for start in range(len(each))
        for end in range(start + 1, min(start + _WINDOW, len(each)) + 1)
    ]


@cache
def load_wording(path: Path = WEIGHTS) -> Wording:
    """Read the fitted weights: JSON, nothing is unpickled."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Wording(stored["weights"], stored["bias"], stored["threshold"])


def fit(messages: Sequence[Message], crisis: Sequence[bool]) -> Wording:
    """Fit weights; the threshold is left at 0.

    A crisis is one example, with all its sentences; of any other message each window is one,
    because none of them tells of a crisis.

    Args:
        messages: Messages.
        crisis: Whether each tells of a crisis.
    """
    examples, signs = [], []
    for message, is_crisis in zip(messages, crisis, strict=True):
        each = windows(message)
        examples += [frozenset().union(*each)] if is_crisis else each
        signs += [1.0] if is_crisis else [-1.0] * len(each)
    seen = Counter(name for m in messages for name in frozenset().union(*windows(m)))
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
    return Wording(dict(zip(names, solution[:-1].tolist(), strict=True)), float(solution[-1]), 0.0)


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
    crisis: Sequence[bool],
    more: Sequence[tuple[Message, bool]],
    seed: int = 0,
) -> list[float]:
    """Return each message's highest score by weights that were fitted without it, in folds.

    Args:
        messages: Messages.
        crisis: Whether each tells of a crisis.
        more: Messages that every fold is fitted on besides.
        seed: Of the folds.
    """
    order = list(range(len(messages)))
    random.Random(seed).shuffle(order)
    found = [0.0] * len(messages)
    for fold in range(FOLDS):
        left_out = order[fold::FOLDS]
        rows = [(messages[i], crisis[i]) for i in order if i not in set(left_out)] + list(more)
        fitted = fit([message for message, _ in rows], [told for _, told in rows])
        for i in left_out:
            found[i] = fitted.highest(messages[i])
    return found
