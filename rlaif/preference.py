"""Losses of preference pairs, as pure functions of log-ratios.

Notation: of a pair, w is the chosen and l the rejected reply; r_w = log pi(w) - log ref(w), r_l
likewise (nats, summed over the reply's tokens); beta > 0. All tensors are (P) for P pairs, and so
is what is returned: the mean over pairs is the trainer's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid


class Ratios(NamedTuple):
    """Of P pairs: log-ratios of both replies, and the number of scored tokens of both."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    def normalised(self) -> torch.Tensor:
        """Difference of the log-ratios per token."""
        return self.chosen / self.chosen_tokens - self.rejected / self.rejected_tokens


def sigmoid(ratios: Ratios, beta: float, smoothing: float) -> torch.Tensor:
    """-log sigma(beta (r_w - r_l)): DPO, Rafailov et al. 2023 (arXiv:2305.18290), equation 7."""
    return -logsigmoid(beta * (ratios.chosen - ratios.rejected))


def sigmoid_norm(ratios: Ratios, beta: float, smoothing: float) -> torch.Tensor:
    """Equation 7 of DPO on log-ratios per token: length-normalised."""
    return -logsigmoid(beta * ratios.normalised())


def hinge(ratios: Ratios, beta: float, smoothing: float) -> torch.Tensor:
    """max(0, 1 - beta (r_w - r_l)): SLiC, Zhao et al. 2023 (arXiv:2305.10425), by log-ratios."""
    return torch.relu(1 - beta * (ratios.chosen - ratios.rejected))


def ipo(ratios: Ratios, beta: float, smoothing: float) -> torch.Tensor:
    """(h - 1 / (2 beta))^2: IPO, Azar et al. 2023 (arXiv:2310.12036), equation 17.

    h is the difference of the log-ratios per token, as in TRL, so that beta does not depend on the
    length.
    """
    return (ratios.normalised() - 1 / (2 * beta)) ** 2


def robust(ratios: Ratios, beta: float, smoothing: float) -> torch.Tensor:
    """Unbiased under a share `smoothing` of flipped pairs.

    Chowdhury et al. 2024 (arXiv:2403.00409), equation 6; `smoothing` in [0, 0.5).
    """
    logits = beta * (ratios.chosen - ratios.rejected)
    kept, flipped = -logsigmoid(logits), -logsigmoid(-logits)
    return ((1 - smoothing) * kept - smoothing * flipped) / (1 - 2 * smoothing)


def apo_zero(ratios: Ratios, beta: float, smoothing: float) -> torch.Tensor:
    """1 - sigma(beta r_w) + sigma(beta r_l): D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 7.

    Lifts the chosen and lowers the rejected reply: for replies better than the model's own.
    """
    return 1 - torch.sigmoid(beta * ratios.chosen) + torch.sigmoid(beta * ratios.rejected)


def apo_down(ratios: Ratios, beta: float, smoothing: float) -> torch.Tensor:
    """sigma(beta r_w) + 1 - sigma(beta (r_w - r_l)): D'Oosterlinck et al. 2024, equation 8.

    Lowers both, the rejected more: for replies worse than the model's own.
    """
    return (
        torch.sigmoid(beta * ratios.chosen)
        + 1
        - torch.sigmoid(beta * (ratios.chosen - ratios.rejected))
    )


LOSSES: dict[str, Callable[[Ratios, float, float], torch.Tensor]] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid_norm,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
}
