"""Attention by pieces sees what the mask of the whole tree sees."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tree import SEQUENCES, score, some_groups

from reward import tree, tree_attention, tree_flex


@settings(deadline=None)
@given(SEQUENCES, st.integers(0, 40))
def test_pieces_cover_the_nodes_in_order_and_see_their_ancestors(sequences, call):
    ends = tree.build_tree(sequences).ends
    pieces = tree_attention.cut(ends, call)
    stops = [piece.stop for piece in pieces]
    assert [piece.start for piece in pieces] == [0, *stops[:-1]]
    assert stops[-1] == len(ends)
    mask = tree_attention.ancestor_mask(torch.tensor([ends]))[0, 0]
    for piece in pieces:
        above = [node for start, stop in piece.above for node in range(start, stop)]
        own = torch.zeros(len(ends), dtype=torch.bool)
        own[piece.start : piece.stop] = True
        for node in range(piece.start, piece.stop):
            assert mask[node, above].all()
            seen = set(mask[node].nonzero()[:, 0].tolist())
            assert seen - set(above) <= set(own.nonzero()[:, 0].tolist())
        if piece.straight:
            inside = mask[piece.start : piece.stop, piece.start : piece.stop]
            assert torch.equal(inside, torch.ones_like(inside).tril())


def test_branches_are_pieces_where_that_saves_more_than_the_calls_cost():
    prompt, replies = list(range(50)), [[60 + n] * 40 for n in range(4)]
    ends = tree.build_tree([prompt + reply for reply in replies]).ends
    # Apart 50 x 50 + 4 x 40 x 90 = 16,900 pairs, whole 210 x 210 = 44,100; two replies as one
    # piece instead of two cost 2 x 40 x 40 = 3,200 more.
    assert len(tree_attention.cut(ends, 3100)) == 5
    assert len(tree_attention.cut(ends, 3300)) < 5
    assert len(tree_attention.cut(ends, 44_100 - 16_900)) == 1


def test_small_neighbours_share_a_call():
    ends = tree.build_tree([[n] for n in range(9)]).ends
    assert tree_attention.cut(ends, 1000) == [tree_attention.Piece(0, 9, (), False)]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [*FAMILIES, "qwen3", "gemma"])
def test_pieces_give_what_one_mask_gives(family, kernel, monkeypatch):
    found = []
    for call, small in ((1, 0), (1, 10**9), (10**9, 10**9)):
        monkeypatch.setattr(tree_attention, "SMALL", small)
        monkeypatch.setitem(tree_attention.CALL, "cpu", call)
        model = tiny(family, 100).eval()
        model.set_attn_implementation(kernel)
        tree.add_tree_forward(model)
        scored = score(model, some_groups(4), 16)
        scored.log_probs.square().sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((scored.log_probs, gradient))
    *others, (expected, gradient) = found
    for said, other in others:
        torch.testing.assert_close(said, expected, atol=1e-5, rtol=0)
        assert (other - gradient).norm() <= 1e-4 * gradient.norm()


@pytest.mark.parametrize(
    ("loaded", "asked", "capability", "head_dim", "kernel"),
    [
        ("sdpa", "auto", (8, 0), 128, "tree_flex"),
        ("sdpa", "auto", (9, 0), 64, "tree_flex"),
        ("sdpa", "auto", (7, 5), 128, "tree_sdpa"),  # a T4
        ("sdpa", "auto", None, 128, "tree_sdpa"),  # no GPU
        ("sdpa", "auto", (8, 0), 256, "tree_sdpa"),  # Gemma
        ("sdpa", "auto", (8, 0), 80, "tree_sdpa"),
        ("sdpa", "sdpa", (8, 0), 128, "tree_sdpa"),
        ("eager", "eager", (8, 0), 128, "tree_eager"),
        ("flex_attention", "flex_attention", (7, 5), 80, "tree_flex"),
        ("flash_attention_2", "flash_attention_2", (8, 0), 128, "flash_attention_2"),
    ],
)
def test_new_gpus_have_flex_attention_unless_something_else_is_asked(
    loaded, asked, capability, head_dim, kernel
):
    assert tree_flex.choose_kernel(loaded, asked, capability, head_dim) == kernel


@pytest.mark.parametrize("kernel", ["eager", "flex_attention"])
def test_other_kernels_give_the_same(kernel):
    """FlexAttention has no backward on a CPU."""
    by_pieces, other = tiny("llama", 100).eval(), tiny("llama", 100).eval()
    other.set_attn_implementation(kernel)
    for model in (by_pieces, other):
        tree.add_tree_forward(model)
    with torch.no_grad():
        said = [score(model, some_groups(3)).log_probs for model in (by_pieces, other)]
    torch.testing.assert_close(*said, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "kernel"),
    [
        *((family, kernel) for family in (*FAMILIES, "gemma") for kernel in ("sdpa", "eager")),
        ("llama", "flex_attention"),
    ],
)
def test_a_model_that_reads_trees_reads_plain_rows_as_before(family, kernel):
    plain, prepared = tiny(family, 100).eval(), tiny(family, 100).eval()
    for model in (plain, prepared):
        model.set_attn_implementation(kernel)
    tree.add_tree_forward(prepared)
    ids, mask = torch.randint(6, 90, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    with torch.no_grad():
        said = [m(input_ids=ids, attention_mask=mask).logits for m in (plain, prepared)]
    torch.testing.assert_close(*said)
