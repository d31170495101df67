"""Direct preference optimisation by the lineage rule, in the frame of TRL's `DPOTrainer`.

The policy starts as a copy of the newest adapter, and that adapter, frozen, is the reference
(Rafailov et al. 2023, arXiv:2305.18290, equation 7). TRL makes the frozen copy itself when it is
handed a PEFT model without a `peft_config`. Before the first step the two are equal, so the loss is
ln 2 and every reward is 0: checked in each run.

Rows are prompts with all their candidates (`rlaif.tree_dpo`), or pairs where a tree cannot be exact
or is switched off; the stage says which and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        # TRL would render the conversations by its own rules, which neither drop old turns nor
        # count what is too long.
        return dataset


@dataclass(frozen=True)
class Start:
    """What the first batch says before anything was learned."""

    loss: float
    largest_reward: float


def check_start(trainer: DPOTrainer) -> Start:
    """Loss and rewards of the first rows before the first step (law 5).

    Raises:
        CheckFailed: policy and reference differ, so the lineage is broken.
    """
    size = min(len(trainer.train_dataset), trainer.args.per_device_train_batch_size)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(size)])
    batch = {name: value.to(trainer.args.device) for name, value in batch.items()}
    configured = trainer.loss_types, trainer.loss_weights
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    trainer.model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        raw = trainer.compute_loss(trainer.model, batch)
    # Older releases of TRL give the loss in the precision of autocast.
    loss, expected = float(raw), float(torch.tensor(math.log(2), dtype=raw.dtype))
    trainer.loss_types, trainer.loss_weights = configured
    seen = trainer._metrics["eval"]
    largest = max(
        abs(value) for name in ("rewards/chosen", "rewards/rejected") for value in seen[name]
    )
    seen.clear()
    trainer.model.train()
    if abs(loss - expected) > 1e-4 or largest > 1e-4:
        raise CheckFailed(
            f"before the first step the loss is {loss:.6f} (must be ln 2 = {expected:.6f}) and the "
            f"largest reward {largest:.2e} (must be 0): policy and reference are not the same model"
        )
    return Start(loss, largest)


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
    with torch.autocast(precision.device, precision.dtype, enabled=config.bf16 or config.fp16):
        score_reference(model, groups, collator, REFERENCE_ROWS * config.train_batch_size)
    return TreeTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(groups),
        processing_class=tokenizer,
        data_collator=collator,
    )


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
    first = check_start(trainer)
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
