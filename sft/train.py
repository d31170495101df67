"""Supervised fine-tuning: demonstrations in, one LoRA adapter out, by TRL's `SFTTrainer`.

Also here, because the preference stages train by the same rules: the options every trainer of this
project shares, and the check that training changed something. Not here: what else holds for all
trainers (`sft.trainer_rules`), and how they are stopped (`sft.resume`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from sft import model as models
from sft import plain_head, sharding
from sft.chat import Chat, system_prompt
from sft.config import Recipe, TrainingSection
from sft.data import Demonstration
from sft.files import CheckFailed, UserError
from sft.packing import pack
from sft.resume import train
from sft.runs import Stage
from sft.trainer_rules import IDS, Reporter, TrlRules


@dataclass(frozen=True)
class Encoded:
    """Rows for a trainer and what was left out: nothing is truncated in silence."""

    rows: list[dict[str, Any]]
    too_long: int
    shortened: int

    def line(self, what: str) -> str:
        """One sentence with the counts."""
        return (
            f"{len(self.rows)} {what}; {self.too_long} too long and left out, "
            f"{self.shortened} lost old turns to fit"
        )


def encode(chat: Chat, demonstrations: Sequence[Demonstration]) -> Encoded:
    """Token rows with labels on the reply only (prompt positions are -100).

    `length` (tokens) is for `train_sampling_strategy: group_by_length`; `ids` name a row where
    training stops at it.
    """
    rendered = [chat.render(row.prompt, row.completion) for row in demonstrations]
    rows = [
        {
            IDS: [demonstration.prompt_id],
            "input_ids": r.prompt_ids + r.completion_ids,
            "labels": [-100] * len(r.prompt_ids) + r.completion_ids,
            "length": len(r.prompt_ids) + len(r.completion_ids),
        }
        for demonstration, r in zip(demonstrations, rendered, strict=True)
        if r
    ]
    return Encoded(
        rows, sum(r is None for r in rendered), sum(r.dropped_turns > 0 for r in rendered if r)
    )


def trainer_options(
    section: TrainingSection,
    recipe: Recipe,
    precision: models.Precision,
    folder: Path,
) -> dict[str, Any]:
    """Arguments that TRL's configurations share, with the recipe's `trainer:` fields on top.

    Raises:
        UserError: several GPUs for one process, among which Trainer would split each batch.
    """
    cards = torch.cuda.device_count() if precision.device == "cuda" else 0
    if cards > 1 and PartialState().num_processes == 1:
        raise UserError(
            f"{cards} GPUs and one process: use accelerate launch, or set CUDA_VISIBLE_DEVICES=0"
        )
    return {
        "output_dir": str(folder / "trainer"),
        "learning_rate": section.learning_rate,
        "num_train_epochs": section.num_train_epochs,
        "max_steps": section.max_steps,
        "per_device_train_batch_size": section.per_device_train_batch_size,
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "warmup_steps": section.warmup_steps,
        "lr_scheduler_type": section.lr_scheduler_type,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_grad_norm,
        "optim": section.optim,
        "logging_steps": section.logging_steps,
        "logging_first_step": True,  # a run shorter than logging_steps has a loss to tell, too
        "gradient_checkpointing": section.gradient_checkpointing,
        "bf16": precision.bf16,
        "fp16": precision.fp16,
        "use_cpu": precision.device == "cpu",
        "seed": recipe.seed,
        # A NaN must be seen: Trainer's default replaces it in the log while the optimiser goes on.
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "max_length": None,
        "dataloader_pin_memory": precision.device == "cuda",
        "ddp_find_unused_parameters": False,
        **section.trainer,
    }


def autocast(precision: models.Precision) -> torch.autocast:
    """What Trainer computes in once it has prepared the model; outside, it says nothing."""
    mixed = precision.bf16 or precision.fp16
    return torch.autocast(precision.device, precision.dtype, enabled=mixed)


def snapshot(model: PeftModel) -> dict[str, torch.Tensor]:
    """Copy of the weights of the adapter "default"."""
    with sharding.gathered(model):
        return {
            name: sharding.whole(value).detach().clone()
            for name, value in get_peft_model_state_dict(model, adapter_name="default").items()
        }


def check_moved(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> float:
    """Largest change of an adapter weight.

    Raises:
        CheckFailed: a tensor is where it was; the run trained nothing, or only part of its adapter.
    """
    after = {name: value.to(before[name].device) for name, value in after.items()}
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    if still:
        raise CheckFailed(
            f"training left {len(still)} of {len(before)} adapter tensors unchanged, {still[0]} "
            "among them: the learning rate is 0, there were no steps after the warm-up, or the "
            "adapter was frozen"
        )
    return max(float((after[name] - value).abs().max()) for name, value in before.items())


class DemonstrationTrainer(TrlRules, SFTTrainer):
    """TRL's trainer on rows that `sft.chat` has rendered."""


