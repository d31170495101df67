"""The settings of the plan: on which card, and what to assume of texts that nobody has read yet."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from sft.sections import Count
from sft.service_settings import Section

Card = Literal["T4", "L4", "A10", "A100", "A100-40", "A100-80", "H100", "H200", "4090", "CPU"]
PlanStage = Literal["finetune", "generate", "reward", "dpo", "ppo", "evaluate"]


class PlanSection(Section):
    """What a run would need, computed before anything is loaded."""

    card: Card = Field(
        default="T4",
        description="the card that is planned for; A100 = the smaller one, A100-40; CPU = this "
        "machine",
    )
    memory: float = Field(
        default=0.0, ge=0, description="GiB that may be used of it; 0 = all that the card has"
    )
    stages: list[PlanStage] = Field(
        default=[],
        description="what is planned; [] = all, ppo where the recipe has a section of it",
    )
    prompt_tokens: Count = Field(
        default=250,
        description="tokens of a mean prompt with its system prompt, for times; memory is "
        "computed for the longest",
    )
    reply_tokens: Count = Field(
        default=0,
        description="tokens of a mean reply, for times; 0 = 0.6 of generate.max_new_tokens",
    )
    n_prompts: Count = Field(
        default=1000,
        description="training prompts and demonstrations where the recipe says 'all', at least 1",
    )
    shape: dict[str, Any] = Field(
        default={},
        description="fields of config.json for a model that is not on this machine; {} = "
        "known shapes, the model's folder, or the Hub",
    )
    force: bool = Field(default=False, description="end with 0 where a stage does not fit")

    @field_validator("card")
    @classmethod
    def _smaller(cls, value: Card) -> Card:
        return "A100-40" if value == "A100" else value
