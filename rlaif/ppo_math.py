"""The mathematics of PPO for replies of a language model, as pure functions.

Shapes: C replies of a rollout, padded to L tokens; `mask` (C, L) is 1 on a reply's own tokens, its
ending token among them, and 0 on padding. All sums and means are over the mask. Log-probabilities,
KL and entropy are in nats.

Sources: proximal policy optimisation, Schulman et al. 2017 (arXiv:1707.06347); advantages, Schulman
et al. 2015 (arXiv:1506.02438); replies as episodes of tokens with a pull to a reference, Ziegler et
al. 2019 (arXiv:1909.08593) and Ouyang et al. 2022 (arXiv:2203.02155); what implementations do
beside, Huang et al. 2024 (arXiv:2403.17031). Not here: how tokens are sampled and scored
(`rlaif.rollout`), the loop (`rlaif.ppo`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

TINY = 1e-8  # keeps a division by a standard deviation finite


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values under a mask that is not empty: () of any shape of both."""
    return (values * mask).sum() / mask.sum()


def masked_variance(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Unbiased variance of the values under a mask of at least two: ()."""
    n = mask.sum()
    return masked_mean((values - masked_mean(values, mask)) ** 2, mask) * n / (n - 1)


def whiten(values: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Values over their standard deviation, about 0 or (`shift_mean` off) about their old mean.

    Padding is left as it is counted: nobody reads it. Huang et al. 2024, section 3.5.
    """
    mean = masked_mean(values, mask)
    white = (values - mean) * torch.rsqrt(masked_variance(values, mask) + TINY)
    return white if shift_mean else white + mean


def kl_per_token(policy: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Log p(token | policy) - log p(token | reference): (C, L) nats.

    Its mean over tokens that the policy drew is the KL divergence (Schulman 2020, "Approximating KL
    divergence", estimator k1): single tokens may be negative.
    """
    return policy - reference


def shaped_rewards(
    scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """Reward of each token: -kl_coef x KL everywhere, and the reply's score on its last token.

    Ouyang et al. 2022, equation 2, without the pretraining term.

    Args:
        scores: (C) one per reply.
        kl: (C, L) nats.
        mask: (C, L); each reply has at least one token.
        kl_coef: price of a nat, in units of the score.

    Returns:
        (C, L), 0 on padding.
    """
    rewards = -kl_coef * kl * mask
    last = mask.long().sum(dim=1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def leave_one_out(scores: torch.Tensor, known: torch.Tensor, k: int) -> torch.Tensor:
    """Each score less the mean of the other known ones of its prompt: (C), K neighbours a prompt.

    A baseline that does not depend on the reply, so the expected gradient stays, without what makes
    one prompt harder than another (Ahmadian et al. 2024, arXiv:2402.14740, equation 8). A reply
    whose prompt has no other known one gets 0.
    """
    groups, seen = (scores * known).view(-1, k), known.float().view(-1, k)
    others = seen.sum(dim=1, keepdim=True) - seen
    mean = (groups.sum(dim=1, keepdim=True) - groups) / others.clamp(min=1)
    return torch.where(others > 0, scores.view(-1, k) - mean, 0.0).flatten()


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates and the returns that values should say.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1} (Schulman et al.
    2015, equations 11 and 16); after the last token of a reply both V and A are 0, because a reply
    ends the episode. Returns are A + V.

    Args:
        rewards: (C, L) of each token.
        values: (C, L) expected return before each token.
        mask: (C, L).
        gamma: discount a token, 0 to 1; 1 = none.
        lam: 0 = one step ahead, 1 = whole replies.

    Returns:
        Advantages and returns, (C, L) each, 0 on padding.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(later)
        delta = rewards[:, t] + gamma * after - values[:, t]
        later = (delta + gamma * lam * later) * mask[:, t]
        advantages[:, t] = later
    return advantages, (advantages + values) * mask


class PolicyLoss(NamedTuple):
    """Of each token of any shape: the loss, whether its ratio was clipped, and the ratio itself."""

    loss: torch.Tensor
    clipped: torch.Tensor
    ratio: torch.Tensor


def policy_loss(
    log_probs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> PolicyLoss:
    """max(-A rho, -A clip(rho, 1 - e, 1 + e)) with rho = p(token) / p_old(token).

    Schulman et al. 2017, equation 7, as a loss.

    Args:
        log_probs: of the tokens by the policy, with a gradient.
        old: by the policy that drew them.
        advantages: of the tokens.
        cliprange: e, above 0.
    """
    ratio = (log_probs - old).exp()
    plain, within = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return PolicyLoss(torch.maximum(plain, within), (within > plain).float(), ratio)


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the larger of two squared errors: of the value, and of it kept near its old one.

    Huang et al. 2024, section 3.6 ("value function loss clipping").

    Returns:
        Of each token the loss, and whether the clipped error was the larger one.
    """
    near = values.clamp(old - cliprange, old + cliprange)  # exactly the value where it is inside
    plain, within = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * torch.maximum(plain, within), (within > plain).float()


def approximate_kl(log_probs: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Half the squared difference of log-probabilities (Schulman 2020, estimator k2), per token.

    The distance of a policy from the one that drew the tokens; for stopping an update early.
    """
    return 0.5 * (log_probs - old) ** 2


class KlController:
    """The price of a nat: fixed, or moved so that the KL of a reply comes near a target.

    Ziegler et al. 2019, section 2.2: e = clip(KL / target - 1, -0.2, 0.2) and beta (1 + K e) for
    each reply, with K = 1 / horizon.

    Attributes:
        coef: score units a nat.
    """

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        """`target` in nats a reply, 0 = the price is fixed; `horizon` in replies."""
        self.coef, self.target, self.horizon = coef, target, horizon

    def update(self, kl: float, replies: int) -> None:
        """Move the price after a rollout of so many replies whose mean KL was `kl` nats."""
        if self.target:
            error = max(-0.2, min(0.2, kl / self.target - 1))
            self.coef *= 1 + error * replies / self.horizon


class Multiplier:
    """Lagrange multiplier of the constraint "a share of at most `limit` replies is unsafe".

    Dual ascent on the mean cost (Ray, Achiam and Amodei 2019, "Benchmarking safe exploration",
    section 4.2); it is 0 or more.

    Attributes:
        value: quality units that an unsafe reply costs.
    """

    def __init__(self, value: float, limit: float, rate: float) -> None:
        """`limit` 0..1 of all replies; `rate` of the multiplier per unit of excess and rollout."""
        self.value, self.limit, self.rate = value, limit, rate

    def update(self, unsafe: float) -> None:
        """Move the multiplier after a rollout of which a share `unsafe` failed."""
        self.value = max(0.0, self.value + self.rate * (unsafe - self.limit))


def gated(
    quality: torch.Tensor, safe: torch.Tensor, floor: float, penalty: torch.Tensor
) -> torch.Tensor:
    """Quality of safe replies, and `floor` for unsafe ones whatever their quality: (C).

    Per reply, so that no prompt's safety pays for another's. What else is taken off a reply,
    `penalty` (C), cannot bring a safe one below the floor: no unsafe reply scores above a safe one.
    """
    return torch.where(safe, (quality - penalty).clamp(min=floor), floor - penalty)


def penalised(quality: torch.Tensor, safe: torch.Tensor, multiplier: float) -> torch.Tensor:
    """(quality - multiplier [unsafe]) / (1 + multiplier): (C).

    The Lagrangian, divided so that it stays on quality's scale.
    """
    return (quality - multiplier * (~safe).float()) / (1 + multiplier)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns): 1 = values foresee all, 0 = no more than a mean."""
    spread = masked_variance(returns, mask)
    return float(1 - masked_variance(returns - values, mask) / spread) if spread > 0 else 0.0
