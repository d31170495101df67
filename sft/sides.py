"""Which phrases of the practice clinic's people belong to training, and which to held-out prompts.

Two rules. A situation never stands in training material beside a feeling, question or cue that it
stands beside in a held-out prompt; phrases of almost the same words count as one, so that no two
prompts of the two sides paraphrase each other. And of each bank of phrases every sixth is kept out
of training altogether, to see what the assistant does with wordings that it never met.
"""

from collections.abc import Sequence
from functools import cache, lru_cache

from sft.clinic import load_bank
from sft.data import Message, Split
from sft.split import position, words_of

KEPT_EVERY = 6
HELD_OUT_PAIRS = 0.25  # share of the pairs of a situation and another phrase
SAME_WORDS = 5  # phrases of one bank that differ in at most so many words fall on one side
CUES = ("elevated", "crisis_direct", "crisis_indirect")


def kept_out(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """Return the phrases of a bank that no training material uses."""
    return phrases[KEPT_EVERY - 1 :: KEPT_EVERY]


@lru_cache(maxsize=1000)
def used_in_training(phrases: tuple[str, ...]) -> tuple[str, ...]:
    """Return the phrases of a bank that training material uses."""
    kept = kept_out(phrases)
    return tuple(phrase for phrase in phrases if phrase not in kept)


@lru_cache(maxsize=50_000)
def beside(situation: str, phrases: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """Return the phrases of a bank that may stand beside a situation on this side of the split."""
    common = used_in_training(phrases)
    if situation in _situations_kept_out():
        return common
    family = _families()
    held_out = {p for p in common if position(f"{situation}|{family[p]}", seed=0) < HELD_OUT_PAIRS}
    return tuple(phrase for phrase in common if (phrase in held_out) == (split == "held_out"))


def holds_unseen(messages: Sequence[Message]) -> bool:
    """Whether the person uses a phrase that no training material of the clinic has."""
    said = " ".join(m["content"] for m in messages if m["role"] == "user").lower()
    return any(phrase in said for phrase in _phrases_kept_out())


@cache
def _situations_kept_out() -> frozenset[str]:
    topics = load_bank().topics.values()
    return frozenset(s for topic in topics for s in kept_out(topic.situations))


@cache
def _phrases_kept_out() -> tuple[str, ...]:
    people = load_bank().people
    banks = [people[slot] for slot in ("followups", "later_openers", *CUES)]
    for topic in load_bank().topics.values():
        banks += [topic.situations, topic.feelings, topic.asks]
    return tuple(phrase.lower() for phrases in banks for phrase in kept_out(phrases))


@cache
def _families() -> dict[str, str]:
    """Return for each feeling, question and cue the phrase that stands for all close to it."""
    bank = load_bank()
    banks = [[cue for kind in CUES for cue in bank.people[kind]]]
    for topic in bank.topics.values():
        banks += [[*topic.feelings], [*topic.asks]]
    family: dict[str, str] = {}
    for phrases in banks:
        for phrase in phrases:
            family[phrase] = phrase
            for other in phrases[: phrases.index(phrase)]:
                if len(words_of(phrase) ^ words_of(other)) <= SAME_WORDS:
                    old, new = family[phrase], family[other]
                    family |= {member: new for member in phrases if family.get(member) == old}
    return family
