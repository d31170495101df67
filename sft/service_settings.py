"""Settings that every stage has which may ask an OpenAI-compatible service.

They say how, at which price and how much of it, never what comes out. Not here: the stages' own
settings (`sft.sections`), the service itself (`reward.service`).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


class Section(BaseModel):
    """A part of a recipe: no unknown names, no changes after reading."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False
    )


class ServiceSection(Section):
    """How an OpenAI-compatible service is reached, and what it may cost."""

    base_url: str | None = Field(
        default=None, description="address of the service; null = OpenAI's own"
    )
    allow_remote: bool = Field(
        default=False, description="conversations may be sent to another machine; false = refuse"
    )
    max_in_flight: Positive = Field(
        default=32, description="most calls on the wire at once, at least 1; fewer when overloaded"
    )
    timeout: float = Field(default=120.0, gt=0, description="seconds for one call, above 0")
    price_in: float | None = Field(
        default=None, ge=0, description="US dollars per million tokens sent; null = unknown"
    )
    price_out: float | None = Field(
        default=None, ge=0, description="US dollars per million tokens answered; null = unknown"
    )
    max_cost: float | None = Field(
        default=None, ge=0, description="most US dollars its ledger may have cost; null = no limit"
    )


# Settings of a service that shape no result: when they change, the result stays.
SERVICE_ONLY = frozenset(
    (
        *("allow_remote", "max_in_flight", "timeout", "price_in", "price_out", "max_cost"),
        *("dry_run", "rescore", "mode", "ledgers", "shard", "agreement_prompts", "min_agreement"),
    )
)


class PartsSection(ServiceSection):
    """A stage that may be told before what it costs, and done in parts on many machines."""

    shard: str | None = Field(
        default=None,
        pattern=r"^[1-9]\d{0,3}/[1-9]\d{0,3}$",
        description="share of the prompts, by hash: 3/16 = the third of sixteen; null = all",
    )
    dry_run: bool = Field(
        default=False, description="print requests, tokens and cost, and call nobody; false = off"
    )
