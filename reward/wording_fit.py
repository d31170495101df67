"""Fits linear readings of wording (`reward/wording.py`): one, or several on the same texts.

Logistic regression whose features are scaled by how much they tell by themselves, after the
log-count ratios of naive Bayes (Wang and Manning 2012, "Baselines and Bigrams", section 2.3; here
the root of their size and not the ratio): of many features that fit the same texts, those are
weighed that one sort of text has and the other has not, and new wording shares those.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from reward.wording import LETTERS, Features, Message, Wording, windows

LEAST_SEEN = 2  # messages that a feature must occur in
PENALTY = 0.1  # of the squared weights
FOLDS = 5
_RATIO, _FLOOR = 0.5, 0.1  # power of the log-count ratio, and what a feature without one keeps


@dataclass(frozen=True)
class Fitted:
    """Weights of one reading.

    Attributes:
        known: Columns of the features that it knows.
        weights: Of these.
        bias: Of a window without any.
    """

    known: np.ndarray
    weights: np.ndarray
    bias: float


@dataclass(frozen=True)
class Texts:
    """Messages as rows of features, to fit any number of readings on.

    Attributes:
        names: The features, sorted.
        rows: (rows, features): 1 where a row has the feature.
        whole: Row of each message with all its sentences.
        each: Rows of each message's windows.
        least_seen: Messages that a reading has to be fitted on before it knows a feature of them.
    """

    names: list[str]
    rows: sparse.csr_matrix
    whole: np.ndarray
    each: list[np.ndarray]
    least_seen: int

    @staticmethod
    def of(
        messages: Sequence[Message],
        letters: tuple[int, ...] = LETTERS,
        least_seen: int = LEAST_SEEN,
    ) -> "Texts":
        """Read messages; features that fewer than `least_seen` of them have are left out."""
        parts = [windows(message, letters) for message in messages]
        whole = [frozenset().union(*each) for each in parts]
        seen = Counter(name for names in whole for name in names)
        names = sorted(name for name, n in seen.items() if n >= least_seen)
        ends = np.cumsum([1 + len(each) for each in parts], dtype=np.int64)
        starts = ends - [1 + len(each) for each in parts]
        sets = [one for all_, each in zip(whole, parts, strict=True) for one in (all_, *each)]
        place = {name: at for at, name in enumerate(names)}
        of_windows = [np.arange(a + 1, b) for a, b in zip(starts, ends, strict=True)]
        return Texts(names, _matrix(sets, place), starts, of_windows, least_seen)

    def fit(
        self,
        sought: Sequence[bool],
        some: Sequence[int] | None = None,
        scaled: bool = True,
        shown: Sequence[int] | None = None,
    ) -> Fitted:
        """Fit one reading.

        A message that is sought is one example, with all its sentences; of any other each window
        is one, because none of them is of the sort.

        Args:
            sought: Whether each message is of the sort to be found.
            some: Numbers of the messages to fit on; None = all.
            scaled: Whether features count by what they tell by themselves.
            shown: Numbers of the messages whose features are known; None = those to fit on.
        """
        used = range(len(self.whole)) if some is None else some
        read = self.whole[list(used if shown is None else shown)]
        seen = np.asarray(self.rows[read].sum(axis=0)).ravel()
        known = np.flatnonzero(seen >= self.least_seen)
        yes = [self.whole[i] for i in used if sought[i]]
        no = [row for i in used if not sought[i] for row in self.each[i]]
        plain = self.rows[[*yes, *no]][:, known]
        matrix = _shared_out(plain)
        signs = np.repeat([1.0, -1.0], [len(yes), len(no)])
        scale = np.ones(len(known))
        if scaled:
            counts = [1 + part.sum(axis=0) for part in (plain[: len(yes)], plain[len(yes) :])]
            log_odds = [np.log(count / count.sum()) for count in counts]
            scale = np.abs(np.asarray(log_odds[0] - log_odds[1]).ravel()) ** _RATIO + _FLOOR
        found = _logistic(sparse.csr_matrix(matrix @ sparse.diags(scale)), signs)
        return Fitted(known, found[:-1] * scale, float(found[-1]))

    def highest(self, fitted: Fitted, messages: Sequence[int]) -> list[float]:
        """Return each message's highest score of any window, minus infinity without a word."""
        rows = [self.each[i] for i in messages]
        windows_of = _shared_out(self.rows[np.concatenate(rows)][:, fitted.known])
        scores = windows_of @ fitted.weights + fitted.bias
        parts = np.split(scores, np.cumsum([len(each) for each in rows])[:-1])
        return [float(part.max(initial=-np.inf)) for part in parts]


