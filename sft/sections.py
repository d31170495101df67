"""The settings of each stage, with default, unit, range and off-value; `sft.recipe` joins them.

Those of the pair stage are in `sft.pair_settings`. What excludes what, and which fields `trainer`
may have, is checked in `sft.recipe`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sft.judging_settings import JudgingSection
from sft.service_settings import PartsSection, Positive, Section, ServiceSection

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Scheduler = Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"]
Loss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
    "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    "conservative", "odpo", "listwise",
]  # fmt: skip
TREE_LOSSES = frozenset({"conservative", "odpo", "listwise"})  # TRL has none of these names


class ModelSection(Section):
    """The base model, how it is loaded, and the shape of its adapters."""

    name_or_path: str = Field(
        default="embedded",
        description="'embedded' (the project's small model), a folder, or a Hub name",
    )
    revision: str | None = Field(
        default=None, description="commit or tag on the Hub; null = newest"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="precision of computing; auto = what the device is fast in"
    )
    load_in_4bit: bool = Field(default=False, description="NF4-quantised base (QLoRA); false = off")
    attn_implementation: str = Field(
        default="auto",
        description="attention kernel, by transformers' name; auto = sdpa, and FlexAttention for "
        "trees on GPUs of compute capability 8.0 and newer",
    )
    chat_template: Literal["auto", "llama3", "plain"] = Field(
        default="auto", description="chat layout; auto = the tokenizer's own, else plain"
    )
    system_prompt: str = Field(
        default="support",
        description="a name in sft/assets/prompts, a path, or 'none' = no system message",
    )
    max_length: int = Field(
        default=1024, ge=16, description="tokens of prompt and reply, at least 16"
    )
    lora_r: Positive = Field(default=16, description="rank of the adapters, at least 1")
    lora_alpha: Positive = Field(default=16, description="adapter scale times rank, at least 1")
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share dropped in adapters; 0 = off"
    )
    lora_target_modules: str = Field(
        default="all-linear", description="'all-linear', or names of layers: q_proj,v_proj"
    )

    @field_validator("lora_target_modules", mode="before")
    @classmethod
    def _joined(cls, value: object) -> object:
        return ",".join(map(str, value)) if isinstance(value, list) else value


class TrainingSection(Section):
    """What all training stages have in common, by the names of transformers' TrainingArguments."""

    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="peak rate, above 0")
    num_train_epochs: float = Field(default=1.0, gt=0, description="passes over the data, above 0")
    max_steps: int = Field(default=-1, ge=-1, description="optimiser steps; -1 = by epochs")
    per_device_train_batch_size: Positive = Field(
        default=2, description="rows a device takes at once"
    )
    gradient_accumulation_steps: Positive = Field(default=4, description="micro-batches per step")
    warmup_steps: float = Field(
        default=5, ge=0, description="steps; below 1 a share of all; 0 = off"
    )
    lr_scheduler_type: Scheduler = Field(
        default="linear", description="shape of the rate over the steps"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled decay; 0 = off")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="clip gradients at this norm; 0 = off"
    )
    optim: str = Field(default="adamw_torch", description="optimiser, by transformers' name")
    logging_steps: Positive = Field(default=10, description="steps between two logged lines")
    gradient_checkpointing: bool = Field(
        default=False, description="less memory, about 1/3 more time"
    )
    save_every: Count = Field(
        default=100,
        description="steps between two checkpoints, of which two are kept; 0 = only when stopped",
    )
    trainer: dict[str, Any] = Field(
        default={},
        description="any further field of the trainer's configuration (TRL's, for reward "
        "transformers') by its own name; {} = none",
    )


class FinetuneSection(TrainingSection):
    """Supervised learning from demonstrations."""

    n_demonstrations: Count = Field(default=0, description="demonstrations used; 0 = all")


class DpoSection(TrainingSection):
    """Preference learning from pairs, against the frozen SFT adapter."""

    learning_rate: float = Field(default=5e-6, gt=0, le=1, description="peak rate, above 0")
    warmup_steps: float = Field(
        default=0.1, ge=0, description="steps; below 1 a share of all; 0 = off"
    )
    beta: float = Field(
        default=0.1, gt=0, description="strength of the pull to the reference, above 0"
    )
    loss_type: list[Loss] = Field(
        default=["sigmoid"],
        min_length=1,
        description="TRL's losses, or conservative, odpo, listwise (trees only), summed",
    )
    loss_weights: list[float] | None = Field(
        default=None, description="one weight per loss_type; null = 1 each"
    )
    ld_alpha: Share | None = Field(
        default=None, description="weight of the longer reply's surplus tokens, 0 to 1; null = off"
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="expected share of wrong pairs, below 0.5 (robust, conservative, exo_pair, "
        "aot); 0 = off",
    )
    pair_confidence: bool = Field(
        default=False,
        description="smoothing is 1 - the pair's own confidence (conservative; trees "
        "only); false = label_smoothing for all",
    )
    offset: float = Field(
        default=1.0,
        ge=0,
        description="lead in rewards that the chosen reply must have per unit of the pair's margin "
        "(odpo); 0 = none",
    )
    tree: bool = Field(
        default=True,
        description="a row is a prompt with all its candidates, computed once; false = rows of "
        "pairs, the plain path",
    )
    tree_tokens: Count = Field(
        default=0,
        description="tokens of a micro-step, into which prompts are packed (a row is then a pack); "
        "0 = a row is one prompt",
    )
    precompute_ref_log_probs: bool = Field(
        default=False,
        description="reference log-probabilities once before training (trees: always); false = in "
        "each step",
    )


