"""What each stage of a recipe computes at once, at the longest texts that it may meet.

Not here: the bytes that this takes (`rlaif.plan.memory`), the seconds (`rlaif.plan.seconds`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from reward.model import WIDTH
from reward.train import SCORED_ROWS
from rlaif.dpo import REFERENCE_STEPS
from rlaif.plan.live import Forest, Rows, Work
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


def finetune_work(recipe: Recipe, texts: Longest) -> Work:
    """Rows of `max_length` tokens; a packed row is as long as its setting says, and all learned."""
    section = recipe.finetune
    room = section.trainer.get("max_length") if section.trainer.get("packing") else None
    width = int(room or recipe.model.max_length)
    learned = width if room else min(width, texts.reply)
    rows = Rows(section.per_device_train_batch_size, width, learned)
    return Work(rows, True, True, section.gradient_checkpointing)


def reward_work(recipe: Recipe, texts: Longest) -> tuple[Work, Work]:
    """The training step on whole prompts, and the scoring of all replies afterwards."""
    section = recipe.reward
    replies = recipe.generate.num_return_sequences + recipe.generate.n_borrowed

    def at_once(prompts: int) -> Rows | Forest:
        if not section.tree:
            return Rows(prompts * replies, texts.prompt + texts.reply)
        return Forest((texts.prompt,) * prompts, texts.reply, replies, WIDTH, ends=True)

    prompts = section.per_device_train_batch_size
    step = Work(at_once(prompts), False, True, section.gradient_checkpointing)
    return step, replace(step, texts=at_once(prompts * SCORED_ROWS), learn=False)


def dpo_work(recipe: Recipe, texts: Longest) -> tuple[Work, Work]:
    """The training step, and the scoring by the reference, which comes before it.

    A pack is filled with prompts of that length, the last one shorter.
    """
    section, replies = recipe.dpo, recipe.generate.num_return_sequences
    if not section.tree:
        # A row is a side of a pair, and TRL's head is the one of SFT.
        rows = Rows(2 * section.per_device_train_batch_size, texts.prompt + texts.reply)
        step = Work(rows, True, True, section.gradient_checkpointing)
        return step, replace(step, learn=False)
    prompts = (texts.prompt,) * section.per_device_train_batch_size
    if section.tree_tokens:
        prompts = _filled(section.tree_tokens, texts, replies)
    tree = Forest(prompts, texts.reply, replies)
    step = Work(tree, True, True, section.gradient_checkpointing)
    more = replace(tree, prompts=prompts * REFERENCE_STEPS)
    return step, replace(step, texts=more, learn=False)


def ppo_work(recipe: Recipe, texts: Longest) -> tuple[Work, Work]:
    """A micro-step of an update, and the pass in which all roles score the same prompts."""
    section = recipe.ppo
    at_once, k = section.per_device_train_batch_size, section.num_return_sequences
    # A mini-batch may be smaller than what a device takes at once.
    learned = min(at_once, -(-section.prompts_per_iteration // section.num_mini_batches))
    tree = Forest((texts.prompt,) * learned, texts.reply, k, WIDTH)
    update = Work(tree, True, True, section.gradient_checkpointing)
    roles = 2 + (section.value == "adapter") + (section.reward == "model")
    all_at_once = replace(tree, prompts=(texts.prompt,) * at_once)
    return update, replace(update, texts=all_at_once, learn=False, copies=roles)


def _filled(room: int, texts: Longest, replies: int) -> tuple[int, ...]:
    """Prompt lengths of a pack; where one prompt does not fit with its replies, it is cut to."""
    whole = texts.prompt + replies * texts.reply
    prompts = (texts.prompt,) * (room // whole)
    rest = room - len(prompts) * whole - replies * texts.reply
    return (*prompts, rest) if rest > 0 else prompts or (max(1, room - 2 * texts.reply),)


def positions(recipe: Recipe, stage: str) -> int:
    """Token positions that a stage computes at once, at the longest texts."""
    texts = longest(recipe, stage)
    if stage == "generate":
        k = recipe.generate.num_return_sequences
        return max(1, recipe.generate.batch_size // k) * texts.prompt
    if stage == "evaluate":
        return recipe.evaluate.batch_size * texts.prompt
    if stage == "finetune":
        return finetune_work(recipe, texts).positions
    both = {"reward": reward_work, "dpo": dpo_work, "ppo": ppo_work}[stage](recipe, texts)
    return both[0].positions
