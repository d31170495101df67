"""What PPO of a 4-bit Llama-3-8B holds before it computes anything: computed, not measured.

Ours is one base with an adapter for each role; TRL 1.12.0's are three bases, of which the value
model's and the reward model's have no head to the vocabulary. Parameters are counted on the device
"meta", bytes of each are those of `rlaif.plan.memory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlaif.plan.memory import GIB, Model, model_for
from sft.recipe import Recipe

MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"
FROZEN = 4  # bytes a parameter of an adapter in float32
LEARNING = 4 + 4 + 8  # and of one that learns: with its gradient, and Adam's two states in float32


@dataclass(frozen=True)
class Sum:
    """Bytes of one side by part."""

    who: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        """The arithmetic in one line."""
        terms = " + ".join(f"{size / GIB:.2f} {part}" for part, size in self.parts.items())
        return f"{self.who}: {terms} = {self.total / GIB:.2f} GiB"


def llama3_8b() -> list[Sum]:
    """Weights, gradients and optimiser of an 8B model in 4 bit with LoRA of rank 16.

    Ours with a value head, with a value adapter, and with the frozen adapter of a supervised start
    as reference; TRL's three copies alone, and with adapters on the two that learn. As long as
    nothing was trained before, the reference of both is the adapter switched off.
    """
    recipe = Recipe.model_validate(
        {"run": "bench", "model": {"name_or_path": MODEL, "load_in_4bit": True, "lora_r": 16}}
    )
    model = model_for(recipe, card="T4")
    base = sum(model.base().values())
    n = model.counts.adapter
    policy, reward = {"policy": LEARNING * n}, {"reward model": FROZEN * n}
    value, reference = {"value function": LEARNING * n}, {"reference": FROZEN * n}
    one = {"base": base}
    copies = one | {
        "base of the value model": _bare(model),
        "base of the reward model": _bare(model),
    }
    return [
        Sum("value: head", one | policy | reward),
        Sum("value: head, after a supervised start", one | policy | reward | reference),
        Sum("value: adapter", one | policy | value | reward),
        Sum("value: adapter, after a supervised start", one | policy | value | reward | reference),
        Sum("TRL 1.12.0, its three models alone", copies),
        Sum("TRL 1.12.0 with adapters on two of them", copies | policy | value),
    ]


def _bare(model: Model) -> int:
    """A base without its head to the vocabulary."""
    return sum(size for part, size in model.base().items() if part != "head")
