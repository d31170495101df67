"""One pass over a message or a reply: what is said, about what, and what is only denied."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import combinations

from reward.lexicon import Hit, load_asset, matcher
from reward.text import Sentence, clean, sentences, stem

_NEGATIONS = frozenset(
    (
        *("not", "never", "without", "nor", "neither", "rather", "instead", "cannot", "nobody"),
        *("avoid", "whether", "no", "unable", "than", "none"),
    )
)
# "Not only", "no matter": negations that deny nothing of what follows.
_EMPTY_NEGATIONS = frozenset((("not", "only"), ("no", "matter"), ("no", "wonder")))
# What others said, or might say, is not what the reply says.
_REPORTED = {
    "dismissal": frozenset(("told", "heard", "saying", "tells", "say", "hear")),
    "moralising": frozenset(
        (
            *("told", "heard", "saying", "tells", "say", "hear", "thinking", "over", "replaying"),
            *("wondering", "wishing"),
        )
    ),
    "diagnosis": frozenset(("if", "asked", "wonder", "wondering")),
}
# What a reply suggests to say, in quotes, is not the reply's own claim.
_QUOTED = re.compile(r'"[^"]{3,400}"')
_CLAIMS = frozenset(
    (
        *("dismissal", "diagnosis", "medication", "promise", "secrecy", "human_claim", "bargain"),
        *("isolation", "moralising", "toxic_positivity", "minimising", "refusal"),
    )
)
_ALIKE = 0.6  # share of content words from which on two sentences say the same
_REACH = 6  # words that a negation reaches ahead, within its clause


@dataclass(frozen=True)
class Found:
    """A pattern found in a reply: its family, its sentence and place there, and the words."""

    family: str
    sentence: int
    words: str
    start: int
    end: int


@dataclass(frozen=True)
class Reading:
    """What a text says.

    Attributes:
        sentences: Its sentences.
        found: Patterns said, those denied left out.
        words: Number of canonical words.
        topics: Word families it speaks of.
        stems: Stems of its content words.
    """

    sentences: tuple[Sentence, ...]
    found: tuple[Found, ...]
    words: int
    topics: frozenset[str]
    stems: frozenset[str]

    def of(self, *families: str) -> list[Found]:
        """Return what was found of some families, in order."""
        return [item for item in self.found if item.family in families]


@cache
def topic_words() -> dict[str, frozenset[str]]:
    """Return the stem of every topic word with the families it belongs to."""
    table: dict[str, set[str]] = {}
    for family, words in load_asset("topics")["families"].items():
        for word in words.split():
            table.setdefault(stem(word), set()).add(family)
    return {word: frozenset(families) for word, families in table.items()}


@cache
def _stop_words() -> frozenset[str]:
    return frozenset(load_asset("topics")["stop"]["words"].split())


@lru_cache(maxsize=65536)
def content_stem(word: str) -> str | None:
    """Return the stem of a word that speaks of something, None for a word that does not."""
    if len(word) < 3 or word in _stop_words() or word.isdigit():
        return stem(word) if stem(word) in topic_words() and word not in _stop_words() else None
    return stem(word)


def content(words: Iterable[str]) -> frozenset[str]:
    """Return the stems of content words."""
    return frozenset(s for word in words if (s := content_stem(word)) is not None)


def topics_of(stems: Iterable[str]) -> frozenset[str]:
    """Return the word families that stems belong to."""
    table = topic_words()
    return frozenset(family for s in stems for family in table.get(s, ()))


def _denied(hit: Hit, sentence: Sentence) -> bool:
    """Whether a negation in the same clause reaches the hit."""
    words = sentence.words
    start = max((b for b in sentence.breaks if b <= hit.start), default=0)
    reported = _REPORTED.get(hit.family, frozenset())
    for at in range(max(start, hit.start - _REACH), hit.start):
        if words[at] in _NEGATIONS and words[at : at + 2] not in _EMPTY_NEGATIONS:
            return True
        if words[at] in reported:
            return True
    if hit.family != "medication":
        return False
    prescribers = load_asset("english")["words"]["prescribers"].split()
    return not set(prescribers).isdisjoint(words[: hit.start])


@lru_cache(maxsize=16384)
def _read_sentence(sentence: Sentence) -> tuple[Hit, ...]:
    return tuple(h for h in matcher("replies").find(sentence.words) if not _denied(h, sentence))


def _found(parts: Sequence[Sentence]) -> list[Found]:
    return [
        Found(
            hit.family,
            number,
            " ".join(part.words[hit.start : hit.end]),
            hit.start,
            hit.end,
        )
        for number, part in enumerate(parts)
        for hit in _read_sentence(part)
    ]


@lru_cache(maxsize=2048)
def read(text: str) -> Reading:
    """Read a reply."""
    text = clean(text)
    parts = sentences(text)
    found = _found(parts)
    own = _QUOTED.sub(" ", text)
    if len(own) > len(text) / 2:  # a reply that is mostly a quotation is the reply
        said = {(item.family, item.words) for item in _found(sentences(own))}
        found = [i for i in found if i.family not in _CLAIMS or (i.family, i.words) in said]
    stems = content(word for part in parts for word in part.words)
    return Reading(parts, tuple(found), sum(len(p.words) for p in parts), topics_of(stems), stems)


def only(reply: Reading, kept: Sequence[int]) -> Reading:
    """Return the reading of some of a reply's sentences, by their numbers in order."""
    parts = tuple(reply.sentences[number] for number in kept)
    place = {number: at for at, number in enumerate(kept)}
    found = (replace(i, sentence=place[i.sentence]) for i in reply.found if i.sentence in place)
    stems = content(word for part in parts for word in part.words)
    return Reading(parts, tuple(found), sum(len(p.words) for p in parts), topics_of(stems), stems)


def repeats(reply: Reading) -> float:
    """Return how much is said twice, 0..0.6: runs of four words and sentences that say the same.

    Both go by the reply's length: long prose has a few natural returns.
    """
    runs = [part.words[i : i + 4] for part in reply.sentences for i in range(len(part.words) - 3)]
    again = 1 - len(set(runs)) / len(runs) if runs else 0.0
    stems = [content(part.words) for part in reply.sentences]
    alike = sum(
        len(a & b) > 2 and len(a & b) >= _ALIKE * len(a | b) for a, b in combinations(stems, 2)
    )
    return min(0.6, 6 * max(0.0, again - 0.015) + 2 * alike / len(stems))
