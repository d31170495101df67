"""Reads how much danger a message tells of, to choose what a reply owes it.

The message is classified, never the person (NICE NG225). Wording is described by families of
patterns in `assets/risk.yaml`; everyday idioms are taken out first, and a cue that is denied, long
past, told of someone else or of a story counts less. Beside them stand two readings of how like the
words are to those of other messages, a linear one (`reward/wording.py`) and one by a small network
(`reward/wording_net.py`). A message is a crisis where the three together say so: a plain statement
needs little more, a hint (a goodbye, a burden, things given away) is believed where the other words
fit, because everyday talk has such turns of phrase, too. Elevated risk is read by the patterns and
the network; most of what patterns find is noticed whatever the other words are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import get_args

import numpy as np

from reward.lexicon import Hit, matcher
from reward.text import Sentence, sentences
from reward.wording import load_wording, n_windows
from reward.wording_net import load_net
from sft.data import Risk

LEVELS: tuple[Risk, ...] = get_args(Risk)  # from the least to the gravest

_CRISIS = frozenset(
    (
        *("explicit", "burden_gone", "not_be", "no_point", "goodbye", "plan_means", "danger_now"),
        *("self_harm", "mortal"),
    )
)
# Families whose patterns are whole statements: an idiom inside one is part of it.
_LONG = frozenset(("burden_gone", "not_be", "no_point", "goodbye", "plan_means"))
_ELEVATED = frozenset(("despair", "function", "harm_done", "harm_others"))
# What a plain statement and what a hint add to the log-odds of a message's words. More was tried on
# authors that nothing was fitted on: it found fewer crises with as many false alarms.
_STATED = frozenset(("explicit", "plan_means", "self_harm", "burden_gone", "no_point"))
_STATEMENT, _HINT = 2.0, 0.5
# Fewer words than this are read by patterns alone: what "ok" or "please" has of other texts' words
# says nothing.
_LEAST_WORDS = 5
# What is noticed whatever the other words are: calm sentences hid it from the network.
_NOTICED = _CRISIS | {"harm_done", "function"}
# Elevated risk stands against a crisis, too, but less than no risk does; log-odds.
_LESS_AGAINST = 1.5
_CONCERN = 1.0  # what any other cue adds to the log-odds of any risk
# Said of a third person these are still told of a third person only; the others have "me" in them.
_OF_ANYONE = _CRISIS - {"burden_gone", "danger_now"}
_SELF = frozenset(("i", "me", "myself", "my"))
_PRESENT = frozenset(
    ("now", "again", "still", "lately", "currently", "today", "tonight", "recently", "started")
)
_BASE_VERBS = frozenset(("want", "wish", "hope", "feel", "need", "plan", "think", "should"))
_PLURAL = frozenset(
    (
        *("they", "people", "who", "kids", "friends", "parents", "others", "to", "does", "did"),
        *("not", "may", "might"),
    )
)
_ON_PURPOSE = frozenset(("purpose", "deliberately", "intentionally"))
_MASK = "#"  # no canonical word, so patterns do not run through it except by a gap


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
        for level, cue in _text_cues(message["content"]):
            if level != risk and worse(level, risk) == level:
                risk, cues = level, []
            if level == risk:
                cues.append(cue)
    return RiskReading(risk, tuple(dict.fromkeys(cues)))


@lru_cache(maxsize=4096)
def _text_cues(text: str) -> tuple[tuple[Risk, str], ...]:
    cues = pattern_cues(text)
    score = crisis_score(text)
    if score >= load_wording().threshold:
        if any(level == "crisis" for level, _ in cues):
            return cues
        return (*cues, ("crisis", f"wording: {score:.2f}"))
    score = concern_score(text)
    if score < load_net().threshold:
        return ()
    said = [cue for _, cue in cues] or [f"wording: {score:.2f}"]
    return tuple(("elevated", cue) for cue in said)


def crisis_score(text: str) -> float:
    """Return the log-odds that a text tells of a crisis; infinite where patterns alone decide."""
    linear = load_wording().highest(plain_words(text))
    return linear + beside_words(text) + float(crisis_log_odds(_shares(text)))


def concern_score(text: str) -> float:
    """Return the log-odds that a text tells of any risk; infinite where patterns alone decide."""
    return float(concern_log_odds(_shares(text))) + beside_concern(text)


@lru_cache(maxsize=4096)
def _shares(text: str) -> np.ndarray:
    shares = load_net().log_shares(plain_words(text))
    shares.setflags(write=False)  # it is kept, and shared by all who ask
    return shares


def crisis_log_odds(shares: np.ndarray) -> np.ndarray:
    """Return the network's log-odds of a crisis; elevated risk stands less against it than none.

    Args:
        shares: (..., 3) log-probabilities of `LEVELS`.
    """
    none, elevated, crisis = np.moveaxis(shares, -1, 0)
    return np.asarray(crisis - np.logaddexp(none, elevated - _LESS_AGAINST))


def concern_log_odds(shares: np.ndarray) -> np.ndarray:
    """Return the network's log-odds of any risk; `shares` as in `crisis_log_odds`."""
    none, elevated, crisis = np.moveaxis(shares, -1, 0)
    return np.asarray(np.logaddexp(elevated, crisis) - none)


def beside_concern(text: str) -> float:
    """Return what a text's cues add to the log-odds of any risk.

    Infinite where a cue is noticed in any company; minus infinite in few words without one.
    """
    found = _families(pattern_cues(text))
    if _few_words(text):
        return math.inf if found else -math.inf
    return math.inf if found & _NOTICED else _CONCERN if found else 0.0


