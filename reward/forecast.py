"""What a run would ask and cost, before anybody is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from reward.budget import Prices, estimated_tokens
from reward.ledger import Ledger, memory_ledger, open_ledger
from reward.service import Request

KNOWN = 20  # answers in the ledger from which their mean is better than a guess


@dataclass(frozen=True)
class Forecast:
    """What is left to ask.

    Attributes:
        requests: different requests of the run.
        answered: those that the ledger answers.
        tokens_in: tokens that would be sent.
        tokens_out: tokens that would be answered.
        cost: US dollars; None where prices are unknown.
        measured: answers that the tokens are a mean of; 0 = estimated from the texts.
    """

    requests: int
    answered: int
    tokens_in: float
    tokens_out: float
    cost: float | None
    measured: int

    def line(self) -> str:
        """The figures in one line."""
        cost = "cost unknown (set price_in and price_out)"
        if self.cost is not None:
            cost = f"${self.cost:.4g}"
        basis = f"mean of {self.measured} answers" if self.measured else "estimated from the texts"
        return (
            f"dry run: {self.requests} requests, {self.answered} answered before, "
            f"{self.requests - self.answered} to ask: about {self.tokens_in:,.0f} tokens in, "
            f"{self.tokens_out:,.0f} out ({basis}), {cost}"
        )


def forecast(
    path: Path | None, requests: Sequence[Request], prices: Prices | None, example: str
) -> Forecast:
    """What the ledger at `path` leaves to ask.

    Args:
        path: the ledger; None or not there yet = nothing was answered, and none is made.
        requests: each key once.
        prices: None = unknown.
        example: a typical answer, for its length.

    Raises:
        UserError: another process works with the ledger.
    """
    with open_ledger(path) if path and path.is_file() else nullcontext(memory_ledger()) as ledger:
        known = ledger.answered()
        left = [request for request in requests if request.key not in known]
        tokens_in, tokens_out, measured = _tokens(ledger, left, example)
    cost = prices.cost(tokens_in, tokens_out) if prices else None
    answered = len(requests) - len(left)
    return Forecast(len(requests), answered, tokens_in, tokens_out, cost, measured)


def _tokens(ledger: Ledger, left: Sequence[Request], example: str) -> tuple[float, float, int]:
    count, tokens_in, tokens_out = ledger.tokens()
    if count >= KNOWN and tokens_in:
        return len(left) * tokens_in / count, len(left) * tokens_out / count, count
    seen: dict[str, float] = {}  # instructions and form are the same in most requests

    def tokens(text: str) -> float:
        if text not in seen:
            seen[text] = estimated_tokens(text)
        return seen[text]

    sent = 0.0
    for request in left:
        body = request.body(request.max_tokens)
        *before, last = [message["content"] for message in body["messages"]]
        marks = last.split("\n", 1)[0]
        sent += sum(tokens(text.replace(marks, "")) for text in before)
        sent += estimated_tokens(last) + tokens(json.dumps(body.get("response_format", "")))
    return sent, len(left) * estimated_tokens(example), 0
