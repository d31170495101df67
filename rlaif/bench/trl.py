"""TRL's trainers as contestants of the training benchmark.

B0  as it comes: a model named by its folder, defaults, the asked effective batch.
B1  tuned: weights in the right precision, no gradient checkpointing where memory allows, cached
    reference log-probabilities, rows sorted by length (the grouping that its trainers leave open),
    the micro-batch and the attention kernel that were fastest, packing for SFT.
B2  B1 with its head, which off GPUs projects every position and multiplies in float32 on the way
    back, replaced by plain logits of the completions: the ratio is then the tree's, no artefact's.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from rlaif.bench.work import PACK, RANK, Job, Opponent
from sft.plain_head import plain_head

BATCH = 8  # rows of its data set that a trainer takes at once by default


def dpo_trainer(job: Job, who: Opponent) -> DPOTrainer:
    """DPO on pairs; the reference is the base without its adapter."""
    rows = _rows(job)
    options = _task(job, _pairs_at_once(job, who), len(rows))
    if who != "B0":
        rows = sorted(rows, key=_words)
        options |= _tuned(job) | {"max_length": None, "precompute_ref_log_probs": True}
    elif job.work.probe:
        options["max_length"] = None  # its 1,024 tokens would drop every pair
    trainer = DPOTrainer(
        args=DPOConfig(**options), train_dataset=Dataset.from_list(rows), **_model(job, "CAUSAL_LM")
    )
    if who == "B2":
        plain_head(trainer.model.get_base_model())
    return trainer


def reward_trainer(job: Job, who: Opponent) -> RewardTrainer:
    """A reward model on pairs; it has no vocabulary's head, so there is no B2."""
    rows = _rows(job)
    options = _task(job, _pairs_at_once(job, who), len(rows))
    if who != "B0":
        rows, options = sorted(rows, key=_words), options | _tuned(job) | {"max_length": None}
    return RewardTrainer(
        args=RewardConfig(**options),
        train_dataset=Dataset.from_list(rows),
        **_model(job, "SEQ_CLS"),
    )


def sft_trainer(job: Job, who: Opponent) -> SFTTrainer:
    """SFT on demonstrations, with the loss on completions."""
    rows = _rows(job)
    options = _task(job, BATCH if who == "B0" else 1, len(rows))
    if who != "B0":
        options |= _tuned(job) | {"packing": True, "max_length": PACK}
    trainer = SFTTrainer(
        args=SFTConfig(**options), train_dataset=Dataset.from_list(rows), **_model(job, "CAUSAL_LM")
    )
    if who == "B2":
        plain_head(trainer.model.get_base_model())
    return trainer


def _pairs_at_once(job: Job, who: Opponent) -> int:
    """Pairs of a micro-batch; where memory is measured everybody takes one."""
    return BATCH if who == "B0" and not job.work.probe else job.micro_rows // 2


def _rows(job: Job) -> list[dict[str, Any]]:
    """The material in TRL's conversational formats."""
    system = job.material.system
    first = [{"role": "system", "content": system}] if system else []
    if job.work.stage == "sft":
        return [
            {"prompt": first + each.prompt, "completion": each.completion}
            for each in job.material.demonstrations
        ]
    return [
        {"prompt": first + pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in job.material.pairs
    ]


def _words(row: dict[str, Any]) -> int:
    """Words of a pair's longer row."""
    sides = [row["prompt"] + row[name] for name in ("chosen", "rejected")]
    return max(sum(len(message["content"].split()) for message in side) for side in sides)


def _task(job: Job, micro: int, rows: int) -> dict[str, Any]:
    """Settings that are part of the task, and TRL's defaults for the rest."""
    micro = rows if job.whole else min(micro, rows)
    return {
        "output_dir": str(job.scratch),
        "per_device_train_batch_size": micro,
        # An epoch is one update: with fewer micro-batches (packing), it ends early.
        "gradient_accumulation_steps": -(-rows // micro),
        "max_steps": job.steps,
        "use_cpu": job.device == "cpu",
        "bf16": job.dtype == "bfloat16",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _tuned(job: Job) -> dict[str, Any]:
    return {
        "model_init_kwargs": {"dtype": job.dtype, "attn_implementation": job.attention},
        "gradient_checkpointing": job.gradient_checkpointing,
        "train_sampling_strategy": "sequential",
    }


def _model(job: Job, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> dict[str, Any]:
    """Model and adapter as arguments of TRL's trainers."""
    adapter = LoraConfig(
        task_type=task,
        r=RANK,
        lora_alpha=RANK,
        target_modules="all-linear",
        modules_to_save=["score"] if task == "SEQ_CLS" else None,
    )
    given: dict[str, Any] = {"model": str(job.folder), "peft_config": adapter}
    if job.load_in_4bit:
        given["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, job.dtype),
        )
    return given
