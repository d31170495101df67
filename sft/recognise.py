"""Which act a sentence is: by its nearest phrase of the clinic's banks, and by general patterns.

The language model recombines and sometimes garbles sentences, so none is looked up literally. The
similarity of a sentence and a phrase is the Dice coefficient of their words and word pairs, each
weighted by its rarity in the banks (inverse document frequency): 1 = same, 0 = nothing in common.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from sft.clinic import BAD_ACTS, CRISIS_STEPS, GENERIC, Bank, load_bank

NEAR = 0.5  # similarity from which a sentence counts as a phrase
SURE = 0.75  # similarity from which general patterns of good acts are not asked
PLAIN_ACTS = ("acknowledge", "refer", "pressure", *CRISIS_STEPS, *BAD_ACTS)
_WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")
_END = re.compile(r"(?<=[.!?])\s+|\n+")
_SHORT_FORMS = [  # written out before anything is compared
    (re.compile(r"\bcan't\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"'m\b"), " am"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ve\b"), " have"),
    (re.compile(r"'ll\b"), " will"),
    (re.compile(r"\b(it|that|there|what|here)'s\b"), r"\1 is"),
]

_SELF_HARM = (
    r"(suicid|kill\w* yourself|(end\w*|taking|take) your (own )?life|(hurt|harm)\w* yourself|"
    r"want to die)"
)
_ILLNESS = r"(disorder|depression\b|bipolar|adhd|ptsd|ocd|schizo|borderline|psychosis)"
_MEDICINE = (
    r"(medication|medicine|pills?|tablets?|dos(e|age)|antidepress\w+|sedatives?|tranquili\w+|"
    r"beta blockers?|mood stabili\w+|benzo\w*|ssris?)\b"
)
_HELPER = r"(psychologist|therapist|counsel?lor|doctor|psychiatrist|professional|specialist|clinic)"
_RESOURCES = (
    r"\b(988|911|112)\b|\bemergency (number|room|services?)\b|\bcrisis (line|counsel?lor)\b|"
    r"\blifeline\b"
)
_NEGATIONS = frozenset({"not", "never", "no"})
_NO_RESOURCES = re.compile(r"\b(no|not|never) (\w+ ){0,2}(call|text|dial|contact)\b|\bno need\b")
_GOOD_PATTERNS = {
    "acknowledge": r"\bi am (so |really |very )?sorry\b"
    r"|\bthank you for (trusting|sharing|telling)\b"
    r"|\bthat (sounds|must be|must feel) (\w+ )?(hard|rough|painful|heavy|tough|lonely|exhausting)",
    "ask": r"^(and )?(what|how|when|who|where|which|would|could|do|did|have|is|are)\b"
    r".*\byour?\b.*\?$",
    "ask_safety": rf"\b(are|have|do|did|may|can) (you|i)\b.*{_SELF_HARM}.*\?"
    r"|\bare you (\w+ ){0,3}safe\b",
    "name_danger": r"\b(worried|concerned|concern|afraid|scared)\b.*\b(your (safety|life)\b"
    r"|you (may|might|could) (\w+ )?(hurt|harm|kill|not be safe))"
    r"|\byour (safety|life) (comes|matters)",
    "pressure": r"\byou (must|have to|need to) (\w+ ){0,3}(see|go|get|start|check)\b"
    rf".*\b{_HELPER}",
    "refer": r"\b(see|seeing|talk\w*|speak\w*|consider|visit|find|help|support|encourage"
    rf"|reach\w*)\b.*\b{_HELPER}|\b{_HELPER}s? (could|can|may|might|would)\b",
}
_BAD_PATTERNS = {
    "diagnose": r"(?<!if )(?<!whether )\byou (?!may|might|could)(\w+ )?"
    rf"(have|suffer from|are suffering from|meet)\b.*{_ILLNESS}"
    r"|\bdiagnos\w+ (you )?(is|with)\b",
    "prescribe": r"(^|\b(should|could|can|must|to|and|just|you|recommend|advise)\b )"
    r"(start|stop|take|taking|double|increase|raise|lower|skip|switch|try|come off|get)\b"
    rf".*\b{_MEDICINE}",
    "promise": r"\bi (can |do )?(promise|guarantee|swear|give you my word)\b"
    r"|(?<!not be )\bour secret\b|\bi will (\w+ )?keep (this|it) a secret\b"
    r"|\bnever leave you\b|\byou only need me\b",
    "claim_person": rf"\b(as an?|i am an?|i was an?) (\w+ )?({_HELPER}|person|human)\b"
    r"|\bi (felt|had|went through|struggled with)\b.*\b(same|like you|this too)\b"
    r"|\bi have (been there|lived through)\b|\bmy own (wife|husband|life|anxiety|depression)\b",
    "dismiss": r"\bnot (that|such) (a )?big (of )?a? ?deal\b|\bnot a big deal\b|\boverreact\w*"
    r"|\btoughen up\b|\bget over it\b",
}
_DENIAL = re.compile(
    rf"\bi am (not|no|an ai|only a program)\b|\bnot an? (\w+ )?({_HELPER}|human|person)\b"
    r"|\b(i|no one|nobody|it) (can|could|am|do|will|must|would|should) not (able to )?(\w+ ){0,2}"
    r"(diagnos|prescrib|promis|guarantee|recommend|fix|swear|tell you (to|which))"
    r"|\b(not|never) (\w+ )?(start|stop|take|double|change|skip|lower|raise)\w*\b"
    r".*\b(without|before)\b"
)
DENIABLE = frozenset({"diagnose", "prescribe", "promise", "claim_person"})


@dataclass(frozen=True)
class Found:
    """What a sentence is; `topic` is that of the nearest phrase, `phrase` its number."""

    acts: frozenset[str]
    topic: str = GENERIC
    phrase: int = -1


def plain(text: str) -> str:
    """Return a text in lower case, short forms ("don't") written out, spaces made single."""
    text = text.lower().replace("\u2019", "'").replace("cannot", "can not")
    if "'" in text:
        for short, long in _SHORT_FORMS:
            text = short.sub(long, text)
    return " ".join(text.split())


@lru_cache(maxsize=100_000)
def words_in(text: str) -> tuple[str, ...]:
    """Return the words of a text as `plain` has them."""
    return tuple(_WORD.findall(plain(text)))


def sentences_in(text: str) -> list[str]:
    """Return the sentences of a text that have a word."""
    return [part for part in _END.split(text) if words_in(part)]


@lru_cache(maxsize=100_000)
def recognise(text: str) -> Found:
    """Return the acts of one sentence, apart from reflect, which depends on the person's words."""
    match = _index().nearest(words_in(unframed(text)))
    acts = {match.act} if match.similarity >= NEAR else set()
    if match.negated != bool(_NEGATIONS.intersection(words_in(text))):
        acts -= {*BAD_ACTS, "acknowledge"}  # "this will not be our secret", "you are weak"
    text = plain(text)
    if match.similarity < SURE:
        good = {name for name, pattern in _compiled(good=True) if pattern.search(text)}
        acts |= good if good == {"ask"} and not acts else good - {"ask"}
        if acts & {"pressure", "claim_person"}:
            acts.discard("refer")
    acts |= {name for name, pattern in _compiled(good=False) if pattern.search(text)}
    if "resources" in acts and _NO_RESOURCES.search(text):
        acts.discard("resources")
    if match.similarity < SURE and _DENIAL.search(text):
        acts -= DENIABLE
    if match.similarity < NEAR:
        return Found(frozenset(acts))
    return Found(frozenset(acts), match.topic, match.number)


