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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from reward.evaluator import Evaluator
from rlaif.evaluate import Judge
from rlaif.frontier_charts import Point
from rlaif.ppo_course import look_sampling
from rlaif.ppo_reward import by_evaluator, candidates_of, scores_of
from rlaif.roles import Roles
from rlaif.rollout import Rollout, fitting, listen, sample
from sft.config import Recipe
from sft.data import Prompt
from sft.files import UserError
from sft.reuse import read_manifest
from sft.runs import METRICS


@dataclass(frozen=True)
class Asking:
    """Who is asked about replies to which prompts."""

    recipe: Recipe
    evaluator: Evaluator
    judge: Judge
    prompts: Sequence[Prompt]


def of_looks(folder: Path, safety: str) -> list[Point]:
    """The looks of a run of PPO, in order.

    Args:
        folder: of the finished stage.
        safety: "gate" or "none", as it must have been trained.

    Raises:
        UserError: there is none, it was trained otherwise, or its judge gave no grades.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest["status"] != "finished":
        raise UserError(f"no finished PPO in {folder}: run scripts/ppo.py --safety {safety}")
    section = manifest["config"]["ppo"]
    if (section["safety"], section["reward"]) != (safety, "evaluator"):
        raise UserError(
            f"{folder} has ppo.safety {section['safety']} and ppo.reward {section['reward']}: the "
            f"curve needs {safety} and evaluator"
        )
    metrics = (folder / METRICS).read_text(encoding="utf-8")
    rows = [json.loads(line) for line in metrics.splitlines()]
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
        raise UserError(f"{folder} has no look with grades: its judge gave none")
    return found


def _rollout(asking: Asking, roles: Roles, k: int) -> Rollout:
    asked = fitting(roles.chat, asking.prompts, asking.recipe.ppo.max_new_tokens)
    sampling = replace(look_sampling(asking.recipe, 0), k=k)
    if not sampling.temperature:  # of greedy replies there is no best of n
        sampling = replace(sampling, temperature=asking.recipe.ppo.temperature)
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


@dataclass(frozen=True)
class Judged:
    """Replies with what judge and evaluator say; scores by setting, -inf where there is none."""

    rollout: Rollout
    golds: list[float]
    unsafe: list[bool]
    proxies: dict[str, torch.Tensor]


def _judged(asking: Asking, rollout: Rollout) -> Judged:
    verdicts = by_evaluator(asking.evaluator, rollout, "frontier")
    ended = [reply.ended for reply in rollout.replies]
    proxies = {}
    for safety in ("gate", "none"):
        section = asking.recipe.ppo.model_copy(update={"safety": safety})
        scores = scores_of(section, verdicts, ended, 0.0)
        proxies[safety] = torch.where(verdicts.known, scores, torch.full_like(scores, -math.inf))
    return Judged(rollout, *_golds(asking, rollout), proxies)


def of_adapter(asking: Asking, label: str, adapter: Path, start: Path | None) -> dict[str, Point]:
    """A policy on the prompts, one reply each, against where it started; by setting."""
    roles = Roles(asking.recipe, start, None, asking.recipe.ppo.temperature, policy=adapter)
    rollout = _rollout(asking, roles, 1)
    said = listen(roles, rollout, asking.recipe.ppo.per_device_train_batch_size)
    kl = max(0.0, float(((said.policy - said.reference) * rollout.mask).sum(dim=1).mean()))
    made = _judged(asking, rollout)
    golds, unsafe = fmean(made.golds), fmean(made.unsafe)
    return {
        safety: Point(label, kl, fmean(filter(math.isfinite, proxies.tolist())), golds, unsafe)
        for safety, proxies in made.proxies.items()
    }


def best_of_n(asking: Asking, start: Path | None, largest: int) -> dict[str, list[Point]]:
    """Of n replies of the start the one that the proxy likes best, n = 1, 2, 4 ... `largest`."""
    roles = Roles(asking.recipe, start, None, asking.recipe.ppo.temperature)
    made = _judged(asking, _rollout(asking, roles, largest))
    return {
        safety: [_best_of(made, proxies, largest, 2**i) for i in range(largest.bit_length())]
        for safety, proxies in made.proxies.items()
    }


def _best_of(made: Judged, proxies: torch.Tensor, largest: int, n: int) -> Point:
    picked = proxies.view(-1, largest)[:, :n].argmax(dim=1).tolist()
    places = [i * largest + at for i, at in enumerate(picked)]
    best = [float(proxies[place]) for place in places]
    return Point(
        f"best of {n}",
        math.log(n) - (n - 1) / n,
        fmean(filter(math.isfinite, best)),
        fmean(made.golds[place] for place in places),
        fmean(made.unsafe[place] for place in places),
    )


def lines(
    asking: Asking,
    looks: Mapping[str, list[Point]],
    adapters: Mapping[int, Path],
    start: Path | None,
) -> dict[str, dict[str, list[Point]]]:
    """All points by setting ("gate", "none") and method.

    Args:
        asking: who is asked about replies to which prompts.
        looks: of the two runs of PPO, by setting.
        adapters: of DPO's rounds.
        start: what all of them started from; None = the base itself.
    """
    sampled = best_of_n(asking, start, 16)
    dpo = [of_adapter(asking, f"round {n}", each, start) for n, each in adapters.items()]
    return {
        safety: {
            "PPO": points,
            "best of n": sampled[safety],
            "DPO": [each[safety] for each in dpo],
        }
        for safety, points in looks.items()
    }
