"""PPO on one base model: sample, judge, estimate advantages, update; again.

Token-level proximal policy optimisation with a pull to the frozen start (`rlaif.ppo_math` has each
formula with its source). Replies are drawn from the seed, the rollout's number and its prompts, so
that a run which is stopped anywhere and started again ends with the same bits: in a rollout it
draws the same again, between two updates it goes on with what was drawn. The adapter that is kept
is that of the best look at held-out prompts (`rlaif.watch`), not the last one.

Not here: roles on the base (`rlaif.roles`), one update (`rlaif.ppo_update`), what is saved
(`rlaif.ppo_state`), rewards (`rlaif.ppo_reward`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState

from rlaif import ppo_state, watch
from rlaif.ppo_course import (
    Course,
    Job,
    arithmetic,
    figures_of,
    keep,
    look,
    look_sampling,
    minibatches,
)
from rlaif.ppo_math import KlController, Multiplier
from rlaif.ppo_reward import (
    Verdicts,
    by_evaluator,
    by_model,
    candidates_of,
    check_known,
    scores_of,
)
from rlaif.ppo_update import Learner, teach
from rlaif.remote_rollout import Served, without_personal_data
from rlaif.roles import Roles
from rlaif.rollout import Asked, Rollout, Said, fitting, listen, next_places, sample
from sft.candidates import Sampling
from sft.files import CheckFailed, short_hash
from sft.runs import Progress
from sft.stopping import StopRequest, stop_requests
from sft.train import snapshot

TIMES = ("time/generate", "time/score", "time/update")  # seconds of a rollout
NO_KL = 1e-4  # nats a token that rounding may put between the policy and its own copy


class Ppo:
    """One run of PPO, from its start or from where it was stopped."""

    def __init__(self, job: Job, roles: Roles, stop: StopRequest) -> None:
        """Make the learner and the course; nothing is sampled yet."""
        section = job.recipe.ppo
        self.job, self.roles, self.stop, self.section = job, roles, stop, section
        self.learner = Learner(
            roles, section, section.iterations * section.num_ppo_epochs * section.num_mini_batches
        )
        self.course = Course(
            KlController(section.kl_coef, section.kl_target, section.kl_horizon),
            Multiplier(0.0, section.max_unsafe, section.multiplier_rate),
            watch.Alarms(section),
        )
        prompts, held_out = job.prompts, job.held_out
        self.served: Served | None = None
        if (url := section.rollout_url) is not None:
            prompts, held_out = (without_personal_data(url, each) for each in (prompts, held_out))
            folder, base = job.stage.path("served"), job.recipe.model.name_or_path
            self.served = Served(url, folder, base)
        self.asked = fitting(roles.chat, prompts, section.max_new_tokens)
        self.held_out = fitting(roles.chat, held_out, section.max_new_tokens)

    def run(self) -> None:
        """Walk what is left of the course."""
        section, course = self.section, self.course
        with Progress(section.iterations, "ppo", unit="rollouts") as bar:
            bar.advance(course.iteration)
            while True:
                # What is asked of others may end the run; where it is now is worth keeping.
                if self._look_is_due():
                    with ppo_state.kept(self):
                        self._look()
                if course.iteration == section.iterations or course.alarm is not None:
                    break
                if course.lesson is None:
                    with ppo_state.kept(self):
                        self._roll_out()
                self._learn()
                self._close()
                bar.advance(1)
                every, last = section.save_every, course.iteration == section.iterations
                if last or (every and course.iteration % every == 0):
                    ppo_state.save(self)
                self.boundary()
            self.boundary()  # a signal amid the last look ends what comes after it, too
        if self.served is not None:
            self.served.close()

    def _look_is_due(self) -> bool:
        """Whether held-out prompts are asked now: at the start, every so often, and at the end."""
        course, every = self.course, self.section.eval_every
        if course.looks and course.looks[-1].iteration == course.iteration:
            return False  # a resumed run has made it
        last = course.iteration == self.section.iterations or course.alarm is not None
        return not course.looks or last or bool(every and course.iteration % every == 0)

    def boundary(self) -> None:
        """Between two steps: where a stop was asked for, save and leave."""
        number = ppo_state.agreed(self.stop)
        if number is not None:
            ppo_state.save(self)
            self.stop.leave(number)

    # --- a rollout -----------------------------------------------------------------------------

    def _roll_out(self) -> None:
        """Sample replies, ask all roles and whoever rewards, and make the lesson."""
        section, course, began = self.section, self.course, time.monotonic()
        about = [self.job.recipe.round_seed, course.iteration, "rollout"]
        sampling = Sampling(
            *(section.num_return_sequences, section.temperature, 1.0),
            *(section.max_new_tokens, section.batch_size, int(short_hash(about), 16) % 2**32),
        )
        rollout = self._sample(self._next_prompts(), sampling)
        sampled = time.monotonic()
        said = listen(self.roles, rollout, section.per_device_train_batch_size)
        verdicts = self._judge(rollout, said, f"ppo-{course.iteration}")
        check_known(verdicts, self.job.recipe.score.max_unscored)
        ended = [reply.ended for reply in rollout.replies]
        scores = scores_of(section, verdicts, ended, course.multiplier.value)
        lesson = teach(section, rollout, said, scores, verdicts.known, course.kl.coef)
        figures = figures_of(rollout, said, verdicts, scores, lesson, course.kl.coef)
        apart = float(((said.policy - said.reference).abs() * lesson.own).max())
        if course.iteration == 0 and not apart <= NO_KL:
            raise CheckFailed(
                f"before the first update a token's log-probabilities by policy and reference are "
                f"{apart:.2e} nats apart (must be 0): they are not the same model"
            )
        figures |= {"objective/kl_coef": course.kl.coef}
        figures |= {"safety/multiplier": course.multiplier.value}
        course.multiplier.update(verdicts.unsafe_share)
        course.rollout, course.lesson, course.update = rollout, lesson, 0
        times = {"time/generate": sampled - began, "time/score": time.monotonic() - sampled}
        times["time/update"] = 0.0
        course.figures, course.updates = figures | times, []
        ppo_state.show(self.job, course.iteration, rollout, said, verdicts, scores)

    def _sample(self, asked: Sequence[Asked], sampling: Sampling) -> Rollout:
        if self.served is not None:
            return self.served.sample(self.roles, asked, sampling)
        return sample(self.roles, asked, sampling, lambda _: self._leave_while_sampling())

    def _leave_while_sampling(self) -> None:
        # With several processes all have to leave at one place, which comes after the rollout.
        if PartialState().num_processes == 1:
            self.boundary()

    def _next_prompts(self) -> list[Asked]:
        """The prompts of this rollout: the next ones of an order that each pass shuffles anew."""
        n = self.section.prompts_per_iteration
        places = next_places(self.course.iteration * n, n, len(self.asked), self._seed)
        return [self.asked[place] for place in places]

    def _judge(self, rollout: Rollout, said: Said, policy: str) -> Verdicts:
        if self.section.reward == "model":
            return by_model(said)
        return by_evaluator(self.job.evaluator, rollout, policy)

    # --- updates -------------------------------------------------------------------------------

    def _learn(self) -> None:
        """All updates of the rollout at hand that are left."""
        course, rollout, lesson = self.course, self.course.rollout, self.course.lesson
        if rollout is None or lesson is None:
            raise ValueError("there is no rollout to learn from")
        plan = minibatches(self.section, len(rollout.asked), course.iteration, self._seed)
        for prompts in plan[course.update :]:
            began = time.monotonic()
            figures = self.learner.update(rollout, lesson, prompts)
            course.figures["time/update"] += time.monotonic() - began
            course.updates.append(figures)
            course.update += 1
            limit = self.section.target_kl
            if limit and figures.get("policy/approxkl", 0.0) > limit:
                break
            if course.update < len(plan):
                self.boundary()

    @property
    def _seed(self) -> int:
        return self.job.recipe.round_seed

    def _close(self) -> None:
        """Log the rollout at hand, move what steers, and go on to the next."""
        course, rollout = self.course, self.course.rollout
        if rollout is None:
            raise ValueError("there is no rollout to close")
        course.iteration += 1
        figures = dict(course.figures)
        for name in sorted({name for each in course.updates for name in each}):
            figures[name] = fmean(each[name] for each in course.updates if name in each)
        figures |= {
            "lr": float(self.learner.scheduler.get_last_lr()[0]),
            "eps": len(rollout.replies) / sum(figures[name] for name in TIMES),
            "episode": float(course.iteration * len(rollout.replies)),
            "updates": float(len(course.updates)),
        }
        self.job.stage.log(figures, step=course.iteration)
        course.kl.update(figures["objective/kl"], len(rollout.replies))
        course.alarm = course.alarms.check(
            figures["objective/kl"], figures["policy/entropy"], figures["objective/tokens"]
        )
        course.rollout = course.lesson = None
        course.update = 0

    # --- looks ---------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at held-out prompts; keep the adapter where it is the best so far."""
        course, stage = self.course, self.job.stage
        rollout = self._sample(self.held_out, look_sampling(self.job.recipe, course.iteration))
        said = listen(self.roles, rollout, self.section.per_device_train_batch_size)
        verdicts = self._judge(rollout, said, f"look-{course.iteration}")
        check_known(verdicts, self.job.recipe.score.max_unscored)
        ours = candidates_of(rollout, f"ppo-{course.iteration}")
        course.start = course.start or ours
        ended = [reply.ended for reply in rollout.replies]
        # Without the multiplier, which moves: looks are compared with each other.
        scores = scores_of(self.section, verdicts, ended, 0.0)
        proxy = float(scores[verdicts.known].mean())
        found = look(self.job, rollout, said, proxy, ours, course.start, course.iteration)
        course.looks.append(found)
        stage.log(found.metrics(), step=course.iteration)
        stage.say(found.line())
        course.alarm = course.alarm or watch.over_optimised(course.looks, self.section.patience)
        trained = course.looks[1:]
        if trained and self.best is trained[-1]:
            course.best = snapshot(self.roles.model)

    @property
    def best(self) -> watch.Look:
        """The look whose adapter is kept; the start's does not count."""
        return watch.best(self.course.looks[1:], self.section.max_unsafe)


def train_ppo(job: Job, start: Path | None, reward: Path | None) -> dict[str, Any]:
    """Optimise the policy and write the best look's adapter to `<stage>/adapter`.

    Args:
        job: recipe, prompts, and who judges.
        start: adapter that policy and reference start from; None = the base itself.
        reward: folder of the reward model's adapter (`ppo.reward: model`).

    Returns:
        Counts, the looks and the largest weight change, for the manifest.
    """
    recipe, stage, section = job.recipe, job.stage, job.recipe.ppo
    torch.manual_seed(recipe.seed)
    roles = Roles(recipe, start, reward, section.temperature)
    before = snapshot(roles.model)
    if roles.why_rows:
        stage.say(f"rows are replies: {roles.why_rows}")
    with stop_requests() as stop:
        course = Ppo(job, roles, stop)
        stage.say(arithmetic(section, len(course.asked), len(job.prompts)))
        ppo_state.resume(course)
        course.run()
    done = course.course
    ended = keep(job, roles.model, before, done.best, course.best, done.alarm)
    return {
        "prompts": len(course.asked),
        "too_long": len(job.prompts) - len(course.asked),
        "iterations": done.iteration,
        "precision": roles.precision.reason,
    } | ended
