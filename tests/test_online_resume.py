"""RLOO and GRPO that are stopped after any update, or by who rewards or judges, lose nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_online import METHODS, ByHash, job_for, logged, recipe_for, start
from test_resume import same

from rlaif import online, ppo_state
from rlaif.online_source import Asking
from rlaif.ppo_course import Job
from sft import checkpoints
from sft import model as models
from sft.files import CheckFailed, EvaluatorStopped, ResultExists
from sft.resume import Keeper
from sft.training_state import random_state

__all__ = ["start"]  # a fixture
SETTINGS: dict[str, Any] = {
    "iterations": 3, "num_ppo_epochs": 2, "safety": "lagrangian", "max_unsafe": 0.0,
    "per_device_train_batch_size": 1, "patience": 0,
}  # fmt: skip
UPDATES = 3 * 2 * 2


def make(folder: Path, home: Path, method: str, **more: Any) -> Job:
    """A course of three rollouts, four updates each, two micro-batches an update."""
    recipe = recipe_for(folder, home, method=method, **(SETTINGS | more))
    return job_for(recipe, home / "stage", ByHash())


def end(job: Job, start: Path) -> dict[str, Any]:
    """Train to the end; the adapter, the figures and what a checkpoint would hold."""
    states: list[dict[str, Any]] = []
    finalize = Asking._finalize_training

    def finalized(self: Any, *args: Any) -> Any:
        sums = self.sums()
        sums["metrics"].pop("step_time", None)
        states.append(
            {
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.lr_scheduler.state_dict(),
                "random": random_state(),
                "sums": sums,
                "course": self.course(),
            }
        )
        return finalize(self, *args)

    if not checkpoints.steps(job.stage.path(checkpoints.FOLDER)):
        for name in ("metrics.jsonl", ppo_state.ROLLOUTS):  # as the opening of the stage does
            job.stage.path(name).unlink(missing_ok=True)
    torch.rand(7)  # the random numbers of another process are elsewhere
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Asking, "_finalize_training", finalized)
        summary = online.train_online(job, start, None)
    return {
        "summary": summary,
        "adapter": models.adapter_weights(job.stage.path("adapter")),
        "metrics": logged(job),
        "rollouts": job.stage.path(ppo_state.ROLLOUTS).read_text(encoding="utf-8"),
    } | {"states": states[-1:]}


@METHODS
def test_stopped_after_every_update_it_ends_as_if_never_stopped(
    model_folders, start, tmp_path, method, monkeypatch
):
    folder = model_folders["llama"]
    whole = end(make(folder, tmp_path / "whole", method), start)
    assert whole["summary"]["iterations"] == 3
    prices = [row["safety/multiplier"] for row in whole["metrics"] if "safety/multiplier" in row]
    assert prices[-1] > 0
    been: set[int] = set()
    decide = Keeper.on_step_end

    def stopping(self, args, state, control, **kwargs):
        if state.global_step not in been:
            been.add(state.global_step)
            os.kill(os.getpid(), signal.SIGTERM)
        decide(self, args, state, control, **kwargs)

    monkeypatch.setattr(Keeper, "on_step_end", stopping)
    for step in range(1, UPDATES + 1):
        with pytest.raises(SystemExit):
            end(make(folder, tmp_path / "cut", method, save_every=0), start)
        assert max(been) == step
        shown = checkpoints.steps(tmp_path / "cut" / "stage" / checkpoints.FOLDER)
        assert max(shown) == step
    found = end(make(folder, tmp_path / "cut", method, save_every=0), start)
    assert found.pop("states") == []  # the last stop came after the last update
    last = whole.pop("states")
    assert [name for name in whole if not same(whole[name], found[name])] == []
    # One stop amid a rollout, so that the state at the end is one that a run came to.
    been.clear()
    been.update(set(range(1, UPDATES + 1)) - {UPDATES - 2})
    with pytest.raises(SystemExit):
        end(make(folder, tmp_path / "once", method, save_every=0), start)
    once = end(make(folder, tmp_path / "once", method, save_every=0), start)
    assert same(once.pop("states"), last)
    assert [name for name in whole if not same(whole[name], once[name])] == []


def giving_up(job: Job, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have who rewards, or the judge ("judge-2"), stop at a rollout or a look by its number."""
    who = job.judge.evaluator if where.startswith("judge") else job.evaluator
    assess, method = who.assess, job.recipe.ppo.method
    out = f"{method}-{where.removeprefix('judge-')}" if "look" not in where else where

    def failing(prompt, candidates):
        if candidates[0].model == out:
            raise EvaluatorStopped("no credit is left")
        return assess(prompt, candidates)

    monkeypatch.setattr(who, "assess", failing)


