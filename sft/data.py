"""Prompts and demonstrations: what the stages work on, and which prompts are held out."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast, get_args

from sft.files import CheckFailed, UserError, raise_mistakes
from sft.formats import Conversation, clean, read_conversations
from sft.formats import Message as Message  # the stages take it from here
from sft.sources import FILE_TYPES
from sft.split import NearIndex, groups, normalised, position, words_of

Risk = Literal["none", "elevated", "crisis"]
Split = Literal["train", "held_out"]

OPENING_WORDS = 6  # an opening with fewer distinct words ("Hi, can we talk?") does not join prompts


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for the counsellor's next turn: its last message is the user's.

    `risk` is of the message, not of a person. The first message is a system message only where the
    source had one.
    """

    id: str
    messages: list[Message]
    source: str
    topic: str
    risk: Risk
    split: Split


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the reply to imitate: `completion` holds exactly one assistant message.

    A paraphrase keeps the `prompt_id` of its original, so that both stay on one side of the split.
    `risk` is of the prompt's message, None where the source does not say.
    """

    prompt_id: str
    prompt: list[Message]
    completion: list[Message]
    topic: str = ""
    risk: Risk | None = None


_PromptOrDemonstration = TypeVar("_PromptOrDemonstration", Prompt, Demonstration)


def content_key(messages: Sequence[Message]) -> str:
    """Return the 64 hex digits that two conversations share when they say the same.

    Letter case, white space and Unicode compatibility forms do not count; the system message does
    not either, because the same person's words under another instruction are the same prompt.
    """
    turns = [[m["role"], normalised(m["content"])] for m in messages if m["role"] != "system"]
    text = json.dumps(turns, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def prompt_id(messages: Sequence[Message]) -> str:
    """Return a prompt's id, from its content alone, so that every source gives it the same one."""
    return "p-" + content_key(messages)[:16]


def load_prompts(
    source: str,
    *,
    seed: int,
    held_out_share: float,
    message_risk: Callable[[list[Message]], Risk],
    label_topic: Callable[[str], str],
) -> list[Prompt]:
    """Read prompts from a file or Hub dataset in one of the accepted formats, and split them.

    Args:
        source: Path of a .jsonl, .json or .csv file, or owner/name of a Hub dataset.
        seed: Chooses which prompts are held out.
        held_out_share: About this share is held out, 0..1; 0 = none, 1 = all.
        message_risk: Gives the risk of a row that has no valid `risk`.
        label_topic: Gives the topic of the user's words where a row has no `topic`.

    Returns:
        The prompts in the order of the source, those of equal content merged into the first one.
        A row's own id, topic, risk, split and source are kept where valid. The split depends on
        content and seed alone, never on order. Near duplicates, conversations with the same opening
        and rows with the same id fall on one side; so does a row without a split near one with.

    Raises:
        UserError: The source cannot be read, or has mistakes (the first ten are listed).
    """
    rows: dict[str, Conversation] = {}
    mistakes: list[str] = []
    names: dict[str, str] = {}  # id -> place
    given: dict[str, Split] = {}  # content key -> the split that a row states
    for new in read_conversations(source, need_reply=False):
        key = content_key(new.prompt)
        old = rows.setdefault(key, new)
        stated = _given_split(new)
        if stated and given.setdefault(key, stated) != stated:
            mistakes.append(f"{new.place}: another row has the same messages and another split")
        place = names.setdefault(_id_of(old), old.place)
        if place != old.place:
            mistakes.append(f"{new.place}: id {_id_of(new)!r} is that of another prompt ({place})")
    raise_mistakes(mistakes, source)
    said = {key: (_id_of(row), row.prompt) for key, row in rows.items()}
    split = _split(said, given, seed, held_out_share)
    return [
        Prompt(
            id=_id_of(row),
            messages=row.prompt,
            source=_text(row, "source") or _short_name(source),
            topic=_text(row, "topic") or label_topic(_user_words(row.prompt)),
            risk=_given_risk(row) or message_risk(row.prompt),
            split=split[key],
        )
        for key, row in rows.items()
    ]


def load_demonstrations(source: str) -> list[Demonstration]:
    """Read demonstrations from a file or Hub dataset in one of the accepted formats.

    Of counsel-chat's answers to one question the one with most upvotes is taken (the first of
    equals); a question that nobody answered demonstrates nothing and is left out.

    Raises:
        UserError: The source cannot be read, has mistakes, or holds no reply at all.
    """
    best: dict[str, Conversation] = {}
    for row in read_conversations(source, need_reply=True):
        key = row.place if row.votes is None else content_key(row.prompt)
        old = best.get(key)
        if row.reply and (old is None or (row.votes or 0) > (old.votes or 0)):
            best[key] = row
    if not best:
        raise UserError(f"{source}: no row has a reply to learn from.")
    return [
        Demonstration(
            prompt_id=_text(row, "prompt_id") or prompt_id(row.prompt),
            prompt=row.prompt,
            completion=[{"role": "assistant", "content": row.reply or ""}],
            topic=_text(row, "topic"),
            risk=_given_risk(row),
        )
        for row in best.values()
    ]


