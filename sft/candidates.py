"""What is sampled and how: the row that passes from generation to scoring. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sft.config import EvaluateSection, GenerateSection
from sft.files import UserError


@dataclass(frozen=True)
class Candidate:
    """One sampled reply.

    Attributes:
        id: a hash of everything that made it.
        seed: the sampling's seed + k for reply number k = 0, 1, ... to a prompt: it tells the
            replies to a prompt apart. No reply can be drawn again from it alone: a batch's random
            numbers come from a hash of the sampling's seed and the batch's prompts.
        stop: "eos" where the reply ended by itself, "length" where it was cut off.
    """

    id: str
    prompt_id: str
    text: str
    model: str
    temperature: float
    top_p: float
    seed: int
    stop: Literal["eos", "length"]


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        k: replies per prompt.
        temperature: 0 = greedy (then k must be 1).
        top_p: nucleus mass in (0, 1]; 1 = off.
        max_new_tokens: tokens of a reply.
        batch_size: rows (prompts x k) that are generated together.
        seed: of the whole run of this stage.
    """

    k: int
    temperature: float
    top_p: float
    max_new_tokens: int
    batch_size: int
    seed: int

    @classmethod
    def of(cls, section: GenerateSection | EvaluateSection, *, k: int, seed: int) -> Sampling:
        """The sampling that a recipe's section asks for."""
        return cls(
            k, section.temperature, section.top_p, section.max_new_tokens, section.batch_size, seed
        )

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.k > 1:
            raise UserError(
                f"temperature 0 gives {self.k} equal replies: set a temperature, or "
                "num_return_sequences 1"
            )