def make_trainer(
    model: PeftModel,
    rows: Sequence[dict[str, Any]],
    options: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> DemonstrationTrainer:
    """The trainer of rows of `encode`, by `trainer_options`; `packing: true` fills rows."""
    args = SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True})
    dataset = Dataset.from_list(list(rows))
    if args.packing:
        dataset = pack(dataset, args.max_length, args.packing_strategy)
    trainer = DemonstrationTrainer(
        model=model, args=args, train_dataset=dataset, processing_class=tokenizer
    )
    base = model.get_base_model()
    if base.device.type == "cpu" and base.config.model_type in plain_head.FAMILIES:
        plain_head.plain_head(base)
    return trainer


def finetune(
    recipe: Recipe, demonstrations: Sequence[Demonstration], stage: Stage
) -> dict[str, float | str]:
    """Train the SFT adapter and write it to `<stage>/adapter`.

    Returns:
        Counts, first and last loss, largest weight change, for the manifest.
    """
    section = recipe.finetune
    precision = models.choose_precision(recipe.model.dtype, use_cpu=recipe.use_cpu)
    tokenizer = models.load_tokenizer(recipe.model)
    chat = Chat(tokenizer, system_prompt(recipe.model.system_prompt), recipe.model.max_length)
    encoded = encode(chat, demonstrations)
    stage.say(encoded.line("demonstrations"))
    if not encoded.rows:
        raise UserError(
            f"no demonstration fits max_length {recipe.model.max_length}: raise --model.max_length"
        )
    options = trainer_options(section, recipe, precision, stage.folder)
    torch.manual_seed(recipe.seed)
    model = models.new_adapter(models.load_base(recipe.model, precision), recipe.model)
    before, reporter = snapshot(model), Reporter(stage, "finetune")
    trainer = make_trainer(model, encoded.rows, options, tokenizer)
    models.keep_float32(model, before)
    stage.say(steps_line(section, len(trainer.train_dataset), trainer.args.world_size))
    train(trainer, reporter, section.save_every)
    after = snapshot(model)
    moved = check_moved(before, after)
    if trainer.is_world_process_zero():
        models.save_adapter(model, stage.path("adapter"), recipe.model.name_or_path, after)
    losses = [row["loss"] for row in reporter.history if "loss" in row]
    return {
        "demonstrations": len(encoded.rows),
        "too_long": encoded.too_long,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "largest_change": moved,
        "precision": precision.reason,
    }


def steps_line(section: TrainingSection, rows: int, processes: int) -> str:
    """The batch arithmetic of a training stage in one line."""
    batch, accumulate = section.per_device_train_batch_size, section.gradient_accumulation_steps
    per_update = batch * accumulate * processes
    steps = (
        section.max_steps
        if section.max_steps > 0
        else math.ceil(rows * section.num_train_epochs / per_update)
    )
    return (
        f"{batch} rows x {accumulate} accumulated x {processes} processes = "
        f"{per_update} per update; about {steps} updates"
    )
