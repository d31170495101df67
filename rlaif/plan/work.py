"""What each stage of a recipe computes at once, at the longest texts that it may meet.

Not here: the bytes that this takes (`rlaif.plan.memory`), the seconds (`rlaif.plan.seconds`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from reward.model import WIDTH
from reward.train import SCORED_ROWS
from reward.tree import TreeBatch, build_tree, collate, collate_ends
from rlaif.dpo import REFERENCE_STEPS
from rlaif.plan.live import Work
from sft.config import Recipe


@dataclass(frozen=True)
class Longest:
    """Tokens of the longest prompt and of the longest reply; both together fit `max_length`."""

    prompt: int
    reply: int


def longest(recipe: Recipe, stage: str) -> Longest:
    """A reply as long as the stage's may be, after the longest prompt that leaves room for it."""
    reply = recipe.ppo.max_new_tokens if stage == "ppo" else recipe.generate.max_new_tokens
    if stage == "evaluate":
        reply = recipe.evaluate.max_new_tokens
    return Longest(recipe.model.max_length - reply, reply)


def finetune_work(recipe: Recipe) -> Work:
    """Rows of `max_length` tokens; a packed row is as long as its setting says."""
    section = recipe.finetune
    room = section.trainer.get("max_length") if section.trainer.get("packing") else None
    tokens = int(room or recipe.model.max_length)
    rows = section.per_device_train_batch_size
    return Work("sft", (rows, tokens), True, section.gradient_checkpointing)


def reward_work(recipe: Recipe, texts: Longest) -> tuple[Work, Work]:
    """The training step on whole prompts, and the scoring of all replies afterwards."""
    section = recipe.reward
    replies = recipe.generate.num_return_sequences + recipe.generate.n_borrowed
    prompts = section.per_device_train_batch_size
    if not section.tree:
        rows = prompts * replies, texts.prompt + texts.reply
        step = Work("states", rows, True, section.gradient_checkpointing)
        return step, replace(step, batch=(rows[0] * SCORED_ROWS, rows[1]), learn=False)
    made = Work(
        "ends", _ends(texts, replies, prompts), True, section.gradient_checkpointing
    )
    return made, replace(made, batch=_ends(texts, replies, prompts * SCORED_ROWS), learn=False)


def dpo_work(recipe: Recipe, texts: Longest) -> tuple[Work, Work]:
    """The training step, and the scoring by the reference, which comes before it.

    A pack is filled with prompts of that length, the last one shorter.
    """
    section, replies = recipe.dpo, recipe.generate.num_return_sequences
    if not section.tree:
        # A row is a side of a pair, and TRL's head is the one of SFT.
        rows = 2 * section.per_device_train_batch_size, texts.prompt + texts.reply
        step = Work("sft", rows, True, section.gradient_checkpointing)
        return step, replace(step, learn=False)
    prompts = [texts.prompt] * section.per_device_train_batch_size
    if section.tree_tokens:
        prompts = _filled(section.tree_tokens, texts, replies)
    step = Work("tree", _tree(prompts, texts.reply, replies), True, section.gradient_checkpointing)
    return step, replace(
        step, batch=_tree(prompts * REFERENCE_STEPS, texts.reply, replies), learn=False
    )


def ppo_work(recipe: Recipe, texts: Longest) -> tuple[Work, Work]:
    """A micro-step of an update, and the pass in which all roles score the same prompts."""
    section = recipe.ppo
    replies, prompts = section.num_return_sequences, section.per_device_train_batch_size
    tree = _tree([texts.prompt] * prompts, texts.reply, replies, WIDTH)
    update = Work("tree", tree, True, section.gradient_checkpointing)
    roles = 2 + (section.value == "adapter") + (section.reward == "model")
    return update, replace(update, learn=False, copies=roles)


def _filled(room: int, texts: Longest, replies: int) -> list[int]:
    """Prompt lengths of a pack; where one prompt does not fit with its replies, it is cut to."""
    whole = texts.prompt + replies * texts.reply
    prompts = [texts.prompt] * (room // whole)
    rest = room - len(prompts) * whole - replies * texts.reply
    return [*prompts, rest] if rest > 0 else prompts or [max(1, room - 2 * texts.reply)]


def _sequences(prompts: list[int], reply: int, replies: int) -> list[list[int]]:
    """Token ids with these lengths that share nothing but their prompt."""
    found = []
    for number, length in enumerate(prompts):
        for k in range(replies):
            found.append([number + 1] * length + [len(prompts) + k + 1] * reply)
    return found


def _tree(prompts: list[int], reply: int, replies: int, multiple: int = 1) -> TreeBatch:
    made = build_tree(_sequences(prompts, reply, replies))
    starts = [length for length in prompts for _ in range(replies)]
    return collate([made], [starts], 0, multiple)


def _ends(texts: Longest, replies: int, prompts: int) -> TreeBatch:
    made = build_tree(_sequences([texts.prompt] * prompts, texts.reply, replies))
    return collate_ends([made], 0, WIDTH)


def positions(recipe: Recipe, stage: str) -> int:
    """Token positions that a stage computes at once, at the longest texts."""
    texts = longest(recipe, stage)
    if stage == "generate":
        k = recipe.generate.num_return_sequences
        return max(1, recipe.generate.batch_size // k) * texts.prompt
    if stage == "evaluate":
        return recipe.evaluate.batch_size * texts.prompt
    if stage == "finetune":
        return finetune_work(recipe).positions
    both = {"reward": reward_work, "dpo": dpo_work, "ppo": ppo_work}[stage](recipe, texts)
    return both[0].positions
