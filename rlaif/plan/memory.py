"""Bytes of each stage by part: weights, adapters, gradients, optimiser, activations, caches.

Weights are counted on the device "meta", activations are what a step on fake tensors keeps alive
(`rlaif.plan.live`). All figures are computed; how far they are off is measured by
`scripts/bench_memory.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rlaif.plan.live import Alive, Rows, Work, alive
from rlaif.plan.work import Longest, dpo_work, finetune_work, longest, ppo_work, reward_work
from sft.config import Recipe
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
SAMPLED = 16  # bytes of a row's logit: in 16 bit, in float32, as probability and in order; assumed


@dataclass(frozen=True)
class Memory:
    """Bytes of a stage at its peak by part, which add up to `total`, and in which phase that is."""

    phase: str
    parts: Mapping[str, int]

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
        known: what was found before, for copies of this with other settings.
    """

    recipe: Recipe
    shape: Shape
    dtype: torch.dtype
    on_cpu: bool
    known: dict[object, Any] = field(default_factory=dict, compare=False)

    @property
    def counts(self) -> Counts:
        """Parameters by part."""
        key = self._adapter
        if key not in self.known:
            empty = without_weights(self.shape.config, self.recipe.model, self.dtype)
            self.known[key] = count(empty)
        found: Counts = self.known[key]
        return found

    @property
    def _adapter(self) -> tuple[object, ...]:
        """The settings of the model that a step depends on, beside the base."""
        section = self.recipe.model
        return section.lora_r, section.lora_target_modules, section.attn_implementation

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

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of a token in all layers."""
        config = self.shape.config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        shared = getattr(config, "num_key_value_heads", None) or heads
        return 2 * self.shape.layers * shared * width * self.dtype.itemsize

    def adapters(self, frozen: int, learning: int, optim: str | None) -> dict[str, int]:
        """Bytes of adapters in float32, and of what learns: gradients and the optimiser's state.

        Args:
            frozen: adapters that do not learn, or copies of where one started.
            learning: adapters that do.
            optim: the optimiser; None = there is none now, and no gradient.
        """
        n = self.counts.adapter
        found = {"adapters": 4 * n * learning, "frozen adapters": 4 * n * frozen}
        if optim is not None:
            found["gradients"] = 4 * n * learning
            found["optimiser"] = round(optimiser_bytes(optim) * n * learning)
        return {name: size for name, size in found.items() if size}

    def around(self) -> dict[str, int]:
        """What is there whatever is computed."""
        found = {"context": 0 if self.on_cpu else CONTEXT}
        if self.recipe.model.load_in_4bit:
            found["one matrix out of 4-bit"] = self.counts.largest * self.dtype.itemsize
        return {name: size for name, size in found.items() if size}

    def alive(self, work: Work) -> Alive:
        """What a step of this work keeps alive."""
        key = self._adapter, work
        if key not in self.known:
            how = self.shape, self.recipe.model, work, self.dtype
            self.known[key] = alive(*how, on_cpu=self.on_cpu)
        found: Alive = self.known[key]
        return found


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
    if work.head and isinstance(work.texts, Rows) and not model.on_cpu:
        # TRL's head on a GPU makes one tile at a time, which fake tensors of a CPU do not show.
        found, head = model.alive(replace(work, head=False)), _gpu_head(model, work)
        found = Alive(max(found.fixed, head), found.per_layer)
    else:
        found = model.alive(work)
    layers = model.shape.layers
    checkpointed = "checkpoints" if work.checkpointing else "activations"
    kept = f"{checkpointed} of {layers} layers" if work.learn else "between the layers"
    return {kept: layers * found.per_layer, "one layer or the head": found.fixed}


def _gpu_head(model: Model, work: Work) -> int:
    """A tile of logits, the states that go in, and their gradient."""
    wide, hidden = model.dtype.itemsize, model.shape.config.hidden_size
    vocabulary = model.counts.embedding // hidden
    tile = min(work.positions, HEAD_TOKENS) * min(vocabulary, HEAD_VOCABULARY) * wide
    return tile + work.positions * hidden * (2 * wide + 4)


def sampling(
    model: Model, rows: int, k: int, texts: Longest, *, merges: bool = True
) -> dict[str, int]:
    """What sampling k replies a prompt takes beside weights: rows at once, all of full length."""
    rows = max(k, rows - rows % k)
    vocabulary = model.counts.embedding // model.shape.config.hidden_size
    prompt = Work(Rows(rows // k, texts.prompt), False, learn=False, checkpointing=False)
    cache = rows * (texts.prompt + texts.reply) * model.cache_bytes
    # A layer's cache is made anew for each token, and logits are sorted and added up in float32.
    token = cache // model.shape.layers + rows * vocabulary * SAMPLED
    found = {"KV cache": cache, "one token of all rows": token}
    reading = cache * texts.prompt // ((texts.prompt + texts.reply) * k)
    first = {"KV cache": reading, "reading the prompts": model.alive(prompt).fixed}
    if merges and model.dtype == torch.float32:  # the adapter is added to a copy of the weights
        merged = {"weights with the adapter": 4 * model.counts.layers}
        found, first = found | merged, first | merged
    return max(found, first, key=lambda parts: sum(parts.values()))


def phases(model: Model, stage: str, texts: Longest) -> dict[str, dict[str, int]]:
    """Bytes of a stage's phases by part, beside the base."""
    recipe = model.recipe
    if stage == "generate":
        rows, k = recipe.generate.batch_size, recipe.generate.num_return_sequences
        return {"sampling": model.adapters(1, 0, None) | sampling(model, rows, k, texts)}
    if stage == "evaluate":
        rows = recipe.evaluate.batch_size
        return {"sampling": model.adapters(2, 0, None) | sampling(model, rows, 1, texts)}
    if stage == "ppo":
        return _ppo(model, texts)
    if stage == "finetune":
        learning = model.adapters(1, 1, recipe.finetune.optim)
        return {"training": learning | activations(model, finetune_work(recipe, texts))}
    works, optim = dpo_work(recipe, texts), recipe.dpo.optim
    if stage == "reward":
        works, optim = reward_work(recipe, texts), recipe.reward.optim
    return {
        "training": model.adapters(1, 1, optim) | activations(model, works[0]),
        "scoring": model.adapters(1, 1, None) | activations(model, works[1]),
    }


def _ppo(model: Model, texts: Longest) -> dict[str, dict[str, int]]:
    """Sampling, looks at held-out prompts, scoring by all roles in one pass, and updates.

    The optimiser stays throughout. Frozen are the reference, the policy's start and a reward model.
    """
    section = model.recipe.ppo
    own, frozen = section.value == "adapter", 2 + (section.reward == "model")
    held = model.adapters(frozen, 1 + own, section.optim)
    update, scoring = ppo_work(model.recipe, texts)
    rows, k = section.batch_size, section.num_return_sequences
    return {
        "updates": held | activations(model, update),
        "scoring": held | activations(model, scoring),
        "sampling": held | sampling(model, rows, k, texts, merges=False),
        "a look": held | sampling(model, rows, 1, texts, merges=False),
    }


def stage_memory(model: Model, stage: str, texts: Longest | None = None) -> Memory:
    """Peak bytes of a stage, which is that of its largest phase.

    Args:
        model: of the recipe.
        stage: "finetune", "generate", "reward", "dpo", "ppo" or "evaluate".
        texts: the longest ones; None = the longest that the recipe allows.
    """
    found = phases(model, stage, texts or longest(model.recipe, stage))
    name = max(found, key=lambda each: sum(found[each].values()))
    return Memory(name, model.base() | found[name] | model.around())
