"""Conversations of the training benchmark: random words of a vocabulary, of asked lengths.

Each word is one token, so that lengths are exact and every trainer renders and tokenises the same
conversations by its own means.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from reward.label_forms import load_labels
from reward.pairs import Pair
from reward.rubric import load_rubric
from rlaif.bench.work import Material, Size, Work
from sft.chat import system_prompt
from sft.data import Demonstration, Message
from sft.files import UserError

# Tokens that Llama-3's layout adds: three before and one after a message, one at the start, three
# that open the reply.
PER_MESSAGE, AROUND = 4, 4
USER = 40  # words of a person's message, on average
USER_SPREAD, REPLY_SPREAD = 0.4, 0.3  # lengths are uniform within this share of their mean
LONGEST = 1000  # tokens of a row; TRL as it comes cuts at 1,024


@dataclass(frozen=True)
class Lengths:
    """Words of one prompt: of the person's message and of each reply, the best first."""

    user: int
    replies: tuple[int, ...]


def words(vocabulary: int) -> list[str]:
    """The words that texts are made of; the rest of the vocabulary is for the chat layout."""
    return [f"w{i}" for i in range(vocabulary - 64)]


def draw_lengths(work: Work, n: int, rng: random.Random) -> list[Lengths]:
    """Lengths of n prompts, with the work's ratio of mean prompt to mean reply in tokens."""
    if work.ratio is None:
        raise ValueError(f"{work.key} has the lengths of a file: read_lengths")
    prompt = AROUND + USER + PER_MESSAGE + (work.system + PER_MESSAGE if work.system else 0)
    mean = prompt / work.ratio - 1  # a token ends the reply

    def about(middle: float, spread: float) -> int:
        return max(2, round(middle * rng.uniform(1 - spread, 1 + spread)))

    return [
        Lengths(
            about(USER, USER_SPREAD),
            tuple(about(mean, REPLY_SPREAD) for _ in range(work.candidates)),
        )
        for _ in range(n)
    ]


def read_lengths(path: Path, n: int, rng: random.Random) -> tuple[int, list[Lengths]]:
    """Lengths of the project's system prompt, and of n questions with two to four answers.

    Counted in words and punctuation marks. Questions with a row longer than `LONGEST` are passed
    over; of more than four answers, four are drawn; they are ordered by votes.

    Args:
        path: answers with votes, in a form that `reward.label_forms` reads.
        n: questions to draw.
        rng: draws them.

    Raises:
        UserError: the file cannot be read, or has too few such questions.
    """
    system = _count(system_prompt("support"))
    labels, fitting = load_labels([path], load_rubric()), []
    votes = labels.consensus("upvotes")
    for name, answers in labels.of_prompt().items():
        some = rng.sample(answers, min(4, len(answers)))
        ranked = sorted(some, key=lambda answer: -votes.get(answer.id, 0.0))
        replies = tuple(_count(answer.text) for answer in ranked)
        asked = _count(labels.prompts[name].messages[-1]["content"])
        longest = system + asked + max(replies) + 2 * PER_MESSAGE + AROUND + 1
        if len(replies) > 1 and min(replies) > 0 and longest <= LONGEST:
            fitting.append(Lengths(asked, replies))
    if len(fitting) < n:
        raise UserError(
            f"{path}: {n} questions with two answers that fit are needed, and it has {len(fitting)}"
        )
    return system, rng.sample(fitting, n)


def _count(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))


def make_material(work: Work, size: Size, seed: int, data: Path | None = None) -> Material:
    """The conversations of one update; the same for the same arguments.

    Args:
        work: what for.
        size: how many prompts, of which vocabulary.
        seed: of lengths and words.
        data: answers with votes, for a work without a ratio.

    Raises:
        UserError: the data cannot be used.
    """
    rng = random.Random(f"{work.key} {seed}")
    n, system = size.prompts * work.prompts, work.system
    if data is not None and work.ratio is None:
        system, lengths = read_lengths(data, n, rng)
    else:
        lengths = draw_lengths(work, n, rng)
    return _fill(work, size, system, lengths, rng)


def long_material(work: Work, size: Size, prompt: int, seed: int) -> Material:
    """One prompt of so many words with K replies of the work's ratio to the shortest prompt.

    Args:
        work: a probe.
        size: of the vocabulary, and of the shortest prompt.
        prompt: words of the person's message.
        seed: of the words.
    """
    rng = random.Random(f"{work.key} {seed}")
    reply = max(2, round(size.long_prompt / (work.ratio or 1)))
    return _fill(work, size, 0, [Lengths(prompt, (reply,) * work.candidates)], rng)


def shortened(material: Material, share: float) -> Material:
    """The same with the first words of each reply: this share of them, at least two."""

    def cut(reply: list[Message]) -> list[Message]:
        said = reply[0]["content"].split()
        first = said[: max(2, round(share * len(said)))]
        return [reply[0] | {"content": " ".join(first)}]

    return replace(
        material,
        pairs=[replace(p, chosen=cut(p.chosen), rejected=cut(p.rejected)) for p in material.pairs],
        demonstrations=[
            replace(each, completion=cut(each.completion)) for each in material.demonstrations
        ],
    )


def _fill(
    work: Work, size: Size, system: int, lengths: Sequence[Lengths], rng: random.Random
) -> Material:
    """Random words of these lengths."""
    known = words(size.vocabulary)

    def said(role: str, length: int) -> list[Message]:
        return [{"role": role, "content": " ".join(rng.choices(known, k=length))}]

    first = said("system", system)[0]["content"]
    pairs: list[Pair] = []
    demonstrations: list[Demonstration] = []
    for i, each in enumerate(lengths):
        name, prompt = f"prompt-{i}", said("user", each.user)
        replies = [said("assistant", length) for length in each.replies]
        if work.stage == "sft":
            demonstrations += [Demonstration(name, prompt, reply) for reply in replies]
            continue
        for a, b in combinations(range(len(replies)), 2):
            if work.pairing == "all" or a == 0:
                ids = f"{name}-{a}", f"{name}-{b}"
                pairs.append(Pair(name, prompt, replies[a], replies[b], 0.5, 0.75, *ids, "quality"))
    return Material(first, pairs, demonstrations)
