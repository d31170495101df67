"""TRL 1.12.0's PPO as a contestant of the PPO benchmark, in a process of its own.

    python -m rlaif.bench.ppo_trl JOB.json trl-1.12.0 | trl-1.12.0-full-value

With TRL 1.12.0 first on the path. Its policy is a LoRA whose reference is the adapter switched off;
value and reward models are the copies that it needs. In the first form the value model learns by a
LoRA as well, which TRL's own example does not do: that is the second form, in which all its weights
learn. A mini-batch is one micro-batch, for where TRL is told to accumulate, accelerate counts over
the whole rollout and not over a mini-batch, so that it steps once an epoch. Nothing of TRL is
changed; two of its functions are watched to see when a part begins.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from rlaif.bench.ppo_turns import Seat
from rlaif.bench.ppo_work import OPPONENT, PpoJob
from rlaif.bench.work import RANK
from sft import model as models
from sft.precision import choose_precision
from sft.sections import ModelSection

# All linear layers.
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Watch(TrainerCallback):
    """Notes when an iteration's parts begin, and waits for its turn between iterations."""

    def __init__(self, seat: Seat) -> None:
        """Watch TRL's sampling and its forward pass, of which the first with both models is an
        update's.
        """
        self.seat, self.marks = seat, [0.0]
        ppo_trainer.batch_generation = self._sampling(ppo_trainer.batch_generation)
        ppo_trainer.forward = self._passing(ppo_trainer.forward)

    def _sampling(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def batch_generation(*args: Any) -> Any:
            found = plain(*args)
            self.marks.append(time.perf_counter())
            return found

        return batch_generation

    def _passing(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def forward(model: torch.nn.Module, *args: Any) -> Any:
            if isinstance(model, ppo_trainer.PolicyAndValueWrapper) and len(self.marks) == 2:
                self.marks.append(time.perf_counter())
            return plain(model, *args)

        return forward

    def _begin(self) -> None:
        self.seat.wait()
        self.marks = [time.perf_counter()]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say that all is loaded, and wait."""
        self.seat.ready()
        self._begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a turn; after the last there is none to wait for."""
        self.seat.took(*self.marks, time.perf_counter())
        if state.global_step < state.max_steps:
            self._begin()


def scorer(job: PpoJob, base: PreTrainedModel) -> PreTrainedModel:
    """A copy of the base with one score in place of the vocabulary's head."""
    config = type(base.config).from_dict(base.config.to_dict() | {"num_labels": 1})
    made: PreTrainedModel = AutoModelForSequenceClassification.from_config(
        config, dtype=base.dtype, attn_implementation=base.config._attn_implementation
    )
    weights = load_file(job.base / "model.safetensors")
    made.load_state_dict(weights | {"score.weight": made.score.weight}, strict=False)
    return made


def lora() -> LoraConfig:
    """An adapter as ours: of the same rank on the same layers."""
    return LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS)


def trainer_of(job: PpoJob, who: str, watch: Watch) -> PPOTrainer:
    """TRL's trainer for the job; replies to one prompt are as many rows."""
    precision = choose_precision(job.dtype, use_cpu=True)
    # SDPA and plain products take the same time here, and SDPA less memory.
    section = ModelSection(name_or_path=str(job.base), dtype=job.dtype, attn_implementation="sdpa")
    tokenizer = models.load_tokenizer(section)
    tokenizer.padding_side = "left"
    policy = models.load_base(section, precision)
    value, reward = scorer(job, policy), scorer(job, policy)
    if who == OPPONENT:
        value.requires_grad_(False)
        value = get_peft_model(value, lora())
        value.score.weight.requires_grad_(True)
    reward.requires_grad_(False)
    options = PPOConfig(
        output_dir=str(Path(job.folder) / who),
        use_cpu=True,
        bf16=precision.bf16,
        report_to=[],
        save_strategy="no",
        num_sample_generations=0,
        gradient_checkpointing=False,
        per_device_train_batch_size=job.replies,
        num_mini_batches=job.mini_batches,
        num_ppo_epochs=job.epochs,
        local_rollout_forward_batch_size=job.rows,
        total_episodes=job.iterations * job.replies,
        response_length=job.reply,
        temperature=1.0,
        learning_rate=1e-5,
    )
    rows = [{"input_ids": ids} for ids in job.prompt_ids() for _ in range(job.k)]
    trainer = PPOTrainer(
        args=options,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_list(rows),
        peft_config=lora(),
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def take_part(job: PpoJob, who: str) -> None:
    """Train, an iteration a turn."""
    seat = Seat()
    torch.manual_seed(0)
    trainer = trainer_of(job, who, Watch(seat))
    trainer.train()
    held = [*trainer.model.parameters(), *trainer.reward_model.parameters()]
    seat.leave(held, trainer.optimizer.optimizer)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    take_part(PpoJob.read(Path(sys.argv[1])), sys.argv[2])
