"""Settings that every stage has which may ask an OpenAI-compatible service.

They say how, at which price and how much of it, never what comes out. Not here: the stages' own
settings (`sft.sections`), the service itself (`reward.service`).
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Positive = Annotated[int, Field(ge=1)]
OPENAI = "https://api.openai.com/v1"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def host_of(url: str) -> str:
    """The host in an address, in small letters; "" where it has none.

    Example: `host_of("http://LocalHost:8000/v1") == "localhost"`.
    """
    return urlsplit(url).hostname or ""


def is_local(url: str) -> bool:
    """Whether an address is on this machine."""
    return host_of(url) in LOCAL_HOSTS


def reachable(url: str) -> str:
    """An address that can be called, and that sends nothing over a network in plain text.

    Raises:
        ValueError: it does not say how it is reached, or would be reached without encryption.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("begin the address with https:// or http:// (this machine only)")
    if parts.scheme == "http" and not is_local(url):
        raise ValueError(
            "conversations and the key would cross the network as plain text: give an address "
            f"with https://, or forward a port (ssh -L 8000:localhost:8000 {parts.hostname}) and "
            "give http://localhost:8000/v1"
        )
    return url


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
    allow_remote: list[str] = Field(
        default=[], description="hosts that conversations may be sent to: a.org,b.org; [] = none"
    )
    redact_names: Literal["rules", "presidio"] = Field(
        default="rules",
        description="how names are found in what is sent: rules = where a text introduces or "
        "addresses somebody; presidio = also by Presidio (pip install '.[presidio]')",
    )
    redact_local: bool = Field(
        default=False,
        description="take out names, addresses and numbers for services on this machine too; "
        "false = for all others, always",
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

    @field_validator("base_url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return None if value is None else reachable(value)

    @field_validator("allow_remote", mode="before")
    @classmethod
    def _hosts(cls, value: object, info: ValidationInfo) -> object:
        hosts = value.split(",") if isinstance(value, str) else value
        if isinstance(hosts, list):
            hosts = [str(host).strip().lower() for host in hosts]
        if isinstance(hosts, bool) or hosts in (["true"], ["false"]):
            host = host_of(info.data.get("base_url") or OPENAI)
            raise ValueError(f"it names hosts: write allow_remote {host}, or leave it out")
        if not isinstance(hosts, list):
            return hosts
        if wrong := [host for host in hosts if not host or "/" in host or host.count(":") == 1]:
            raise ValueError(f"'{wrong[0]}': the host alone, without https://, port and path")
        return hosts

    def unasked_host(self) -> str | None:
        """The host that conversations would go to though nobody allowed it; None = none."""
        url = self.base_url or OPENAI
        return None if is_local(url) or host_of(url) in self.allow_remote else host_of(url)


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
