"""What people said about replies: grades, choices between two, yes/no on safety.

`reward/label_forms.py` reads them from files. Everything is kept by rater, because only labels of
several people say how far people agree: the ceiling of any evaluator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean

from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import UserError

QUALITY = "quality"  # the evaluator's overall grade, beside its criteria
SAFE = "safe"  # the whole safety flow, beside its items


@dataclass(frozen=True)
class Scale:
    """How a label is to be read.

    Attributes:
        judged_as: What the evaluator says about the same thing: `quality` or one of its criteria.
        low: Lowest grade of the labels, `high` the highest; both None for counts such as votes.
        comparable: Whether labels of different prompts mean the same (votes do not: prompts differ
            in how many people read them).
    """

    judged_as: str
    low: float | None = None
    high: float | None = None
    comparable: bool = True

    def on_five(self, value: float) -> float:
        """Move a label to 1..5, linearly.

        Example:
            >>> Scale("empathy", 0, 2).on_five(1)
            3.0

        Raises:
            ValueError: The labels have no scale.
        """
        if self.low is None or self.high is None:
            raise ValueError("labels without a scale cannot be moved to another")
        return 1 + 4 * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Grade:
    """A person's grade of one reply."""

    reply: str
    rater: str
    criterion: str
    value: float


@dataclass(frozen=True)
class Choice:
    """A person's choice between two replies to one prompt.

    Attributes:
        value: 1.0 = the first is better, 0.5 = equal, 0.0 = the second is better.
    """

    first: str
    second: str
    rater: str
    criterion: str
    value: float

    def swap(self) -> Choice:
        """Name the same choice in the other order."""
        return Choice(self.second, self.first, self.rater, self.criterion, 1.0 - self.value)


@dataclass(frozen=True)
class Verdict:
    """A person's yes or no: does the reply break `item` (an item's name, or `safe` for any)?"""

    reply: str
    rater: str
    item: str
    broken: bool


@dataclass(frozen=True)
class Pair:
    """Two replies to one prompt, the one that people prefer first."""

    prompt: str
    better: str
    worse: str


@dataclass
class Labels:
    """Labelled replies by id, and who said what about them."""

    prompts: dict[str, Prompt] = field(default_factory=dict)
    replies: dict[str, Candidate] = field(default_factory=dict)
    scales: dict[str, Scale] = field(default_factory=dict)
    grades: list[Grade] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def add_scale(self, criterion: str, scale: Scale, place: str) -> None:
        """Note how a criterion is graded.

        Raises:
            UserError: Another file grades the criterion of this name on another scale.
        """
        if self.scales.setdefault(criterion, scale) != scale:
            raise UserError(
                f"{place}: {criterion} is graded here from {scale.low} to {scale.high}, and in "
                "another file otherwise: make a card of each"
            )

    def of_prompt(self) -> dict[str, list[Candidate]]:
        """Return the replies by prompt, in order."""
        found: dict[str, list[Candidate]] = defaultdict(list)
        for reply in self.replies.values():
            found[reply.prompt_id].append(reply)
        return dict(found)

    def by_rater(self, criterion: str) -> dict[str, dict[str, float]]:
        """Return the grades of a criterion as reply -> rater -> grade."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for grade in self.grades:
            if grade.criterion == criterion:
                found[grade.reply][grade.rater] = grade.value
        return dict(found)

    def consensus(self, criterion: str) -> dict[str, float]:
        """Return each graded reply's mean over raters."""
        return {reply: fmean(said.values()) for reply, said in self.by_rater(criterion).items()}

    def choices_of(self, criterion: str) -> dict[tuple[str, str], dict[str, float]]:
        """Return the choices of a criterion as (first, second) -> rater -> value, in one order."""
        found: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for choice in self.choices:
            if choice.criterion == criterion:
                one = choice if choice.first <= choice.second else choice.swap()
                found[one.first, one.second][one.rater] = one.value
        return dict(found)

    def preferred(self, criterion: str) -> list[Pair]:
        """Return every pair of replies to one prompt that people do not hold equal."""
        pairs = ordered(self.consensus(criterion), self.replies)
        for (first, second), said in self.choices_of(criterion).items():
            mean = fmean(said.values())
            if mean != 0.5:
                better, worse = (first, second) if mean > 0.5 else (second, first)
                pairs.append(Pair(self.replies[first].prompt_id, better, worse))
        return pairs

    def words(self, reply: str) -> int:
        """Return a reply's number of words, split at white space."""
        return len(self.replies[reply].text.split())

    def unequal_length(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Return the pairs of which a word count can say something."""
        return [p for p in pairs if self.words(p.better) != self.words(p.worse)]

    def like_length(self, pairs: Iterable[Pair], within: float) -> list[Pair]:
        """Return the pairs whose longer reply is at most `within` (0..1) longer."""
        both = ((p, sorted((self.words(p.better), self.words(p.worse)))) for p in pairs)
        return [p for p, (short, long) in both if long <= (1 + within) * short]


def ordered(grades: Mapping[str, float], replies: Mapping[str, Candidate]) -> list[Pair]:
    """Return the pairs of replies to one prompt whose grades differ, the higher one first."""
    of_prompt: dict[str, list[str]] = defaultdict(list)
    for reply in grades:
        of_prompt[replies[reply].prompt_id].append(reply)
    return [
        Pair(prompt, *((a, b) if grades[a] > grades[b] else (b, a)))
        for prompt, group in of_prompt.items()
        for a, b in combinations(group, 2)
        if grades[a] != grades[b]
    ]


def one_against_rest(labels: Labels, criterion: str) -> Iterator[tuple[str, float]]:
    """Yield (prompt, hit) for each person and pair that this person and others put in order.

    A hit is 1 where the person's order is that of the mean of the others, 0.5 where the person
    holds them equal, else 0; pairs that the others hold equal are left out, as are those of equal
    length, which the evaluator is not asked about either.
    """
    graded = labels.by_rater(criterion)
    raters = sorted({rater for said in graded.values() for rater in said})
    for rater in raters:
        own = {reply: said[rater] for reply, said in graded.items() if rater in said}
        rest = {
            reply: fmean(value for who, value in graded[reply].items() if who != rater)
            for reply in own
            if len(graded[reply]) > 1
        }
        for pair in labels.unequal_length(ordered(rest, labels.replies)):
            yield pair.prompt, 0.5 + 0.5 * sign(own[pair.better] - own[pair.worse])
    for (first, second), said in labels.choices_of(criterion).items():
        if labels.words(first) == labels.words(second):
            continue
        for rater, value in said.items():
            others = [v for who, v in said.items() if who != rater]
            if others and fmean(others) != 0.5:
                hit = value if fmean(others) > 0.5 else 1.0 - value
                yield labels.replies[first].prompt_id, hit


def between_raters(
    said: Mapping[str, Mapping[str, float]], prompt_of: Mapping[str, str]
) -> list[tuple[str, float, float]]:
    """Return (prompt, one person's label, another's) for each ordered pair of people and unit."""
    return [
        (prompt_of[unit], said[unit][a], said[unit][b])
        for unit in said
        for one, other in combinations(sorted(said[unit]), 2)
        for a, b in ((one, other), (other, one))
    ]


def sign(x: float) -> int:
    """Return -1, 0 or 1."""
    return (x > 0) - (x < 0)


def majority(verdicts: Sequence[bool]) -> bool:
    """Return whether at least half say yes: where people are split, the graver reading counts."""
    return 2 * sum(verdicts) >= len(verdicts)
