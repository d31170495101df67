"""What calls cost and may cost: estimates before, bounds while, prices from the settings alone.

Prices change too often to stand in a program; without them the cost is unknown, and says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Close to what byte-pair tokenizers of current models do with English and JSON: a word of up to
# seven letters, a run of up to three digits or of punctuation is one token.
_PIECES = re.compile(r" ?[^\W\d_]+|\d{1,3}|\s*[^\w\s]+|_+|\s+")
_LETTERS = 7


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens of requests and of answers."""

    tokens_in: float
    tokens_out: float

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """US dollars for so many tokens.

        Example: `Prices(2.0, 8.0).cost(1_000_000, 500_000) == 6.0`.
        """
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6


class Budget:
    """What was spent, what calls on the wire may yet cost, and the most that may be spent.

    Args:
        prices: None = unknown; then nothing is counted.
        cap: US dollars; None = no limit.
        spent: what was paid before.
    """

    def __init__(self, prices: Prices | None, cap: float | None, spent: float) -> None:
        self.prices, self.cap, self.spent = prices, cap, spent
        self.reserved, self.calls = 0.0, 0  # of calls that are not settled

    def reserve(self, bound: float) -> bool:
        """Set money aside for a call that costs at most `bound`; False = the cap is too near."""
        if self.cap is not None and self.spent + self.reserved + bound > self.cap:
            return False
        self.reserved, self.calls = self.reserved + bound, self.calls + 1
        return True

    def settle(self, bound: float, cost: float) -> None:
        """Replace what was set aside for a call by what it cost."""
        self.calls -= 1
        self.reserved = self.reserved - bound if self.calls else 0.0
        self.spent += cost


def estimated_tokens(text: str) -> float:
    """About how many tokens a text has, without a tokenizer; exact ones need the model's own."""
    return sum(
        max(1, -(-len(piece.strip()) // _LETTERS)) if piece.strip().isalpha() else 1
        for piece in _PIECES.findall(text)
    )


def most_tokens(text: str) -> int:
    """A number of tokens that no byte-level tokenizer exceeds: one per byte."""
    return len(text.encode("utf-8", "replace"))