def unframed(text: str) -> str:
    """Return what a suggestion or plan consists of, without "It may help to" and the like."""
    for before, after in _frames():
        if text.startswith(before) and text.endswith(after):
            return text[len(before) : len(text) - len(after)]
    return text


@dataclass(frozen=True)
class _Match:
    """A phrase of the banks, and its similarity (0..1) to a sentence."""

    act: str
    topic: str
    number: int
    similarity: float
    negated: bool


class _Index:
    """Finds the nearest phrase of the banks."""

    def __init__(self, phrases: Iterable[tuple[str, str, str]]) -> None:
        self._entries = [(act, topic, _features(words_in(text))) for act, topic, text in phrases]
        held = Counter(f for _, _, features in self._entries for f in features)
        total = len(self._entries)
        self._weight = {f: math.log(1 + total / n) for f, n in held.items()}
        self._rare = math.log(1 + total)  # weight of a word that no phrase has
        self._size = [self._sum(features) for _, _, features in self._entries]
        self._holders: dict[str, list[int]] = defaultdict(list)
        for number, (_, _, features) in enumerate(self._entries):
            for feature in features:
                if held[feature] < 0.1 * total:
                    self._holders[feature].append(number)

    def _sum(self, features: Iterable[str]) -> float:
        # a pair of words counts half, or dropping one word would weigh three times
        return sum(self._weight.get(f, self._rare) * (0.5 if " " in f else 1.0) for f in features)

    def nearest(self, words: Sequence[str]) -> "_Match":
        """Return the nearest phrase; its similarity is 0 where no phrase has a word in common."""
        features = _features(words)
        common: dict[int, float] = defaultdict(float)
        for feature in features:
            weight = self._weight.get(feature, 0.0) * (0.5 if " " in feature else 1.0)
            for number in self._holders.get(feature, ()):
                common[number] += weight
        size = self._sum(f for f in features if " " not in f or f in self._weight)
        best, similarity = -1, 0.0
        for number, weight in common.items():
            found = 2 * weight / (size + self._size[number])
            if found > similarity:
                best, similarity = number, found
        if best < 0:
            return _Match("", GENERIC, -1, 0.0, negated=False)
        act, topic, held = self._entries[best]
        return _Match(act, topic, best, similarity, negated=bool(_NEGATIONS.intersection(held)))


