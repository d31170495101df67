"""What is sampled and how: the row that passes from generation to scoring. Needs no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sft.config import EvaluateSection, GenerateSection
from sft.data import Prompt
from sft.files import UserError, short_hash


@dataclass(frozen=True)
class Candidate:
    """One sampled reply.

    Attributes:
        id: a hash of everything that made it.
        seed: the sampling's seed + k for reply number k = 0, 1, ... to a prompt: it tells the
            replies to a prompt apart. No reply can be drawn again from it alone: a batch's random
            numbers come from a hash of the sampling's seed and the batch's prompts.
        stop: "eos" where the reply ended by itself, "length" where it was cut off.
        borrowed: written to another prompt (see `borrow`): never an example to follow.
        refined_from: id of the reply that this one rewrites; None = written at once.
    """

    id: str
    prompt_id: str
    text: str
    model: str
    temperature: float
    top_p: float
    seed: int
    stop: Literal["eos", "length"]
    borrowed: bool = False
    refined_from: str | None = None


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


@dataclass(frozen=True)
class Generated:
    """Candidates in the order of the prompts, and what became of the prompts.

    Attributes:
        too_long: ids of prompts that leave no room for a reply; they have no candidate.
        shortened: how many prompts lost their oldest turns to fit.
    """

    candidates: list[Candidate]
    too_long: list[str]
    shortened: int

    def counts(self) -> dict[str, int]:
        """The figures for metrics and manifest."""
        answered = len({c.prompt_id for c in self.candidates})
        return {
            "prompts": answered + len(self.too_long),
            "candidates": len(self.candidates),
            "too_long": len(self.too_long),
            "shortened": self.shortened,
            "cut_off": sum(c.stop == "length" for c in self.candidates),
        }

    def line(self, k: int) -> str:
        """The figures in one line, with their arithmetic; `k` replies were asked per prompt."""
        n = self.counts()
        return (
            f"{n['prompts'] - n['too_long']} prompts x {k} = {n['candidates']} candidates; "
            f"{n['too_long']} prompts too long, {n['shortened']} lost old turns, "
            f"{n['cut_off']} replies cut off"
        )


def borrow(
    prompts: Sequence[Prompt], candidates: Sequence[Candidate], n: int, seed: int
) -> list[Candidate]:
    """For each prompt, up to n replies that the same policy wrote to messages of another risk.

    A policy that meets every crisis may answer everybody as if in one, and its own replies to the
    others do not yet show it. Judged against a prompt that it does not fit, a borrowed reply makes
    the difference between the two visible from the first round on.

    Returns:
        The borrowed replies, each with the prompt's id and an id of its own; none for a prompt
        where no message of another risk was answered.
    """
    if n == 0:
        return []
    rng = random.Random(f"borrow {seed}")
    asked = {prompt.id: prompt for prompt in prompts}
    by_kind: dict[tuple[str, str], list[Candidate]] = {}
    for candidate in candidates:
        if candidate.stop == "eos":
            about = asked[candidate.prompt_id]
            by_kind.setdefault((about.risk, about.topic), []).append(candidate)
    others = {
        risk: [kind for kind in by_kind if kind[0] != risk] for risk in {p.risk for p in prompts}
    }
    made = []
    for prompt in prompts:
        # Of the same topic where there are some: then the risk is what the two differ in.
        near = [kind for kind in others[prompt.risk] if kind[1] == prompt.topic]
        pool = [c for kind in near or others[prompt.risk] for c in by_kind[kind]]
        for source in rng.sample(pool, min(n, len(pool))):
            name = "c-" + short_hash([source.id, prompt.id])
            made.append(replace(source, id=name, prompt_id=prompt.id, borrowed=True))
    return made
