"""Direct preference optimisation by the lineage rule, in the frame of TRL's `DPOTrainer`.

The policy starts as a copy of the newest adapter, and that adapter, frozen, is the reference
(Rafailov et al. 2023, arXiv:2305.18290, equation 7). On trees its log-probabilities are scored
before training; on rows of pairs TRL keeps a frozen copy, as it does when it is handed a PEFT model
without a `peft_config`. Before the first step the two are equal, so the loss is ln 2 and rewards
are 0: checked in each run.

Rows are prompts with all their candidates (`rlaif.tree_dpo`), or pairs where a tree cannot be exact
or is switched off; the stage says which and why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import DPOConfig, DPOTrainer

from reward.pairs import Pair
from reward.tree import add_tree_forward
from rlaif.tree_dpo import (
    REFERENCE_ROWS,
    Collator,
    TreeTrainer,
    reason_for_pairs,
    score_reference,
    to_groups,
)
from sft import model as models
from sft.chat import Chat, Rendered, system_prompt
from sft.config import Recipe
from sft.data import Message
from sft.files import CheckFailed, UserError
from sft.runs import Stage
from sft.train import (
    Encoded,
    Reporter,
    TrainerRules,
    autocast,
    check_moved,
    snapshot,
    steps_line,
    trainer_options,
)


def encode_pairs(chat: Chat, pairs: Sequence[Pair]) -> Encoded:
    """Token rows of the pairs that fit: `prompt_ids`, `chosen_ids`, `rejected_ids`, `length`.

    Both replies hang on the same prompt tokens: where old turns had to go for one, the pair is
    rendered with the shorter history for both; where one reply merges with the last token of the
    prompt, that token belongs to both replies.
    """
    rows, too_long, shortened = [], 0, 0
    for pair in pairs:
        prompt, dropped = pair.prompt, 0
        sides = _both(chat, prompt, pair)
        while sides and sides[0].dropped_turns != sides[1].dropped_turns:
            more = max(side.dropped_turns for side in sides)
            first = 1 if prompt[0]["role"] == "system" else 0
            prompt, dropped = [*prompt[:first], *prompt[first + more :]], dropped + more
            sides = _both(chat, prompt, pair)
        if sides is None:
            too_long += 1
            continue
        chosen, rejected = sides
        shortened += dropped + chosen.dropped_turns > 0
        # Both prompts begin the tokens of one and the same text.
        shared = min(len(chosen.prompt_ids), len(rejected.prompt_ids))
        longer = max(len(s.prompt_ids) + len(s.completion_ids) for s in sides)
        rows.append(
            {
                "prompt_id": pair.prompt_id,
                "length": longer,
                "prompt_ids": chosen.prompt_ids[:shared],
                "chosen_ids": chosen.prompt_ids[shared:] + chosen.completion_ids,
                "rejected_ids": rejected.prompt_ids[shared:] + rejected.completion_ids,
            }
        )
    return Encoded(rows, too_long, shortened)


def _both(chat: Chat, prompt: Sequence[Message], pair: Pair) -> tuple[Rendered, Rendered] | None:
    """Chosen and rejected after a prompt; None where one does not fit."""
    chosen, rejected = chat.render(prompt, pair.chosen), chat.render(prompt, pair.rejected)
    return (chosen, rejected) if chosen and rejected else None


class PairTrainer(TrainerRules, DPOTrainer):
    """TRL's trainer on rows of pairs that `sft.chat` has rendered: the plain path."""


@dataclass(frozen=True)
class Start:
    """What the first batch says before anything was learned."""

    loss: float
    largest_reward: float


def check_start(
    trainer: DPOTrainer, before: Mapping[str, torch.Tensor], precision: models.Precision
) -> Start:
    """Loss and rewards of some rows before the first step (law 5).

    Args:
        trainer: about to train.
        before: weights of the adapter that is the reference.
        precision: what the trainer computes in.

    Raises:
        CheckFailed: policy and reference differ, so the lineage is broken.
    """
    rows, n = trainer.train_dataset, trainer.args.per_device_train_batch_size
    some = [rows[i] for i in range(0, len(rows), math.ceil(len(rows) / n))]
    on_trees = isinstance(trainer, TreeTrainer)
    trainer.model.eval()
    with torch.no_grad(), autocast(precision):
        loss, largest = trainer.first_look(some) if on_trees else _first_look(trainer, some)
    trainer.model.train()
    weights = snapshot(trainer.model)
    same = all(torch.equal(weights[name], value) for name, value in before.items())
    # The reference of trees was scored in batches of other shapes, which 16-bit products round
    # otherwise; that the weights are the same is exact.
    rough = on_trees and precision.dtype != torch.float32
    if (
        not same
        or abs(loss - math.log(2)) > (0.05 if rough else 1e-4)
        or largest > (0.25 if rough else 1e-4)
    ):
        raise CheckFailed(
            f"before the first step the loss is {loss:.6f} (must be ln 2 = {math.log(2):.6f}) and "
            f"the largest reward {largest:.2e} (must be 0): policy and reference are not the same "
            "model"
        )
    return Start(loss, largest)


