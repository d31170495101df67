"""Losses against hand-computed values and against what they must equal."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlaif.preference import LOSSES, Ratios

NUMBERS = st.floats(-30, 30)


def ratios(chosen, rejected, smoothing=0.0, offset=0.0, winner=None):
    n = len(chosen)
    return Ratios(
        chosen=torch.tensor(chosen, dtype=torch.float64),
        rejected=torch.tensor(rejected, dtype=torch.float64),
        chosen_tokens=torch.full((n,), 10),
        rejected_tokens=torch.full((n,), 20),
        smoothing=torch.full((n,), smoothing, dtype=torch.float64),
        offset=torch.full((n,), offset, dtype=torch.float64),
        winner=torch.tensor(winner if winner is not None else list(range(n))),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # beta 0.5, r_w = 1, r_l = -1: difference of rewards 1.
        ("sigmoid", math.log(1 + math.exp(-1))),
        ("sigmoid_norm", math.log(1 + math.exp(-0.5 * (0.1 + 0.05)))),
        ("hinge", 0.0),
        ("ipo", (0.1 + 0.05 - 1) ** 2),
        ("robust", math.log(1 + math.exp(-1))),
        ("conservative", math.log(1 + math.exp(-1))),
        ("odpo", math.log(1 + math.exp(-1))),
        ("listwise", math.log(1 + math.exp(-1))),
        ("apo_zero", 2 / (1 + math.exp(0.5))),
        ("apo_down", 1 / (1 + math.exp(-0.5)) + 1 - 1 / (1 + math.exp(-1))),
    ],
)
def test_one_pair_by_hand(name, expected):
    assert float(LOSSES[name](ratios([1.0], [-1.0]), 0.5)[0]) == pytest.approx(expected)


def test_every_loss_is_in_the_table_above():
    table = test_one_pair_by_hand.pytestmark[0].args[1]
    assert {name for name, _ in table} == set(LOSSES)


@given(NUMBERS, NUMBERS, st.floats(0, 0.45))
def test_the_robust_loss_undoes_flipped_labels_in_the_mean(w, loser, share):
    """(1 - share) x robust(kept) + share x robust(flipped) is the loss of the true label."""
    kept = LOSSES["robust"](ratios([w], [loser], share), 0.1)
    flipped = LOSSES["robust"](ratios([loser], [w], share), 0.1)
    true = LOSSES["sigmoid"](ratios([w], [loser]), 0.1)
    torch.testing.assert_close((1 - share) * kept + share * flipped, true)


@given(st.floats(0.01, 0.49))
def test_the_conservative_loss_is_least_where_the_model_is_as_sure_as_the_pair(share):
    """At the minimum sigma(reward difference) is 1 - share."""
    sure = math.log((1 - share) / share)
    at = [
        float(LOSSES["conservative"](ratios([x], [0.0], share), 1.0))
        for x in (sure, sure - 0.1, sure + 0.1)
    ]
    assert at[0] == min(at)


def test_an_offset_asks_for_a_lead():
    plain = LOSSES["sigmoid"](ratios([3.0], [1.0]), 1.0)
    assert LOSSES["odpo"](ratios([5.0], [1.0], offset=2.0), 1.0) == plain


@given(st.lists(NUMBERS, min_size=2, max_size=6))
def test_listwise_over_all_pairs_is_plackett_luce(rewards):
    """-log P(order) of the order as given, each reply against all after it."""
    pairs = list(combinations(range(len(rewards)), 2))
    made = ratios(
        [rewards[i] for i, _ in pairs],
        [rewards[j] for _, j in pairs],
        winner=[i for i, _ in pairs],
    )
    s = 0.1 * torch.tensor(rewards, dtype=torch.float64)
    expected = sum(s[k:].logsumexp(0) - s[k] for k in range(len(rewards) - 1))
    torch.testing.assert_close(LOSSES["listwise"](made, 0.1).sum(), expected)


def test_listwise_survives_large_rewards_with_a_gradient():
    made = ratios([-4000.0, -4000.0, 0.0], [4000.0, 0.0, -4000.0], winner=[0, 0, 1])
    chosen = made.chosen.requires_grad_()
    loss = LOSSES["listwise"](made, 1.0)
    torch.testing.assert_close(loss.detach(), torch.tensor([8000.0, 0.0], dtype=torch.float64))
    loss.sum().backward()
    torch.testing.assert_close(
        chosen.grad, torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64), atol=1e-9, rtol=0
    )
