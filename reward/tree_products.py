"""Attention over pieces of a prefix tree by matrix products, with a gradient of its own.

Autograd would keep and add up a tensor of the whole row's size for every slice of it; here each
piece adds its share where it belongs. Heads that share keys are one matrix, so that no key is
repeated. Not here: how a tree is cut into pieces (`reward.tree_attention`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

Span = tuple[int, int]
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Call(NamedTuple):
    """Nodes that attend in one product.

    Attributes:
        start, stop: the nodes [start, stop).
        spans: of the nodes that they see, in order; the last one ends with the nodes themselves.
        mask: (nodes, nodes), added to the nodes' scores of each other: 0, or -inf = not seen.
        keeps: the weights are kept for the gradient; otherwise they are computed again.
    """

    start: int
    stop: int
    spans: tuple[Span, ...]
    mask: torch.Tensor
    keeps: bool


def attend(states: Tensors, calls: Sequence[Sequence[Call]], scale: float) -> torch.Tensor:
    """Softmax of query x key, times value, over what each node sees.

    The softmax is computed in float32, of scores in the dtype of the states.

    Args:
        states: query (B, heads, T, D), key and value (B, key heads, T, D).
        calls: of each of the B rows.
        scale: of the scores.

    Returns:
        (B, T, heads, D).
    """
    query, key, value = states
    rows = [
        _OfRow.apply(query[row].to(value.dtype) * scale, key[row].to(value.dtype), value[row], some)
        for row, some in enumerate(calls)
    ]
    return torch.stack(rows)


class _OfRow(torch.autograd.Function):
    """One row: scaled query (heads, T, D), key, value (key heads, T, D) -> (T, heads, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, calls: Sequence[Call]
    ) -> torch.Tensor:
        key, value = key.contiguous(), value.contiguous()
        said, kept = query.new_empty(query.shape[1], query.shape[0], query.shape[2]), []
        for call in calls:
            weights = _weights(query, key, call)
            by_head = _apart(torch.bmm(weights, _seen(value, call.spans)), len(query))
            said[call.start : call.stop] = by_head.transpose(0, 1)
            if call.keeps and any(ctx.needs_input_grad):
                kept.append(weights)
        ctx.calls = calls
        ctx.save_for_backward(query, key, value, *kept)
        return said

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(each, dtype=torch.float32) for each in (key, value))
        left = iter(kept)
        for call in ctx.calls:
            weights = next(left) if call.keeps else _weights(query, key, call)
            out = _together(gradient[call.start : call.stop].transpose(0, 1), len(key))
            _add(of_value, call.spans, torch.bmm(weights.mT, out))
            inner = torch.bmm(out, _seen(value, call.spans).mT)
            inner = torch._softmax_backward_data(inner, weights, -1, weights.dtype)
            by_head = _apart(torch.bmm(inner, _seen(key, call.spans)), len(query))
            of_query[:, call.start : call.stop] = by_head
            asked = _together(query[:, call.start : call.stop], len(key))
            _add(of_key, call.spans, torch.bmm(inner.mT, asked))
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None


def _weights(query: torch.Tensor, key: torch.Tensor, call: Call) -> torch.Tensor:
    """(key heads, heads that share one * nodes, nodes that are seen)."""
    asked = _together(query[:, call.start : call.stop], len(key))
    scores = torch.bmm(asked, _seen(key, call.spans).mT)
    size = call.stop - call.start
    scores.view(-1, size, scores.shape[-1])[..., -size:].add_(call.mask)
    return scores.softmax(dim=-1)


def _together(states: torch.Tensor, n: int) -> torch.Tensor:
    """(heads, N, D) -> (n, heads / n * N, D): those that share a key head are one matrix."""
    return states.reshape(n, -1, states.shape[-1])


def _apart(states: torch.Tensor, heads: int) -> torch.Tensor:
    return states.view(heads, -1, states.shape[-1])


def _seen(states: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
    """(key heads, T, D) -> the spans of it, without a copy where it is one."""
    if len(spans) == 1:
        return states[:, slice(*spans[0])]
    return torch.cat([states[:, start:stop] for start, stop in spans], dim=1)


def _add(total: torch.Tensor, spans: Sequence[Span], share: torch.Tensor) -> None:
    """Add what belongs to the spans, one after another, where it belongs."""
    for (start, stop), part in zip(spans, _parts(spans, share), strict=True):
        total[:, start:stop] += part


def _parts(spans: Sequence[Span], share: torch.Tensor) -> Iterator[torch.Tensor]:
    return iter(share.split([stop - start for start, stop in spans], dim=1))
