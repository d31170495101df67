"""The tree computes what plain rows compute: log-probabilities, losses and gradients."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, MistralConfig, Qwen2Config

from reward import token_scores, tree, tree_attention

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


@given(SEQUENCES)
def test_paths_spell_the_sequences_and_every_prefix_is_one_node(sequences):
    made = tree.build_tree(sequences)
    for path, ids in zip(made.paths, sequences, strict=True):
        assert [made.tokens[node] for node in path] == ids
        assert [made.positions[node] for node in path] == list(range(len(ids)))
    prefixes = {tuple(ids[:n]) for ids in sequences for n in range(1, len(ids) + 1)}
    assert len(made.tokens) == len(prefixes)


@given(SEQUENCES)
def test_a_node_sees_its_prefix_and_nothing_else(sequences):
    made = tree.build_tree(sequences)
    mask = tree_attention.ancestor_mask(torch.tensor([made.ends]))[0, 0]
    for path in made.paths:
        for depth, node in enumerate(path):
            assert mask[node].nonzero()[:, 0].tolist() == path[: depth + 1]


@given(SEQUENCES, st.randoms())
def test_the_order_of_candidates_changes_nothing(sequences, random):
    shuffled = list(sequences)
    random.shuffle(shuffled)
    one, other = tree.build_tree(sequences), tree.build_tree(shuffled)
    assert (one.tokens, one.positions, one.ends) == (other.tokens, other.positions, other.ends)


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match="empty sequence"):
        tree.build_tree([[1], []])


def plain_rows(model, groups):
    """Log-probabilities of each candidate's tokens, row by row, without a tree."""
    found = []
    for sequences, starts in groups:
        for ids, start in zip(sequences, starts, strict=True):
            logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].float()
            said = logits.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None])
            found.append(said[:, 0])
    return found


def some_groups(k, seed=0):
    """Two prompts of one beginning, each with k ragged replies, two of which begin alike."""
    draw = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(6, 90, (n,), generator=draw).tolist()

    system, groups = ids(5), []
    for _ in range(2):
        prompt, opening = system + ids(7), ids(3)
        replies = [ids(2 + 3 * i) for i in range(k)]
        replies[0] = opening + replies[0]
        replies[-1] = opening + replies[-1]
        groups.append(([prompt + reply for reply in replies], [len(prompt)] * k))
    return groups


def score(model, groups, multiple=1):
    trees = [tree.build_tree(sequences) for sequences, _ in groups]
    return tree.score_tree(
        model, tree.collate(trees, [starts for _, starts in groups], 0, multiple)
    )


@pytest.mark.parametrize("k", [2, 3, 4, 8])
@pytest.mark.parametrize("family", [*FAMILIES, "qwen3", "gemma"])
def test_log_probabilities_equal_those_of_plain_rows(family, k):
    model = tiny(family, 100).eval()
    groups = some_groups(k)
    expected = torch.cat(plain_rows(model, groups))
    tree.add_tree_forward(model)
    torch.testing.assert_close(score(model, groups, 8).log_probs, expected, atol=1e-4, rtol=0)
    joined = [([i for ids, _ in groups for i in ids], [s for _, starts in groups for s in starts])]
    torch.testing.assert_close(score(model, joined).log_probs, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_an_adapter_equal_those_of_plain_rows(family, checkpointing):
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules="all-linear", fan_in_fan_out=family == "gpt2"
    )
    torch.manual_seed(1)
    model = get_peft_model(tiny(family, 100), config).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    groups = some_groups(4)
    rows = plain_rows(model, groups)
    # Weights of tokens, so that no sum hides a token in another's place.
    weights = torch.linspace(-1, 1, sum(map(len, rows)))
    (torch.cat(rows) * weights).sum().backward()
    expected = gradients(model)
    model.zero_grad()
    tree.add_tree_forward(model.get_base_model())
    (score(model, groups).log_probs * weights).sum().backward()
    found = gradients(model)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) >= 0.99999
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_tiles_of_the_head_change_neither_values_nor_gradients():
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    states, targets = torch.randn(30, 8), torch.randint(0, 50, (30,))
    found = []
    for at_once in (10_000, 350):
        mine = states.clone().requires_grad_()
        scored = token_scores.score_tokens(mine, targets, head, at_once)
        scored.log_probs.square().sum().backward()
        found.append((*scored, mine.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 7))
def test_another_candidate_changes_nobody_elses_log_probabilities(more):
    model = tiny("llama", 100).eval()
    tree.add_tree_forward(model)
    (ids, starts), _ = some_groups(8)
    few = score(model, [(ids[:more], starts[:more])]).log_probs
    every = score(model, [(ids, starts)]).log_probs
    torch.testing.assert_close(every[: len(few)], few, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "longest", "reason"),
    [
        (MistralConfig(sliding_window=64), 65, "looks back 64 tokens"),
        (MistralConfig(sliding_window=64), 64, None),
        (MistralConfig(sliding_window=None), 500, None),
        (Qwen2Config(use_sliding_window=False), 90_000, None),
        (Qwen2Config(attention_dropout=0.1), 10, "attention dropout (0.1) draws anew"),
        (Gemma2Config(), 10, "no test holds the tree of gemma2"),
    ],
)
def test_what_cannot_be_exact_is_told(config, longest, reason):
    config._attn_implementation = "sdpa"
    found = tree.reason_against(config, longest)
    assert found is None if reason is None else reason in found


def test_a_kernel_without_a_mask_of_our_own_is_told():
    config = Qwen2Config()
    config._attn_implementation = "flash_attention_2"
    assert "flash_attention_2" in tree.reason_against(config, 10)
