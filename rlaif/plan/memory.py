"""Bytes of each stage by part: weights, adapters, gradients, optimiser, activations, caches.

Weights are counted on the device "meta", activations are what a step on fake tensors keeps alive
(`rlaif.plan.live`). All figures are computed; how far they are off is measured by
`scripts/bench_memory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from rlaif.plan.live import Alive, Work, alive
from rlaif.plan.work import Longest, dpo_work, finetune_work, longest, reward_work
from sft.config import Recipe, TrainingSection
from sft.model import DTYPES, choose_precision
from sft.shapes import Counts, Shape, count, read_shape, without_weights

GIB = 2**30
# NF4 (Dettmers et al. 2023, arXiv:2305.14314, section 3): 4 bits a weight, an 8-bit constant for 64
# weights, and a 32-bit one for 256 of those constants.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
ADAM, ADAM_8BIT = 8.0, 2.0 + 2 * 4 / 256  # bytes a parameter; 8-bit states have a scale for 256
CONTEXT = 600_000_000  # of CUDA and its libraries, about; assumed
# TRL's head with Triton: a tile of logits in 16 bit, and the states' gradient in float32.
HEAD_TOKENS, HEAD_VOCABULARY = 4096, 32768


@dataclass(frozen=True)
class Memory:
    """Bytes of a stage at its peak, by part; they add up to `total`."""

    parts: Mapping[str, int]
    positions: int  # token positions of a micro-step

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Model:
    """A recipe's model as planned for a device.

    Attributes:
        recipe: with the stages' settings.
        shape: of its model.
        dtype: of the base's weights and of computing.
        on_cpu: no GPU is planned for.
    """

    recipe: Recipe
    shape: Shape
    dtype: torch.dtype
    on_cpu: bool

    @cached_property
    def counts(self) -> Counts:
        """Parameters by part."""
        return count(without_weights(self.shape.config, self.recipe.model, self.dtype))

    def base(self) -> dict[str, int]:
        """Bytes of the frozen base by part."""
        n, wide = self.counts, self.dtype.itemsize
        quantised = self.recipe.model.load_in_4bit
        layers = n.layers * (NF4 if quantised else wide)
        found = {
            "base, 4-bit" if quantised else "base": round(layers) + n.other * wide,
            "embedding": n.embedding * wide,
            "head": n.head * wide,
        }
        return {name: size for name, size in found.items() if size}

    def trained(self, section: TrainingSection) -> dict[str, int]:
        """Bytes of one trained adapter: weights, where they started, gradients, optimiser."""
        n = self.counts.adapter
        return {
            "adapter": 4 * n,
            "adapter at the start": 4 * n,
            "gradients": 4 * n,
            "optimiser": round(optimiser_bytes(section.optim) * n),
        }

    def around(self) -> dict[str, int]:
        """What is there whatever is computed."""
        found = {"context": 0 if self.on_cpu else CONTEXT}
        if self.recipe.model.load_in_4bit:
            found["one matrix out of 4-bit"] = self.counts.largest * self.dtype.itemsize
        return {name: size for name, size in found.items() if size}

    def alive(self, work: Work) -> Alive:
        """What a step of this work keeps alive."""
        return alive(self.shape, self.recipe.model, work, self.dtype, on_cpu=self.on_cpu)


def model_for(recipe: Recipe, *, card: str) -> Model:
    """Read the shape of a recipe's model and choose the card's precision.

    Raises:
        UserError: nobody knows the model.
    """
    on_cpu = card == "CPU"
    dtype = torch.float16 if card == "T4" else torch.bfloat16
    if on_cpu:
        dtype = choose_precision(recipe.model.dtype, use_cpu=True).dtype
    elif recipe.model.dtype != "auto":
        dtype = DTYPES[recipe.model.dtype]
    return Model(recipe, read_shape(recipe.model, recipe.plan.shape), dtype, on_cpu)


def optimiser_bytes(name: str) -> float:
    """Bytes that an optimiser keeps for a parameter; an unknown one counts as Adam in float32."""
    if "8bit" in name:
        return ADAM_8BIT
    kept = {"sgd": 0.0, "adafactor": 0.0, "lion_32bit": 4.0}
    return kept.get(name, ADAM)


def activations(model: Model, work: Work) -> dict[str, int]:
    """What the layers keep, and the largest thing that is made beside it."""
    found = model.alive(work)
    layers = model.shape.layers
    checkpointed = "checkpoints" if work.checkpointing else "activations"
    kept = f"{checkpointed} of {layers} layers" if work.learn else "between the layers"
    return {kept: layers * found.per_layer, "one layer and the head": found.fixed}


def stage_memory(model: Model, stage: str, texts: Longest | None = None) -> Memory:
    """Peak bytes of a stage.

    Args:
        model: of the recipe.
        stage: "finetune", "reward" or "dpo".
        texts: the longest ones; None = the longest that the recipe allows.
    """
    recipe, texts = model.recipe, texts or longest(model.recipe)
    section: TrainingSection = recipe.finetune
    works: tuple[Work, ...] = (finetune_work(recipe),)
    if stage == "reward":
        section, works = recipe.reward, reward_work(recipe, texts)
    elif stage == "dpo":
        section, works = recipe.dpo, dpo_work(recipe, texts)
    fixed = model.base() | model.trained(section)
    found = [fixed | activations(model, works[0]) | model.around()]
    for work in works[1:]:
        # Without a gradient, and before there is an optimiser.
        idle = {name: fixed[name] for name in fixed if name not in ("gradients", "optimiser")}
        found.append(idle | activations(model, work) | model.around())
    largest = max(found, key=lambda parts: sum(parts.values()))
    return Memory(largest, works[0].positions)
