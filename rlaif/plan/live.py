"""Bytes that a training step keeps alive, found by running it on tensors without memory.

The real modules run forward and backward under PyTorch's FakeTensorMode, in which a tensor has a
shape, a type and a device but no storage that costs anything; a dispatch mode adds up the storages
that are alive. So the model's family, the adapters, autocast, gradient checkpointing, the tree's
attention and the tiles of the head are what the trainers run, and no constant per token is assumed.
Two depths are run: between two layers and three lies what a layer adds, and the rest is fixed.

Not here: weights, gradients and optimiser (`rlaif.plan.memory`).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig
from trl.trainer.utils import add_fused_lm_head

from reward.token_scores import score_tokens
from reward.tree import TreeBatch, build_tree, collate, collate_ends
from reward.tree_attention import masks_for
from reward.tree_flex import BY_PIECES
from sft import plain_head
from sft.config import ModelSection
from sft.shapes import Shape, without_weights

DEPTHS = (2, 3)  # layers of the models that are run


@dataclass(frozen=True)
class Rows:
    """Rows of so many tokens each.

    Attributes:
        learned: tokens of a row with a label, which a plain head projects alone; None = all.
    """

    rows: int
    tokens: int
    learned: int | None = None


@dataclass(frozen=True)
class Forest:
    """Prompts of these lengths, each with so many replies; all share nothing but their prompt.

    Attributes:
        prompts: tokens of each.
        reply: tokens of every reply.
        replies: of each prompt.
        multiple: the width is rounded up to a multiple of this.
        ends: what is read is the last token of each reply, not the tokens before each of its own.
    """

    prompts: tuple[int, ...]
    reply: int
    replies: int
    multiple: int = 1
    ends: bool = False

    @cached_property
    def batch(self) -> TreeBatch:
        """All of them as one tree."""
        sequences, starts = [], []
        for number, length in enumerate(self.prompts):
            for k in range(self.replies):
                own = len(self.prompts) + k + 1
                sequences.append([number + 1] * length + [own] * self.reply)
                starts.append(length)
        made = build_tree(sequences)
        if self.ends:
            return collate_ends([made], 0, self.multiple)
        return collate([made], [starts], 0, self.multiple)


@dataclass(frozen=True)
class Work:
    """What one micro-step computes.

    Attributes:
        texts: what it reads.
        head: TRL's on all tokens of rows (on a CPU `sft.plain_head`'s on what is learned, for its
            families), this project's on the replies of trees; none otherwise.
        learn: with a gradient.
        checkpointing: of the layers.
        copies: roles that read the same tree in one pass.
    """

    texts: Rows | Forest
    head: bool
    learn: bool
    checkpointing: bool
    copies: int = 1

    @property
    def positions(self) -> int:
        """Token positions that the layers compute, padding included."""
        if isinstance(self.texts, Forest):
            return self.copies * self.texts.batch.input_ids.numel()
        return self.texts.rows * self.texts.tokens


@dataclass(frozen=True)
class Alive:
    """Peak bytes of a step beyond weights and gradients: `fixed + layers * per_layer`."""

    fixed: int
    per_layer: int

    def bytes(self, layers: int) -> int:
        """Of a model of so many layers."""
        return self.fixed + layers * self.per_layer


class Living(TorchDispatchMode):
    """Adds up the storages that operations make, until nothing holds them any more."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {each.untyped_storage()._cdata: 0 for each in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self._count(each.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        name = storage._cdata
        if name not in self._sizes:
            self._sizes[name] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self._forget, name)

    def _forget(self, name: int) -> None:
        self.now -= self._sizes.pop(name, 0)


def alive(
    shape: Shape, section: ModelSection, work: Work, dtype: torch.dtype, *, on_cpu: bool
) -> Alive:
    """What a step of this work keeps alive at its peak, beside weights and gradients.

    Args:
        shape: of the model.
        section: its adapters and attention kernel.
        work: of one micro-step.
        dtype: of the base; 16-bit ones compute under autocast, as in Trainer.
        on_cpu: small pieces of a tree are matrix products there.
    """
    low, high = (_peak(shape.with_layers(n), section, work, dtype, on_cpu) for n in DEPTHS)
    return Alive(low - DEPTHS[0] * (high - low), high - low)


def _peak(
    config: PretrainedConfig, section: ModelSection, work: Work, dtype: torch.dtype, on_cpu: bool
) -> int:
    """Peak bytes of one step of a model of this depth."""
    made = without_weights(config, section, dtype)
    base = made.get_base_model()
    plain = on_cpu and config.model_type in plain_head.FAMILIES
    if work.head and isinstance(work.texts, Rows) and not (plain and work.texts.learned):
        add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))
    if work.checkpointing and work.learn:
        made.gradient_checkpointing_enable({"use_reentrant": False})
        made.enable_input_require_grads()
    masks: dict[str, Any] = {}
    if isinstance(work.texts, Forest):
        ends = work.texts.batch.ends.repeat(work.copies, 1)
        # FlexAttention needs no more than SDPA.
        kernel = "eager" if section.attn_implementation == "eager" else "sdpa"
        base.set_attn_implementation(BY_PIECES[kernel])
        masks = masks_for(base, ends, "cpu" if on_cpu else "other")
    made.train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        living = Living(_materialise(made))
        computing = torch.autocast("cpu", dtype) if dtype != torch.float32 else nullcontext()
        with living, torch.set_grad_enabled(work.learn):
            with computing:
                loss = _forward(base, work, masks, plain=plain)
            if work.learn:
                loss.backward()
    return living.peak


def _materialise(model: PeftModel) -> list[torch.Tensor]:
    """Put parameters, their gradients and buffers where the fake step finds them."""
    known: list[torch.Tensor] = []
    moved: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if id(weight) not in moved:
                fake = torch.empty(weight.shape, dtype=weight.dtype, device="cpu")
                moved[id(weight)] = torch.nn.Parameter(fake, weight.requires_grad)
                known.append(fake)
                if weight.requires_grad:
                    known.append(torch.empty_like(fake))
                    moved[id(weight)].grad = known[-1]
            module._parameters[name] = moved[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
                known.append(module._buffers[name])
    return known


def _forward(base: Any, work: Work, masks: dict[str, Any], *, plain: bool) -> torch.Tensor:
    """A number that depends on all that the step's loss depends on."""
    texts = work.texts
    if isinstance(texts, Rows):
        ids = torch.zeros(texts.rows, texts.tokens, dtype=torch.long)
        if work.head and plain and texts.learned:
            states = base.base_model(input_ids=ids, use_cache=False).last_hidden_state
            chosen = states[:, -texts.learned :].flatten(0, 1)
            logits = base.get_output_embeddings()(chosen).float()
            targets = ids[:, -texts.learned :].flatten()
            return plain_head.scored(logits, targets)["log_probs"].sum()
        if work.head:
            said = base(input_ids=ids, labels=ids, attention_mask=None, fused_lm_head=True)
            return said.log_probs.sum()
        return base.base_model(input_ids=ids, use_cache=False).last_hidden_state.float().sum()
    batch = texts.batch
    ids, positions = (each.repeat(work.copies, 1) for each in (batch.input_ids, batch.position_ids))
    states = base.base_model(
        input_ids=ids, position_ids=positions, **masks, use_cache=False
    ).last_hidden_state
    chosen = states.flatten(0, 1)[batch.where]
    if not work.head:
        return chosen.float().sum()
    return score_tokens(chosen, batch.targets, base.get_output_embeddings()).log_probs.sum()
