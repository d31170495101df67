"""Reads how much danger a message tells of, to choose what a reply owes it.

The message is classified, never the person (NICE NG225). What is weighed, and how, is in
`reward/risk_evidence.py`. A plain statement of danger is noticed whatever the other words are; that
it is a crisis the other words have to say, too, because people say such things of shoes, games and
exams. Very short messages are read by patterns alone (`reward/risk_cues.py`), very long ones in
overlapping parts, so that what is said in one sentence is not lost among a hundred others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import get_args

import numpy as np

from reward.risk_cues import (
    NOTICED,
    STATEMENTS,
    families,
    pattern_cues,
    plain_words,
    sentence_cues,
    sentence_words,
)
from reward.risk_evidence import evidence, few_words, load_weighings
from reward.text import Sentence, sentences
from sft.data import Risk

LEVELS: tuple[Risk, ...] = get_args(Risk)  # from the least to the gravest
# Sentences that are read together, longer texts in parts that overlap by half. No message that the
# readings are fitted on is much longer.
PART = 24


@dataclass(frozen=True)
class RiskReading:
    """How much danger a message tells of, and the wording that says so.

    Attributes:
        risk: The gravest level read.
        cues: "family: words" of each cue of it, in order; "wording: log-odds" where the message
            sounds like a crisis, or like any risk, and no pattern says why.
    """

    risk: Risk
    cues: tuple[str, ...] = ()


def worse(first: Risk, second: Risk) -> Risk:
    """Return the graver of two levels."""
    return max(first, second, key=LEVELS.index)


def message_risk(messages: Sequence[Mapping[str, str]]) -> RiskReading:
    """Classify a conversation by what its user turns say.

    A danger named in an earlier turn does not lapse because the next turn speaks of other things.

    Example:
        >>> message_risk([{"role": "user", "content": "I keep thinking about ending my life"}]).risk
        'crisis'
    """
    risk: Risk = "none"
    cues: list[str] = []
    for message in messages:
        if message["role"] != "user":
            continue
        reading = _read(message["content"])
        if reading.risk != risk and worse(reading.risk, risk) == reading.risk:
            risk, cues = reading.risk, []
        if reading.risk == risk:
            cues += reading.cues
    return RiskReading(risk, tuple(dict.fromkeys(cues)))


@lru_cache(maxsize=4096)
def _read(text: str) -> RiskReading:
    cues = pattern_cues(text)
    if few_words(plain_words(text)):
        stated = STATEMENTS & families([cue for cue in cues if cue[0] == "crisis"])
        risk: Risk = "crisis" if stated else "elevated" if cues else "none"
        return RiskReading(risk, tuple(cue for _, cue in cues))
    crisis, any_risk = risk_scores(text)
    if crisis >= load_weighings().crisis.threshold:
        said = [cue for level, cue in cues if level == "crisis"]
        return RiskReading("crisis", tuple(said or [f"wording: {crisis:.2f}"]))
    if any_risk >= load_weighings().any_risk.threshold or families(cues) & NOTICED:
        said = [cue for _, cue in cues]
        return RiskReading("elevated", tuple(said or [f"wording: {any_risk:.2f}"]))
    return RiskReading("none")


@lru_cache(maxsize=4096)
def risk_scores(text: str) -> tuple[float, float]:
    """Return the log-odds that a text tells of a crisis, and of any risk.

    Of a long text those of the part that tells of most.
    """
    said = sentences(text)
    starts = range(0, max(1, len(said) - PART // 2), PART // 2)
    found = [_evidence(said[start : start + PART]) for start in starts]
    weighed = load_weighings()
    crisis = max(float(weighed.crisis.log_odds(one)) for one in found)
    return crisis, max(float(weighed.any_risk.log_odds(one)) for one in found)


def _evidence(said: Sequence[Sentence]) -> np.ndarray:
    cues = (cue for sentence in said for cue in sentence_cues(sentence))
    return evidence([sentence_words(sentence) for sentence in said], families(cues))
