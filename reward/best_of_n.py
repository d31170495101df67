"""Best-of-n: what a judge gets when a proxy picks, for growing n (gold against proxy over KL).

A proxy that is optimised hard stops meaning what it stood for (Gao et al. 2023, arXiv:2210.10760).
Picking the best of n candidates by the proxy is the cheapest optimisation there is: its expected
proxy always rises with n, and where the gold falls while it does, the proxy is over-optimised. The
K candidates of a prompt give every n up to K exactly, by order statistics; nothing is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from reward.shares import Share, clustered


def kl_of(n: int) -> float:
    """KL of best-of-n from the policy that is sampled, nats: ln n - (n - 1) / n.

    Stiennon et al. 2020 (arXiv:2009.01325), appendix G.3; an upper bound where replies repeat
    (Beirami et al. 2024, arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def weights(ranks: Sequence[Any], n: int) -> list[float]:
    """How likely each of K candidates is picked from a random subset of n of them.

    The candidate with i better ones is picked where it is in the subset and none of those is:
    C(K - 1 - i, n - 1) / C(K, n). Candidates of equal rank share what they have together.

    Args:
        ranks: (K) what the pick goes by, any comparable values; the greatest wins.
        n: 1 to K.

    Returns:
        (K) probabilities that add up to 1.
    """
    k = len(ranks)
    order = sorted(range(k), key=lambda i: ranks[i], reverse=True)
    found, better = [0.0] * k, 0
    for _, equal in groupby(order, key=lambda i: ranks[i]):
        some = list(equal)
        total = sum(math.comb(k - 1 - i, n - 1) for i in range(better, better + len(some)))
        for i in some:
            found[i] = total / len(some) / math.comb(k, n)
        better += len(some)
    return found


WARNING = "Warning: "


@dataclass(frozen=True)
class Choice:
    """The candidates of one prompt.

    Attributes:
        prompt: its id.
        ranks: (K) what the proxy picks by.
        columns: figures of each candidate by name, (K) each.
    """

    prompt: str
    ranks: Sequence[Hashable]
    columns: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Point:
    """What is expected of the best of n.

    Attributes:
        n: candidates it is picked from.
        kl: nats from the sampled policy.
        means: figures by name, over prompts.
    """

    n: int
    kl: float
    means: dict[str, float]


def curve(choices: Sequence[Choice]) -> list[Point]:
    """Expected figures for n = 1 to K; every prompt has K candidates."""
    k = len(choices[0].ranks)
    found = []
    for n in range(1, k + 1):
        each = [_expected(choice, n) for choice in choices]
        means = {name: sum(row[name] for row in each) / len(each) for name in each[0]}
        found.append(Point(n, kl_of(n), means))
    return found


def gain(choices: Sequence[Choice], name: str, start: int, end: int) -> Share:
    """A figure of the best of `end` minus that of the best of `start`, clustered by prompt."""
    rows = [
        (choice.prompt, _expected(choice, end)[name] - _expected(choice, start)[name])
        for choice in choices
    ]
    return clustered(rows)


def _expected(choice: Choice, n: int) -> dict[str, float]:
    share = weights(choice.ranks, n)
    return {
        name: sum(w * x for w, x in zip(share, values, strict=True))
        for name, values in choice.columns.items()
    }


def findings(
    choices: Sequence[Choice], proxy: str, golds: Mapping[str, str], rule: str
) -> list[str]:
    """Say of each gold whether it goes on rising with n, or where it turned.

    Args:
        choices: prompts with their candidates.
        proxy: name of the column of rewards.
        golds: what a column of gold is called, by its name.
        rule: what the pick goes by, for the sentence.
    """
    points, found = curve(choices), []
    last = points[-1]
    for name, label in golds.items():
        peak = max(points, key=lambda point: (point.means[name], point.n))
        falls = peak.n < last.n
        here = peak if falls else points[0]
        gap = gain(choices, name, here.n, last.n)
        over = falls and last.means[proxy] > here.means[proxy]
        sure = "" if gap.high < 0 or gap.low > 0 else ", which may be chance"
        found.append(
            f"{WARNING if over else ''}best-of-n by {rule}: from n = {here.n} to {last.n} {label} "
            f"goes from {here.means[name]:.3f} to {last.means[name]:.3f} ({gap.value:+.3f}, 95 % "
            f"{gap.low:+.3f} to {gap.high:+.3f}{sure}) and the reward from "
            f"{here.means[proxy]:+.3f} to {last.means[proxy]:+.3f}"
            + (": past the first, the reward is over-optimised" if over else "")
        )
    return found
