"""Reads people's labels from files: this project's own form, and three public ones.

The form is told by the columns (`FORMS`). No message repeats a row: rows hold conversations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reward.labels import QUALITY, SAFE, Choice, Grade, Labels, Scale, Verdict
from reward.risk import LEVELS, message_risk
from reward.rubric import Rubric
from sft.candidates import Candidate
from sft.data import Prompt, prompt_id
from sft.files import UserError, raise_mistakes, short_hash
from sft.formats import Message, clean
from sft.sources import Row, source_rows

FORMS = """columns of labels (JSON lines, a JSON array or CSV; [in brackets: optional]):
  prompt, reply [rater, risk, safe, overall, <criterion> ...]   own, pointwise: grades 1 to 5,
                                                                safe: yes or no
  prompt, reply_a, reply_b, preferred [rater, risk, criterion]  own, pairwise: a, b or tie
  title | question, answer, upvotes                             counsel-chat
  question_id, overall_score, empathy_score, ... with question  CounselBench, a row per rater,
  and response                                                  joined with its texts
  seeker_post, response_post, level                             EPITOME, a file per mechanism"""

UNNAMED = "unnamed"
_ANSWERS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_UNSURE = "i am not sure"  # CounselBench's third answer: no label
_MECHANISMS = {
    "emotional": "emotional reactions",
    "exploration": "explorations",
    "interpretation": "interpretations",
}
# CounselBench's questions, and what the evaluator says of the same; no criterion is its toxicity.
_COUNSELBENCH = {
    "overall_score": ("overall", Scale(QUALITY, 1, 5)),
    "empathy_score": ("empathy", Scale("empathy", 1, 5)),
    "specificity_score": ("specificity", Scale("relevance", 1, 5)),
    "factual_consistency_score": ("factual consistency", Scale("accuracy", 1, 4)),
}
_TEXTS = {
    "question": ("question", "patient_question", "input_text", "user_query", "questionText"),
    "response": ("response", "llm_response", "answer", "answerText"),
}


class _Mistake(Exception):
    """What is wrong with one row."""


@dataclass
class _Collected:
    """Labels in the making, and who has graded what already."""

    labels: Labels
    rubric: Rubric
    seen: set[tuple[str, ...]]

    def prompt(self, key: str, messages: list[Message], row: Row, source: str) -> str:
        """Keep a prompt under its key and return the key; the first row of a key says its text."""
        risk = str(row.get("risk") or "").strip().lower()
        if risk and risk not in LEVELS:
            raise _Mistake(f"risk is none of {', '.join(LEVELS)}")
        read = next((level for level in LEVELS if level == risk), None)
        if key not in self.labels.prompts:
            self.labels.prompts[key] = Prompt(
                key,
                messages,
                source,
                str(row.get("topic") or ""),
                read or message_risk(messages).risk,
                "held_out",
            )
        return key

    def reply(self, prompt: str, text: str, name: str | None = None) -> str:
        """Keep a reply and return its id: of its content, or of a name where equals stay apart."""
        key = short_hash([prompt, text if name is None else name])
        if key not in self.labels.replies:
            self.labels.replies[key] = Candidate(
                key, prompt, text, model="labelled", temperature=0.0, top_p=1.0, seed=0, stop="eos"
            )
        return key

    def once(self, rater: str, *what: str) -> None:
        """Refuse a second label of one person for the same thing."""
        if (rater, *what) in self.seen:
            who = "no column `rater` says who" if rater == UNNAMED else "the same rater"
            raise _Mistake(f"{what[-1]} was labelled before for this reply ({who})")
        self.seen.add((rater, *what))

    def grade(self, reply: str, rater: str, criterion: str, scale: Scale, value: float) -> None:
        if (
            scale.low is not None
            and scale.high is not None
            and (not scale.low <= value <= scale.high)
        ):
            raise _Mistake(f"{criterion} is not {scale.low:g} to {scale.high:g}")
        self.once(rater, reply, criterion)
        self.labels.add_scale(criterion, scale, "labels")
        self.labels.grades.append(Grade(reply, rater, criterion, value))

    def verdict(self, reply: str, rater: str, item: str, broken: bool) -> None:
        self.once(rater, reply, item)
        self.labels.verdicts.append(Verdict(reply, rater, item, broken))


_Reader = Callable[[_Collected, str, Path, Row], None]


def load_labels(paths: Sequence[Path], rubric: Rubric) -> Labels:
    """Read one or more files of labels, each in one of the forms.

    Args:
        paths: Of .jsonl, .json or .csv files.
        rubric: Names the criteria and safety items that own columns may grade.

    Raises:
        UserError: A file cannot be read, its columns are of no form, or rows have mistakes (the
            first ten are listed).
    """
    made = _Collected(Labels(), rubric, set())
    for path in paths:
        mistakes: list[str] = []
        read: _Reader | None = None
        for place, row in source_rows(str(path)):
            if isinstance(row, str):
                mistakes.append(f"{place}: {row}")
                continue
            read = read or _reader(row, place)
            try:
                read(made, place, path, row)
            except _Mistake as mistake:
                mistakes.append(f"{place}: {mistake}")
        raise_mistakes(mistakes, path)
    if not made.labels.replies:
        raise UserError(f"{', '.join(map(str, paths))}: no labelled reply\n{FORMS}")
    return made.labels


def _reader(row: Row, place: str) -> _Reader:
    columns = set(row)
    forms: list[tuple[set[str], _Reader]] = [
        ({"seeker_post", "response_post", "level"}, _epitome),
        ({"overall_score", "empathy_score"}, _counselbench),
        ({"upvotes"}, _counsel_chat),
        ({"prompt", "reply_a", "reply_b", "preferred"}, _pairwise),
        ({"prompt", "reply"}, _pointwise),
    ]
    for needed, read in forms:
        if needed <= columns:
            return read
    raise UserError(f"{place}: wrong columns. Found: {', '.join(map(str, row))}\n{FORMS}")


def _pointwise(made: _Collected, place: str, path: Path, row: Row) -> None:
    """One person's labels of one reply."""
    messages = _messages(row["prompt"])
    prompt = made.prompt(prompt_id(messages), messages, row, path.name)
    reply, rater = made.reply(prompt, _text(row, "reply")), _rater(row)
    if _given(row, SAFE):
        made.verdict(reply, rater, SAFE, not _yes(row, SAFE))
    for name in made.rubric.safety:
        if _given(row, name):
            # As the rubric asks it: the answer that is not the safe one breaks the item.
            answer = _yes(row, name)
            made.verdict(reply, rater, name, answer != made.rubric.safety[name].safe_answer)
    for name, judged_as in {"overall": QUALITY, **{c: c for c in made.rubric.criteria}}.items():
        if _given(row, name):
            made.grade(reply, rater, name, Scale(judged_as, 1, 5), _number(row, name))


