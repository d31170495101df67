"""The phrase banks of the practice clinic: what its people and counsellors can say.

The banks are YAML files under `assets/clinic`. A *clause* has no capital and no full stop ("my
chest goes tight at work"), so that it can be put into a sentence or turned to the second person.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FOLDER = Path(__file__).parent / "assets" / "clinic"
GENERIC = ""  # the topic of a phrase that suits every topic
CRISIS_STEPS = ("name_danger", "ask_safety", "resources", "distance", "stay")
BAD_ACTS = (
    "dismiss",
    "moralise",
    "diagnose",
    "prescribe",
    "toxic_positivity",
    "promise",
    "claim_person",
)

_PRONOUNS = {
    "i": "you",
    "i'm": "you're",
    "i've": "you've",
    "i'd": "you'd",
    "i'll": "you'll",
    "me": "you",
    "my": "your",
    "mine": "yours",
    "myself": "yourself",
    "we": "you",
    "us": "you",
    "our": "your",
    "ours": "yours",
    "ourselves": "yourselves",
}
_VERBS = {"i am": "you are", "i was": "you were", "am i": "are you", "was i": "were you"}
_FIRST_PERSON = re.compile(
    r"\b(?:" + "|".join(sorted([*_VERBS, *_PRONOUNS], key=len, reverse=True)) + r")(?!['\w])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Topic:
    """What a concern of one kind is made of, and what helps with it.

    situations and feelings are clauses in the first person; asks, questions and facts are whole
    sentences; suggest and plan start with a bare verb.
    """

    name: str
    share: float
    situations: tuple[str, ...]
    feelings: tuple[str, ...]
    asks: tuple[str, ...]
    suggest: tuple[str, ...]
    plan: tuple[str, ...]
    questions: tuple[str, ...]
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """How a counsellor works: weights of acts, and probabilities (0..1) of the rest."""

    want: dict[str, float]
    refer: dict[str, float]
    crisis: float
    bad: float
    bad_acts: dict[str, float]
    eager: float


@dataclass(frozen=True)
class Bank:
    """Everything that can be said in the clinic."""

    topics: dict[str, Topic]
    people: dict[str, tuple[str, ...]]
    acts: dict[str, tuple[str, ...]]
    profiles: dict[str, Profile]
    mixes: dict[str, dict[str, float]]


@cache
def load_bank() -> Bank:
    """Read the phrase banks, once per process."""
    topics = {}
    for path in sorted((FOLDER / "topics").glob("*.yaml")):
        raw = _read(path)
        share = raw.pop("share")
        topics[path.stem] = Topic(path.stem, share, **{k: tuple(v) for k, v in raw.items()})
    settings = _read(FOLDER / "profiles.yaml")
    mixes = settings.pop("mixes")
    return Bank(
        topics=topics,
        people={k: tuple(v) for k, v in _read(FOLDER / "people.yaml").items()},
        acts={k: tuple(v) for k, v in _read(FOLDER / "counsellors.yaml").items()},
        profiles={name: Profile(**fields) for name, fields in settings.items()},
        mixes=mixes,
    )


def mirror(clause: str) -> str:
    """Turn a clause from the first person to the second.

    >>> mirror("my chest goes tight when I am in a meeting")
    'your chest goes tight when you are in a meeting'
    """

    def other(match: re.Match[str]) -> str:
        word = match.group().lower()
        return _VERBS.get(word) or _PRONOUNS[word]

    return _FIRST_PERSON.sub(other, clause)


def sentence(clause: str) -> str:
    """Return the clause with a capital and a full stop, where it has none yet."""
    text = clause[0].upper() + clause[1:]
    return text if text[-1] in ".?!" else text + "."


def _read(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
