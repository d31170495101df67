"""Attention over a prefix tree: each token sees its ancestors and itself, whatever the kernel.

With a mask of all nodes by all nodes a kernel computes every candidate's view of every other, only
to throw it away. So the depth-first order is cut into pieces: a piece's tokens see some whole
stretches of ancestors and, masked, the piece itself, and SDPA, or matrix products on a CPU and as
eager attention, run once per piece. FlexAttention skips what is hidden by itself, with a block
mask. All are exact. What a batch's pieces and masks are is found once for all layers.

Not here: what a tree is and how it is scored (`reward.tree`), the products
(`reward.tree_products`), FlexAttention and which kernel is chosen (`reward.tree_flex`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from reward.tree_flex import BY_PIECES, attend_flex, block_mask
from reward.tree_products import Call, Span, Tensors, attend

# What a call of the kernel with its gradient is worth, in (query, key) pairs. On a CPU core (bf16,
# six layers of 256, one pair and four candidates a prompt) 2^13 and 2^14 took the same time, 2^16
# 10 % more. On other devices, where it was not measured, a call costs more and a pair less.
CALL = {"cpu": 2**13, "other": 2**17}
# Matrix products of pieces up to this size, in (query, key) pairs, keep their weights.
SMALL = 2**20
AT_ONCE = 128  # queries of a path in one matrix product


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


def cut(ends: Sequence[int], call: int) -> list[Piece]:
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


Pieces = Sequence[Sequence[tuple[Piece, torch.Tensor | None]]]


def masks_for(
    model: PreTrainedModel, ends: torch.Tensor, device: str | None = None
) -> dict[str, Any]:
    """Arguments by which the model's attention sees a (B, T) batch of trees.

    `device` ("cpu" or "other") says for which device the tree is cut, and so whether matrix
    products compute it; None = that of `ends`.
    """
    # A mask of four dimensions is left alone by the models, and nobody reads this one.
    unread = {"attention_mask": ends.new_ones(1, 1, 1, 1, dtype=torch.bool)}
    by_products = (device or ends.device.type) == "cpu"
    if model.config._attn_implementation == BY_PIECES["flex_attention"]:
        return unread | {"tree_blocks": block_mask(ends)}
    pieces = [cut(row, CALL["cpu" if by_products else "other"]) for row in ends.tolist()]
    if not by_products and model.config._attn_implementation == BY_PIECES["sdpa"]:
        masks = [
            [(each, _mask_of(each, ends[row])) for each in some] for row, some in enumerate(pieces)
        ]
        return unread | {"tree_pieces": masks}
    kind = ends.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
    calls = [
        [call for piece in some for call in _calls(piece, ends[row], dtype)]
        for row, some in enumerate(pieces)
    ]
    return unread | {"tree_calls": calls}


def _mask_of(piece: Piece, ends: torch.Tensor) -> torch.Tensor | None:
    """(1, 1, queries, keys) of a piece; None = causal."""
    if piece.straight and not piece.above:
        return None
    own = ancestor_mask(ends[None], piece.start, piece.stop)
    seen = sum(stop - start for start, stop in piece.above)
    return torch.nn.functional.pad(own, (seen, 0), value=True)


def _calls(piece: Piece, ends: torch.Tensor, dtype: torch.dtype) -> Iterator[Call]:
    """A piece's products; a path is cut, so that what comes after is not computed."""
    size = piece.stop - piece.start
    keeps = size * (size + sum(stop - start for start, stop in piece.above)) <= SMALL
    step = AT_ONCE if piece.straight else size
    for start in range(piece.start, piece.stop, step):
        stop = min(start + step, piece.stop)
        hidden = ~ancestor_mask(ends[None], start, stop)[0, 0]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=ends.device)
        mask.masked_fill_(hidden, -torch.inf)
        yield Call(start, stop, _joined((*piece.above, (piece.start, stop))), mask, keeps)


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """The same nodes in as few spans as possible."""
    found: list[Span] = []
    for start, stop in spans:
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, stop))
    return tuple(found)


def attend_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    tree_pieces: Pieces | None = None,
    tree_calls: Sequence[Sequence[Call]] | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' SDPA attention, piece by piece where the batch is one of trees.

    On a CPU a tree's pieces are given to matrix products: SDPA's backward is slow there.

    Shapes: query (B, heads, T, D), key and value (B, key heads, T, D) -> (B, T, heads, D).
    """
    states = (query, key, value)
    if tree_calls is not None:
        return attend(states, tree_calls, _scale(query, scaling)), None
    kwargs["scaling"] = scaling
    if tree_pieces is None:
        return sdpa_attention_forward(module, *states, attention_mask, **kwargs)
    rows = [
        torch.cat(
            [
                sdpa_attention_forward(module, *_of_piece(states, row, piece), mask, **kwargs)[0]
                for piece, mask in some
            ],
            dim=1,
        )
        for row, some in enumerate(tree_pieces)
    ]
    return torch.cat(rows), None


def attend_eager(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    tree_calls: Sequence[Sequence[Call]] | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention by matrix products, as models' own eager attention; shapes as in `attend_sdpa`."""
    scale = _scale(query, scaling)
    if tree_calls is not None:
        return attend((query, key, value), tree_calls, scale), None
    return _by_products(module, (query, key, value), attention_mask, scale, **kwargs), None


def _scale(query: torch.Tensor, scaling: float | None) -> float:
    return float(query.shape[-1] ** -0.5) if scaling is None else scaling


def _by_products(
    module: torch.nn.Module,
    states: Tensors,
    mask: torch.Tensor | None,
    scale: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> torch.Tensor:
    """Softmax in float32 of query x key, times value; a mask is bool, or added; None = causal.

    `kwargs` are for other kernels.
    """
    q, k, v = states
    shared = q.shape[1] // k.shape[1]
    scores = q @ repeat_kv(k, shared).transpose(2, 3) * scale
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, module.training)
    return (weights @ repeat_kv(v, shared)).transpose(1, 2)


def _of_piece(states: Tensors, row: int, piece: Piece) -> Tensors:
    """Of one row the piece's queries, and the keys and values that they see."""
    query, key, value = (each[row : row + 1] for each in states)
    spans = _joined((*piece.above, (piece.start, piece.stop)))
    keys, values = (
        torch.cat([each[:, :, start:stop] for start, stop in spans], dim=2)
        if len(spans) > 1
        else each[:, :, slice(*spans[0])]
        for each in (key, value)
    )
    return query[:, :, piece.start : piece.stop], keys, values


AttentionInterface.register(BY_PIECES["sdpa"], attend_sdpa)
AttentionInterface.register(BY_PIECES["eager"], attend_eager)
AttentionInterface.register(BY_PIECES["flex_attention"], attend_flex)
AttentionMaskInterface.register(BY_PIECES["sdpa"], sdpa_mask)
AttentionMaskInterface.register(BY_PIECES["eager"], eager_mask)
AttentionMaskInterface.register(BY_PIECES["flex_attention"], sdpa_mask)
