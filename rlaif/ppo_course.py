"""What a run of PPO is made from, how far it is, and the figures that it logs.

Not here: the loop (`rlaif.ppo`), what is saved of it (`rlaif.ppo_state`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from peft import PeftModel

from reward.evaluator import Evaluator
from rlaif import watch
from rlaif.evaluate import Judge
from rlaif.ppo_math import KlController, Multiplier, explained_variance, masked_mean
from rlaif.ppo_reward import Verdicts, told_to_all
from rlaif.ppo_update import Lesson
from rlaif.rollout import Rollout, Said
from sft import model as models
from sft.candidates import Candidate, Sampling
from sft.config import Recipe
from sft.data import Prompt
from sft.files import short_hash
from sft.ppo_settings import PpoSection
from sft.runs import Stage
from sft.train import check_moved, snapshot


@dataclass(frozen=True)
class Job:
    """What a course is made from.

    Attributes:
        prompts: to train on, in order; passed over again where they do not last.
        held_out: prompts of the looks, neither trained on nor asked by the proof.
        evaluator: who rewards; None on other processes, or where a reward model does.
        judge: of the looks, and of the proof.
    """

    recipe: Recipe
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    evaluator: Evaluator | None
    judge: Judge
    stage: Stage


@dataclass
class Course:
    """How far a run is: everything that a checkpoint holds beside the learner's own.

    Attributes:
        iteration: rollouts that are done.
        update: updates of the rollout at hand that are done.
        rollout, lesson: at hand; None between two rollouts.
        figures: of the rollout at hand, and means of each of its updates.
        looks: at held-out prompts so far.
        start: replies to the held-out prompts before the first update.
        best: weights of the adapter of the best look so far; {} = there is none yet.
        alarm: why the run was stopped; None = it was not.
    """

    kl: KlController
    multiplier: Multiplier
    alarms: watch.Alarms
    iteration: int = 0
    update: int = 0
    rollout: Rollout | None = None
    lesson: Lesson | None = None
    figures: dict[str, float] = field(default_factory=dict)
    updates: list[dict[str, float]] = field(default_factory=list)
    looks: list[watch.Look] = field(default_factory=list)
    start: list[Candidate] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    alarm: str | None = None

    def kept(self) -> Course:
        """A course that stays here while a look or a rollout moves this one."""
        return replace(self, multiplier=copy(self.multiplier), looks=[*self.looks])


def minibatches(section: PpoSection, prompts: int, iteration: int, seed: int) -> list[list[int]]:
    """Which prompts each update of a rollout learns from: all of them in each epoch."""
    plan = []
    for epoch in range(section.num_ppo_epochs):
        order = list(range(prompts))
        random.Random(f"{seed} rollout {iteration} epoch {epoch}").shuffle(order)
        n = min(section.num_mini_batches, prompts)
        cuts = [round(i * prompts / n) for i in range(n + 1)]
        plan += [order[cuts[i] : cuts[i + 1]] for i in range(n)]
    return plan


def figures_of(
    rollout: Rollout, said: Said, verdicts: Verdicts, scores: torch.Tensor, lesson: Lesson,
    kl_coef: float,
) -> dict[str, float]:  # fmt: skip
    """What a rollout was, by TRL's names for PPO where it has one."""
    own, known = lesson.own, verdicts.known
    kl = ((said.policy - said.reference) * own).sum(dim=1)
    score = float(scores[known].mean())
    return {
        "objective/kl": float(kl.mean()),
        "objective/entropy": float(-(said.policy * own).sum(dim=1).mean()),
        "objective/scores": score,
        "objective/non_score_reward": -kl_coef * float(kl.mean()),
        "objective/rlhf_reward": score - kl_coef * float(kl[known].mean()),
        "objective/quality": float(verdicts.quality[known].mean()),
        "objective/tokens": float(own.sum(dim=1).mean()),
        "safety/unsafe": verdicts.unsafe_share,
        "unscored": float((~known).float().mean()),
        "left_out": float(rollout.left_out),
        "policy/entropy": float(masked_mean(said.entropy, own)),
        "val/num_eos_tokens": float(sum(reply.ended for reply in rollout.replies)),
        "val/explained_variance": explained_variance(lesson.values, lesson.returns, lesson.mask),
    }


def arithmetic(section: PpoSection, fitting: int, prompts: int) -> str:
    """The arithmetic of a course in one line."""
    k, n = section.num_return_sequences, section.prompts_per_iteration
    updates = section.num_ppo_epochs * section.num_mini_batches
    return (
        f"{fitting} of {prompts} prompts fit; {section.iterations} rollouts x {n} prompts x {k} "
        f"replies = {section.iterations * n * k} replies; {section.num_ppo_epochs} epochs x "
        f"{section.num_mini_batches} = {updates} updates each"
    )


def look_sampling(recipe: Recipe, iteration: int) -> Sampling:
    """How a look samples: as the proof does, because it chooses what the proof will see."""
    section, proof = recipe.ppo, recipe.evaluate
    seed = int(short_hash([recipe.round_seed, iteration, "look"]), 16) % 2**32
    most = section.max_new_tokens
    return Sampling(1, proof.temperature, proof.top_p, most, section.batch_size, seed)


def look(
    job: Job,
    rollout: Rollout,
    said: Said,
    proxy: float,
    ours: Sequence[Candidate],
    start: Sequence[Candidate],
    iteration: int,
) -> watch.Look:
    """What held-out prompts say; the main process asks the judge and tells the others.

    Args:
        job: its judge.
        rollout: one reply to each of the prompts.
        said: of it by policy and reference.
        proxy: its mean score by what rewards.
        ours: its replies as the judge gets them.
        start: those of the start.
        iteration: rollouts behind it.

    Raises:
        UserError: as the judge raises it, or a `CheckFailed` where it gave no verdict at all; on
            the other processes an `EvaluatorStopped` that says the same.
    """
    kl = float(((said.policy - said.reference) * rollout.mask).sum(dim=1).mean())
    prompts, about = [each.prompt for each in rollout.asked], {"proxy": proxy, "kl": kl}
    asking = partial(watch.look, job.judge, prompts, ours, start, about, iteration)
    return told_to_all(asking if job.stage.is_main else None)


def keep(
    job: Job,
    model: PeftModel,
    before: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    look: watch.Look,
    alarm: str | None,
) -> dict[str, Any]:
    """Put the adapter of the best look back and write it to `<stage>/adapter`.

    Args:
        job: its stage and the base's name.
        model: trained further since.
        before: weights of the adapter that training started from.
        weights: of the adapter that is kept.
        look: that it was kept for.
        alarm: why training was stopped early; None = it was not.

    Returns:
        Look, alarm and the largest weight change, for the manifest.

    Raises:
        CheckFailed: the adapter that is kept is not another than the start's.
    """
    if alarm:
        job.stage.say(f"stopped early: {alarm}")
    job.stage.say(f"kept the adapter after {look.iteration} rollouts: {look.line()}")
    models.keep_float32(model, weights)
    moved = check_moved(before, snapshot(model))
    if job.stage.is_main:
        models.save_adapter(model, job.stage.path("adapter"), job.recipe.model.name_or_path)
    return {"kept": vars(look), "alarm": alarm, "largest_change": moved}
