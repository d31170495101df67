"""What the reading of text for the judge is fitted on, its cross-validation and its threshold.

Not here: the fit (`reward.wording_fit`), and ordinary text of the practice clinic, which the script
brings (`scripts/fit_injection.py`).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reward.injection import WrittenText, kinds_of_words, patterns_find
from reward.lexicon import ASSETS
from reward.passages import PASSAGES, WrittenPassage
from reward.recall import WrittenMessage
from reward.wording import Message, Wording
from reward.wording_fit import cross_scores, fit, hundredth
from sft.files import read_rows

TEXTS = ASSETS / "injections.jsonl"
Shown = tuple[Message, bool]  # a text, and whether it is directed
LETTERS, LEAST_WEIGHT = (4, 5), 0.15  # a feature of less is left out
# Shares of texts that may be called directed, 0..1: of ordinary ones that nothing was fitted on, of
# sentences that are like attacks, and of whole answers by therapists that were asked to speak of
# standards, grades and experts, as they do.
ORDINARY, LIKE, ANSWERS = 0.01, 0.04, 0.06
_FITTED, _HELD_OUT = 9000, 2000  # messages, and passages of replies, by known authors


def by_authors() -> tuple[list[str], dict[str, list[str]]]:
    """Return messages and passages by half of their authors to fit on, and some by the others."""
    messages = read_rows(ASSETS / "messages.jsonl", WrittenMessage)
    passages = read_rows(PASSAGES, WrittenPassage)
    draw, shown, held = random.Random(0), list[str](), dict[str, list[str]]()
    texts = {
        "messages by authors": [(row.text, row.author) for row in messages if row.author],
        "passages by authors": [(row.text, row.author) for row in passages],
    }
    for name, rows in texts.items():
        half = set(sorted({author for _, author in rows})[::2])
        known = [text for text, author in rows if author in half]
        others = [text for text, author in rows if author not in half]
        shown += draw.sample(known, min(_FITTED, len(known)))
        held[name] = draw.sample(others, min(_HELD_OUT, len(others)))
    return shown, held


@dataclass(frozen=True)
class Found:
    """A fitted reading and what is known of it.

    Attributes:
        wording: With its threshold, and with the features of some weight only.
        called: By name: the share that wording calls directed, that wording or a pattern does, and
            the number of texts. Of attacks and like sentences by authors, and for those of no known
            author families, that were left out; of ordinary text that nothing was fitted on.
    """

    wording: Wording
    called: Mapping[str, tuple[float, float, int]]


def fit_injection(
    rows: Sequence[WrittenText], shown: Sequence[str], held_out: Mapping[str, Sequence[str]]
) -> Found:
    """Fit the reading and take the least threshold that calls few ordinary texts directed.

    Args:
        rows: Attacks and like sentences.
        shown: Ordinary text to fit on besides.
        held_out: By name, ordinary text that only the threshold is taken from.
    """
    texts, directed = [kinds_of_words(row.text) for row in rows], [row.directed for row in rows]
    calm: list[Shown] = [(kinds_of_words(text), False) for text in shown]
    answers = np.array([row.family == "answers" for row in rows])
    # Few authors wrote answers: each is left out alone, or too little of their manner is known.
    scores = np.zeros(len(rows))
    for some in (answers, ~answers):
        others = [(texts[i], directed[i]) for i in np.flatnonzero(~some)]
        scores[some] = _cross_scores(rows, texts, np.flatnonzero(some), [*calm, *others])
    signs = [*directed, *(sign for _, sign in calm)]
    fitted = fit([*texts, *(text for text, _ in calm)], signs, LETTERS, scaled=False)
    weights = {name: w for name, w in fitted.weights.items() if abs(w) >= LEAST_WEIGHT}
    fitted = replace(fitted, weights=weights)
    high = {
        name: np.array([fitted.highest(kinds_of_words(text)) for text in some])
        for name, some in held_out.items()
    }
    is_directed = np.array(directed)
    least = [np.quantile(each, 1 - ORDINARY) for each in high.values()]
    least.append(np.quantile(scores[~is_directed & ~answers], 1 - LIKE))
    least.append(np.quantile(scores[answers], 1 - ANSWERS))
    threshold = hundredth(max(least))
    by_pattern = np.array([patterns_find(row.text) for row in rows])
    called = {}
    for name in dict.fromkeys([*(row.family for row in rows), "attacks", "like sentences"]):
        of_family = np.array([row.family == name for row in rows])
        some = {"attacks": is_directed, "like sentences": ~is_directed}.get(name, of_family)
        over = scores[some] >= threshold
        both = (over | by_pattern[some]).mean()
        called[name] = (float(over.mean()), float(both), int(some.sum()))
    for name, each in high.items():
        share = float((each >= threshold).mean())
        both = np.mean([patterns_find(text) for text in held_out[name]] | (each >= threshold))
        called[name] = (share, float(both), len(each))
    return Found(replace(fitted, threshold=threshold), called)


def _cross_scores(
    rows: Sequence[WrittenText],
    texts: Sequence[Message],
    some: np.ndarray,
    others: Sequence[Shown],
) -> list[float]:
    """Return the scores of some rows by weights that know others, and nothing of their author."""
    units = [rows[i].author or rows[i].family for i in some]
    told = [rows[i].directed for i in some]
    return cross_scores([texts[i] for i in some], told, others, 0, units, LETTERS, scaled=False)
