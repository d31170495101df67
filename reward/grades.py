"""What a grade is made of: features from 0 to 1, added with fixed shares."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reward.fluency import Fluency, fluency
from reward.reading import Reading, only
from reward.roles import Role, bears_on, families, roles, speaks
from sft.data import Risk


@dataclass(frozen=True)
class Grade:
    """A criterion's grade (1..5) and the features it is made of, each with its share."""

    value: float
    parts: dict[str, float]

    @property
    def weakest(self) -> str:
        """Name of the part that takes most away from the grade."""
        return min(self.parts, key=lambda name: self.parts[name])


@dataclass(frozen=True)
class Case:
    """A message, a reply to it and what the reply's sentences do.

    Attributes:
        message: What the person said.
        reply: Those sentences of the reply that say something to this person.
        roles: What each of them does.
        whole: The reply with all its sentences.
        fluent: How much of it is English.
        risk: Of the message.
    """

    message: Reading
    reply: Reading
    roles: Sequence[Role]
    whole: Reading
    fluent: Fluency
    risk: Risk

    @property
    def said(self) -> frozenset[str]:
        """Families of what the reply says."""
        return families(self.reply)

    def share(self, jobs: str) -> float:
        """Return the share of sentences that do one of some jobs."""
        return sum(role.job in jobs.split() for role in self.roles) / len(self.roles)


def said_case(message: Reading, whole: Reading, fluent: Fluency, risk: Risk) -> Case:
    """Return a case without the sentences that say nothing; where all do, they are the reply.

    Plain sentences that say nothing do not make up for garbled ones, so the lesser fluency counts.
    """
    each = roles(message, whole)
    kept = [n for n, role in enumerate(each) if speaks(message, whole, n, role)]
    if not kept:
        return Case(message, whole, each, whole, fluent, risk)
    reply = only(whole, kept)
    lesser = min(fluent, fluency(reply, not fluent.broken_off), key=lambda read: read.factor)
    return Case(message, reply, [each[n] for n in kept], whole, lesser, risk)


def once(levels: Iterable[float]) -> float:
    """Return a level that the best one decides and the second best may round up by a tenth.

    Example:
        >>> once([]), once([1.0]), once([1.0, 1.0, 1.0])
        (0.0, 0.9, 1.0)
    """
    best, second = sorted([0.0, 0.0, *levels])[:-3:-1]
    return 0.9 * best + 0.1 * second


def add_up(good: dict[str, tuple[float, float]], bad: dict[str, float], fluent: float) -> Grade:
    """Add good parts (share, 0..1) and take off bad ones; garbled text keeps little of it."""
    value = sum(share * level for share, level in good.values()) - sum(bad.values())
    parts = {name: -share * (1 - level) for name, (share, level) in good.items()}
    parts |= {name: -loss for name, loss in bad.items() if loss > 0}
    return Grade(1 + 4 * min(1.0, max(0.0, value)) * fluent, parts)


def asking(case: Case) -> float:
    """Grade the best question: open and about this person's matter, open, or closed."""
    opened = {item.sentence for item in case.reply.of("question_open")}
    levels = [0.0]
    for number, part in enumerate(case.reply.sentences):
        invites = number in opened and part.words[0] in ("tell", "say", "share")
        if not (part.question or invites):
            continue
        own = bears_on(case.message, part.words)
        levels.append((1.0 if own else 0.8) if number in opened else 0.5)
    return max(levels)