def beside_words(text: str) -> float:
    """Return what is added to the log-odds of a text's most telling run of sentences.

    The logarithm of the number of runs is taken off, because the highest of many is high by chance:
    without it very many long messages that tell of no danger are called a crisis. Infinite or
    minus infinite in few words, which are a crisis where they state one.
    """
    runs = n_windows(len(sentences(text)))
    found = _families([cue for cue in pattern_cues(text) if cue[0] == "crisis"])
    if _few_words(text):
        return math.inf if found & _STATED else -math.inf
    says = _STATEMENT if found & _STATED else _HINT if found else 0.0
    return says - math.log(max(1, runs))


def _few_words(text: str) -> bool:
    return sum(map(len, plain_words(text))) < _LEAST_WORDS


def _families(cues: Sequence[tuple[Risk, str]]) -> frozenset[str]:
    return frozenset(cue.partition(":")[0] for _, cue in cues)


@lru_cache(maxsize=4096)
def pattern_cues(text: str) -> tuple[tuple[Risk, str], ...]:
    """Return the level and "family: words" of every pattern found in a text."""
    return tuple(cue for sentence in sentences(text) for cue in _sentence_cues(sentence))


def plain_words(text: str) -> list[tuple[str, ...]]:
    """Return the canonical words of each sentence with everyday idioms blanked out."""
    return [tuple(_without_idioms(sentence.words)) for sentence in sentences(text)]


def _sentence_cues(sentence: Sentence) -> list[tuple[Risk, str]]:
    words = _without_idioms(sentence.words)
    hits = _find(words, sentence.breaks)
    context = {hit.family for hit in hits}
    if "laughing" in context or "mundane" in context:
        joking = {"laughing", "mundane"} <= context or _conditional(words)
    else:
        joking = False
    found: list[tuple[Risk, str]] = []
    for hit in hits:
        level = _level(hit, hits, words, "mundane" in context and joking)
        if level != "none":
            found.append((level, f"{hit.family}: {' '.join(words[hit.start : hit.end])}"))
    return found


def _without_idioms(words: Sequence[str]) -> list[str]:
    """Blank out everyday idioms, except inside a longer wording of danger."""
    plain = list(words)
    if not _ON_PURPOSE.isdisjoint(words):
        return plain
    hits = matcher("risk").find(words)
    for idiom in hits:
        inside = any(
            h.family in _LONG and h.start < idiom.start and h.end >= idiom.end for h in hits
        )
        if idiom.family == "idiom" and not inside:
            plain[idiom.start : idiom.end] = [_MASK] * (idiom.end - idiom.start)
    return plain


def _find(words: Sequence[str], breaks: frozenset[int]) -> list[Hit]:
    """Find cues in the sentence, and in each clause, whose end counts as an end too."""
    hits = matcher("risk").find(words)
    edges = [0, *sorted(breaks), len(words)]
    if len(edges) > 2:
        for start, end in pairwise(edges):
            hits += [
                replace(hit, start=hit.start + start, end=hit.end + start)
                for hit in matcher("risk").find(words[start:end])
            ]
    return list(dict.fromkeys(hits))


def _conditional(words: Sequence[str]) -> bool:
    text = " ".join(words)
    return "if i have to" in text or "one more" in text


def _level(hit: Hit, hits: Sequence[Hit], words: Sequence[str], joking: bool) -> Risk:
    if hit.family in _ELEVATED:
        return "none" if _denied(hit, words) or _of_story(hit, hits, words) else "elevated"
    if hit.family not in _CRISIS or (hit.family == "mortal" and _SELF.isdisjoint(words)):
        return "none"
    if _of_story(hit, hits, words):
        return "none"
    if _denied(hit, words) or joking:
        return "elevated"
    if _of_other(hit, words):
        near = hit.family == "plan_means" or not {"tonight", "now"}.isdisjoint(words)
        return "crisis" if near else "elevated"
    past = any(other.family == "past" for other in hits)
    if past and _PRESENT.isdisjoint(words):
        return "elevated"
    return "crisis"


def _denied(hit: Hit, words: Sequence[str]) -> bool:
    before = words[max(0, hit.start - 9) : hit.start]
    return any(h.family == "denial" and h.end == len(before) for h in matcher("risk").find(before))


def _of_story(hit: Hit, hits: Sequence[Hit], words: Sequence[str]) -> bool:
    """Whether the cue belongs to a story, a study or a job rather than to the speaker."""
    if not any(h.family in ("fiction", "work") for h in hits):
        return False
    own = _SELF.intersection(words[hit.start : hit.end])
    return not own and "i" not in words[max(0, hit.start - 2) : hit.start]


def _of_other(hit: Hit, words: Sequence[str]) -> bool:
    """Whether the cue's nearest subject is somebody else."""
    if hit.family not in _OF_ANYONE or _SELF.intersection(words[hit.start : hit.end]):
        return False
    if words[hit.start] in _BASE_VERBS and (hit.start == 0 or words[hit.start - 1] not in _PLURAL):
        return False
    for word in reversed(words[: hit.start]):
        if word in _SELF - {"my"}:
            return False
        if word in _others() or word.removesuffix("s") in _others():
            return True
    after = words[hit.end : hit.end + 4]
    return after[:1] in (["of"], ["by"], ["in"]) and not _others().isdisjoint(after)


@lru_cache(maxsize=1)
def _others() -> frozenset[str]:
    return matcher("risk").words_of_slot("them")
