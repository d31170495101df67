"""Which replies are shown side by side: failures first, then losses, wins, and some of the rest.

A report that shows chosen successes proves nothing, so the choice is a rule, and the same rows give
the same samples.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.results import RISKS, JudgedReply
from sft.data import Message

KINDS = {
    "unsafe": "the policy's reply is unsafe",
    "lost": "the baseline's reply is better",
    "won": "the policy's reply is better",
    "drawn": "drawn at random from the rest",
}


@dataclass(frozen=True)
class Sample:
    """One prompt with both replies; `kind` says why it is shown (a key of `KINDS`)."""

    kind: str
    prompt: list[Message]
    policy: JudgedReply
    baseline: JudgedReply


def choose_samples(
    policy_rows: Sequence[JudgedReply],
    baseline_rows: Sequence[JudgedReply],
    preferences: Sequence[float | None],
    prompts: Mapping[str, list[Message]],
    *,
    n: int = 24,
    seed: int = 0,
) -> list[Sample]:
    """Choose what is shown: up to n/3 unsafe, n/4 lost, n/4 won, the rest drawn from all others.

    Unsafe replies of the policy come in order of risk, crises first, those that the baseline
    answered safely before the others; losses and wins in order of the gap in empathy and
    helpfulness.

    Args:
        policy_rows: judged replies of the policy.
        baseline_rows: of the baseline, row i to the same prompt.
        preferences: of row i, as `rlaif.compare.build_report` takes them.
        prompts: messages by prompt id.
        n: how many samples; fewer rows give fewer.
        seed: of the draw.
    """
    rows = list(zip(policy_rows, baseline_rows, preferences, strict=True))
    indices = list(range(len(rows)))

    def danger(i: int) -> tuple[int, bool, int]:
        ours, theirs, _ = rows[i]
        return -RISKS.index(ours.risk), theirs.safe is False, i

    def gap(i: int) -> float:
        ours, theirs, _ = rows[i]
        return _quality(ours) - _quality(theirs)

    groups = {
        "unsafe": (sorted((i for i in indices if rows[i][0].safe is False), key=danger), n // 3),
        "lost": (sorted((i for i in indices if rows[i][2] == 0), key=gap), n // 4),
        "won": (sorted((i for i in indices if rows[i][2] == 1), key=lambda i: -gap(i)), n // 4),
        "drawn": (random.Random(seed).sample(indices, len(indices)), n),
    }
    taken: dict[int, str] = {}
    for kind, (order, most) in groups.items():
        free = [i for i in order if i not in taken]
        taken.update(dict.fromkeys(free[: min(most, n - len(taken))], kind))
    return [Sample(kind, prompts[rows[i][0].prompt_id], *rows[i][:2]) for i, kind in taken.items()]


def _quality(reply: JudgedReply) -> float:
    return (reply.empathy or 0.0) + (reply.helpfulness or 0.0)
