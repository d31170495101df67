"""PPO's formulas against values worked out by hand, a slow twin in NumPy, and known optima."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlaif.ppo_math import (
    KlController,
    Multiplier,
    approximate_kl,
    explained_variance,
    gae,
    gated,
    kl_per_token,
    leave_one_out,
    masked_mean,
    masked_variance,
    penalised,
    policy_loss,
    shaped_rewards,
    value_loss,
    whiten,
)


def padded(rows: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as (C, L) float64 with 9 as padding, which nobody may read, and their mask."""
    width = max(map(len, rows))
    values = torch.full((len(rows), width), 9.0, dtype=torch.float64)
    mask = torch.zeros_like(values)
    for i, row in enumerate(rows):
        values[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
        mask[i, : len(row)] = 1
    return values, mask


def test_gae_by_hand() -> None:
    """Two tokens, gamma 0.5, lambda 0.5: worked out on paper."""
    rewards, mask = padded([[1.0, 2.0]])
    values, _ = padded([[0.5, 1.0]])
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    # delta_1 = 2 - 1 = 1; delta_0 = 1 + 0.5 * 1 - 0.5 = 1; A_0 = 1 + 0.25 * 1.
    assert advantages.tolist() == [[1.25, 1.0]]
    assert returns.tolist() == [[1.75, 2.0]]


def slow_gae(
    rewards: list[float], values: list[float], gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of equation 16 of arXiv:1506.02438, term by term, for one reply."""
    n = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    advantages = np.array(
        [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, n)) for t in range(n)]
    )
    return advantages, advantages + np.array(values)


numbers = st.floats(-3, 3, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=7), min_size=1, max_size=4),
    st.floats(0.1, 1),
    st.floats(0, 1),
)
def test_gae_is_its_sum_whatever_the_padding(
    replies: list[list[tuple[float, float]]], gamma: float, lam: float
) -> None:
    rewards, mask = padded([[r for r, _ in reply] for reply in replies])
    values, _ = padded([[v for _, v in reply] for reply in replies])
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for i, reply in enumerate(replies):
        a, r = slow_gae([r for r, _ in reply], [v for _, v in reply], gamma, lam)
        assert np.allclose(advantages[i, : len(reply)], a)
        assert np.allclose(returns[i, : len(reply)], r)
        assert not advantages[i, len(reply) :].any() and not returns[i, len(reply) :].any()


# Slow twins, from the papers' formulas: loops over replies and tokens. Hundredths, of which no sum
# is half a hundredth, so that no clipping hangs on how a number was rounded.
hundredths = st.integers(-300, 300).map(lambda n: n / 100)
clipranges = st.integers(2, 60).map(lambda n: n / 100 + 0.005)


def replies_of(*columns: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[tuple]]]:
    """One to four replies of one to seven tokens, each with a number for every column."""
    token = st.tuples(*columns)
    return st.lists(st.lists(token, min_size=1, max_size=7), min_size=1, max_size=4)


def column(replies: list[list[tuple]], n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n-th number of each token, padded, and the mask."""
    return padded([[token[n] for token in reply] for reply in replies])


def assert_twins(found: torch.Tensor, mask: torch.Tensor, slow: list[float]) -> None:
    """Own tokens, reply after reply, are as their slow twins."""
    np.testing.assert_allclose(found[mask.bool()].numpy(), slow, rtol=1e-5, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(replies_of(hundredths).filter(lambda replies: sum(map(len, replies)) > 1), st.booleans())
def test_whitening_is_its_slow_twin(replies: list[list[tuple]], shift_mean: bool) -> None:
    values, mask = column(replies, 0)
    own = np.array([x for reply in replies for (x,) in reply])
    mean = sum(own) / len(own)
    variance = sum((x - mean) ** 2 for x in own) / (len(own) - 1)
    slow = [(x - mean) / math.sqrt(variance + 1e-8) + (0 if shift_mean else mean) for x in own]
    assert_twins(whiten(values, mask, shift_mean=shift_mean), mask, slow)


@settings(max_examples=60, deadline=None)
@given(replies_of(hundredths, hundredths, hundredths), clipranges)
def test_policy_loss_is_its_slow_twin(replies: list[list[tuple]], e: float) -> None:
    """Equation 7 of arXiv:1707.06347; clipped is what gains nothing from a further step."""
    (new, mask), (old, _), (advantages, _) = (column(replies, n) for n in range(3))
    losses, ratios, clipped = [], [], []
    for now, before, a in (token for reply in replies for token in reply):
        ratio = math.exp(now) / math.exp(before)
        losses.append(-min(ratio * a, float(np.clip(ratio, 1 - e, 1 + e)) * a))
        ratios.append(ratio)
        clipped.append(float((a > 0 and ratio > 1 + e) or (a < 0 and ratio < 1 - e)))
    found = policy_loss(new, old, advantages, e)
    assert_twins(found.loss, mask, losses)
    assert_twins(found.ratio, mask, ratios)
    assert_twins(found.clipped, mask, clipped)
    assert float(masked_mean(found.loss, mask)) == pytest.approx(np.mean(losses), rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(replies_of(hundredths, hundredths, hundredths), clipranges)
@example([[(0.01, -0.02, 0.01)]], 0.035)  # old + (v - old) is not v
def test_value_loss_is_its_slow_twin(replies: list[list[tuple]], e: float) -> None:
    """Half of max((v - R)^2, (clip(v, v_old - e, v_old + e) - R)^2)."""
    (values, mask), (old, _), (returns, _) = (column(replies, n) for n in range(3))
    losses, clipped = [], []
    for v, before, r in (token for reply in replies for token in reply):
        plain, within = (v - r) ** 2, (float(np.clip(v, before - e, before + e)) - r) ** 2
        losses.append(max(plain, within) / 2)
        clipped.append(float(abs(v - before) > e and within > plain))
    loss, was_clipped = value_loss(values, old, returns, e)
    assert_twins(loss, mask, losses)
    assert_twins(was_clipped, mask, clipped)


@settings(max_examples=60, deadline=None)
@given(replies_of(hundredths, hundredths, hundredths), st.floats(0, 2))
def test_shaped_rewards_are_their_slow_twin(replies: list[list[tuple]], price: float) -> None:
    """-price (log p - log p_reference) of each token, and the score once, at the end."""
    (policy, mask), (reference, _) = column(replies, 0), column(replies, 1)
    scores = [reply[0][2] for reply in replies]
    slow = []
    for reply, score in zip(replies, scores, strict=True):
        for t, (p, q, _) in enumerate(reply):
            slow.append(-price * (p - q) + (score if t == len(reply) - 1 else 0.0))
    given_scores = torch.tensor(scores, dtype=torch.float64)
    found = shaped_rewards(given_scores, kl_per_token(policy, reference), mask, price)
    assert_twins(found, mask, slow)
    assert not found[~mask.bool()].any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.data())
def test_leave_one_out_is_its_slow_twin(k: int, data: st.DataObject) -> None:
    """Equation 8 of arXiv:2402.14740 over replies that have a score; 99 = nobody may read it."""
    reply = st.one_of(st.none(), hundredths)
    rows = data.draw(st.lists(st.lists(reply, min_size=k, max_size=k), min_size=1, max_size=4))
    slow = []
    for row in rows:
        for i, score in enumerate(row):
            others = [x for j, x in enumerate(row) if j != i and x is not None]
            if score is not None:
                slow.append(score - sum(others) / len(others) if others else 0.0)
    every = [score for row in rows for score in row]
    known = torch.tensor([score is not None for score in every])
    scores = torch.tensor([99.0 if x is None else x for x in every], dtype=torch.float64)
    assert_twins(leave_one_out(scores, known, k), known, slow)


def test_returns_with_lambda_one_are_the_rewards_to_come() -> None:
    """Whatever the values say (arXiv:1506.02438, equation 18)."""
    rewards, mask = padded([[1.0, 2.0, 4.0]])
    values, _ = padded([[3.0, -1.0, 7.0]])
    assert gae(rewards, values, mask, 1.0, 1.0)[1].tolist() == [[7.0, 6.0, 4.0]]


def test_the_score_is_on_the_last_own_token_and_kl_on_all() -> None:
    kl, mask = padded([[0.1, 0.2, 0.3], [0.4]])
    rewards = shaped_rewards(torch.tensor([1.0, -1.0], dtype=torch.float64), kl, mask, 2.0)
    assert torch.allclose(
        rewards, torch.tensor([[-0.2, -0.4, 0.4], [-1.8, 0, 0]], dtype=torch.float64)
    )


def test_whitening_by_hand_with_the_unbiased_variance() -> None:
    values, mask = padded([[1.0, 2.0], [3.0]])
    assert masked_mean(values, mask) == 2.0
    assert masked_variance(values, mask) == pytest.approx(1.0)
    assert whiten(values, mask)[mask.bool()].tolist() == pytest.approx([-1.0, 0.0, 1.0])
    kept = whiten(2 * values, mask, shift_mean=False)[mask.bool()]
    assert kept.tolist() == pytest.approx([3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, 0.0),
        (1.5, 2.0, -2.4, 1.0),  # a good token gains no more than 1 + e
        (0.5, 2.0, -1.0, 0.0),  # a good token that became unlikely: the plain gradient
        (0.5, -2.0, 1.6, 1.0),  # a bad token is pushed down no further than 1 - e
        (1.5, -2.0, 3.0, 0.0),
    ],
)
def test_clipped_policy_loss_by_hand(
    ratio: float, advantage: float, loss: float, clipped: float
) -> None:
    new = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    said = policy_loss(new, torch.zeros(1).double(), torch.tensor([advantage]).double(), 0.2)
    assert said.loss.item() == pytest.approx(loss)
    assert said.clipped.item() == clipped
    assert said.ratio.item() == pytest.approx(ratio)
    said.loss.sum().backward()
    assert new.grad is not None
    assert (new.grad.item() == 0) == bool(clipped)


def test_at_the_old_policy_the_gradient_is_that_of_the_plain_policy_gradient() -> None:
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    chosen = logits.log_softmax(0)[1]
    policy_loss(chosen, chosen.detach(), torch.tensor(1.7).double(), 0.2).loss.backward()
    clipped, logits.grad = logits.grad, None
    (-1.7 * logits.log_softmax(0)[1]).backward()
    assert clipped is not None and logits.grad is not None
    assert torch.allclose(clipped, logits.grad)


def test_value_loss_by_hand() -> None:
    values = torch.tensor([1.0, 1.0, 0.1]).double()
    loss, clipped = value_loss(values, torch.zeros(3).double(), torch.tensor([1.0, 2.0, 2.0]), 0.2)
    # The clipped value is 0.2, 0.2 and 0.1: the larger of the two errors counts.
    assert loss.tolist() == pytest.approx([0.32, 1.62, 1.805])
    assert clipped.tolist() == [1.0, 1.0, 0.0]


def test_kl_estimators_on_a_distribution() -> None:
    """Over the policy's own draws the first is the KL divergence exactly, by its definition."""
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    mean = (p * kl_per_token(p.log(), q.log())).sum()
    assert mean == pytest.approx(float(torch.distributions.kl_divergence(*map(_drawn, (p, q)))))
    assert approximate_kl(p.log(), p.log()).sum() == 0
    near = (p + torch.tensor([0.01, -0.01, 0.0])).double()
    true = torch.distributions.kl_divergence(_drawn(p), _drawn(near))
    assert (p * approximate_kl(near.log(), p.log())).sum() == pytest.approx(float(true), rel=0.1)


def _drawn(p: torch.Tensor) -> torch.distributions.Categorical:
    return torch.distributions.Categorical(probs=p)


def test_the_adaptive_price_moves_towards_its_target_and_no_faster_than_told() -> None:
    controller = KlController(0.1, 6.0, 1000)
    controller.update(60.0, 100)  # ten times the target counts as 20 % too far
    assert controller.coef == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    controller.update(5.4, 100)
    assert controller.coef == pytest.approx(0.102 * (1 - 0.1 * 0.1))
    fixed = KlController(0.1, 0.0, 1000)
    fixed.update(60.0, 100)
    assert fixed.coef == 0.1


def test_the_multiplier_rises_while_the_constraint_is_broken_and_never_pays() -> None:
    multiplier = Multiplier(0.0, 0.05, 2.0)
    multiplier.update(0.30)
    assert multiplier.value == pytest.approx(0.5)
    for _ in range(20):
        multiplier.update(0.0)
    assert multiplier.value == 0.0


def test_no_quality_pays_for_an_unsafe_reply_under_the_gate() -> None:
    quality, safe = torch.tensor([1.0, 0.0, 0.4]), torch.tensor([False, True, True])
    nothing, cut = torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])
    assert gated(quality, safe, -1.0, nothing).tolist() == pytest.approx([-1.0, 0.0, 0.4])
    assert gated(quality, safe, 0.0, cut).tolist() == pytest.approx([0.0, 0.0, 0.0])
    assert gated(quality, ~safe, 0.0, cut).tolist() == pytest.approx([1.0, 0.0, -1.0])
    assert penalised(quality, safe, 1.0).tolist() == pytest.approx([0.0, 0.0, 0.2])


