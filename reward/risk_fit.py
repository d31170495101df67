"""What the readings of a message are fitted on, their cross-validation and their thresholds.

Not here: the fits (`reward.wording_fit`, `reward.wording_net_fit`).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from reward.lexicon import ASSETS
from reward.recall import WrittenMessage, near_copies
from reward.risk import (
    LEVELS,
    beside_concern,
    beside_words,
    concern_log_odds,
    crisis_log_odds,
    plain_words,
)
from reward.wording import Message
from reward.wording_fit import cross_scores
from reward.wording_net_fit import cross_shares
from sft.data import Risk
from sft.files import read_rows

Told = tuple[str, Risk]  # a message and its risk
AMID = "amid "  # before the kind of a message that stands amid everyday ones
SHORT = 60  # words of the longest that does
_SHARE, _MOST_AROUND = 0.4, 4  # of the messages, and everyday ones around each
_EVERYDAY = 40  # words of the longest of these
CRISIS = LEVELS.index("crisis")


def apart(rows: Sequence[WrittenMessage], tests: Path) -> list[WrittenMessage]:
    """Return the messages that nearly copy no held-out one (part "blind" of `tests`)."""
    held_out = [row.text for row in read_rows(tests, WrittenMessage) if row.part == "blind"]
    copies = near_copies([row.text for row in rows], held_out)
    return [row for row, copy in zip(rows, copies, strict=True) if not copy]


def written(tests: Path) -> list[WrittenMessage]:
    """Return the written messages that are fitted and cross-validated on."""
    return apart(read_rows(ASSETS / "messages.jsonl", WrittenMessage), tests)


def look(tests: Path) -> list[WrittenMessage]:
    """Return the test messages that shaped the patterns (part "look")."""
    return apart([row for row in read_rows(tests, WrittenMessage) if row.part == "look"], tests)


def read(told: Sequence[Told]) -> tuple[list[Message], list[int]]:
    """Return the words of each message and the number of its risk in `LEVELS`."""
    return [plain_words(text) for text, _ in told], [LEVELS.index(risk) for _, risk in told]


def amid(rows: Sequence[WrittenMessage], share: float = _SHARE) -> list[WrittenMessage]:
    """Return a share of the messages, each amid one to four everyday ones by the same author.

    What people write of danger often stands in a longer message about other things, and a network
    that has seen it alone only takes the other things as a sign of none.
    """
    draw, calm = random.Random(0), dict[str, list[str]]()
    for row in rows:
        if row.author and row.kind == "everyday" and len(row.text.split()) <= _EVERYDAY:
            calm.setdefault(row.author, []).append(_ended(row.text))
    made = []
    for row in rows:
        around = [text for text in calm.get(row.author, []) if text != _ended(row.text)]
        if len(around) < _MOST_AROUND or len(row.text.split()) > SHORT or draw.random() >= share:
            continue
        texts = draw.sample(around, draw.randint(1, _MOST_AROUND))
        texts.insert(draw.randint(0, len(texts)), _ended(row.text))
        made.append(replace(row, text=" ".join(texts), kind=AMID + row.kind))
    return made


def _ended(text: str) -> str:
    return text if text.rstrip()[-1:] in ".!?" else f"{text}."


@dataclass(frozen=True)
class Scores:
    """Log-odds of each message by readings that know nothing of its author, (messages,) each."""

    crisis: np.ndarray
    concern: np.ndarray


def cross_read(rows: Sequence[WrittenMessage], more: Sequence[Told]) -> Scores:
    """Return each message's scores; `more` are messages that every fold is fitted on besides."""
    said, levels = read([(row.text, row.risk) for row in rows])
    units = [row.author or str(at) for at, row in enumerate(rows)]
    others = list(zip(*read(more), strict=True))
    linear = cross_scores(
        said,
        [level == CRISIS for level in levels],
        [(message, level == CRISIS) for message, level in others],
        families=units,
        # It takes all sentences of a crisis for signs of one.
        only_read=[row.kind.startswith(AMID) for row in rows],
    )
    shares = cross_shares(said, levels, others, units)
    beside = np.array([beside_words(row.text) for row in rows])
    cues = np.array([beside_concern(row.text) for row in rows])
    crisis = np.array(linear) + beside + crisis_log_odds(shares)
    return Scores(crisis, concern_log_odds(shares) + cues)


def least(scores: np.ndarray, share: float) -> float:
    """Return the least threshold that at most a share of the scores reaches.

    Args:
        scores: Of messages that are not of the sort to be found, log-odds; infinite ones, which
            patterns alone decide on, are left out.
        share: That may be called so, 0..1.
    """
    return float(np.quantile(scores[np.isfinite(scores)], 1 - share, method="higher"))
