"""What speaks for danger in a message, and how it is weighed.

Evidence is a linear reading of words (`reward/wording.py`), a reading by a small network of the
whole message and of each run of one to three sentences (`reward/wording_net.py`), the number of
runs, and which families of patterns were found (`reward/risk_cues.py`). Two logistic regressions
weigh it: whether the message tells of a crisis, and whether of any risk. Their weights are fitted
on evidence from readings that knew nothing of a message's author (`reward/risk_fit.py`), because a
reading is surer of what it was fitted on than it is right.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from reward.lexicon import ASSETS
from reward.risk_cues import FAMILIES
from reward.wording import WINDOW, Message, load_wording, n_windows
from reward.wording_net import load_net
from sft.files import to_json, write_text

WEIGHTS = ASSETS / "risk_evidence.json"
EVIDENCE = ("words", "crisis", "crisis in a run", "risk", "risk in a run", "runs", *FAMILIES)
# Fewer words than this say nothing by their likeness to other texts' words.
LEAST_WORDS = 5
# Elevated risk stands against a crisis, too, but less than no risk does; log-odds.
_LESS_AGAINST = 1.5
_MOST = 12.0  # log-odds of the linear reading, either way


@dataclass(frozen=True)
class Weighing:
    """A logistic regression on evidence.

    Attributes:
        weights: (evidence,) of `EVIDENCE`.
        bias: Of a message without any.
        threshold: Log-odds from which on a message is called so.
    """

    weights: np.ndarray
    bias: float
    threshold: float

    def log_odds(self, evidence: np.ndarray) -> np.ndarray:
        """Return the log-odds of messages: (...) of evidence (..., evidence)."""
        return np.asarray(evidence @ self.weights + self.bias)


@dataclass(frozen=True)
class Weighings:
    """The two questions that are asked of the evidence."""

    crisis: Weighing
    any_risk: Weighing


def evidence(said: Message, families: frozenset[str]) -> np.ndarray:
    """Return the evidence in one message by the stored readings: (evidence,).

    Args:
        said: Its words, see `reward.risk_cues.plain_words`.
        families: Of the patterns that were found in it.
    """
    return assemble(said, families, load_wording().highest(said), load_net().log_shares)


def assemble(
    said: Message,
    families: frozenset[str],
    linear: float,
    log_shares: Callable[[Message], np.ndarray],
) -> np.ndarray:
    """Return the evidence in one message: (evidence,); `linear` and `log_shares` read it."""
    whole = log_shares(said)
    runs = [
        said[a:b] for a in range(len(said)) for b in range(a + 1, a + 1 + WINDOW)[: len(said) - a]
    ]
    read = [log_shares(run) for run in runs if not few_words(run)] if len(runs) > 1 else []
    each = np.stack(read or [whole])
    return np.array(
        [
            min(_MOST, max(-_MOST, linear)),
            crisis_log_odds(whole),
            crisis_log_odds(each).max(),
            concern_log_odds(whole),
            concern_log_odds(each).max(),
            math.log(max(1, n_windows(len(said)))),
            *(float(family in families) for family in FAMILIES),
        ]
    )


def crisis_log_odds(shares: np.ndarray) -> np.ndarray:
    """Return the network's log-odds of a crisis; elevated risk stands less against it than none.

    Args:
        shares: (..., 3) log-probabilities of no risk, elevated risk and a crisis.
    """
    none, elevated, crisis = np.moveaxis(shares, -1, 0)
    return np.asarray(crisis - np.logaddexp(none, elevated - _LESS_AGAINST))


def concern_log_odds(shares: np.ndarray) -> np.ndarray:
    """Return the network's log-odds of any risk; `shares` as in `crisis_log_odds`."""
    none, elevated, crisis = np.moveaxis(shares, -1, 0)
    return np.asarray(np.logaddexp(elevated, crisis) - none)


def few_words(said: Message) -> bool:
    """Whether a message is too short for its words to be compared with other messages'."""
    return sum(map(len, said)) < LEAST_WORDS


@cache
def load_weighings(path: Path = WEIGHTS) -> Weighings:
    """Read the fitted weights: JSON, nothing is unpickled."""
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))

    def weighing(name: str) -> Weighing:
        one = stored[name]
        weights = np.array([one["weights"][each] for each in EVIDENCE])
        return Weighing(weights, one["bias"], one["threshold"])

    return Weighings(weighing("crisis"), weighing("any_risk"))


def save_weighings(weighings: Weighings, path: Path) -> None:
    """Write weights that `load_weighings` reads, in thousandths."""

    def stored(one: Weighing) -> dict[str, Any]:
        weights = dict(zip(EVIDENCE, np.round(one.weights, 3).tolist(), strict=True))
        return {"threshold": one.threshold, "bias": round(one.bias, 3), "weights": weights}

    content = {"crisis": stored(weighings.crisis), "any_risk": stored(weighings.any_risk)}
    write_text(path, to_json(content) + "\n")
