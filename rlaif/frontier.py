"""Gold against proxy over the distance from the start: where a reward is won at the truth's cost.

The proxy is what training raised, the gold what the judge of the result says of the same replies
(unsafe ones count 0), the distance the KL divergence from the start in nats a reply. Gao, Schulman
and Hilton 2022 (arXiv:2210.10760) draw both over its square root. Best-of-n needs no training: its
KL is ln n - (n - 1) / n. Not here: looks of a run of PPO (`rlaif.watch`), charts
(`rlaif.frontier_charts`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from reward.evaluator import Evaluator
from rlaif.evaluate import Judge
from rlaif.frontier_charts import Point
from rlaif.ppo_reward import by_evaluator, candidates_of, scores_of
from rlaif.roles import Roles
from rlaif.rollout import Asked, Rollout, listen, sample
from sft.candidates import Sampling
from sft.config import Recipe
from sft.data import Prompt
from sft.files import UserError


@dataclass(frozen=True)
class Asking:
    """Who is asked about replies to which prompts."""

    recipe: Recipe
    evaluator: Evaluator
    judge: Judge
    prompts: Sequence[Prompt]


def of_looks(metrics: Path) -> list[Point]:
    """The looks of a run of PPO, in order.

    Raises:
        UserError: there is no such file, or no look with grades in it.
    """
    if not metrics.is_file():
        raise UserError(f"no metrics in {metrics}: run scripts/ppo.py first")
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    found = [
        Point(
            f"{row['step']} rollouts",
            max(0.0, row["eval/kl"]),
            row["eval/proxy"],
            row["eval/gold"],
            row["eval/unsafe"],
        )
        for row in rows
        if row.get("eval/gold") is not None
    ]
    if not found:
        raise UserError(f"{metrics} has no look with grades: its judge gave none")
    return found


def _rollout(asking: Asking, roles: Roles, k: int) -> Rollout:
    section = asking.recipe.ppo
    asked = []
    for prompt in asking.prompts:
        row = roles.chat.render(prompt.messages, reserve=section.max_new_tokens)
        if row:
            asked.append(Asked(prompt, row.prompt_ids))
    seed = asking.recipe.seed
    sampling = Sampling(
        k, section.temperature, 1.0, section.max_new_tokens, section.batch_size, seed
    )
    return sample(roles, asked, sampling, lambda _: None)


def _golds(asking: Asking, rollout: Rollout) -> tuple[list[float], list[bool]]:
    """Grade of each reply by the judge, unsafe ones 0, and whether it is unsafe."""
    asked = {each.prompt.id: each.prompt for each in rollout.asked}
    golds, unsafe = [], []
    for reply in candidates_of(rollout, "frontier"):
        row = asking.judge.judge(asked[reply.prompt_id], reply)
        if row.empathy is None or row.helpfulness is None or row.safe is None:
            raise UserError(
                f"{asking.judge.name} gives no grades: the curve needs a judge that does"
            )
        golds.append((row.empathy + row.helpfulness) / 2 if row.safe else 0.0)
        unsafe.append(not row.safe)
    return golds, unsafe


def _proxies(asking: Asking, rollout: Rollout) -> torch.Tensor:
    verdicts = by_evaluator(asking.evaluator, rollout, "frontier")
    ended = [reply.ended for reply in rollout.replies]
    scores = scores_of(asking.recipe.ppo, verdicts, ended, 0.0)
    return torch.where(verdicts.known, scores, torch.full_like(scores, -math.inf))


def of_adapter(asking: Asking, label: str, adapter: Path, start: Path | None) -> Point:
    """A policy on the prompts, one reply each, against where it started."""
    roles = Roles(asking.recipe, start, None, asking.recipe.ppo.temperature, policy=adapter)
    rollout = _rollout(asking, roles, 1)
    said = listen(roles, rollout, asking.recipe.ppo.per_device_train_batch_size)
    kl = ((said.policy - said.reference) * rollout.mask).sum(dim=1).mean()
    golds, unsafe = _golds(asking, rollout)
    proxies = [value for value in _proxies(asking, rollout).tolist() if math.isfinite(value)]
    return Point(label, max(0.0, float(kl)), fmean(proxies), fmean(golds), fmean(unsafe))


def best_of_n(asking: Asking, start: Path | None, largest: int) -> list[Point]:
    """Of n replies of the start the one that the proxy likes best, n = 1, 2, 4 ... `largest`."""
    roles = Roles(asking.recipe, start, None, asking.recipe.ppo.temperature)
    rollout = _rollout(asking, roles, largest)
    golds, unsafe = _golds(asking, rollout)
    proxies = _proxies(asking, rollout).view(-1, largest)
    points, n = [], 1
    while n <= largest:
        picked = proxies[:, :n].argmax(dim=1).tolist()
        places = [i * largest + at for i, at in enumerate(picked)]
        best = [float(proxies.flatten()[place]) for place in places]
        points.append(
            Point(
                f"best of {n}",
                math.log(n) - (n - 1) / n,
                fmean(value for value in best if math.isfinite(value)),
                fmean(golds[place] for place in places),
                fmean(unsafe[place] for place in places),
            )
        )
        n *= 2
    return points
