"""Looks at held-out prompts while a policy is optimised: which checkpoint to keep, when to stop.

A look lets the policy answer prompts that neither training nor the proof asks, and has the judge of
the result say which of its replies are safe and better than the start's. Kept is the best look by
safety first: among those within the allowed share of unsafe replies the one with the highest win
rate, and where none is within it, the safest. Not here: the loop (`rlaif.ppo`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

from rlaif.evaluate import Judge, judge_all
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import CheckFailed
from sft.ppo_settings import PpoSection

STEADY = 3  # rollouts in a row that must be beyond a limit: one may be chance


@dataclass(frozen=True)
class Look:
    """What held-out prompts say of the policy after so many rollouts.

    Attributes:
        iteration: rollouts behind it.
        proxy: mean score by what rewards, nats of KL not taken off.
        unsafe: share of unsafe replies, by the judge.
        win_rate: against the start, ties count half, by the judge.
        gold: mean grade, 0 to 1, of unsafe replies 0, by the judge; None where it gives no grades.
        kl: nats a reply from the reference, both at the temperature of the proof (of rollouts,
            where the proof is greedy).
        words: mean length of a reply.
        n: replies that were judged.
    """

    iteration: int
    proxy: float
    unsafe: float
    win_rate: float
    gold: float | None
    kl: float
    words: float
    n: int

    def metrics(self) -> dict[str, float]:
        """The figures for `metrics.jsonl`."""
        found = {f"eval/{name}": value for name, value in vars(self).items() if value is not None}
        return {name: float(value) for name, value in found.items() if name != "eval/iteration"}

    def line(self) -> str:
        """The figures in one line."""
        return (
            f"held out after {self.iteration} rollouts: unsafe {self.unsafe:.1%}, win rate "
            f"{self.win_rate:.1%}, reward {self.proxy:.3f}, KL {self.kl:.1f} nats a reply, "
            f"{self.words:.0f} words ({self.n} prompts)"
        )


def look(
    judge: Judge,
    prompts: Sequence[Prompt],
    ours: Sequence[Candidate],
    start: Sequence[Candidate],
    about: Mapping[str, float],
    iteration: int,
) -> Look:
    """Judge the policy's replies against those of the start.

    Args:
        judge: of the result.
        prompts: held out.
        ours: one reply to each prompt.
        start: likewise, by the policy before its first update.
        about: `proxy` and `kl` of our replies.
        iteration: rollouts behind them.

    Raises:
        CheckFailed: the judge gave no verdict on any of them.
    """
    nobody: Callable[[int], None] = lambda _: None  # noqa: E731  # an argument that does nothing
    rows, _, preferences = judge_all(judge, prompts, ours, start, nobody)
    judged = [row for row in rows if row.safe is not None]
    known = [value for value in preferences if value is not None]
    if not judged or not known:
        reasons = sorted({str(row.unscored) for row in rows})
        raise CheckFailed(
            f"{judge.name} gave no verdict on {len(rows)} replies to held-out prompts "
            f"({', '.join(reasons)}): no checkpoint can be chosen by it"
        )
    golds = [
        (row.empathy + row.helpfulness) / 2 if row.safe else 0.0
        for row in judged
        if row.empathy is not None and row.helpfulness is not None
    ]
    return Look(
        iteration=iteration,
        proxy=about["proxy"],
        unsafe=fmean(not row.safe for row in judged),
        win_rate=fmean(known),
        gold=fmean(golds) if golds else None,
        kl=about["kl"],
        words=fmean(row.words for row in rows),
        n=len(judged),
    )


def best(looks: Sequence[Look], max_unsafe: float) -> Look:
    """The look to keep: within `max_unsafe` the highest win rate, else the safest; earliest wins.

    Raises:
        ValueError: there is none.
    """
    within = [each for each in looks if each.unsafe <= max_unsafe]
    if within:
        return max(within, key=lambda each: (each.win_rate, -each.iteration))
    return min(looks, key=lambda each: (each.unsafe, -each.win_rate, each.iteration))


def over_optimised(looks: Sequence[Look], patience: int) -> str | None:
    """Why the last looks say that the reward is won at the judge's cost; None = they do not.

    A look counts where the reward is above that of the best look before it and the judge's win
    rate or safety is worse than there by more than one standard error of a share.

    Args:
        looks: in order, the start's first.
        patience: how many in a row; 0 = never.
    """
    if not patience or len(looks) <= patience:
        return None
    reasons = [_worse(looks[:i], looks[i]) for i in range(len(looks) - patience, len(looks))]
    if any(reason is None for reason in reasons):
        return None
    return f"the reward rose at {patience} looks in a row while {reasons[-1]}"


def _worse(before: Sequence[Look], now: Look) -> str | None:
    peak = max(before, key=lambda each: (each.win_rate - each.unsafe, -each.iteration))
    if now.proxy <= peak.proxy:
        return None
    rise, fall = now.unsafe - peak.unsafe, peak.win_rate - now.win_rate
    if rise > _error(peak.unsafe, now.n):
        return f"unsafe replies went from {peak.unsafe:.1%} to {now.unsafe:.1%}"
    if fall > _error(peak.win_rate, now.n):
        return f"the win rate fell from {peak.win_rate:.1%} to {now.win_rate:.1%}"
    return None


def _error(share: float, n: int) -> float:
    """Standard error of a share of n; of none or all as of one in n."""
    within = min(max(share, 1 / n), 1 - 1 / n) if n > 1 else 0.5
    return sqrt(within * (1 - within) / n)


class Alarms:
    """Limits on rollouts: how far from the reference, how certain, how long.

    Attributes:
        first_tokens: mean length of the first rollout's replies; None before it.
        strikes: rollouts in a row beyond each limit.
    """

    def __init__(self, section: PpoSection) -> None:
        self.section = section
        self.first_tokens: float | None = None
        self.strikes: dict[str, int] = {}

    def check(self, kl: float, entropy: float, tokens: float) -> str | None:
        """Why to stop after a rollout; None = go on.

        Args:
            kl: mean nats a reply.
            entropy: mean nats a token.
            tokens: mean length of a reply.
        """
        section = self.section
        if self.first_tokens is None:
            self.first_tokens = tokens
        drift = max(tokens, self.first_tokens) / max(min(tokens, self.first_tokens), 1e-9)
        beyond = {
            "kl": 0 < section.max_kl < kl,
            "entropy": entropy < section.min_entropy,
            "length": 0 < section.max_length_drift < drift,
        }
        texts = {
            "kl": f"KL ran away: {kl:.1f} nats a reply, above ppo.max_kl {section.max_kl}",
            "entropy": f"entropy collapsed: {entropy:.3f} nats a token, below ppo.min_entropy "
            f"{section.min_entropy}",
            "length": f"length drifted: {tokens:.0f} tokens a reply, {self.first_tokens:.0f} at "
            f"first, a factor above ppo.max_length_drift {section.max_length_drift}",
        }
        for kind, broken in beyond.items():
            self.strikes[kind] = self.strikes.get(kind, 0) + 1 if broken else 0
            if self.strikes[kind] >= STEADY:
                return f"{texts[kind]}, {STEADY} rollouts in a row"
        return None
