"""Attention by products has the values and the gradient of one masked softmax."""

from __future__ import annotations

import pytest
import torch

from reward import token_scores, tree, tree_attention, tree_products

PROMPT, REPLIES = [1] * 30, [[2 + n] * (9 + 5 * n) for n in range(4)]
OTHER = [7] * 12
SEQUENCES = [PROMPT + OTHER * n + reply for n in range(2) for reply in REPLIES]
SCALE = 0.4


def ends_of(sequences):
    return torch.tensor(tree.build_tree(sequences).ends)


def products(ends, dtype, call=1):
    pieces = tree_attention.cut(ends.tolist(), call)
    return [c for piece in pieces for c in tree_attention._calls(piece, ends, dtype)]


def draw(size, dtype):
    """Query of four heads, key and value of two, and a gradient of what is said."""
    numbers = torch.Generator().manual_seed(0)
    shapes = (4, size, 8), (2, size, 8), (2, size, 8), (size, 4, 8)
    return [torch.randn(1, *shape, generator=numbers, dtype=dtype) for shape in shapes]


def masked_softmax(query, key, value, ends):
    key, value = (each.repeat_interleave(2, dim=1) for each in (key, value))
    scores = (query * SCALE) @ key.mT
    scores = scores.masked_fill(~tree_attention.ancestor_mask(ends[None]), -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def values_and_gradients(attend, states, gradient):
    mine = [each.clone().requires_grad_() for each in states]
    said = attend(*mine)
    said.backward(gradient)
    return [said.detach(), *(each.grad for each in mine)]


@pytest.mark.parametrize("at_once", [4, 10**6])
@pytest.mark.parametrize("small", [0, 10**9])
@pytest.mark.parametrize("call", [1, 10**9])
def test_products_have_the_values_and_gradient_of_one_softmax(call, small, at_once, monkeypatch):
    monkeypatch.setattr(tree_attention, "SMALL", small)
    monkeypatch.setattr(tree_attention, "AT_ONCE", at_once)
    ends = ends_of(SEQUENCES)
    *states, gradient = draw(len(ends), torch.float64)
    calls = products(ends, torch.float64, call)
    found = values_and_gradients(
        lambda *some: tree_products.attend(some, [calls], SCALE), states, gradient
    )
    wanted = values_and_gradients(lambda *some: masked_softmax(*some, ends), states, gradient)
    for one, other in zip(found, wanted, strict=True):
        # Keys' gradients are added up in float32.
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bit_products_are_as_near_to_the_truth_as_one_softmax(dtype):
    ends = ends_of(SEQUENCES)
    *states, gradient = draw(len(ends), dtype)
    calls = products(ends, dtype)
    found = values_and_gradients(
        lambda *some: tree_products.attend(some, [calls], SCALE), states, gradient
    )
    plain = values_and_gradients(lambda *some: masked_softmax(*some, ends), states, gradient)
    truth = values_and_gradients(
        lambda *some: masked_softmax(*some, ends), [x.double() for x in states], gradient.double()
    )
    for mine, theirs, true in zip(found, plain, truth, strict=True):
        assert mine.dtype == dtype
        assert (mine - true).norm() <= 1.2 * (theirs - true).norm()


def test_weights_are_kept_only_where_they_are_asked_for_and_small(monkeypatch):
    sizes = {}
    for small in (0, 10**9):
        monkeypatch.setattr(tree_attention, "SMALL", small)
        ends = ends_of(SEQUENCES)
        *states, _ = draw(len(ends), torch.float32)
        query, key, value = (each.requires_grad_() for each in states)
        said = tree_products.attend((query, key, value), [products(ends, torch.float32)], SCALE)
        sizes[small] = len(said.grad_fn.next_functions[0][0].saved_tensors)
    assert sizes[0] == 3
    assert sizes[10**9] == 3 + len(products(ends, torch.float32))


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_tokens_are_those_of_a_log_softmax(dtype, temperature, entropy_gradient):
    numbers = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(40, 50, generator=numbers)).to(dtype).requires_grad_()
    targets = torch.randint(0, 50, (40,), generator=numbers)
    targets[:20] = logits[:20].argmax(-1)
    weights = torch.randn(2, 40, generator=numbers)
    scored = token_scores.Scored(
        *token_scores._Tile.apply(logits, targets, temperature, entropy_gradient)
    )
    said = (logits.float() / temperature).log_softmax(-1)
    log_probs, entropy = said.gather(1, targets[:, None])[:, 0], -(said.exp() * said).sum(-1)
    torch.testing.assert_close(scored.log_probs, log_probs)
    torch.testing.assert_close(scored.entropy, entropy, atol=1e-5, rtol=1e-5)
    assert torch.equal(scored.is_top1, (logits.argmax(-1) == targets).float())
    assert scored.entropy.requires_grad == entropy_gradient
    weights[1] *= entropy_gradient
    found, wanted = (
        torch.autograd.grad((weights[0] * a).sum() + (weights[1] * b).sum(), logits)[0]
        for a, b in ((scored.log_probs, scored.entropy), (log_probs, entropy))
    )
    torch.testing.assert_close(found, wanted)
