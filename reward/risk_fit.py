"""What the linear reading of a message is fitted on, and which threshold keeps to a share.

Not here: the fit (`reward.wording`), its cross-validation (`scripts/fit_risk.py`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reward.lexicon import ASSETS
from reward.recall import WrittenMessage, near_copies
from sft.files import read_rows


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


def least(scores: np.ndarray, share: float) -> float:
    """Return the least threshold that at most a share of the scores reaches.

    Args:
        scores: Of messages that are no crisis, log-odds.
        share: That may be called a crisis, 0..1.
    """
    return float(np.quantile(scores, 1 - share, method="higher"))