def _first_look(trainer: DPOTrainer, rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """DPO's loss on rows of pairs, and the largest mean reward of a side."""
    batch = trainer.data_collator(rows)
    batch = {name: value.to(trainer.args.device) for name, value in batch.items()}
    configured = trainer.loss_types, trainer.loss_weights
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    loss = float(trainer.compute_loss(trainer.model, batch))
    trainer.loss_types, trainer.loss_weights = configured
    seen = trainer._metrics["eval"]
    largest = max(
        abs(value) for name in ("rewards/chosen", "rewards/rejected") for value in seen[name]
    )
    seen.clear()
    return loss, largest


def dpo_options(recipe: Recipe, precision: models.Precision, folder: Path) -> dict[str, Any]:
    """Arguments of TRL's `DPOConfig` by the recipe."""
    section = recipe.dpo
    return trainer_options(section, recipe, precision, folder) | {
        "beta": section.beta,
        "loss_type": section.loss_type,
        "loss_weights": section.loss_weights,
        "ld_alpha": section.ld_alpha,
        "label_smoothing": section.label_smoothing,
        "precompute_ref_log_probs": section.precompute_ref_log_probs,
    }


def _starting_policy(recipe: Recipe, start: Path | None, precision: models.Precision) -> PeftModel:
    """A trainable copy of the adapter at `start`, or a fresh one that says what the base says."""
    base = models.load_base(recipe.model, precision)
    if start is None:
        return models.new_adapter(base, recipe.model)
    return models.load_adapter(base, start, trainable=True)


def _make_trainer(
    recipe: Recipe,
    model: PeftModel,
    rows: Sequence[dict[str, Any]],
    options: dict[str, Any],
    precision: models.Precision,
    tokenizer: PreTrainedTokenizerBase,
    stage: Stage,
) -> DPOTrainer:
    """The trainer on trees, or on rows of pairs; the reference of trees is scored here."""
    reason = reason_for_pairs(recipe.dpo, model.get_base_model(), rows)
    if reason is not None:
        stage.say(f"rows are pairs: {reason}")
        return PairTrainer(
            model=model,
            args=DPOConfig(**options),
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
        )
    groups = to_groups(rows)
    nodes = sum(group["length"] for group in groups)
    plain = sum(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in rows
    )
    stage.say(
        f"rows are prompts: {len(rows)} pairs of {len(groups)} prompts; {plain} token positions "
        f"as pairs / {nodes} as trees = {plain / nodes:.1f}"
    )
    add_tree_forward(model.get_base_model())
    # TRL would reduce a row to its own columns, and precompute the reference of pairs.
    options |= {"remove_unused_columns": False, "precompute_ref_log_probs": False}
    config = DPOConfig(**options)
    collator = Collator(tokenizer.pad_token_id, config.pad_to_multiple_of or 1)
    with autocast(precision):
        score_reference(model, groups, collator, REFERENCE_ROWS * config.train_batch_size)
    trainer = TreeTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(groups),
        processing_class=tokenizer,
        data_collator=collator,
    )
    model.delete_adapter("ref")  # TRL's copy of the start; its scores are in the collator
    return trainer


def train_dpo(
    recipe: Recipe, pairs: Sequence[Pair], start: Path | None, stage: Stage
) -> dict[str, Any]:
    """Optimise the policy on pairs and write it to `<stage>/adapter`.

    Args:
        recipe: its `model` and `dpo` sections.
        pairs: preference pairs of the training prompts.
        start: folder of the adapter that policy and reference start from; None = the base itself.
        stage: where metrics and the adapter go.

    Returns:
        Counts, loss before and after, rewards and the largest weight change, for the manifest.
    """
    section = recipe.dpo
    precision = models.choose_precision(recipe.model.dtype, use_cpu=recipe.use_cpu)
    tokenizer = models.load_tokenizer(recipe.model)
    encoded = encode_pairs(
        Chat(tokenizer, system_prompt(recipe.model.system_prompt), recipe.model.max_length), pairs
    )
    stage.say(encoded.line("pairs"))
    if not encoded.rows:
        raise UserError(
            f"no pair fits max_length {recipe.model.max_length}: raise --model.max_length"
        )
    torch.manual_seed(recipe.seed)
    model = _starting_policy(recipe, start, precision)
    before, reporter = snapshot(model), Reporter(stage, "dpo")
    options = dpo_options(recipe, precision, stage.folder)
    trainer = _make_trainer(recipe, model, encoded.rows, options, precision, tokenizer, stage)
    trainer.add_callback(reporter)
    trainer.remove_callback(PrinterCallback)  # the stage has its own progress line
    models.keep_float32(model, before)
    stage.say(steps_line(section, len(trainer.train_dataset), trainer.args.world_size))
    first = check_start(trainer, before, precision)
    stage.say(
        f"before step 1: loss {first.loss:.6f} = ln 2, largest reward {first.largest_reward:.1e}"
    )
    trainer.train()
    moved = check_moved(before, snapshot(model))
    if trainer.is_world_process_zero():
        models.save_adapter(model, stage.path("adapter"), recipe.model.name_or_path)
    logged = [row for row in reporter.history if "loss" in row]
    return {
        "pairs": len(encoded.rows),
        "too_long": encoded.too_long,
        "loss_before": first.loss,
        "last_loss": logged[-1]["loss"],
        "last_accuracy": logged[-1]["rewards/accuracies"],
        "last_margin": logged[-1]["rewards/margins"],
        "largest_change": moved,
        "precision": precision.reason,
    }
