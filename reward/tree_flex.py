"""Which kernel reads a model's trees, and FlexAttention, which new GPUs have for them.

Not here: attention by pieces (`reward.tree_attention`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

# Attention over trees, by its name among transformers' own, for the kernel that it is made with.
BY_PIECES = {"sdpa": "tree_sdpa", "eager": "tree_eager", "flex_attention": "tree_flex"}
KERNELS = (*BY_PIECES, *BY_PIECES.values())
FLEX_CAPABILITY = (8, 0)  # Ampere; before it FlexAttention has no fast kernel
FLEX_HEADS = (16, 32, 64, 128)  # numbers of a head for which its kernels are made


def choose_kernel(
    loaded: str, asked: str, capability: tuple[int, int] | None, head_dim: int
) -> str:
    """The name of the attention that reads a model's trees.

    Args:
        loaded: kernel that the model was loaded with.
        asked: by the recipe; "auto" = whatever is fast.
        capability: compute capability of the GPU; None = no GPU.
        head_dim: numbers of a head.

    Example:
        >>> choose_kernel("sdpa", "auto", (8, 0), 128), choose_kernel("sdpa", "auto", (7, 5), 128)
        ('tree_flex', 'tree_sdpa')
    """
    new = capability is not None and capability >= FLEX_CAPABILITY
    if asked == "auto" and loaded == "sdpa" and new and head_dim in FLEX_HEADS:
        return BY_PIECES["flex_attention"]
    return BY_PIECES.get(loaded, loaded)


def kernel_for(model: PreTrainedModel, asked: str) -> str:
    """`choose_kernel` for a loaded model, where it lies."""
    config, on_gpu = model.config, model.device.type == "cuda"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    capability = torch.cuda.get_device_capability(model.device) if on_gpu else None
    return choose_kernel(config._attn_implementation, asked, capability, head_dim)


def block_mask(ends: torch.Tensor) -> BlockMask:
    """FlexAttention's mask of a (B, T) batch of trees."""

    def sees(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (j <= i) & (i <= ends[b, j])

    rows, size = ends.shape
    # Compiled, the mask of all nodes by all nodes is never in memory.
    on_gpu = ends.device.type == "cuda"
    return create_block_mask(sees, rows, None, size, size, ends.device, _compile=on_gpu)


@cache
def _compiled_flex() -> Callable[..., torch.Tensor]:
    """FlexAttention, compiled once for all lengths."""
    return torch.compile(flex_attention, dynamic=True)


def attend_flex(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    tree_blocks: BlockMask | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """FlexAttention of trees, and SDPA of plain rows; shapes as in `attend_sdpa`."""
    states = (query, key, value)
    if tree_blocks is None:
        return sdpa_attention_forward(module, *states, attention_mask, scaling=scaling, **kwargs)
    plain: Callable[..., torch.Tensor] = flex_attention
    attend_blocks = _compiled_flex() if query.device.type == "cuda" else plain
    shared = query.shape[1] != key.shape[1]
    said = attend_blocks(
        *(each.to(value.dtype) for each in states),
        block_mask=tree_blocks, scale=scaling, enable_gqa=shared,
    )  # fmt: skip
    return said.transpose(1, 2).contiguous(), None
