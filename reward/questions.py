"""What has to be asked about candidates in each mode, every thing once, and who it is about."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any, Literal

from reward.asking import Asking, Way
from reward.expected import expected_grades
from reward.injection import judge_directed
from reward.ledger import Answer
from reward.request import KEY_DIGITS, Form, turns
from reward.rubric import Rubric
from reward.service import Request
from reward.several import Comparing, Safety, Together
from reward.text import visible
from reward.verdict import Verdict, read_verdict, read_verdicts
from sft.candidates import Candidate
from sft.data import Prompt, Risk
from sft.files import to_json

Kind = Literal["verdict", "safety", "preference"]


@dataclass(frozen=True)
class Said:
    """What a judge says of one reply, or of two.

    Attributes:
        values: names and values as the answer has them; grades may be expected ones.
        plain: whether expected grades were asked for and some grade is the plain one.
    """

    values: dict[str, Any]
    plain: bool = False


Reader = Callable[[Answer], "list[Said] | str"]


@dataclass(frozen=True)
class Slot:
    """A reply that is judged once: candidates with the same words to the same prompt."""

    prompt: Prompt
    text: str
    candidates: list[Candidate]


@dataclass(frozen=True)
class Question:
    """A request and what it is about.

    Attributes:
        request: what is sent.
        kind: verdict = grades and safety; safety = safety alone; preference = which of two.
        slots: numbers of the replies, in the order shown.
        repeat: 1 for the first time that the same is asked.
        read: one `Said` per reply in the order of `slots` (a preference: one for both), or why
            there is none.
    """

    request: Request
    kind: Kind
    slots: tuple[int, ...]
    repeat: int
    read: Reader


@dataclass(frozen=True)
class Plan:
    """What has to be asked about candidates.

    Attributes:
        slots: the replies that are judged.
        questions: by key, each once.
        unasked: candidates that the judge never sees, and why.
    """

    slots: list[Slot]
    questions: dict[str, Question]
    unasked: list[tuple[Candidate, str]]

    @property
    def requests(self) -> list[Request]:
        """What is sent."""
        return [question.request for question in self.questions.values()]


class Interview:
    """Makes the questions of one judge.

    Args:
        rubric: what is judged.
        model: name of the judge at its service.
        asking: mode and repeats.
        way: the form of the answers.
    """

    def __init__(self, rubric: Rubric, model: str, asking: Asking, way: Way) -> None:
        self.asking, self.way = asking, way
        self._rubric, self._model = rubric, model
        self._forms: dict[Risk, Form] = {}
        self._several: dict[Risk, Together] = {}
        self._safety: dict[Risk, Safety] = {}
        # A preference has no grade of which a mean could be taken.
        self._comparing = Comparing(rubric, model, Way(way.structure))

    def plan(
        self,
        prompts: Sequence[Prompt],
        candidates: Sequence[Candidate],
        refused: Mapping[str, str],
        before: Collection[str] | None = None,
    ) -> Plan:
        """What has to be asked about candidates of these prompts.

        Args:
            prompts: those that the candidates answer, as the judge gets them.
            candidates: as the judge gets them, in any order.
            refused: what `refused` says of them, as they were before anything was taken out.
            before: keys that were asked before and are not meant again: prompts with the same words
                are then asked about by themselves, too. None = the same words are asked once.
        """
        asked = {prompt.id: prompt for prompt in prompts}
        taken = before or ()
        unasked: list[tuple[Candidate, str]] = []
        slots: list[Slot] = []
        groups: dict[str, dict[str, int]] = {}  # numbers of slots by prompt and words
        names: dict[str, str] = {}
        for candidate in candidates:
            prompt = asked[candidate.prompt_id]
            if candidate.id in refused:
                unasked.append((candidate, refused[candidate.id]))
                continue
            if prompt.id not in names:
                words = to_json([prompt.risk, turns(prompt)])
                names[prompt.id] = words if before is None else prompt.id
            group = groups.setdefault(names[prompt.id], {})
            text = visible(candidate.text)
            if text in group:
                slots[group[text]].candidates.append(candidate)
            else:
                group[text] = len(slots)
                slots.append(Slot(prompt, text, [candidate]))
        questions: dict[str, Question] = {}
        for group in groups.values():
            numbers = list(group.values())
            if self.asking.ask == "pairwise" and len(numbers) == 1:
                alone = slots[numbers[0]].candidates
                unasked += [(candidate, "nothing to compare with") for candidate in alone]
                continue
            for repeat in range(1, self.asking.repeats + 1):
                for question in self._about(slots, numbers, repeat):
                    # The same words under another risk may ask the same, for themselves.
                    while question.request.key in questions or question.request.key in taken:
                        question = _asked_apart(question)
                    questions[question.request.key] = question
        return Plan(slots, questions, unasked)

    def _about(self, slots: Sequence[Slot], group: list[int], repeat: int) -> Iterator[Question]:
        """The questions about all replies to one prompt."""
        if self.asking.ask == "one":
            yield from (self._one(slots, number, repeat) for number in group)
        elif self.asking.ask == "together":
            yield from self._together(slots, group, repeat)
        else:
            yield from self._two_by_two(slots, group, repeat)

    def _one(self, slots: Sequence[Slot], number: int, repeat: int) -> Question:
        slot = slots[number]
        risk = slot.prompt.risk
        if risk not in self._forms:
            self._forms[risk] = Form(self._rubric, risk, self._model, self.way)
        form = self._forms[risk]
        request = form.request(slot.prompt, slot.candidates[0], repeat)
        return Question(request, "verdict", (number,), repeat, partial(self._read, form.verdict))

    def _together(self, slots: Sequence[Slot], group: list[int], repeat: int) -> Iterator[Question]:
        prompt = slots[group[0]].prompt
        if prompt.risk not in self._several:
            self._several[prompt.risk] = Together(self._rubric, prompt.risk, self._model, self.way)
        sheet = self._several[prompt.risk]
        texts = [slots[number].text for number in group]
        for part in sheet.parts(prompt, texts, self.asking.request_tokens, repeat):
            if len(part) == 1:
                yield self._one(slots, group[part[0]], repeat)
                continue
            request, order, ids = sheet.request(prompt, [texts[i] for i in part], repeat)
            numbers = tuple(group[part[i]] for i in order)
            read = partial(self._read_several, sheet.verdict, ids)
            yield Question(request, "verdict", numbers, repeat, read)

    def _two_by_two(
        self, slots: Sequence[Slot], group: list[int], repeat: int
    ) -> Iterator[Question]:
        prompt = slots[group[0]].prompt
        if prompt.risk not in self._safety:
            way = Way(self.way.structure)
            self._safety[prompt.risk] = Safety(self._rubric, prompt.risk, self._model, way)
        sheet = self._safety[prompt.risk]
        for number in group:
            request = sheet.request(prompt, slots[number].text, repeat)
            read = partial(_read_alone, sheet.verdict)
            yield Question(request, "safety", (number,), repeat, read)
        for pair in combinations(group, 2):
            for first, second in (pair, pair[::-1]):
                request = self._comparing.request(
                    prompt, slots[first].text, slots[second].text, repeat
                )
                read = partial(_read_alone, self._comparing.verdict)
                yield Question(request, "preference", (first, second), repeat, read)

    def _read(self, schema: Verdict, answer: Answer) -> list[Said] | str:
        found = read_verdict(answer.text, schema)
        return found if isinstance(found, str) else self._said(answer, [found])

    def _read_several(
        self, schema: Verdict, ids: Sequence[str], answer: Answer
    ) -> list[Said] | str:
        found = read_verdicts(answer.text, schema, ids)
        if isinstance(found, str):
            return found
        said = dict(zip(found, self._said(answer, list(found.values())), strict=True))
        return [said[name] for name in ids]

    def _said(self, answer: Answer, verdicts: Sequence[dict[str, Any]]) -> list[Said]:
        """Verdicts in the order of the answer, with expected grades where they are wanted."""
        if not self.asking.expected_grades:
            return [Said(verdict) for verdict in verdicts]
        names = list(self._rubric.criteria)
        made = []
        for verdict, grades in zip(
            verdicts, expected_grades(answer.text, answer.digits, names, verdicts), strict=True
        ):
            made.append(Said(verdict | grades, plain=len(grades) < len(names)))
        return made


def _read_alone(schema: Verdict, answer: Answer) -> list[Said] | str:
    found = read_verdict(answer.text, schema)
    return found if isinstance(found, str) else [Said(found)]


def refused(prompts: Sequence[Prompt], candidates: Sequence[Candidate]) -> dict[str, str]:
    """Why replies are never shown to the judge, by candidate; the others are.

    It has to see texts as they are: redaction would take an attack for a name or an address, and
    the reply could then land in a pair, attack and all.
    """
    said = {prompt.id: [message["content"] for message in prompt.messages] for prompt in prompts}
    reasons: dict[str, str] = {}
    for candidate in candidates:
        if not candidate.text.strip():
            reasons[candidate.id] = "empty"
        elif any(map(judge_directed, [candidate.text, *said[candidate.prompt_id]])):
            reasons[candidate.id] = "injection"
    return reasons


def _asked_apart(question: Question) -> Question:
    """The same question under another key."""
    key = hashlib.sha256(f"{question.request.key} apart".encode()).hexdigest()[:KEY_DIGITS]
    return replace(question, request=replace(question.request, key=key))
