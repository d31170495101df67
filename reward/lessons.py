"""The reward model's training rows: rendered, split by prompt, compared and packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from reward.comparisons import KINDS, Question, Side, every_two, paired, without_leaks
from reward.confidence import repeat_noise
from reward.packing import Packs, pack_trees, split_pairs
from reward.pairs import Pair
from reward.tree import build_tree
from sft.chat import Chat
from sft.config import Recipe
from sft.data import Message, set_apart
from sft.files import UserError
from sft.trainer_rules import IDS

Row = dict[str, Any]


def encode(chat: Chat, prompt: Sequence[Message], reply: str) -> list[int] | None:
    """Token ids up to the end of the reply's turn; None where the two do not fit `max_length`.

    Each reply is rendered by itself, so that no other candidate changes what it is read after.
    """
    rendered = chat.render(prompt, [{"role": "assistant", "content": reply}])
    return rendered.prompt_ids + rendered.completion_ids if rendered else None


@dataclass(frozen=True)
class Material:
    """Both sides of the prompts, token ids of every reply, and what was left out."""

    train: Side
    held_out: Side
    ids: dict[str, list[int]]
    left_out: dict[str, int]

    def rows(self) -> list[Row]:
        """Training rows, a prompt each.

        `judged` is 1 for replies whose verdict counts in this row; `length` (tokens) is for
        `train_sampling_strategy: group_by_length`.
        """
        found = []
        for question, some in zip(self.train.questions, self.train.comparisons, strict=True):
            sequences = [self.ids[reply.candidate.id] for reply in question.replies]
            found.append(
                {
                    IDS: [question.prompt.id],
                    "sequences": sequences,
                    "pairs": [[each.better, each.worse] for each in some],
                    "confidence": [each.confidence for each in some],
                    "margin": [each.margin for each in some],
                    "safe": [float(reply.assessment.safe is True) for reply in question.replies],
                    "judged": [1.0] * len(sequences),
                    "length": len(build_tree(sequences).tokens),
                }
            )
        return found

    def line(self) -> str:
        """What is learned from, what is kept for the report, and what was left out."""
        sides = []
        for name, side in (("to learn from", self.train), ("for the report", self.held_out)):
            n = side.counts()
            kinds = " + ".join(f"{n[kind.replace(' ', '_')]} {kind}" for kind in KINDS)
            sides.append(
                f"{n['prompts']} prompts {name}: {n['replies']} replies and {n['borrowed']} "
                f"borrowed; {n['comparisons']} comparisons = {kinds}"
            )
        sides.append(
            f"left out: {self.left_out['too_long']} replies that are too long, "
            f"{self.left_out['borrowed_from_held_out']} borrowed from prompts for the report"
        )
        return "\n".join(sides)


def prepare(
    recipe: Recipe, questions: Sequence[Question], pairs: Sequence[Pair], chat: Chat
) -> Material:
    """Render, split by prompt and compare.

    Raises:
        UserError: nothing fits, or a side has nothing to compare.
    """
    ids: dict[str, list[int]] = {}
    for question in questions:
        for reply in question.replies:
            if made := encode(chat, question.prompt.messages, reply.candidate.text):
                ids[reply.candidate.id] = made
    fitting = [
        Question(q.prompt, [r for r in q.replies if r.candidate.id in ids]) for q in questions
    ]
    fitting = [question for question in fitting if question.own]
    apart = set_apart(
        [question.prompt for question in fitting],
        share=recipe.reward.report_share,
        seed=recipe.seed,
        purpose="reward",
    )
    held_out = [question for question in fitting if question.prompt.id in apart]
    kept = [question for question in fitting if question.prompt.id not in apart]
    train, leaks = without_leaks(kept, held_out)
    margin = recipe.pair.margin
    noise = repeat_noise([reply.assessment for q in questions for reply in q.replies])
    # The report asks the same of both: quality alone, every two replies.
    asked = [every_two(question, margin, noise) for question in held_out]
    taught = [every_two(question, margin, noise) for question in train]
    if recipe.reward.comparisons == "pairs":
        by_prompt: dict[str, list[Pair]] = {}
        for pair in pairs:
            by_prompt.setdefault(pair.prompt_id, []).append(pair)
        taught = [paired(question, by_prompt.get(question.prompt.id, [])) for question in train]
    for name, some in (("training", taught), ("held-out", asked)):
        if not any(some):
            raise UserError(
                f"no two replies to a {name} prompt differ in quality by {margin} or more: give "
                "more prompts or candidates, lower --pair.margin, or set --comparisons all"
            )
    too_long = sum(len(question.replies) for question in questions) - len(ids)
    left_out = {"too_long": too_long, "borrowed_from_held_out": leaks}
    return Material(Side(train, taught), Side(held_out, asked), ids, left_out)


def to_packs(rows: Sequence[Row], tree_tokens: int, seed: int) -> Packs:
    """Pack prompts into rows of at most `tree_tokens` nodes; 0 = a prompt each.

    A prompt that does not fit is split by comparison, and each verdict counts in one part only.
    """
    if not tree_tokens:
        return Packs(list(rows), 0, 0)
    parts = [split(row, tree_tokens) for row in rows]
    every = [part for each in parts for part in each]
    packs = pack_trees(
        [row["sequences"] for row in every], [row["length"] for row in every], tree_tokens, seed
    )
    made = [_joined([every[place] for place in places], nodes) for places, nodes in packs]
    over = sum(row["length"] > tree_tokens for row in made)
    return Packs(made, sum(len(each) > 1 for each in parts), over)


def split(row: Row, room: int) -> list[Row]:
    """A prompt's row as rows that fit `room` nodes; one comparison that does not stays alone."""
    if row["length"] <= room:
        return [row]
    n_pairs, compared = len(row["pairs"]), {*chain(*row["pairs"])}
    # A reply that is compared with none has its verdict: here it is a pair of one.
    alone = [place for place in range(len(row["sequences"])) if place not in compared]
    order = [(a, b) for a, b in row["pairs"]] + [(place, place) for place in alone]
    parts, seen = [], set[int]()
    for at in split_pairs(row["sequences"], order, room):
        within = sorted({place for i in at for place in order[i]})
        new = {old: place for place, old in enumerate(within)}
        pairs = [i for i in at if i < n_pairs]
        part: Row = {key: [row[key][old] for old in within] for key in ("sequences", "safe")}
        part |= {key: [row[key][i] for i in pairs] for key in ("confidence", "margin")}
        part["pairs"] = [[new[place] for place in order[i]] for i in pairs]
        part["judged"] = [0.0 if old in seen else row["judged"][old] for old in within]
        part["length"] = len(build_tree(part["sequences"]).tokens)
        parts.append(part)
        seen.update(within)
    return parts


def _joined(rows: Sequence[Row], length: int) -> Row:
    """Several prompts as one row."""
    names = ("sequences", "confidence", "margin", "safe", "judged")
    made: Row = {name: [*chain.from_iterable(row[name] for row in rows)] for name in names}
    first, pairs = 0, []
    for row in rows:
        pairs += [[first + better, first + worse] for better, worse in row["pairs"]]
        first += len(row["sequences"])
    return made | {"pairs": pairs, "length": length}
