"""The settings of PPO: who rewards, how safety binds, how the policy moves, what stops it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sft.sections import Count, Scheduler, Share
from sft.service_settings import Positive, Section, reachable

# What steers only the project's own loop: TRL's trainers have no critic, no alarms and a fixed KL.
# Nor do they read baseline, value_head_rate and lam, which say so and are not refused: a recipe
# that sets them for PPO, as the quickstart does, is good for all methods.
PPO_ONLY = (
    *("value", "vf_coef", "cliprange_value", "gamma", "whiten_rewards", "ent_coef"),
    *("kl_target", "kl_horizon", "target_kl"),
    *("max_kl", "min_entropy", "max_length_drift", "rollout_url"),
)


class PpoSection(Section):
    """Policy optimisation with rewards on the policy's own replies."""

    method: Literal["ppo", "rloo", "grpo"] = Field(
        default="ppo", description="ppo = this project's; rloo, grpo = TRL's trainers, no critic"
    )
    reward: Literal["evaluator", "model"] = Field(
        default="evaluator",
        description="evaluator = whoever scores candidates, online; model = the reward adapter",
    )
    safety: Literal["gate", "lagrangian", "none"] = Field(
        default="gate",
        description="gate = an unsafe reply gets the floor; lagrangian = a price that rises until "
        "max_unsafe holds; none = quality alone",
    )
    floor: float = Field(
        default=-1.0, le=0, description="score of an unsafe reply (gate); quality is 0 to 1"
    )
    max_unsafe: Share = Field(
        default=0.05,
        description="share of unsafe replies that is allowed: limit of the lagrangian, and of the "
        "checkpoints among which the win rate decides",
    )
    multiplier_rate: float = Field(
        default=0.5, gt=0, description="by which a unit of excess raises the price (lagrangian)"
    )
    baseline: Literal["value", "leave_one_out"] = Field(
        default="value",
        description="what a score counts against before the value function: nothing, or the mean "
        "of the other replies to its prompt; PPO only",
    )
    value: Literal["head", "adapter"] = Field(
        default="head", description="the value function: a head on the policy, or an own adapter"
    )
    value_head_rate: float = Field(
        default=1e-3, gt=0, le=1, description="peak rate of the value head, above 0; PPO only"
    )
    iterations: Positive = Field(default=60, description="rollouts, each with its updates")
    prompts_per_iteration: Positive = Field(default=32, description="prompts of a rollout")
    num_return_sequences: Positive = Field(default=4, description="replies to each prompt")
    num_ppo_epochs: Positive = Field(default=2, description="passes over a rollout")
    num_mini_batches: Positive = Field(default=4, description="updates in a pass")
    per_device_train_batch_size: Positive = Field(
        default=8, description="prompts with their replies that a device takes at once"
    )
    learning_rate: float = Field(default=1e-5, gt=0, le=1, description="peak rate, above 0")
    lr_scheduler_type: Scheduler = Field(
        default="linear", description="shape of the rate over the updates"
    )
    warmup_steps: float = Field(
        default=0.05, ge=0, description="updates; below 1 a share of all; 0 = off"
    )
    optim: str = Field(default="adamw_torch", description="optimiser, by transformers' name")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled decay; 0 = off")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="clip gradients at this norm; 0 = off"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="less memory, about 1/3 more time"
    )
    kl_coef: float = Field(
        default=0.05, ge=0, description="price of a nat from the reference; 0 = off"
    )
    kl_target: float = Field(
        default=0.0, ge=0, description="nats a reply that kl_coef is moved towards; 0 = it is fixed"
    )
    kl_horizon: float = Field(
        default=10_000.0, gt=0, description="replies over which kl_coef is moved (kl_target)"
    )
    cliprange: float = Field(default=0.2, gt=0, lt=1, description="of the ratio, above 0")
    cliprange_value: float = Field(default=0.2, gt=0, description="of the value, in score units")
    vf_coef: float = Field(default=0.1, ge=0, description="weight of the value loss; 0 = off")
    ent_coef: float = Field(default=0.0, ge=0, description="weight of the entropy; 0 = off")
    gamma: float = Field(default=1.0, gt=0, le=1, description="discount a token; 1 = none")
    lam: Share = Field(
        default=0.95, description="GAE: 0 = one token ahead, 1 = whole replies; PPO only"
    )
    whiten_rewards: bool = Field(
        default=False, description="rewards over their standard deviation; false = as they are"
    )
    target_kl: float = Field(
        default=0.0, ge=0, description="nats a token that end a rollout's updates; 0 = never"
    )
    missing_eos_penalty: float = Field(
        default=1.0, ge=0, description="taken off the score of a reply that was cut off; 0 = off"
    )
    temperature: float = Field(
        default=1.0, gt=0, description="of sampling, and of all log-probabilities, above 0"
    )
    max_new_tokens: Positive = Field(default=256, description="longest reply in tokens")
    batch_size: Positive = Field(default=16, description="rows generated at once")
    eval_every: Count = Field(
        default=10, description="rollouts between two looks at held-out prompts; 0 = at the end"
    )
    n_validation: Positive = Field(
        default=120, description="held-out prompts of a look; the proof asks others"
    )
    save_every: Count = Field(
        default=10, description="rollouts between two checkpoints; 0 = only when stopped"
    )
    max_kl: float = Field(
        default=50.0, ge=0, description="mean nats a reply that stop the stage; 0 = off"
    )
    min_entropy: float = Field(
        default=0.02, ge=0, description="mean nats a token below which it stops; 0 = off"
    )
    max_length_drift: float = Field(
        default=2.0,
        ge=0,
        description="times the first rollout's mean length that stop it, either way; 0 = off",
    )
    patience: Count = Field(
        default=3,
        description="looks in a row at which the reward rises while the judge or safety falls "
        "that stop it; 0 = off",
    )
    rollout_url: str | None = Field(
        default=None,
        description="address of a vLLM server that draws the replies, with /v1; null = nobody else",
    )
    allow_remote: str | None = Field(
        default=None, description="host that rollout_url may send conversations to; null = none"
    )

    @field_validator("rollout_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return None if value is None else reachable(value)


def ppo_problems(section: PpoSection) -> list[tuple[tuple[str, ...], str]]:
    """Settings that the method would not read, groups too small for it."""
    found: list[tuple[tuple[str, ...], str]] = []
    if section.method == "ppo":
        return found
    given, plain = section.model_dump(), PpoSection().model_dump()
    for name in PPO_ONLY:
        if given[name] != plain[name]:
            text = f"{section.method} does not read ppo.{name}: leave it at {plain[name]}"
            found.append(((f"ppo.{name}", "ppo.method"), text))
    if section.num_return_sequences < 2:
        text = f"{section.method} compares replies to one prompt: ask for at least 2"
        found.append((("ppo.num_return_sequences", "ppo.method"), text))
    if section.prompts_per_iteration % section.num_mini_batches:
        text = (
            f"{section.method} takes equal mini-batches: {section.prompts_per_iteration} prompts "
            f"do not divide into {section.num_mini_batches}"
        )
        found.append((("ppo.prompts_per_iteration", "ppo.num_mini_batches"), text))
    return found