def overlapping(
    rows: Sequence[Prompt | Demonstration], held_out: Sequence[Prompt]
) -> list[tuple[int, int]]:
    """Return (number of a row, number of a held-out prompt) for each row that says the same.

    The same is: equal id, equal content, near duplicate, or equal opening. One held-out prompt is
    named per row.
    """
    index = NearIndex([words_of(_user_words(p.messages)) for p in held_out])
    by_label: dict[str, int] = {}
    for number, prompt in enumerate(held_out):
        for label in _labels(prompt.id, prompt.messages):
            by_label.setdefault(label, number)
    found: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        labels = _labels(_name(row), _said(row))
        same = [by_label[label] for label in labels if label in by_label]
        same += index.near(words_of(_user_words(_said(row))))
        if same:
            found.append((number, same[0]))
    return found


def without_overlap(
    rows: Sequence[_PromptOrDemonstration], held_out: Sequence[Prompt]
) -> list[_PromptOrDemonstration]:
    """Return the rows that say nothing which a held-out prompt says, in order."""
    drop = {number for number, _ in overlapping(rows, held_out)}
    return [row for number, row in enumerate(rows) if number not in drop]


def check_disjoint(train: Sequence[Prompt | Demonstration], held_out: Sequence[Prompt]) -> None:
    """Raise `CheckFailed` where training material says what a held-out prompt says."""
    found = overlapping(train, held_out)
    if found:
        lines = [f"{_name(train[row])} and held-out {held_out[p].id}" for row, p in found[:10]]
        raise CheckFailed(
            f"{len(found)} of {len(train)} training rows repeat or paraphrase a held-out prompt; "
            "an evaluation on it would prove nothing. Remove them, or split again:\n  "
            + "\n  ".join(lines)
        )


def _name(row: Prompt | Demonstration) -> str:
    return row.id if isinstance(row, Prompt) else row.prompt_id


def _said(row: Prompt | Demonstration) -> list[Message]:
    return row.messages if isinstance(row, Prompt) else row.prompt


def set_apart(prompts: Sequence[Prompt], *, share: float, seed: int, purpose: str) -> set[str]:
    """Return the ids of about this share of some prompts, so that nothing like them is among the
    others; the side depends on content, seed and purpose alone.

    Args:
        prompts: of one side of the main split.
        share: between 0 and 1; at least one group on each side where there are two.
        seed: of the choice.
        purpose: makes the choice another one than the main split's, which has sorted them already.
    """
    said = {f"{purpose} {prompt.id}": (prompt.id, prompt.messages) for prompt in prompts}
    sides = _split(said, {}, seed, share)
    return {said[key][0] for key, side in sides.items() if side == "held_out"}


def _split(
    rows: Mapping[str, tuple[str, list[Message]]],
    given: Mapping[str, Split],
    seed: int,
    share: float,
) -> dict[str, Split]:
    """Return the side of each key of an (id, messages): the given one, else that of its group."""
    numbers = groups(
        [words_of(_user_words(messages)) for _, messages in rows.values()],
        [_labels(name, messages) for name, messages in rows.values()],
    )
    members: dict[int, list[str]] = defaultdict(list)
    for key, number in zip(rows, numbers, strict=True):
        members[number].append(key)
    places = {number: position(min(keys), seed) for number, keys in members.items()}
    held_out = {number for number, place in places.items() if place < share}
    # a small file can fall on one side by chance; both are needed, so the nearest group moves over
    if 0 < share < 1 and len(places) > 1:
        if not held_out:
            held_out = {min(places, key=lambda number: places[number])}
        elif len(held_out) == len(places):
            held_out.remove(max(places, key=lambda number: places[number]))
    side: dict[str, Split] = {}
    for number, keys in members.items():
        default: Split = "held_out" if number in held_out else "train"
        stated = {given[key] for key in keys if key in given}
        if len(stated) == 1:
            default = next(iter(stated))
        side |= {key: given.get(key, default) for key in keys}
    return side


def _labels(name: str, messages: Sequence[Message]) -> list[str]:
    """Return the strings of which one in common puts two prompts into one group."""
    opening = next(m["content"] for m in messages if m["role"] == "user")
    labels = [f"id {name}", f"content {content_key(messages)}"]
    if len(words_of(opening)) >= OPENING_WORDS:
        labels.append(f"opening {normalised(opening)}")
    return labels


def _user_words(messages: Sequence[Message]) -> str:
    return "\n".join(m["content"] for m in messages if m["role"] == "user")


def _id_of(row: Conversation) -> str:
    return _text(row, "id") or prompt_id(row.prompt)


def _text(row: Conversation, column: str) -> str:
    value = row.row.get(column)
    return clean(value) if isinstance(value, str) else ""


def _given_split(row: Conversation) -> Split | None:
    value = row.row.get("split")
    return cast(Split, value) if value in get_args(Split) else None


def _given_risk(row: Conversation) -> Risk | None:
    value = row.row.get("risk")
    return cast(Risk, value) if value in get_args(Risk) else None


def _short_name(source: str) -> str:
    """Return a file's name without its folder, which is nobody's business in a shared result."""
    path = Path(source)
    return path.name if path.suffix.lower() in FILE_TYPES else source