def _pairwise(made: _Collected, place: str, path: Path, row: Row) -> None:
    """One person's choice between two replies."""
    messages = _messages(row["prompt"])
    prompt = made.prompt(prompt_id(messages), messages, row, path.name)
    first, second = (made.reply(prompt, _text(row, name)) for name in ("reply_a", "reply_b"))
    if first == second:
        raise _Mistake("reply_a and reply_b are the same")
    value = {"a": 1.0, "b": 0.0, "tie": 0.5}.get(str(row["preferred"]).strip().lower())
    if value is None:
        raise _Mistake("preferred is none of a, b, tie")
    criterion = str(row.get("criterion") or "overall").strip()
    if criterion != "overall" and criterion not in made.rubric.criteria:
        raise _Mistake(f"criterion is none of overall, {', '.join(made.rubric.criteria)}")
    rater = _rater(row)
    made.once(rater, *sorted((first, second)), criterion)
    judged_as = QUALITY if criterion == "overall" else criterion
    made.labels.add_scale(criterion, Scale(judged_as, 1, 5), place)
    made.labels.choices.append(Choice(first, second, rater, criterion, value))


def _counsel_chat(made: _Collected, place: str, path: Path, row: Row) -> None:
    """A public answer with its votes; a question that nobody answered says nothing."""
    title, asked = _first(row, "title", "questionTitle"), _first(row, "question", "questionText")
    answer = _first(row, "answer", "answerText")
    if not answer:
        return
    # A question was sometimes posted twice, under two ids: its title is the same.
    key = title or asked
    if not key:
        raise _Mistake("no title and no question")
    messages = [{"role": "user", "content": f"{title}\n{asked}".strip()}]
    prompt = made.prompt(key, messages, row, path.name)
    reply = made.reply(prompt, answer, place)
    votes = Scale(QUALITY, comparable=False)
    made.grade(reply, UNNAMED, "upvotes", votes, _number(row, "upvotes"))