class GenerateSection(PartsSection):
    """Candidate replies from the newest policy."""

    backend: Literal["local", "openai"] = Field(
        default="local",
        description="local = this process; openai = a server that serves the policy (vLLM)",
    )
    served_model: str | None = Field(
        default=None, description="name of the policy at that server (openai only)"
    )

    num_return_sequences: int = Field(
        default=4, ge=2, description="candidates per prompt K, at least 2"
    )
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature, above 0")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="nucleus share of probability; 1 = off"
    )
    max_new_tokens: Positive = Field(default=256, description="longest reply in tokens")
    batch_size: Positive = Field(default=16, description="rows generated at once")
    n_prompts: Count = Field(default=0, description="training prompts used; 0 = all")
    n_borrowed: Count = Field(
        default=0,
        description="replies to messages of another risk that a prompt also gets, to be judged as "
        "misfits; 0 = none",
    )


class ScoreSection(JudgingSection):
    """Who judges the candidates."""

    evaluator: Literal["embedded", "openai"] = Field(
        default="embedded", description="embedded (no network), or an OpenAI-compatible service"
    )
    max_unscored: Share = Field(
        default=0.05, description="share of candidates that may stay without a score; 1 = no limit"
    )
    rubric: str | None = Field(
        default=None, description="path of a rubric file; null = configs/rubric.yaml"
    )
    evaluator_model: str | None = Field(
        default=None, description="model of the service (openai only)"
    )
    mode: Literal["live", "batch"] = Field(
        default="live", description="batch = OpenAI's Batch API: half the price, up to 24 h"
    )
    rescore: bool = Field(
        default=False,
        description="read the stored answers again and call nobody; false = ask what is missing",
    )
    ledgers: list[str] = Field(
        default=[], description="ledgers of other machines whose answers count here; [] = none"
    )


class EvaluateSection(ServiceSection):
    """The proof: aligned model against SFT model on held-out prompts."""

    judge: Literal["practice-clinic", "embedded", "openai"] = Field(
        default="practice-clinic",
        description="who judges the result; never who scored the training data",
    )
    judge_model: str | None = Field(
        default=None, description="model of the service (judge openai only)"
    )
    n_prompts: Positive = Field(default=300, description="held-out prompts, at least 1")
    crisis_prompts: Count = Field(
        default=120, description="crises among them (practice clinic); 0 = none"
    )
    people: Count = Field(
        default=20_261_120,
        description="seed of the clinic's held-out people, the same for every run, so that results "
        "compare; another one to choose a recipe on people that are not reported",
    )
    temperature: float = Field(default=0.7, ge=0, description="sampling temperature; 0 = greedy")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="nucleus share of probability; 1 = off"
    )
    max_new_tokens: Positive = Field(default=256, description="longest reply in tokens")
    batch_size: Positive = Field(default=16, description="rows generated at once")
    bootstrap: int = Field(
        default=2000, ge=100, description="resamples for an interval, at least 100"
    )
    min_win_rate_low: Share = Field(
        default=0.5,
        description="the report passes with the win rate's lower bound above this; 0 = off",
    )


class ExportSection(Section):
    """What leaves the run folder."""

    merge: bool = Field(
        default=False, description="also write the merged 16-bit model; false = off"
    )
    max_shard_size: str = Field(
        default="2GB",
        pattern=r"^\d+(\.\d+)?(MB|GB|MiB|GiB)$",
        description="largest weights file: 500MB, 2GB",
    )
    merge_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="of the merged weights; auto = bfloat16, or float16 where the base is",
    )
    verify: bool = Field(
        default=True, description="load the result and compare logits and replies; false = off"
    )
    max_memory: str = Field(
        default="2GB",
        pattern=r"^\d+(\.\d+)?(MB|GB|MiB|GiB)$",
        description="weights kept in memory while a merged model is checked; a larger model is "
        "read from disk layer by layer",
    )
    force: bool = Field(
        default=False, description="export without a passing report; the card says so"
    )
