"""Answers to assessments: what a judge said of a reply in all its answers becomes one assessment.

Repeats: grades and quality are means, safety is the majority's. As many safe as unsafe verdicts
count as unsafe: a doubt about harm is not outvoted, and such a reply may still be the rejected one
of a pair, with half the confidence. A repeat with an answer that cannot be read is left out; a
reply is unscored where no repeat is left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from reward.client import Unread
from reward.evaluator import Assessment, Judgement, Outcome, mean_quality
from reward.questions import Plan, Question, Said
from reward.rubric import Rubric

PLAIN = "plain_grades"  # flag: expected grades were asked for, and some grade is as written
VALUE = {"better": 1.0, "tie": 0.5, "order": 0.5, "worse": 0.0}


@dataclass(frozen=True)
class Heard:
    """What a readable answer says, and its tokens and US dollars."""

    said: list[Said]
    tokens: int
    cost: float


@dataclass(frozen=True)
class Opinion:
    """What one repeat says of one reply; `compared` by the number of the other reply."""

    grades: dict[str, float]
    quality: float
    safe: bool
    flags: list[str]
    critique: str
    compared: dict[int, Outcome]


class Desk:
    """Collects the answers to a plan and gives the assessments of replies that are done.

    Args:
        plan: what was asked.
        rubric: what is judged.
        name: of the judge.
        repeats: times that the same was asked.
    """

    def __init__(self, plan: Plan, rubric: Rubric, name: str, repeats: int) -> None:
        self.plan, self._rubric, self._name, self._repeats = plan, rubric, name, repeats
        self._left = Counter(n for q in plan.questions.values() for n in q.slots)
        self._heard: dict[int, dict[str, Heard | Unread]] = {}
        self._keys: dict[int, list[str]] = {}
        for key, question in plan.questions.items():
            for number in question.slots:
                self._keys.setdefault(number, []).append(key)

    def take(self, key: str, found: Heard | Unread) -> Iterator[Assessment]:
        """Note an answer; gives the assessments of all candidates whose reply is done with it."""
        question = self.plan.questions[key]
        for number in question.slots:
            self._heard.setdefault(number, {})[key] = found
            self._left[number] -= 1
            if not self._left[number]:
                heard = self._heard.pop(number)
                # In the order of the plan: in whatever order answers come, the same comes of them.
                own = [(self.plan.questions[k], heard[k]) for k in self._keys.pop(number)]
                yield from self._assessments(number, own)

    def _assessments(
        self, number: int, heard: Sequence[tuple[Question, Heard | Unread]]
    ) -> Iterator[Assessment]:
        slot = self.plan.slots[number]
        found = [self._opinion(number, r, heard) for r in range(1, self._repeats + 1)]
        opinions = [each for each in found if isinstance(each, Opinion)]
        first = slot.candidates[0]
        tokens, cost = _paid(number, heard)
        if not opinions:
            reason = next(each.reason for each in found if isinstance(each, Unread))
            for candidate in slot.candidates:
                yield Assessment.without_score(
                    candidate,
                    reason,
                    evaluator=self._name,
                    rubric=self._rubric.id,
                    tokens=tokens if candidate is first else 0,
                    cost=cost if candidate is first else 0.0,
                )
            return
        made = merged(opinions, self._name, repeated=self._repeats > 1)
        names = {
            other: [c.id for c in self.plan.slots[other].candidates] for other in made.compared
        }
        for candidate in slot.candidates:
            paid = candidate is first  # what two candidates share was paid once
            yield Assessment(
                candidate_id=candidate.id,
                prompt_id=candidate.prompt_id,
                criteria=made.grades,
                quality=made.quality,
                safe=made.safe,
                flags=made.flags,
                critique=made.critique,
                evaluator=self._name,
                rubric=self._rubric.id,
                unscored=None,
                tokens=tokens if paid else 0,
                cost=cost if paid else 0.0,
                judgements=made.judgements,
                compared={
                    name: outcome
                    for other, outcome in made.compared.items()
                    for name in names[other]
                },
            )

    def _opinion(
        self, number: int, repeat: int, heard: Sequence[tuple[Question, Heard | Unread]]
    ) -> Opinion | Unread:
        """What one repeat says of a reply, or why it says nothing."""
        own = [(q, found) for q, found in heard if q.repeat == repeat]
        ((question, found),) = [(q, f) for q, f in own if q.kind != "preference"]
        if isinstance(found, Unread):
            return found
        said = found.said[question.slots.index(number)]
        items = self._rubric.items(self.plan.slots[number].prompt.risk)
        wrong = [name for name, item in items.items() if said.values[name] != item.safe_answer]
        compared: dict[int, Outcome] = {}
        if question.kind == "verdict":
            grades = {name: float(said.values[name]) for name in self._rubric.criteria}
            quality = self._rubric.quality(grades)
        else:
            grades = {}
            compared, missing = outcomes(number, [each for each in own if each[0] is not question])
            if missing:
                return Unread(f"comparison: {missing}")
            if not compared:
                return Unread("nothing to compare with")
            # Copeland's score: the share of the others that it beats, a tie counting half. Of all
            # others, because one win among three says less than three.
            quality = fmean(VALUE[outcome] for outcome in compared.values())
        return Opinion(
            grades,
            quality,
            not any(items[name].verdict == "unsafe" for name in wrong),
            wrong + ([PLAIN] if said.plain else []),
            said.values["critique"],
            compared,
        )


@dataclass(frozen=True)
class Merged(Opinion):
    """Several opinions as one, with the single ones where they are repeats."""

    judgements: list[Judgement]


def merged(opinions: Sequence[Opinion], judge: str, *, repeated: bool) -> Merged:
    """One opinion of several repeats of one judge, at least one.

    The flags are those of all repeats that agree with the verdict on safety; the critique is that
    of the one among them whose quality is nearest the mean.
    """
    judgements = [Judgement(judge, each.quality, each.safe) for each in opinions]
    safe = majority_safe([each.safe for each in opinions])
    quality = mean_quality(judgements)
    agreeing = [each for each in opinions if each.safe == safe]
    nearest = min(agreeing, key=lambda each: abs(each.quality - quality))
    others = dict.fromkeys(other for each in opinions for other in each.compared)
    return Merged(
        {name: fmean(each.grades[name] for each in opinions) for name in opinions[0].grades},
        quality,
        safe,
        list(dict.fromkeys(flag for each in agreeing for flag in each.flags)),
        nearest.critique,
        {
            other: most_say([e.compared[other] for e in opinions if other in e.compared])
            for other in others
        },
        judgements if repeated else [],
    )


def majority_safe(verdicts: Sequence[bool]) -> bool:
    """Whether more verdicts say safe than unsafe; a tie is unsafe."""
    return 2 * sum(verdicts) > len(verdicts)


def outcomes(
    number: int, answers: Sequence[tuple[Question, Heard | Unread]]
) -> tuple[dict[int, Outcome], str]:
    """What comparisons say of a reply, by the number of the other; only what survives the swap.

    Better and worse are what both orders say; what changes with the order is "order", a tie.

    Returns:
        The outcomes of others that were compared in both orders, and why one was not ("" = all).
    """
    said: dict[int, list[int]] = {}
    missing = ""
    for question, found in answers:
        (other,) = set(question.slots) - {number}
        if isinstance(found, Unread):
            missing = missing or found.reason
            continue
        better = found.said[0].values["better"]
        sign = {"first": 1, "tie": 0, "second": -1}[better]
        said.setdefault(other, []).append(sign if question.slots[0] == number else -sign)
    return {other: _survives(*both) for other, both in said.items() if len(both) == 2}, missing


def _survives(one: int, other: int) -> Outcome:
    if one != other:
        return "order"
    return "better" if one > 0 else "worse" if one < 0 else "tie"


def most_say(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of several comparisons: better or worse only where more than half say so."""
    counts = Counter(outcomes)
    for outcome in counts:
        if 2 * counts[outcome] > len(outcomes):
            return outcome
    return "order"


def _paid(number: int, heard: Sequence[tuple[Question, Heard | Unread]]) -> tuple[int, float]:
    """A reply's share of the tokens and US dollars of the answers about it; the shares add up."""
    tokens, cost = 0, 0.0
    for question, found in heard:
        if isinstance(found, Heard):
            n, place = len(question.slots), question.slots.index(number)
            tokens += found.tokens // n + (place < found.tokens % n)
            cost += found.cost / n
    return tokens, cost
