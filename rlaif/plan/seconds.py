"""Seconds of each stage: floating-point operations over what a card is planned to do.

A weight costs a multiplication and an addition a token and pass: 2 FLOP in the forward pass, 2 more
for the gradient of what comes before it (the frozen weight itself has none), and 2 where a
checkpoint is computed again (Kaplan et al. 2020, arXiv:2001.08361, section 2.1, without the
gradient of weights). Attention's own products are left out: at 2,048 tokens they are 5 % of a
Llama-3-8B's. All of it is computed, on assumed lengths and shares of the card's peak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlaif.plan.cards import Card
from rlaif.plan.memory import NF4, Model
from sft.config import Recipe, TrainingSection

HELD_OUT_SPEAKERS = 2  # the SFT model and the policy
# bitsandbytes writes a matrix out in 16 bit before it multiplies more than one row, and reads it.
WRITTEN_OUT = 4.0


@dataclass(frozen=True)
class Texts:
    """Mean tokens of a prompt and of a reply, and how many prompts there are."""

    prompt: int
    reply: int
    prompts: int


@dataclass(frozen=True)
class Times:
    """Of a stage: optimiser steps (0 = none), token positions in all, and seconds."""

    steps: int
    tokens: int
    seconds: float


def mean_texts(recipe: Recipe) -> Texts:
    """What the recipe's plan assumes of its texts."""
    plan = recipe.plan
    reply = plan.reply_tokens or round(0.6 * recipe.generate.max_new_tokens)
    return Texts(plan.prompt_tokens, reply, recipe.generate.n_prompts or plan.n_prompts)


def flop_per_token(model: Model, *, learn: bool, checkpointing: bool, head: float) -> float:
    """FLOP of a token position.

    Args:
        model: whose weights.
        learn: with a gradient.
        checkpointing: layers are computed again.
        head: share of the positions that go through the head.
    """
    n = model.counts
    layers = 2.0 * (n.layers + n.adapter) * (1 + learn * (1 + checkpointing))
    layers += 2.0 * n.adapter * learn  # adapters have a gradient of their own
    vocabulary = n.head or n.embedding
    return layers + 2.0 * vocabulary * head * (1 + 2 * learn)  # its tiles are computed again


def training(model: Model, section: TrainingSection, card: Card, tokens: int, head: float) -> float:
    """Seconds of an epoch's training on so many token positions."""
    each = flop_per_token(
        model, learn=True, checkpointing=section.gradient_checkpointing, head=head
    )
    return tokens * each / (card.flops * card.compute_share)


def scoring(model: Model, card: Card, tokens: int, head: float) -> float:
    """Seconds of a pass without a gradient."""
    each = flop_per_token(model, learn=False, checkpointing=False, head=head)
    return tokens * each / (card.flops * card.compute_share)


def generating(
    model: Model, card: Card, texts: Texts, replies: int, rows: int, prompts: int
) -> float:
    """Seconds of sampling `replies` to each of so many prompts, `rows` at once.

    A step reads all weights once for all rows, and the rows' caches; or computes, if that is more.
    """
    n, wide = model.counts, model.dtype.itemsize
    rows = min(rows, prompts * replies)
    each = NF4 + WRITTEN_OUT if model.recipe.model.load_in_4bit else wide
    weights = n.layers * each + (n.head or n.embedding) * wide + 4 * n.adapter
    cache = rows * (texts.prompt + texts.reply / 2) * model.cache_bytes
    reads = (weights + cache) / (card.bandwidth * card.memory_share)
    each_token = flop_per_token(model, learn=False, checkpointing=False, head=1)
    computes = rows * each_token / (card.flops * card.compute_share)
    steps = texts.reply * max(1.0, prompts * replies / rows)
    return steps * max(reads, computes) + scoring(model, card, prompts * texts.prompt, 0)


def stage_times(model: Model, stage: str, card: Card) -> Times:
    """Steps, tokens and seconds of a stage by the recipe's mean lengths."""
    return STAGES[stage](model, card, mean_texts(model.recipe))


