"""What a run of PPO saves to go on from, and what it shows on the way.

A checkpoint holds weights, heads, optimiser, scheduler, scaler, random numbers, what steers (price
of a nat, multiplier, alarms), the looks, and the rollout at hand with what it teaches. Not here:
how checkpoints are written and verified (`sft.checkpoints`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from rlaif.ppo_reward import Verdicts
from rlaif.ppo_update import Lesson
from rlaif.rollout import Rollout, Said
from rlaif.watch import Look
from sft import checkpoints
from sft.candidates import Candidate
from sft.files import CheckFailed, EvaluatorStopped, short_hash, to_json, write_text
from sft.generate import Reply
from sft.runs import METRICS, Stage
from sft.stopping import StopRequest
from sft.training_state import load_state, random_state, save_state, set_random_state

if TYPE_CHECKING:
    from rlaif.ppo import Ppo
    from rlaif.ppo_course import Job

STATE = "state.safetensors"
ROLLOUTS = "rollouts.jsonl"
COLUMNS = ["rollout", "prompt_id", "risk", "reply", "quality", "safe", "score", "kl", "ended"]


def agreed(stop: StopRequest) -> int | None:
    """The signal that some process of the launch was sent, so that all leave at one place."""
    state = PartialState()
    if state.num_processes == 1:
        return stop.number
    told = torch.tensor([stop.number or 0], device=state.device)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return int(told) or None


def facts(run: Ppo) -> dict[str, Any]:
    """What has to be the same to go on: settings, contents of inputs, and the prompts."""
    asked = [[each.prompt.id, each.ids] for each in (*run.asked, *run.held_out)]
    return {**run.job.stage.facts(), "prompts": short_hash(asked)}


def save(run: Ppo) -> None:
    """Write a checkpoint of where the run is; the main process writes, the others wait.

    What is drawn depends on seed, rollout and prompts alone, so the main process's random numbers
    stand for all.
    """
    state = PartialState()
    if state.is_main_process:
        folder = run.job.stage.path(checkpoints.FOLDER)
        # Each place of a run has a number of its own, so that none is written twice.
        course = run.course
        looked = bool(course.looks) and course.looks[-1].iteration == course.iteration
        begun = course.lesson is not None
        step = course.iteration * _updates(run) + course.update + looked + begun
        made = pack(run)
        texts = {METRICS: made.pop("metrics"), ROLLOUTS: made.pop("shown")}
        checkpoints.write(folder, step, lambda to: _fill(to, made, texts), facts(run))
    state.wait_for_everyone()


def _fill(folder: Path, state: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    save_state(folder / STATE, state)
    for name, text in texts.items():
        write_text(folder / name, text)


@contextmanager
def kept(run: Ppo) -> Iterator[None]:
    """Save where the run was, if an evaluator, a judge or a signal ends it in a look or a rollout.

    A second Ctrl-C may come between any two lines: what was half done by then is taken back.
    """
    stage, before = run.job.stage, run.course.kept()
    metrics = text_of(stage, METRICS)
    try:
        yield
    except (EvaluatorStopped, CheckFailed, KeyboardInterrupt, SystemExit):
        if PartialState().num_processes == 1:  # the others may be elsewhere
            run.course = before
            stage.rewind(metrics, stage.elapsed())
            save(run)
        raise


def _updates(run: Ppo) -> int:
    return run.section.num_ppo_epochs * run.section.num_mini_batches + 3


def pack(run: Ppo) -> dict[str, Any]:
    """Everything that a run goes on from."""
    learner, course, stage = run.learner, run.course, run.job.stage
    return {
        "weights": {name: value.detach() for name, value in learner.parameters.items()},
        "optimizer": learner.optimizer.state_dict(),
        "scheduler": learner.scheduler.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "random": random_state(),
        "iteration": course.iteration,
        "update": course.update,
        "kl_coef": course.kl.coef,
        "multiplier": course.multiplier.value,
        "alarms": {"first_tokens": course.alarms.first_tokens, "strikes": course.alarms.strikes},
        "figures": course.figures,
        "updates": course.updates,
        "looks": [vars(each) for each in course.looks],
        "start": [asdict(each) for each in course.start],
        "alarm": course.alarm,
        "best": course.best,
        "lesson": None if course.lesson is None else vars(course.lesson),
        "rollout": None if course.rollout is None else _of_rollout(run, course.rollout),
        "metrics": text_of(stage, METRICS),
        "shown": text_of(stage, ROLLOUTS),
        "seconds": stage.elapsed(),
    }


def text_of(stage: Stage, name: str) -> str:
    """What a file of the stage holds; nothing where it is not there."""
    path = Path(stage.path(name))
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _of_rollout(run: Ppo, rollout: Rollout) -> dict[str, Any]:
    places = {each.prompt.id: i for i, each in enumerate(run.asked)}
    return {
        "asked": [places[each.prompt.id] for each in rollout.asked],
        "lengths": [len(reply.ids) for reply in rollout.replies],
        "tokens": torch.tensor([token for reply in rollout.replies for token in reply.ids]),
        "ended": [reply.ended for reply in rollout.replies],
        "texts": rollout.texts,
        "k": rollout.k,
        "temperature": rollout.temperature,
        "left_out": rollout.left_out,
    }


def resume(run: Ppo) -> None:
    """Go on from the newest checkpoint that verifies, where there is one."""
    stage = run.job.stage
    told: list[Any] = [None]
    if stage.is_main:
        found = checkpoints.newest(stage.path(checkpoints.FOLDER), facts(run))
        if found.checkpoint is not None or found.passed_over:
            stage.say(found.line())
        if found.checkpoint is not None:
            told = [load_state(found.checkpoint.path(STATE))]
            for key, name in (("metrics", METRICS), ("shown", ROLLOUTS)):
                told[0][key] = found.checkpoint.path(name).read_text(encoding="utf-8")
    if PartialState().num_processes > 1:  # on other machines the file may not be
        broadcast_object_list(told)
    if told[0] is not None:
        unpack(run, told[0])
        stage.rewind(told[0]["metrics"], told[0]["seconds"])
        if stage.is_main:  # what an earlier start left of it is gone
            write_text(Path(stage.path(ROLLOUTS)), told[0]["shown"])


@torch.no_grad()
def unpack(run: Ppo, state: dict[str, Any]) -> None:
    """Put a run where `pack` found it."""
    learner, course = run.learner, run.course
    for name, value in learner.parameters.items():
        value.copy_(state["weights"][name])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.scheduler.load_state_dict(state["scheduler"])
    learner.scaler.load_state_dict(state["scaler"])
    set_random_state(state["random"])
    course.iteration, course.update = state["iteration"], state["update"]
    course.kl.coef, course.multiplier.value = state["kl_coef"], state["multiplier"]
    course.alarms.first_tokens = state["alarms"]["first_tokens"]
    course.alarms.strikes = state["alarms"]["strikes"]
    course.figures, course.updates = state["figures"], state["updates"]
    course.looks = [Look(**each) for each in state["looks"]]
    course.start = [Candidate(**each) for each in state["start"]]
    course.alarm = state["alarm"]
    course.best = {
        name: value.to(learner.roles.model.device) for name, value in state["best"].items()
    }
    course.lesson = None if state["lesson"] is None else Lesson(**state["lesson"])
    course.rollout = None if state["rollout"] is None else _rollout_of(run, state["rollout"])


def _rollout_of(run: Ppo, state: dict[str, Any]) -> Rollout:
    parts = state["tokens"].split(state["lengths"])
    replies = [Reply(ids.tolist(), ended) for ids, ended in zip(parts, state["ended"], strict=True)]
    asked = [run.asked[place] for place in state["asked"]]
    texts, k, temperature = state["texts"], state["k"], state["temperature"]
    return Rollout(asked, replies, texts, k, temperature, state["left_out"])


def show(
    job: Job,
    number: int,
    rollout: Rollout,
    said: Said | None,
    verdicts: Verdicts,
    scores: torch.Tensor,
) -> None:
    """Write the replies of the rollout at hand with the parts of their rewards, for readers.

    Rollouts that follow a look are kept, the others give way to the next. The KL is left empty
    where the roles were not asked (`said` is None).

    Args:
        job: its stage, and how often looks are made.
        number: of the rollout, from 0.
        rollout: its replies.
        said: of them by policy and reference.
        verdicts: of whoever rewards.
        scores: (C) one of each reply.
    """
    stage, every = job.stage, job.recipe.ppo.eval_every
    if not stage.is_main:
        return
    kl: list[float | None] = [None] * len(rollout.texts)
    if said is not None:
        far = ((said.policy - said.reference) * rollout.mask).sum(dim=1)
        kl = [round(value, 4) for value in far.tolist()]
    # Without those of this number: a rollout that was stopped is drawn again.
    kept = range(0, number, every or max(1, number))
    rows = [row for row in shown(stage) if row["rollout"] in kept]
    for i, text in enumerate(rollout.texts):
        known = bool(verdicts.known[i])
        rows.append(
            {
                "rollout": number,
                "prompt_id": rollout.asked[i // rollout.k].prompt.id,
                "risk": rollout.asked[i // rollout.k].prompt.risk,
                "reply": text,
                "quality": round(float(verdicts.quality[i]), 4) if known else None,
                "safe": bool(verdicts.safe[i]) if known else None,
                "score": round(float(scores[i]), 4) if known else None,
                "kl": kl[i],
                "ended": rollout.replies[i].ended,
            }
        )
    write_text(Path(stage.path(ROLLOUTS)), "".join(to_json(row) + "\n" for row in rows))


def shown(stage: Stage) -> list[dict[str, Any]]:
    """The rows that `show` wrote; none on other processes."""
    # Not splitlines, which also ends a line at characters that JSON leaves in a reply.
    return [json.loads(line) for line in text_of(stage, ROLLOUTS).split("\n") if line]


def table(stage: Stage, *, n: int = 48) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the first n replies of each rollout that was kept, for tracking."""
    each: dict[int, list[list[Any]]] = {}
    for row in shown(stage):
        each.setdefault(row["rollout"], []).append([row[name] for name in COLUMNS])
    return COLUMNS, [row for rows in each.values() for row in rows[:n]]