def _features(words: Sequence[str]) -> tuple[str, ...]:
    # in the order of the sentence and not a set: sums and ties must not depend on the hash seed
    return tuple(dict.fromkeys([*words, *(f"{a} {b}" for a, b in pairwise(words))]))


@cache
def _index() -> _Index:
    return _Index(dict.fromkeys(_phrases(load_bank())))


@cache
def _compiled(*, good: bool) -> list[tuple[str, re.Pattern[str]]]:
    patterns = _GOOD_PATTERNS if good else {**_BAD_PATTERNS, "resources": _RESOURCES}
    return [(name, re.compile(text)) for name, text in patterns.items()]


@cache
def _frames() -> list[tuple[str, str]]:
    acts = load_bank().acts
    frames = [*acts["suggest"], *acts["suggest_more"], *acts["plan"]]
    parts = [tuple(frame.split("{do}")) for frame in frames]
    return sorted(((a, b) for a, b in parts), key=lambda part: -len(part[0]) - len(part[1]))


def filled(bank: Bank, act: str) -> Iterator[str]:
    """Yield the wordings of an act with every condition or medicine."""
    for text in bank.acts[act]:
        if "{condition}" in text:
            yield from (text.format(condition=c) for c in bank.acts["condition"])
        elif "{medicine}" in text:
            yield from (text.format(medicine=m) for m in bank.acts["medicine"])
        else:
            yield text


def _phrases(bank: Bank) -> Iterator[tuple[str, str, str]]:
    """Yield (act, topic, text) of all that counsellors say."""
    for act in PLAIN_ACTS:
        yield from ((act, GENERIC, text) for text in filled(bank, act))
    yield from (("acknowledge", GENERIC, text) for text in bank.acts["acknowledge_later"])
    for act in ("suggest", "plan", "ask", "inform"):
        yield from ((act, GENERIC, text) for text in bank.acts[f"{act}_generic"])
    for name, topic in bank.topics.items():
        banks = {
            "suggest": topic.suggest,
            "plan": topic.plan,
            "ask": topic.questions,
            "inform": topic.facts,
        }
        for act, texts in banks.items():
            yield from ((act, name, text) for text in texts)
