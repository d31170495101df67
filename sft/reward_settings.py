"""The settings of the reward stage: what its two heads learn from, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sft.sections import Count, Rate, TrainingSection


class RewardSection(TrainingSection):
    """The reward model: learns quality from comparisons and safety from verdicts."""

    learning_rate: float = Field(default=2e-5, gt=0, le=1, description="peak rate, above 0")
    warmup_steps: float = Field(
        default=0.1, ge=0, description="steps; below 1 a share of all; 0 = off"
    )
    comparisons: Literal["all", "pairs"] = Field(
        default="all",
        description="all = every two replies of a prompt; pairs = the pairs of two safe replies",
    )
    margin_scale: float = Field(
        default=0.0,
        ge=0,
        description="reward that the better reply has to lead by, per unit of margin; 0 = off",
    )
    safety_weight: float = Field(
        default=0.3, gt=0, description="weight of the safety head's loss, above 0"
    )
    report_share: Rate = Field(
        default=0.2, description="share of prompts kept for the report, between 0 and 1"
    )
    tree: bool = Field(
        default=True,
        description="a row is a prompt with its candidates; false = a row each, the plain path",
    )
    tree_tokens: Count = Field(
        default=0,
        description="tokens of a micro-step, into which prompts are packed (a row is then a pack); "
        "0 = a row is one prompt",
    )