@pytest.mark.parametrize(
    ("method", "where"),
    [
        *(("rloo", where) for where in ("0", "look-1", "judge-1", "look-3")),
        *(("grpo", where) for where in ("judge-2", "2")),
        *(
            pytest.param(method, where, marks=pytest.mark.slow)
            for method, where in (
                *(("rloo", where) for where in ("look-0", "1", "2")),
                *(("grpo", where) for where in ("judge-0", "look-2", "judge-3")),
            )
        ),
    ],
)
def test_who_rewards_or_judges_may_stop_it_anywhere(
    model_folders, start, tmp_path, method, where, monkeypatch
):
    """A rollout or a look that fails is made again, and no update is lost."""
    folder = model_folders["llama"]
    whole = end(make(folder, tmp_path / "whole", method), start)
    job = make(folder, tmp_path / "cut", method, save_every=0)
    giving_up(job, where, monkeypatch)
    with pytest.raises(EvaluatorStopped):
        end(job, start)
    again = make(folder, tmp_path / "cut", method, save_every=0)
    found = end(again, start)
    rolled = {model for model, _, _ in again.evaluator.asked if "look" not in model}
    first = int(where.rpartition("-")[2])
    assert rolled == {f"{method}-{n}" for n in range(first, 3)}
    if first == 3:  # the course was over: nothing was trained, and no time of training is told
        assert found["states"] == [] != whole.pop("states")
        whole["metrics"].pop()
    assert [name for name in whole if not same(whole[name], found[name])] == []


@pytest.mark.parametrize("step", [0, 4, pytest.param(6, marks=pytest.mark.slow)])
def test_no_number_costs_no_update(model_folders, start, tmp_path, step, monkeypatch):
    """In the first update of a rollout, too, for which the price of unsafe replies has moved."""
    folder = model_folders["llama"]
    whole = end(make(folder, tmp_path / "whole", "rloo"), start)
    plain = online.RLOOTrainer._compute_loss

    def broken(self, *args, **kwargs):
        loss = plain(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == step else loss

    with monkeypatch.context() as patch:
        patch.setattr(online.RLOOTrainer, "_compute_loss", broken)
        with pytest.raises(CheckFailed, match=f"Rollout {step // 4 + 1}"):
            end(make(folder, tmp_path / "cut", "rloo", save_every=0), start)
    found = end(make(folder, tmp_path / "cut", "rloo", save_every=0), start)
    assert [name for name in whole if not same(whole[name], found[name])] == []


def test_a_signal_amid_a_look_ends_the_run_after_it(model_folders, start, tmp_path, monkeypatch):
    folder = model_folders["llama"]
    whole = end(make(folder, tmp_path / "whole", "rloo"), start)
    job = make(folder, tmp_path / "cut", "rloo", save_every=0)
    assess = job.evaluator.assess

    def signalled(prompt, candidates):
        if candidates[0].model == "look-1":
            os.kill(os.getpid(), signal.SIGTERM)
        return assess(prompt, candidates)

    monkeypatch.setattr(job.evaluator, "assess", signalled)
    with pytest.raises(SystemExit):
        end(job, start)
    again = make(folder, tmp_path / "cut", "rloo", save_every=0)
    found = end(again, start)
    assert {model for model, _, _ in again.evaluator.asked} == {
        "rloo-1",
        "rloo-2",
        "look-2",
        "look-3",
    }
    assert [name for name in whole if not same(whole[name], found[name])] == []


def test_other_prompts_are_refused(model_folders, start, tmp_path, monkeypatch):
    folder = model_folders["llama"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "on_train_end", lambda *args, **kwargs: None)
        end(make(folder, tmp_path, "rloo", save_every=1), start)
    monkeypatch.setattr("test_online.PROMPTS", job_for.__globals__["PROMPTS"][1:])
    with pytest.raises(ResultExists, match="rows"):
        end(make(folder, tmp_path, "rloo", save_every=1), start)


def test_an_alarm_ends_a_course_that_was_stopped_by_it(model_folders, start, tmp_path, monkeypatch):
    """Also where the look that raises it is made after a stop."""
    monkeypatch.setattr(
        "rlaif.watch.over_optimised", lambda looks, patience: "over" if len(looks) > 2 else None
    )
    folder = model_folders["llama"]
    whole = end(make(folder, tmp_path / "whole", "grpo"), start)
    assert whole["summary"]["iterations"] == 2 and whole["summary"]["alarm"] == "over"
    job = make(folder, tmp_path / "cut", "grpo", save_every=0)
    giving_up(job, "look-2", monkeypatch)
    with pytest.raises(EvaluatorStopped):
        end(job, start)
    found = end(make(folder, tmp_path / "cut", "grpo", save_every=0), start)
    assert same(found["adapter"], whole["adapter"])
    assert found["summary"] == whole["summary"] and found["states"] == []
