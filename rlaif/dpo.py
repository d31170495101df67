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
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer

from reward.packing import Packs
from reward.pairs import Pair
from reward.tree import add_tree_forward
from rlaif.groups import Collator, to_groups, to_packs
from rlaif.pair_rows import encode_pairs
from rlaif.reference import FILE, Scoring, reference_key, reference_of
from rlaif.tree_dpo import TreeTrainer, reason_for_pairs
from sft import model as models
from sft.chat import Chat, system_prompt
from sft.config import Recipe
from sft.files import CheckFailed, UserError
from sft.resume import train
from sft.runs import Stage
from sft.sections import TREE_LOSSES
from sft.sharding import refuse_shares
from sft.train import autocast, check_moved, snapshot, steps_line, trainer_options
from sft.trainer_rules import Reporter, TrlRules

REFERENCE_STEPS = 4  # without a gradient, as many times the tokens of a micro-step fit


class PairTrainer(TrlRules, DPOTrainer):
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
    # Eval mode only where dropout is on: see `rlaif.reference`.
    trainer.model.train(trainer.args.disable_dropout)
    with torch.no_grad(), autocast(precision):
        loss, largest = trainer.first_look(some) if on_trees else _first_look(trainer, some)
    trainer.model.train()
    weights = snapshot(trainer.model)
    same = all(torch.equal(weights[name], value) for name, value in before.items())
    # The reference of trees was scored in batches of other shapes, which 16-bit products round
    # otherwise: by some tenths of a nat a reply. That the weights are the same is exact.
    rough = on_trees and precision.dtype != torch.float32
    beta = trainer.beta
    if (
        not same
        or abs(loss - math.log(2)) > (0.5 * beta if rough else 1e-4)
        or largest > (2.5 * beta if rough else 1e-4)
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
    seen = trainer._metrics["train" if trainer.model.training else "eval"]
    largest = max(
        abs(value) for name in ("rewards/chosen", "rewards/rejected") for value in seen[name]
    )
    seen.clear()
    trainer._total_train_tokens = 0  # nothing was trained on yet
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


@dataclass(frozen=True)
class Job:
    """What a trainer is made from; the reference's scores are kept beside the stage's folder."""

    recipe: Recipe
    model: PeftModel
    rows: list[dict[str, Any]]
    options: dict[str, Any]
    precision: models.Precision
    tokenizer: PreTrainedTokenizerBase
    stage: Stage


def make_trainer(job: Job, start: Path | None) -> DPOTrainer:
    """The trainer on trees, or on pairs where those cannot be exact; `start` as in `train_dpo`."""
    reason = reason_for_pairs(job.recipe.dpo, job.model.get_base_model(), job.rows)
    if reason is None:
        config = job.model.get_base_model().config  # has a commit where the Hub is its source
        key = reference_key(job.recipe, start, job.precision, getattr(config, "_commit_hash", None))
        return _tree_trainer(job, key)
    job.stage.say(f"rows are pairs: {reason}")
    return _plain_trainer(job, reason)


def _plain_trainer(job: Job, reason: str) -> DPOTrainer:
    """The trainer on rows of pairs, which has not everything that trees have."""
    section = job.recipe.dpo
    if only := sorted(TREE_LOSSES & set(section.loss_type)):
        raise UserError(f"dpo.loss_type {', '.join(only)} needs trees, and {reason}")
    if section.pair_confidence:
        raise UserError(f"dpo.pair_confidence needs trees, and {reason}")
    return PairTrainer(
        model=job.model,
        args=DPOConfig(**job.options),
        train_dataset=Dataset.from_list(job.rows),
        processing_class=job.tokenizer,
    )


def _tree_trainer(job: Job, key: str) -> TreeTrainer:
    """The trainer on trees; the reference is scored here, or read where it was before."""
    section, groups, pad_id = job.recipe.dpo, to_groups(job.rows), job.tokenizer.pad_token_id
    whole = "listwise" in section.loss_type
    packs = to_packs(groups, section.tree_tokens, job.recipe.seed, whole=whole)
    job.stage.say(_tree_line(job.rows, groups, packs))
    if dropped := job.recipe.model.lora_dropout:
        job.stage.say(f"model.lora_dropout {dropped} is off in this stage, as in TRL's DPO")
    add_tree_forward(job.model.get_base_model(), job.recipe.model.attn_implementation)
    # TRL would reduce a row to its own columns, and precompute the reference of pairs.
    own = {"remove_unused_columns": False, "precompute_ref_log_probs": False}
    config = DPOConfig(**job.options | own)
    multiple = config.pad_to_multiple_of or 1
    longest = max(row["length"] for row in packs.rows)
    room = REFERENCE_STEPS * config.train_batch_size * longest
    with autocast(job.precision):
        scoring = Scoring(job.model, pad_id, multiple, room)
        reference, line = reference_of(scoring, groups, job.stage.folder.parent / FILE, key)
    job.stage.say(line)
    trainer = TreeTrainer(
        model=job.model,
        args=config,
        train_dataset=Dataset.from_list(packs.rows),
        processing_class=job.tokenizer,
        data_collator=Collator(pad_id, multiple, reference),
    )
    trainer.section = section
    job.model.delete_adapter("ref")  # TRL's copy of the start; its scores are in the collator
    return trainer


def _tree_line(
    rows: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]], packs: Packs
) -> str:
    """What the rows are, in one sentence with its arithmetic."""
    nodes = sum(row["length"] for row in packs.rows)
    plain = sum(
        2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
        for row in rows
    )
    packed = len(packs.rows) < len(groups) or packs.split
    line = f"rows are {'packs of ' if packed else ''}prompts: {len(rows)} pairs of "
    line += f"{len(groups)} prompts" + (f" in {len(packs.rows)} packs" if packed else "")
    line += f"; {plain} token positions as pairs / {nodes} as trees = {plain / nodes:.1f}"
    if packs.split:
        line += f"; {packs.split} prompts did not fit dpo.tree_tokens and were split"
    if packs.over:
        line += f"; {packs.over} packs are longer, because a pair or a prompt kept whole is"
    return line


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
    refuse_shares("DPO", "the reference is scored before the trainer has it")
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
    job = Job(recipe, model, encoded.rows, options, precision, tokenizer, stage)
    trainer = make_trainer(job, start)
    models.keep_float32(model, before)
    stage.say(steps_line(section, len(trainer.train_dataset), trainer.args.world_size))
    first = check_start(trainer, before, precision)
    stage.say(
        f"before step 1: loss {first.loss:.6f} = ln 2, largest reward {first.largest_reward:.1e}"
    )
    train(trainer, reporter, section.save_every)
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