def _counselbench(made: _Collected, place: str, path: Path, row: Row) -> None:
    """One professional's labels of one answer."""
    messages = [{"role": "user", "content": _needed(row, "question")}]
    prompt = made.prompt(prompt_id(messages), messages, row, path.name)
    reply = made.reply(prompt, _needed(row, "response"))
    rater = str(row.get("rater_id") or row.get("survey_id") or UNNAMED).strip()
    for column, (criterion, scale) in _COUNSELBENCH.items():
        if _given(row, column) and str(row[column]).strip().lower() != _UNSURE:
            made.grade(reply, rater, criterion, scale, _number(row, column))
    column = "medical_advice_score"
    if _given(row, column) and str(row[column]).strip().lower() != _UNSURE:
        made.verdict(reply, rater, "no_medication_advice", _yes(row, column))


def _epitome(made: _Collected, place: str, path: Path, row: Row) -> None:
    """One reply's level, 0 to 2, of the mechanism that the file is named after."""
    messages = [{"role": "user", "content": _text(row, "seeker_post")}]
    prompt = made.prompt(prompt_id(messages), messages, row, path.name)
    reply = made.reply(prompt, _text(row, "response_post"), str(row.get("rp_id") or "") or None)
    found = (name for part, name in _MECHANISMS.items() if part in path.name.lower())
    criterion = next(found, "empathy level")
    made.grade(reply, _rater(row), criterion, Scale("empathy", 0, 2), _number(row, "level"))


def _messages(value: object) -> list[Message]:
    if isinstance(value, str) and clean(value):
        return [{"role": "user", "content": clean(value)}]
    if isinstance(value, list) and value and all(_is_message(m) for m in value):
        if value[-1]["role"] == "user":
            return [{"role": m["role"], "content": clean(m["content"])} for m in value]
        raise _Mistake("prompt does not end with a message of the user")
    raise _Mistake("prompt is neither text nor messages")


def _is_message(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and value.get("role") in ("system", "user", "assistant")
        and isinstance(value.get("content"), str)
    )


def _given(row: Row, name: str) -> bool:
    return row.get(name) is not None and str(row[name]).strip() != ""


def _first(row: Row, *names: str) -> str:
    return next((clean(str(row[name])) for name in names if _given(row, name)), "")


def _text(row: Row, name: str) -> str:
    text = _first(row, name)
    if not text:
        raise _Mistake(f"{name} is empty")
    return text


def _needed(row: Row, name: str) -> str:
    text = _first(row, *_TEXTS[name])
    if not text:
        raise _Mistake(
            f"no {name}: join the texts to the scores (one of {', '.join(_TEXTS[name])})"
        )
    return text


def _rater(row: Row) -> str:
    return str(row.get("rater") or UNNAMED).strip()


def _number(row: Row, name: str) -> float:
    value = row[name]
    try:
        number = float(str(value))
    except ValueError:
        raise _Mistake(f"{name} is not a number") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise _Mistake(f"{name} is not a number")
    return number


def _yes(row: Row, name: str) -> bool:
    answer = _ANSWERS.get(str(row[name]).strip().lower())
    if answer is None:
        raise _Mistake(f"{name} is neither yes nor no")
    return answer
