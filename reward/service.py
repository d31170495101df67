"""Which service is asked, how hard, and at which prices. Needs no client library."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from reward.budget import Prices
from sft.files import EvaluatorStopped, UserError
from sft.service_settings import OPENAI, ServiceSection, host_of, is_local

LOCAL_KEY = "none"  # local servers want some key
BATCH_PRICE = 0.5  # OpenAI's Batch API, as a share of the usual price


@dataclass(frozen=True)
class Service:
    """An OpenAI-compatible service.

    Attributes:
        model: the name of a model there.
        base_url: its address; None = OpenAI's own.
        max_in_flight: most calls on the wire at once, at least 1.
        timeout_s: seconds for one call, from first byte to last.
        prices: None = unknown.
        max_cost: most US dollars that its ledger may have cost; None = no limit.
        batch: whether to use the Batch API.
        redact_names: how names are found in what is sent, see `reward.names`.
        redact_local: whether personal data are taken out although it is on this machine.
    """

    model: str
    base_url: str | None = None
    max_in_flight: int = 32
    timeout_s: float = 120.0
    prices: Prices | None = None
    max_cost: float | None = None
    batch: bool = False
    redact_names: Literal["rules", "presidio"] = "rules"
    redact_local: bool = False

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.prices is None:
            raise UserError("max_cost needs price_in and price_out, US dollars per million tokens")

    @classmethod
    def of(cls, section: ServiceSection, model: str, *, batch: bool = False) -> Service:
        """The service that a recipe's section describes.

        Raises:
            UserError: a cap without prices.
        """
        prices = None
        if section.price_in is not None and section.price_out is not None:
            share = BATCH_PRICE if batch else 1.0
            prices = Prices(share * section.price_in, share * section.price_out)
        return cls(
            model,
            section.base_url,
            section.max_in_flight,
            section.timeout,
            prices,
            section.max_cost,
            batch,
            section.redact_names,
            section.redact_local,
        )

    @classmethod
    def allowed(cls, model: str, settings: Mapping[str, str | None]) -> Service:
        """The service that a command line names, without a recipe.

        Args:
            model: the name of a model there.
            settings: of `ServiceSection` by their names, as typed; None = not given.

        Raises:
            UserError: a setting is wrong, the service is not on this machine and `allow_remote`
                (hosts, a,b) does not name it, or a cap without prices.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        try:
            section = ServiceSection.model_validate(given)
        except ValidationError as error:
            told = [(each["loc"][0], each["msg"]) for each in error.errors()]
            text = "; ".join(f"--{at}: {why.removeprefix('Value error, ')}" for at, why in told)
            raise UserError(text) from None
        if host := section.unasked_host():
            raise UserError(f"this would send conversations to {host}: say --allow_remote {host}")
        return cls.of(section, model)

    @property
    def url(self) -> str:
        """Its address."""
        return self.base_url or OPENAI

    @property
    def host(self) -> str:
        """The machine that it is on."""
        return host_of(self.url)

    @property
    def redacts(self) -> bool:
        """Whether personal data are taken out of what is sent: always where that leaves here."""
        return self.redact_local or not is_local(self.url)

    @property
    def name(self) -> str:
        """As it is written beside what it judged."""
        return f"openai:{self.model}"

    def key(self) -> str:
        """The key from the environment; servers on a given address may need none.

        Raises:
            EvaluatorStopped: there is no key and OpenAI's own service needs one.
        """
        key = os.environ.get("OPENAI_API_KEY") or (LOCAL_KEY if self.base_url else None)
        if key is None:
            raise EvaluatorStopped("no key for the evaluator: export OPENAI_API_KEY=<key>")
        return key


@dataclass(frozen=True)
class Pace:
    """How patient a client is; a request ends after at most tries x (timeout + longest_s).

    Attributes:
        tries: calls of one request that may fail.
        limited: refusals for too many requests that one request may meet.
        base_s: full jitter draws the wait before try n from 0 to base_s x 2^n seconds ...
        longest_s: ... but never longer than this.
        silence_s: a service that has answered nothing for so long is down: the run stops.
    """

    tries: int = 8
    limited: int = 40
    base_s: float = 0.5
    longest_s: float = 30.0
    silence_s: float = 180.0


@dataclass(frozen=True)
class Request:
    """Something to ask.

    Attributes:
        key: hash of everything that shapes the request.
        body: the request for so many tokens of answer, without the model's name.
        max_tokens: of the answer; twice as many after one that was cut off.
        example: a typical answer, for its length; requests with the same one are alike, so that
            the answers to some tell what the others will cost.
    """

    key: str
    body: Callable[[int], dict[str, Any]]
    max_tokens: int
    example: str = ""