def _finetune(model: Model, card: Card, texts: Texts) -> Times:
    section = model.recipe.finetune
    rows = section.n_demonstrations or model.recipe.plan.n_prompts
    per_update = section.per_device_train_batch_size * section.gradient_accumulation_steps
    steps = _steps(section, rows, per_update)
    tokens = steps * per_update * (texts.prompt + texts.reply)
    share = 1.0 if model.on_cpu else texts.reply / (texts.prompt + texts.reply)
    return Times(steps, tokens, training(model, section, card, tokens, share))


def _generate(model: Model, card: Card, texts: Texts) -> Times:
    section = model.recipe.generate
    k = section.num_return_sequences
    seconds = generating(model, card, texts, k, section.batch_size, texts.prompts)
    return Times(0, texts.prompts * (texts.prompt + k * texts.reply), seconds)


def _reward(model: Model, card: Card, texts: Texts) -> Times:
    section = model.recipe.reward
    replies = model.recipe.generate.num_return_sequences + model.recipe.generate.n_borrowed
    trained = texts.prompts * (1 - section.report_share)
    per_update = section.per_device_train_batch_size * section.gradient_accumulation_steps
    steps, tree = _steps(section, trained, per_update), texts.prompt + replies * texts.reply
    tokens = round(steps * per_update * tree)
    seconds = training(model, section, card, tokens, 0)
    return Times(steps, tokens, seconds + scoring(model, card, texts.prompts * tree, 0))


def _dpo(model: Model, card: Card, texts: Texts) -> Times:
    section, k = model.recipe.dpo, model.recipe.generate.num_return_sequences
    tree = texts.prompt + k * texts.reply
    if not section.tree:
        tree = (k - 1) * 2 * (texts.prompt + texts.reply)
    prompts_at_once: float = section.per_device_train_batch_size
    if section.tree_tokens:
        prompts_at_once = max(1.0, section.tree_tokens / tree)
    per_update = prompts_at_once * section.gradient_accumulation_steps
    steps = _steps(section, texts.prompts, per_update)
    tokens, share = round(steps * per_update * tree), k * texts.reply / tree
    seconds = training(model, section, card, tokens, share)
    return Times(steps, tokens, seconds + scoring(model, card, texts.prompts * tree, share))


def _evaluate(model: Model, card: Card, texts: Texts) -> Times:
    section = model.recipe.evaluate
    n = section.n_prompts
    seconds = generating(model, card, texts, 1, section.batch_size, n)
    tokens = HELD_OUT_SPEAKERS * n * (texts.prompt + texts.reply)
    return Times(0, tokens, HELD_OUT_SPEAKERS * seconds)


def _ppo(model: Model, card: Card, texts: Texts) -> Times:
    section = model.recipe.ppo
    k, n = section.num_return_sequences, section.prompts_per_iteration
    tree = texts.prompt + k * texts.reply
    share, roles = k * texts.reply / tree, 2 + (section.value == "adapter")
    roles += section.reward == "model"
    seconds = generating(model, card, texts, k, section.batch_size, n)
    seconds += scoring(model, card, roles * n * tree, 2 * share / roles)
    learned = section.num_ppo_epochs * n * tree
    each = flop_per_token(
        model, learn=True, checkpointing=section.gradient_checkpointing, head=share
    )
    passes = 1 + (section.value == "adapter")
    seconds += passes * learned * each / (card.flops * card.compute_share)
    steps = section.iterations * section.num_ppo_epochs * section.num_mini_batches
    return Times(steps, section.iterations * learned, section.iterations * seconds)


def _steps(section: TrainingSection, rows: float, per_update: float) -> int:
    """Optimiser steps of a stage."""
    if section.max_steps > 0:
        return section.max_steps
    return max(1, round(rows * section.num_train_epochs / per_update))


STAGES: Mapping[str, Callable[[Model, Card, Texts], Times]] = {
    "finetune": _finetune,
    "generate": _generate,
    "reward": _reward,
    "dpo": _dpo,
    "ppo": _ppo,
    "evaluate": _evaluate,
}
