"""How a judge is asked: settings of the score stage that shape what its answers say.

Not here: which service is asked and what it may cost (`sft.service_settings`).
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from sft.service_settings import PartsSection, Positive, reachable

Ask = Literal["one", "together", "pairwise"]
Structure = Literal["json_schema", "json_object", "plain"]
EMBEDDED = "embedded"
_BARE = re.compile(r"@([^@]*(?::\d+(?:/.*)?|/v1/?))$")  # an address whose scheme was forgotten


class JudgingSection(PartsSection):
    """How a service judges replies (an embedded evaluator has none of these choices)."""

    ask: Ask = Field(
        default="one",
        description="one = a request per reply; together = all replies to a prompt in one, "
        "shuffled; pairwise = every two replies in both orders, and safety per reply",
    )
    repeats: Positive = Field(
        default=1, description="times that the same is asked, each paid; at least 1"
    )
    expected_grades: bool = Field(
        default=False,
        description="grades are means over the probabilities of the digits 1 to 5, where the "
        "service gives them; false = the grades as written (not for pairwise)",
    )
    structured: Literal["auto", "json_schema", "json_object", "plain"] = Field(
        default="auto",
        description="form in which the answer is asked for; auto = the first of them that the "
        "service understands, found out once",
    )
    request_tokens: int = Field(
        default=8000,
        ge=1000,
        description="tokens of a request with its answer, estimated, from which replies asked "
        "together are split; at least 1000",
    )
    agreement_prompts: Annotated[int, Field(ge=0)] = Field(
        default=20,
        description="prompts whose replies are also asked one by one before the rest is paid "
        "(together only); 0 = off",
    )
    min_agreement: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.7,
        description="least share of their replies ordered as one by one, and of equal safety "
        "verdicts, 0 to 1; below it, or with max_unscored exceeded, the stage stops",
    )
    panel: list[str] = Field(
        default=[],
        description="further judges: embedded, or a model, or model@base_url, at the same prices "
        "(give the dearest); [] = one judge",
    )

    @field_validator("panel")
    @classmethod
    def _addresses(cls, value: list[str]) -> list[str]:
        wrong = [
            f"{text.partition('@')[0]}: {why}" for text in value if (why := _unreachable(text))
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return value


def member(text: str) -> tuple[str, str | None]:
    """Model and address of a panel's entry; None = the stage's own address.

    Example: `member("judge@http://localhost:8001/v1") == ("judge", "http://localhost:8001/v1")`.
    """
    # A model's name may have an @ of its own, an address begins with its scheme.
    model, at, address = text.rpartition("@")
    return (model, address) if at and "://" in address else (text, None)


def _unreachable(text: str) -> str | None:
    """What is wrong with the address in a panel's entry; None = nothing, or it has none."""
    _, address = member(text)
    if address is None:
        # Otherwise such an address would be taken for a part of the model's name.
        address = match[1] if (match := _BARE.search(text)) else None
    if address is None:
        return None
    try:
        reachable(address)
    except ValueError as error:
        return str(error)
    return None
