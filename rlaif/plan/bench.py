"""The plan's memory against what is measured, stage by stage, on a model with random weights.

Every text has the length that is planned for, so that what differs is the plan's error. Not here:
the measurement itself (`rlaif.plan.measure`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlaif.bench.work import SIZES, Size
from rlaif.plan.measure import STEPS, Job, measure
from rlaif.plan.memory import model_for, stage_memory
from rlaif.plan.work import Longest

SHAPES: Mapping[str, Size] = {
    **SIZES,
    "100m": Size(12, 768, 12, 4, 2048, 16384, 2, 2, 1024, 0, False, 6, 1024),
}
STAGES = ("finetune", "reward", "dpo", "ppo")
RATE = 1e-3  # high enough for every weight to move
LEAST_CONTEXT = 4096


@dataclass(frozen=True)
class Asked:
    """What is compared.

    Attributes:
        shape: name of a model's shape.
        prompt, reply: tokens of every text.
        k: replies to each prompt.
        rows: rows, or prompts with their replies, at once.
        checkpointing: of the layers.
        load_in_4bit: quantise the base.
        cap: GiB of the GPU that may be used; 0 = on the CPU.
    """

    shape: str
    prompt: int
    reply: int
    k: int
    rows: int
    checkpointing: bool
    load_in_4bit: bool
    cap: float


@dataclass(frozen=True)
class Compared:
    """Bytes of a stage as planned, without CUDA's context, and as measured."""

    stage: str
    planned: int
    measured: int
    phase: str

    @property
    def error(self) -> float:
        """Planned over measured, less 1."""
        return self.planned / self.measured - 1

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "work": self.stage,
            "phase": self.phase,
            "planned": self.planned,
            "measured": self.measured,
            "error": self.error,
        }


def job_for(asked: Asked, stage: str) -> Job:
    """The job of a stage, with a recipe of exactly these lengths."""
    learning = {
        "per_device_train_batch_size": asked.rows,
        "gradient_checkpointing": asked.checkpointing,
        "learning_rate": RATE,
        "warmup_steps": 0,
        "optim": "adamw_8bit" if asked.cap else "adamw_torch",
    }
    steps = {"gradient_accumulation_steps": 2, "max_steps": STEPS}
    reply = {"max_new_tokens": asked.reply}
    answers = {"num_return_sequences": asked.k, **reply}
    settings = {
        "model": {
            "system_prompt": "none",
            "max_length": asked.prompt + asked.reply,
            "load_in_4bit": asked.load_in_4bit,
        },
        "generate": answers,
        "evaluate": reply,
        "finetune": learning | steps,
        "reward": learning | steps | {"report_share": 0.4},
        "dpo": learning | steps,
        "ppo": learning
        | answers
        | {
            "prompts_per_iteration": max(2 * asked.rows, asked.k),
            "num_mini_batches": 1,
            "batch_size": asked.k,
        },
    }
    return Job(stage, SHAPES[asked.shape], settings, asked.prompt, asked.reply, asked.cap)


def planned(asked: Asked, job: Job) -> tuple[str, int]:
    """Phase and bytes of a job by the plan; CUDA's context is not PyTorch's to measure."""
    given = {
        "model_type": "llama",
        "hidden_size": job.size.hidden,
        "intermediate_size": job.size.intermediate,
        "num_hidden_layers": job.size.layers,
        "num_attention_heads": job.size.heads,
        "num_key_value_heads": job.size.kv_heads,
        "vocab_size": job.size.vocabulary,
        "max_position_embeddings": LEAST_CONTEXT,
        "tie_word_embeddings": False,
    }
    recipe = job.recipe(None, plan={"shape": given})
    made = model_for(recipe, card="T4" if asked.cap else "CPU")
    found = stage_memory(made, job.stage, Longest(job.prompt, job.reply))
    return found.phase, found.total - found.parts.get("context", 0)


def compare(asked: Asked, stages: tuple[str, ...], say: Callable[[str], None]) -> list[Compared]:
    """Plan and measure each stage in turn."""
    found = []
    for stage in stages:
        job = job_for(asked, stage)
        phase, expected = planned(asked, job)
        found.append(Compared(stage, expected, measure(job), phase))
        say(line(found[-1]))
    return found


def line(each: Compared) -> str:
    """One stage in words."""
    mib = 2**20
    return (
        f"{each.stage:9} ({each.phase}) planned {each.planned / mib:8.0f} MiB, measured "
        f"{each.measured / mib:8.0f} MiB: {each.error:+.1%}"
    )
