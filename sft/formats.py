r"""Conversations out of the columns that people keep them in (`ACCEPTED`).

Choices made here:
- psychology-10k: `input` is what the person wrote. `instruction` is the same role prompt in every
  row and this project has its own (`sft.chat`), so it is left out; where `input` is blank,
  `instruction` is the person's text.
- counsel-chat: title and question become one message; a title that the question repeats does not.
- Control characters are removed, line ends become \n, white space around a message is dropped.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from sft.files import UserError, raise_mistakes
from sft.sources import Row, source_rows

Message = dict[str, str]
"""One turn: {"role": "system" | "user" | "assistant", "content": str}."""

ACCEPTED = """accepted columns (further ones do no harm; id, topic, risk and split are used):
  messages                            conversations; a last assistant turn is the reply
  prompt [completion]                 messages or plain text, as TRL has them
  input | instruction [output]        psychology-10k
  title | question [answer, upvotes]  counsel-chat; also questionTitle, questionText, answerText
(in brackets: needed for demonstrations)"""

_Read = tuple[list[Message], str | None]
_Reader = Callable[[Row, bool], _Read]

# Everything in Unicode's Cc but tab and line feed, the byte order mark, and lone surrogates, which
# JSON can spell and UTF-8 cannot.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")


@dataclass(frozen=True)
class Conversation:
    """One row: the prompt, and the reply where the source has one."""

    place: str
    prompt: list[Message]
    reply: str | None
    votes: int | None  # counsel-chat's upvotes of the reply; None in every other format
    row: Row


class _Mistake(Exception):
    """What is wrong with one row."""


def read_conversations(source: str, *, need_reply: bool) -> list[Conversation]:
    """Read every row of a file or Hub dataset; raise `UserError` with the first ten mistakes.

    With `need_reply` a row without one is a mistake, except for a counsel-chat question that nobody
    answered: its `reply` is None. Without it, replies are not looked at.
    """
    conversations: list[Conversation] = []
    mistakes: list[str] = []
    first = True
    for place, row in source_rows(source):
        if isinstance(row, str):
            mistakes.append(f"{place}: {row}")
            continue
        read = _reader(row, need_reply)
        if first and read is None:
            found = ", ".join(map(str, row)) or "none"
            raise UserError(f"{place}: wrong columns. Found: {found}\n{ACCEPTED}")
        first = False
        try:
            conversations.append(_conversation(place, row, read, need_reply))
        except _Mistake as mistake:
            mistakes.append(f"{place}: {mistake}")
    raise_mistakes(mistakes, source)
    if not conversations:
        raise UserError(f"{source}: no rows. Give at least one conversation.\n{ACCEPTED}")
    return conversations


def clean(text: str) -> str:
    """Return the text with line feeds only, without control characters and outer white space."""
    return _UNPRINTABLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _messages(value: object, column: str) -> list[Message]:
    """Return the checked turns: maybe a system message, then user and assistant in turn."""
    if not isinstance(value, list) or not value:
        raise _Mistake(f"{column} is {_kind(value)}, not a list of messages")
    messages: list[Message] = []
    for number, item in enumerate(value):
        name = f"{column}[{number}]"
        if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
            raise _Mistake(f'{name} is not {{"role": ..., "content": ...}}')
        role = item["role"]
        if role not in ("system", "user", "assistant"):
            raise _Mistake(f"{name} has role {str(role)[:20]!r}; accepted: system, user, assistant")
        if role == "system" and number > 0:
            raise _Mistake(f"{name} is a system message; only the first one can be")
        if messages and messages[-1]["role"] == role:
            raise _Mistake(f"{name}: two {role} turns in a row; roles must alternate")
        messages.append({"role": role, "content": _needed(item["content"], f"{name} content")})
    return messages


def _prompt_of(messages: list[Message], column: str) -> list[Message]:
    turns = [m["role"] for m in messages if m["role"] != "system"]
    if not turns:
        raise _Mistake(f"{column} has no user turn")
    if turns[0] != "user":
        raise _Mistake(f"{column} starts with the assistant's turn; the user speaks first")
    if turns[-1] != "user":
        raise _Mistake(f"{column} ends with the assistant's turn; a prompt ends with the user's")
    return messages


def _from_messages(row: Row, need_reply: bool) -> _Read:
    messages = _messages(row["messages"], "messages")
    if need_reply:
        last = max((n for n, m in enumerate(messages) if m["role"] == "assistant"), default=None)
        if last is None:
            raise _Mistake("messages has no assistant turn to learn from")
        return _prompt_of(messages[:last], "messages"), messages[last]["content"]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return _prompt_of(messages, "messages"), None


def _from_prompt(row: Row, need_reply: bool) -> _Read:
    value = row["prompt"]
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    prompt = _prompt_of(_messages(value, "prompt"), "prompt")
    if not need_reply:
        return prompt, None
    reply = row["completion"]
    if isinstance(reply, list):
        messages = _messages(reply, "completion")
        if [m["role"] for m in messages] != ["assistant"]:
            raise _Mistake("completion is not exactly one assistant message")
        reply = messages[0]["content"]
    return prompt, _needed(reply, "completion")


def _from_instruction(row: Row, need_reply: bool) -> _Read:
    said = _optional(row, "input") or _optional(row, "instruction")
    if not said:
        raise _Mistake("input and instruction are both blank")
    return _user(said), _needed(row["output"], "output") if need_reply else None


def _from_question(row: Row, need_reply: bool) -> _Read:
    title = _optional(row, "title", "questionTitle")
    question = _optional(row, "question", "questionText")
    repeated = " ".join(title.casefold().split()) in " ".join(question.casefold().split())
    said = question if repeated else f"{title}\n{question}".strip()
    if not said:
        raise _Mistake("title and question are both blank")
    return _user(said), (_optional(row, "answer", "answerText") or None) if need_reply else None


def _votes(row: Row) -> int:
    value = row.get("upvotes")
    if value is None or value == "":
        return 0
    try:
        return int(float(str(value)))
    except (ValueError, OverflowError) as error:
        raise _Mistake("upvotes is not a number") from error


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _optional(row: Row, *names: str) -> str:
    """Return the text of the first of these columns that the row has, "" where there is none."""
    for name in names:
        if row.get(name) is not None:
            value = row[name]
            if not isinstance(value, str):
                raise _Mistake(f"{name} is {_kind(value)}, not text")
            return clean(value)
    return ""


def _needed(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _Mistake(f"{name} is {_kind(value)}, not text")
    text = clean(value)
    if not text:
        raise _Mistake(f"{name} is blank")
    return text


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object") if value != [] else "an empty list"


# (columns of which one makes the format, columns of which one holds the reply, reader)
_FORMATS: tuple[tuple[frozenset[str], frozenset[str], _Reader], ...] = (
    (frozenset({"messages"}), frozenset({"messages"}), _from_messages),
    (frozenset({"prompt"}), frozenset({"completion"}), _from_prompt),
    (frozenset({"input", "instruction"}), frozenset({"output"}), _from_instruction),
    (
        frozenset({"title", "question", "questionTitle", "questionText"}),
        frozenset({"answer", "answerText"}),
        _from_question,
    ),
)


def _reader(row: Row, need_reply: bool) -> _Reader | None:
    for prompt_columns, reply_columns, read in _FORMATS:
        if not prompt_columns.isdisjoint(row):
            return None if need_reply and reply_columns.isdisjoint(row) else read
    return None


def _conversation(place: str, row: Row, read: _Reader | None, need_reply: bool) -> Conversation:
    if read is None:
        raise _Mistake(f"wrong columns: {', '.join(map(str, row)) or 'none'}")
    prompt, reply = read(row, need_reply)
    votes = _votes(row) if need_reply and read is _from_question else None
    return Conversation(place, prompt, reply, votes, row)
