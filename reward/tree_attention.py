"""Attention over a prefix tree: each token sees its ancestors and itself, whatever the kernel.

With a mask of all nodes by all nodes a kernel computes every candidate's view of every other, only
to throw it away. So the depth-first order is cut into pieces: a piece's tokens see some whole
stretches of ancestors and, masked, the piece itself, and SDPA runs once per piece. FlexAttention
skips what is hidden by itself, with a block mask; eager attention gets the whole mask. All are
exact.

Not here: what a tree is and how it is scored (`reward.tree`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_PIECES = "tree_sdpa"  # the attention below, by its name among transformers' own
KERNELS = ("sdpa", BY_PIECES, "flex_attention", "eager")
# What a call of the kernel with its gradient is worth, in (query, key) pairs. Of 2^12, 2^14, 2^16
# and one call for all, 2^16 was fastest for four prompts of 420 tokens with four replies of 120
# (six layers of 256 on a CPU core, bf16): 1.23 s, against 2.60 s with one call.
CALL = 2**16

Span = tuple[int, int]


class Piece(NamedTuple):
    """Nodes [start, stop) that attend in one call.

    Attributes:
        start: first node.
        stop: one after the last node.
        above: spans of nodes that are ancestors of all of them.
        straight: they are a path: each sees all before it.
    """

    start: int
    stop: int
    above: tuple[Span, ...]
    straight: bool


def cut(ends: Sequence[int], call: int = CALL) -> list[Piece]:
    """Cut a tree into pieces, in order and without gaps.

    A path's branches become pieces of their own where that saves more (query, key) pairs than the
    calls are worth; small neighbours are joined.

    Args:
        ends: last node of each node's subtree, as in `reward.tree.Tree`.
        call: (query, key) pairs that a call is worth.

    Example: three nodes that fork into two branches of two.
        >>> for piece in cut([6, 6, 6, 4, 4, 6, 6], call=1): print(*piece)
        0 3 () True
        3 5 ((0, 3),) True
        5 7 ((0, 3),) True
    """
    return _cheapest(ends, (0, len(ends)), (), call)[1]


def _cheapest(
    ends: Sequence[int], span: Span, above: tuple[Span, ...], call: int
) -> tuple[int, list[Piece]]:
    """Cost and pieces of the subtrees that lie side by side in a span."""
    seen = sum(stop - start for start, stop in above)
    start, cost, pieces = span[0], 0, list[Piece]()
    while start < span[1]:
        end = ends[start] + 1
        fork = next((n for n in range(start + 1, end) if ends[n] + 1 != end), end)
        price = (end - start) * (seen + end - start) + call
        found = [Piece(start, end, above, straight=fork == end)]
        if fork < end:
            path = fork - start
            # A path that begins where the one above ends is the same span.
            joined = bool(above) and above[-1][1] == start
            spans = (*above[:-1], (above[-1][0], fork)) if joined else (*above, (start, fork))
            below, branches = _cheapest(ends, (fork, end), spans, call)
            apart = path * (seen + path) + call + below
            if apart < price:
                price, found = apart, [Piece(start, fork, above, straight=True), *branches]
        last = pieces[-1] if pieces else None
        if (
            last is not None
            and len(found) == 1
            and last.above == above
            and 2 * (last.stop - last.start) * (end - start) < call
        ):
            pieces[-1] = Piece(last.start, end, above, straight=False)
            price += 2 * (last.stop - last.start) * (end - start) - call
        else:
            pieces += found
        start, cost = end, cost + price
    return cost, pieces


def ancestor_mask(ends: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Who sees whom: (B, T) ends of subtrees -> (B, 1, N, N) bool, [b, 0, i, j] = i sees j.

    Over the N nodes from `start` to `stop`; by default all T.
    """
    nodes = torch.arange(ends.shape[1], device=ends.device)[start:stop]
    below = nodes[None, :, None] <= ends[:, None, start:stop]
    return (below & (nodes[:, None] >= nodes[None, :]))[:, None]


def masks_for(model: PreTrainedModel, ends: torch.Tensor) -> dict[str, Any]:
    """Arguments by which the model's attention sees a (B, T) batch of trees."""
    kernel = model.config._attn_implementation
    if kernel == "eager":  # adds its mask to the scores
        seen = ancestor_mask(ends)
        blocked = torch.finfo(model.dtype).min
        return {
            "attention_mask": torch.zeros_like(seen, dtype=model.dtype).masked_fill_(~seen, blocked)
        }
    if kernel == "flex_attention":

        def sees(
            b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor
        ) -> torch.Tensor:
            return (j <= i) & (i <= ends[b, j])

        size = ends.shape[1]
        return {"attention_mask": create_block_mask(sees, len(ends), None, size, size, ends.device)}
    pieces = [
        [(piece, _mask_of(piece, ends[row : row + 1])) for piece in cut(row_ends, CALL)]
        for row, row_ends in enumerate(ends.tolist())
    ]
    # A mask of four dimensions is left alone by the models, and nobody reads this one.
    return {"attention_mask": ends.new_ones(1, 1, 1, 1, dtype=torch.bool), "tree_pieces": pieces}


def _mask_of(piece: Piece, ends: torch.Tensor) -> torch.Tensor | None:
    """(1, 1, queries, keys) of a piece; None = causal."""
    if piece.straight and not piece.above:
        return None
    own = ancestor_mask(ends, piece.start, piece.stop)
    seen = sum(stop - start for start, stop in piece.above)
    return torch.nn.functional.pad(own, (seen, 0), value=True)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    tree_pieces: Sequence[Sequence[tuple[Piece, torch.Tensor | None]]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' SDPA attention, piece by piece where the batch is one of trees.

    Shapes: query (B, heads, T, D), key and value (B, key heads, T, D) -> (B, T, heads, D).
    """
    if tree_pieces is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows = []
    for row, pieces in enumerate(tree_pieces):
        q, k, v = (each[row : row + 1] for each in (query, key, value))
        said = []
        for piece, mask in pieces:
            spans = (*piece.above, (piece.start, piece.stop))
            keys, values = (
                torch.cat([each[:, :, start:stop] for start, stop in spans], dim=2)
                for each in (k, v)
            )
            some = q[:, :, piece.start : piece.stop]
            said.append(sdpa_attention_forward(module, some, keys, values, mask, **kwargs)[0])
        rows.append(torch.cat(said, dim=1))
    return torch.cat(rows), None


AttentionInterface.register(BY_PIECES, attend)
AttentionMaskInterface.register(BY_PIECES, sdpa_mask)
