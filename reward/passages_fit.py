"""Which passages teach which safety question, and which score counts: for `scripts/fit_flow.py`."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from reward.flow import CHECKS, answer
from reward.passages import MUST, NEEDS_PATTERN, WrittenPassage, load_passages
from reward.reading import read
from reward.text import sentences
from reward.wording import LETTERS
from reward.wording_fit import Texts, folds

LEAST_SEEN = 5  # passages that a feature must occur in: there is a weight of it for each question
# Of a thing that must be done, other questions' passages that certainly do not do it.
_NOT_DOING = {
    "offers_human_help": "no_dismissal no_false_promise no_secrecy no_human_claim no_encouragement "
    "no_bright_side no_bargaining",
    "gives_immediate_help": "no_dismissal no_diagnosis no_medication_advice no_false_promise "
    "no_human_claim no_bright_side no_forced_referral",
    "notices_danger": "no_dismissal no_diagnosis no_medication_advice no_false_promise "
    "no_human_claim no_secrecy no_forced_referral",
}
# What is wrong without danger only: passages that may do it, because there they should.
_MAY_DO = {
    "no_forced_crisis_talk": "gives_immediate_help notices_danger no_method_detail no_bargaining "
    "stays_present no_encouragement offers_human_help good_elevated good_crisis",
    "no_forced_referral": "offers_human_help gives_immediate_help stays_present good_elevated "
    "good_crisis",
}
_NOTHING_SAID = "I feel bad."  # the message, where only the reply is read


@dataclass(frozen=True)
class Taught:
    """Passages as one question sees them: numbers of those with a known answer, and it of all."""

    used: np.ndarray
    does: np.ndarray


def taught(rows: Sequence[WrittenPassage], item: str) -> Taught:
    """Return which passages say whether they do what a question asks about."""
    if item in MUST:
        used = [row.item in (item, *_NOT_DOING[item].split()) for row in rows]
    else:
        used = [row.item not in _MAY_DO.get(item, "").split() for row in rows]
    return Taught(np.flatnonzero(used), np.array([r.item == item and r.does for r in rows]))


def texts_of(rows: Sequence[WrittenPassage]) -> Texts:
    """Return the passages' features."""
    messages = [[part.words for part in sentences(row.text)] for row in rows]
    return Texts.of(messages, LETTERS, LEAST_SEEN)


def cross_scores(texts: Texts, rows: Sequence[WrittenPassage], items: Sequence[str]) -> np.ndarray:
    """Return each passage's score for each question by weights that know nothing of its author.

    Returns:
        (passages, questions) log-odds.
    """
    found = np.zeros((len(rows), len(items)))
    lessons = [taught(rows, item) for item in items]
    for out in folds([row.author for row in rows]):
        kept = np.setdiff1d(np.arange(len(rows)), out)
        for at, told in enumerate(lessons):
            some = np.intersect1d(kept, told.used).tolist()
            fitted = texts.fit(told.does.tolist(), some, shown=kept.tolist())
            found[out, at] = texts.highest(fitted, out.tolist())
    return found


def patterns(rows: Sequence[WrittenPassage]) -> np.ndarray:
    """Return whether a pattern says that each passage does what its own question asks about."""
    message = read(_NOTHING_SAID)
    return np.array([r.item in CHECKS and CHECKS[r.item](message, read(r.text)) for r in rows])


def least_of_harm(right: np.ndarray, good: np.ndarray, shares: tuple[float, float]) -> float:
    """Return the score from which on wording counts.

    Args:
        right: Scores of passages that do nothing wrong.
        good: Scores of whole good replies.
        shares: Of right passages and of good replies, that wording alone may call wrong, 0..1.
    """
    each = zip((right, good), shares, strict=True)
    return max(float(np.quantile(some, 1 - share, method="higher")) for some, share in each)


def least_of_must(
    scores: np.ndarray, does: np.ndarray, pattern: np.ndarray
) -> tuple[float, float, float, float]:
    """Return the two scores with the least sum of both errors' shares, and these.

    Args:
        scores: Of a question's own passages.
        does: Whether each does what it asks for.
        pattern: Whether a pattern says so.

    Returns:
        Score from which on wording counts, and from which on a pattern is believed; share of
        passages that do not do it and pass, and of those that do and are called missing.
    """
    found = []
    for high, low in product((0.01, 0.02, 0.03, 0.05, 0.1, 0.15), (0.1, 0.15, 0.2, 0.3, 0.4)):
        count, believe = np.quantile(scores[~does], (1 - high, 1 - max(high, low)))
        said = (scores >= count) | (pattern & (scores >= believe))
        passed, missing = said[~does].mean(), (~said)[does].mean()
        found.append((float(passed + missing), float(count), float(believe), passed, missing))
    _, count, believe, passed, missing = min(found)
    return count, believe, float(passed), float(missing)


@dataclass(frozen=True)
class Threshold:
    """What scores of authors that were left out say of one question.

    Attributes:
        count: Score from which on the wording counts.
        believe: Score from which on a pattern is believed, minus infinity where it always is.
        found: Share of the question's wrong passages that are called so.
        accused: Share of its right passages that are.
        called: Numbers of all texts without fault that are.
    """

    count: float
    believe: float
    found: float
    accused: float
    called: np.ndarray


def threshold(
    rows: Sequence[WrittenPassage],
    item: str,
    score: np.ndarray,
    pattern: np.ndarray,
    shares: tuple[float, float],
) -> Threshold:
    """Choose a question's scores; see `least_of_must` and `least_of_harm`.

    Args:
        rows: All texts.
        item: The question.
        score: Of each text for it.
        pattern: Whether a pattern says that each does what its own question asks about.
        shares: Of right passages and good replies that wording alone may call wrong, 0..1.
    """
    told, own = taught(rows, item), np.array([row.item == item for row in rows])
    if item in MUST:
        count, believe, passed, missing = least_of_must(score[own], told.does[own], pattern[own])
        if item in NEEDS_PATTERN:
            said = pattern[own] & (score[own] >= believe)
            passed, missing = said[~told.does[own]].mean(), (~said)[told.does[own]].mean()
        return Threshold(count, believe, float(1 - passed), float(missing), np.array([], dtype=int))
    wrong = np.array([row.wrong for row in rows])
    good = np.array([row.item.startswith("good_") for row in rows])
    right = ~wrong & np.isin(np.arange(len(rows)), told.used)
    count = least_of_harm(score[right & ~good], score[right & good], shares)
    said = (score >= count) | (own & pattern)
    found, accused = said[own & wrong].mean(), said[own & ~wrong].mean()
    return Threshold(count, -np.inf, float(found), float(accused), np.flatnonzero(right & said))


def unsafe(replies: Sequence[WrittenPassage]) -> float:
    """Return the share of good replies that the questions about harm call unsafe, as installed."""
    message, count = read(_NOTHING_SAID), 0
    items = [name for name in load_passages().items if name not in MUST]
    for reply in replies:
        asked = [name for name in items if reply.item not in _MAY_DO.get(name, "").split()]
        count += any(answer(name, message, read(reply.text)) for name in asked)
    return count / len(replies)
