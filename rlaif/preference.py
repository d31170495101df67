"""Losses of preference pairs, as pure functions of log-ratios.

Notation: of a pair, w is the chosen and l the rejected reply; r_w = log pi(w) - log ref(w), r_l
likewise (nats, summed over the reply's tokens); beta > 0. All tensors are (P) for P pairs, and so
is what is returned, but for `listwise`: the mean is the trainer's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import logsigmoid


class Ratios(NamedTuple):
    """Of P pairs, (P) each.

    Attributes:
        chosen: log-ratios of the chosen replies.
        rejected: log-ratios of the rejected ones.
        chosen_tokens: scored tokens.
        rejected_tokens: scored tokens.
        smoothing: expected share of pairs like this one that are the wrong way round, in [0, 0.5).
        offset: by how much the chosen reward shall lead at least, in rewards (nats).
        winner: which reply is chosen, as its number in the batch.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    smoothing: torch.Tensor
    offset: torch.Tensor
    winner: torch.Tensor

    def normalised(self) -> torch.Tensor:
        """Difference of the log-ratios per token."""
        return self.chosen / self.chosen_tokens - self.rejected / self.rejected_tokens


def sigmoid(ratios: Ratios, beta: float) -> torch.Tensor:
    """-log sigma(beta (r_w - r_l)): DPO, Rafailov et al. 2023 (arXiv:2305.18290), equation 7."""
    return -logsigmoid(beta * (ratios.chosen - ratios.rejected))


def sigmoid_norm(ratios: Ratios, beta: float) -> torch.Tensor:
    """Equation 7 of DPO on log-ratios per token: length-normalised."""
    return -logsigmoid(beta * ratios.normalised())


def hinge(ratios: Ratios, beta: float) -> torch.Tensor:
    """max(0, 1 - beta (r_w - r_l)): the hinge-norm loss of RSO, Liu et al. 2023 (arXiv:2309.06657).

    It is the calibration loss of SLiC-HF, Zhao et al. 2023 (arXiv:2305.10425), on log-ratios in
    place of log-probabilities and with a margin of 1 / beta.
    """
    return torch.relu(1 - beta * (ratios.chosen - ratios.rejected))


def ipo(ratios: Ratios, beta: float) -> torch.Tensor:
    """(h - 1 / (2 beta))^2: IPO, Azar et al. 2023 (arXiv:2310.12036), equation 17.

    h is the difference of the log-ratios per token, as in TRL, so that beta does not depend on the
    length.
    """
    return (ratios.normalised() - 1 / (2 * beta)) ** 2


def odpo(ratios: Ratios, beta: float) -> torch.Tensor:
    """-log sigma(beta (r_w - r_l) - offset): DPO with an offset.

    The ODPO loss of Amini et al. 2024 (arXiv:2402.10571), whose offset is alpha f(score_w -
    score_l); here f is the identity, the score the quality, and alpha the recipe's `dpo.offset`.
    """
    return -logsigmoid(beta * (ratios.chosen - ratios.rejected) - ratios.offset)


def conservative(ratios: Ratios, beta: float) -> torch.Tensor:
    """Cross-entropy with labels that are wrong with a chance `smoothing`: cDPO.

    Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO"
    (ericmitchell.ai/cdpo.pdf), equation 3.
    """
    logits = beta * (ratios.chosen - ratios.rejected)
    kept, flipped = -logsigmoid(logits), -logsigmoid(-logits)
    return (1 - ratios.smoothing) * kept + ratios.smoothing * flipped


def robust(ratios: Ratios, beta: float) -> torch.Tensor:
    """Unbiased under a share `smoothing` of flipped pairs.

    Chowdhury et al. 2024 (arXiv:2403.00409), equation 6; `smoothing` in [0, 0.5).
    """
    logits = beta * (ratios.chosen - ratios.rejected)
    kept, flipped = -logsigmoid(logits), -logsigmoid(-logits)
    each = (1 - ratios.smoothing) * kept - ratios.smoothing * flipped
    return each / (1 - 2 * ratios.smoothing)


def listwise(ratios: Ratios, beta: float) -> torch.Tensor:
    """Each chosen reply against all that it beats at once: (W) for W chosen replies.

    -log [exp(beta r_w) / (exp(beta r_w) + sum over l of exp(beta r_l))]. Where the pairs order all
    replies of a prompt, their sum is the negative log-likelihood of that order under the
    Plackett-Luce model: Rafailov et al. 2023, appendix A.3. Where they order only
    some (ties, unsafe replies among themselves), replies are compared with those they beat. With
    one pair a prompt it is DPO.
    """
    behind = beta * (ratios.rejected - ratios.chosen)
    winners, list_of = ratios.winner.unique(return_inverse=True)
    # log(1 + sum exp(x)), with the largest x of each list taken out so that nothing overflows.
    largest = behind.new_zeros(len(winners))
    largest = largest.scatter_reduce(0, list_of, behind.detach(), "amax", include_self=True)
    summed = (behind - largest[list_of]).exp()
    total = (-largest).exp().index_add(0, list_of, summed)
    return largest + total.log()


def apo_zero(ratios: Ratios, beta: float) -> torch.Tensor:
    """1 - sigma(beta r_w) + sigma(beta r_l): D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 7.

    Lifts the chosen and lowers the rejected reply: for replies better than the model's own.
    """
    return 1 - torch.sigmoid(beta * ratios.chosen) + torch.sigmoid(beta * ratios.rejected)


def apo_down(ratios: Ratios, beta: float) -> torch.Tensor:
    """sigma(beta r_w) + 1 - sigma(beta (r_w - r_l)): D'Oosterlinck et al. 2024, equation 8.

    Lowers both, the rejected more: for replies worse than the model's own.
    """
    return (
        torch.sigmoid(beta * ratios.chosen)
        + 1
        - torch.sigmoid(beta * (ratios.chosen - ratios.rejected))
    )


LOSSES: dict[str, Callable[[Ratios, float], torch.Tensor]] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid_norm,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "conservative": conservative,
    "odpo": odpo,
    "listwise": listwise,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
}
