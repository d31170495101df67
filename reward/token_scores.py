"""Log-probabilities of tokens from hidden states, without all logits in memory at once.

Not here: which states they are (`reward.tree`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = 2**25  # numbers of a tile of the head, 128 MiB; the loss holds some four such


class Scored(NamedTuple):
    """What the head says of each scored token, (M) each in float32; `log_probs` has a gradient.

    Attributes:
        log_probs: nats.
        entropy: of the next token's distribution, nats.
        is_top1: 1 where the token is the likeliest one, else 0.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor
    is_top1: torch.Tensor


def score_tokens(
    states: torch.Tensor,
    targets: torch.Tensor,
    head: torch.nn.Module,
    at_once: int = LOGITS_AT_ONCE,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> Scored:
    """Log-probabilities of tokens from the hidden states before them.

    Args:
        states: (M, H) last hidden states; no other position goes through the head.
        targets: (M) token ids.
        head: projects states to the vocabulary V.
        at_once: numbers of a tile of M x V; where more are needed, each tile is computed again in
            the backward pass, so that M x V never exists.
        temperature: that logits are divided by, as in sampling.
        entropy_gradient: whether the entropy has one, which costs memory.
    """
    how = (head, temperature, entropy_gradient)
    tile = max(1, at_once // int(head.weight.shape[0]))  # type: ignore[index]
    if len(states) <= tile:
        return Scored(*_score_tile(states, targets, *how))
    parts = [
        checkpoint(_score_tile, part, wanted, *how, use_reentrant=False)
        for part, wanted in zip(states.split(tile), targets.split(tile), strict=True)
    ]
    return Scored(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _score_tile(
    states: torch.Tensor,
    targets: torch.Tensor,
    head: torch.nn.Module,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scored: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    scored = _Tile.apply(head(states), targets, temperature, entropy_gradient)
    return scored


class _Tile(torch.autograd.Function):
    """`Scored` of logits (M, V) and targets (M), with V numbers a token kept for the gradient.

    With probabilities p, and logits less the largest one, a token's log-probability is its logit +
    log max p, and the entropy is -log max p - p x logits: the exponential, the dear part, is taken
    once. The gradient of the entropy H by logit j is -p_j (log p_j + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        entropy_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        top, at = logits.max(dim=-1, keepdim=True)  # in bf16 `argmax` takes four times as long
        below = logits - top.float()
        if temperature != 1.0:
            below.div_(temperature)
        chances = below.softmax(dim=-1)
        likeliest = chances.gather(1, at)[:, 0].log()
        log_probs = below.gather(1, targets[:, None])[:, 0] + likeliest
        entropy = -likeliest - torch.linalg.vecdot(chances, below)
        is_top1 = (at[:, 0] == targets).float()
        ctx.save_for_backward(chances, targets, entropy)
        ctx.dtype, ctx.temperature, ctx.entropy_gradient = (
            logits.dtype,
            temperature,
            entropy_gradient,
        )
        ctx.mark_non_differentiable(*([] if entropy_gradient else [entropy]), is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor, of_entropy: torch.Tensor, *others: Any
    ) -> tuple[torch.Tensor, None, None, None]:
        chances, targets, entropy = ctx.saved_tensors
        gradient, at = gradient[:, None] / ctx.temperature, targets[:, None]
        if ctx.entropy_gradient:
            share = of_entropy[:, None] / ctx.temperature
            exact = torch.special.entr(chances).sub_(chances * entropy[:, None]).mul_(share)
            exact.sub_(chances * gradient).scatter_add_(1, at, gradient)
            return exact.to(ctx.dtype), None, None, None
        of_logits = torch.empty(chances.shape, dtype=ctx.dtype, device=chances.device)
        torch.mul(chances, -gradient, out=of_logits)
        own = gradient * (1 - chances.gather(1, at))
        return of_logits.scatter_(1, at, own.to(ctx.dtype)), None, None, None
