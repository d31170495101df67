"""What a run would ask and cost, before anybody is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from reward.budget import Prices, estimated_tokens
from reward.ledger import Ledger, answered_in, memory_ledger, open_ledger
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


@dataclass
class _Tokens:
    tokens_in: float = 0.0
    tokens_out: float = 0.0
    measured: int = 0


def forecast(
    path: Path | None,
    requests: Sequence[Request],
    prices: Prices | None,
    others: Sequence[Path] = (),
) -> Forecast:
    """What the ledger at `path` leaves to ask.

    Args:
        path: the ledger; None or not there yet = nothing was answered, and none is made.
        requests: each key once, with its typical answer.
        prices: None = unknown.
        others: ledgers whose answers the run would take over first.

    Raises:
        UserError: another process works with the ledger.
    """
    with open_ledger(path) if path and path.is_file() else nullcontext(memory_ledger()) as ledger:
        known = ledger.answered().union(*map(answered_in, others))
        answered = sum(request.key in known for request in requests)
        left = _tokens(ledger, requests, known)
    cost = prices.cost(left.tokens_in, left.tokens_out) if prices else None
    return Forecast(len(requests), answered, left.tokens_in, left.tokens_out, cost, left.measured)


def _tokens(ledger: Ledger, requests: Sequence[Request], known: set[str]) -> _Tokens:
    """Tokens of what is left, kind by kind: requests with the same example are of one kind."""
    kinds: dict[str, list[Request]] = {}
    for request in requests:
        kinds.setdefault(request.example, []).append(request)
    total = _Tokens()
    for example, alike in kinds.items():
        left = [request for request in alike if request.key not in known]
        keys = {request.key for request in alike} & known if left else set()
        count, tokens_in, tokens_out = ledger.tokens(keys) if len(keys) >= KNOWN else (0, 0, 0)
        if tokens_in:
            total.tokens_in += len(left) * tokens_in / count
            total.tokens_out += len(left) * tokens_out / count
            total.measured += count
        else:
            total.tokens_in += _sent(left)
            total.tokens_out += len(left) * estimated_tokens(example)
    return total


def _sent(left: Sequence[Request]) -> float:
    """Tokens of requests, estimated from their texts."""
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
    return sent