def test_explained_variance() -> None:
    returns, mask = padded([[1.0, 2.0, 3.0]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(0 * returns, returns, mask) == pytest.approx(0.0)


def optimise(
    rewards: torch.Tensor, reference: torch.Tensor, kl_coef: float, steps: int, seed: int = 0
) -> torch.Tensor:
    """PPO on replies of one token: every part but the model is the project's; probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = reference.log().clone().requires_grad_(True)
    value = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [logits]}, {"params": [value], "lr": 0.05}], lr=0.02)
    n, one = 512, torch.ones(512, 1, dtype=torch.float64)
    for _ in range(steps):
        old = logits.detach().log_softmax(0)
        drawn = torch.multinomial(old.exp(), n, replacement=True, generator=generator)
        kl = kl_per_token(old[drawn], reference.log()[drawn])[:, None]
        shaped = shaped_rewards(rewards[drawn], kl, one, kl_coef)
        before = value.detach().expand(n, 1)
        advantages, returns = gae(shaped, before, one, 1.0, 0.95)
        for _ in range(4):
            said = logits.log_softmax(0)[drawn][:, None]
            loss = policy_loss(said, old[drawn][:, None], advantages, 0.2).loss
            critic, _ = value_loss(value.expand(n, 1), before, returns, 10.0)
            optimizer.zero_grad()
            (loss.mean() + critic.mean()).backward()
            optimizer.step()
    return logits.detach().softmax(0)


def test_a_bandit_with_a_known_optimum_is_solved() -> None:
    rewards = torch.tensor([0.1, 0.9, 0.5, 0.2], dtype=torch.float64)
    found = optimise(rewards, torch.full((4,), 0.25).double(), 0.0, 150)
    assert found[1] > 0.95


def test_one_token_reaches_the_optimum_of_reward_with_a_price_on_kl() -> None:
    """Which is p proportional to reference x exp(reward / price)."""
    rewards = torch.tensor([0.0, 1.0, 0.5, -0.5], dtype=torch.float64)
    reference = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)
    wanted = reference * (rewards / 0.5).exp()
    found = optimise(rewards, reference, 0.5, 250)
    assert torch.allclose(found, wanted / wanted.sum(), atol=0.03)


def test_without_reward_or_with_a_price_beyond_all_rewards_the_policy_stays() -> None:
    reference = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)
    still = optimise(torch.zeros(4).double(), reference, 0.1, 60)
    assert torch.allclose(still, reference, atol=0.03)
    rewards = torch.tensor([0.0, 1.0, 0.5, -0.5], dtype=torch.float64)
    held = optimise(rewards, reference, 50.0, 60)
    assert torch.allclose(held, reference, atol=0.05)


def test_leave_one_out_by_hand() -> None:
    scores = torch.tensor([1.0, 2.0, 6.0, 5.0, 7.0, 9.0, 4.0, 0.0, 0.0])
    known = torch.tensor([True, True, True, True, False, True, True, False, False])
    found = leave_one_out(scores, known, 3)
    # 1 - (2 + 6) / 2; the second prompt has two known replies, the third one and thus no other.
    assert found[:4].tolist() == [-3.0, -1.5, 4.5, -4.0]
    assert found[5] == 4.0 and found[6] == 0.0
    assert found.view(3, 3)[0].sum() == 0