def _matrix(sets: Sequence[Features], place: dict[str, int]) -> sparse.csr_matrix:
    known = [sorted(place[name] for name in each if name in place) for each in sets]
    edges = np.concatenate([[0], np.cumsum([len(each) for each in known])])
    columns = np.fromiter((at for each in known for at in each), np.int64, int(edges[-1]))
    return sparse.csr_matrix((np.ones(len(columns)), columns, edges), (len(sets), len(place)))


def _shared_out(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return rows of ones divided by the root of their number."""
    counts = np.diff(rows.indptr)
    return sparse.csr_matrix(sparse.diags(1 / np.sqrt(np.maximum(1, counts))) @ rows)


def _logistic(matrix: sparse.csr_matrix, signs: np.ndarray) -> np.ndarray:
    """Minimise the logistic loss of rows with signs -1 or 1, plus PENALTY / 2 of squared weights.

    Returns the weights, the bias last.
    """
    turned = matrix.T.tocsr()

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights = point[:-1]
        margin = signs * (matrix @ weights + point[-1])
        pull = -signs / (1 + np.exp(np.minimum(margin, 500)))
        value = np.logaddexp(0, -margin).sum() + PENALTY / 2 * weights @ weights
        return float(value), np.append(turned @ pull + PENALTY * weights, pull.sum())

    start = np.zeros(matrix.shape[1] + 1)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(found.x)


def fit(
    messages: Sequence[Message],
    sought: Sequence[bool],
    letters: tuple[int, ...] = LETTERS,
    scaled: bool = True,
) -> Wording:
    """Fit the weights of one reading; the threshold is left at 0.

    Args:
        messages: Messages.
        sought: Whether each is of the sort to be found (a crisis, a text for the judge).
        letters: Lengths of the letter groups that are read.
        scaled: As in `Texts.fit`.
    """
    texts = Texts.of(messages, letters)
    found = texts.fit(sought, scaled=scaled)
    names = [texts.names[at] for at in found.known]
    return Wording(dict(zip(names, found.weights.tolist(), strict=True)), found.bias, 0.0, letters)


def folds(units: Sequence[str], seed: int = 0) -> list[np.ndarray]:
    """Return the numbers of the messages that each fold leaves out; a unit stays together.

    Where there are fewer units than folds, each is left out alone.
    """
    order = list(dict.fromkeys(units))
    random.Random(seed).shuffle(order)
    left_out = [set(order[fold::FOLDS]) for fold in range(min(FOLDS, len(order)))]
    return [np.flatnonzero([unit in out for unit in units]) for out in left_out]


def cross_scores(
    messages: Sequence[Message],
    sought: Sequence[bool],
    more: Sequence[tuple[Message, bool]],
    seed: int = 0,
    families: Sequence[str] | None = None,
    letters: tuple[int, ...] = LETTERS,
    scaled: bool = True,
    only_read: Sequence[bool] | None = None,
) -> list[float]:
    """Return each message's highest score by weights that were fitted without it, in folds.

    Args:
        messages: Messages.
        sought: Whether each is of the sort to be found.
        more: Messages that every fold is fitted on besides.
        seed: Of the folds.
        families: Of each message; a family is left out as a whole. None = each message by itself.
        letters: Lengths of the letter groups that are read.
        scaled: As in `Texts.fit`.
        only_read: Of each message, whether it is scored and never fitted on; None = no one.
    """
    texts = Texts.of([*messages, *(message for message, _ in more)], letters)
    told = [*sought, *(is_sought for _, is_sought in more)]
    units = list(families) if families is not None else [str(i) for i in range(len(messages))]
    found = [0.0] * len(messages)
    never = np.flatnonzero(only_read) if only_read is not None else np.array([], dtype=int)
    for out in folds(units, seed):
        kept = np.setdiff1d(np.arange(len(told)), np.union1d(out, never))
        fitted = texts.fit(told, kept.tolist(), scaled)
        for i, score in zip(out, texts.highest(fitted, out.tolist()), strict=True):
            found[i] = score
    return found


def hundredth(threshold: float) -> float:
    """Return the next higher whole hundredth, as thresholds are stored."""
    return float(np.floor(100 * threshold + 1) / 100)
