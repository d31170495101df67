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
from sft.files import EvaluatorStopped, ResultExists
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


@METHODS
@pytest.mark.parametrize("where", ["look-0", "look-1", "1", "look-2", "2", "look-3"])
def test_who_rewards_or_judges_may_stop_it_anywhere(
    model_folders, start, tmp_path, method, where, monkeypatch
):
    """A rollout or a look that fails is made again, and no update is lost."""
    folder = model_folders["llama"]
    whole = end(make(folder, tmp_path / "whole", method), start)
    job = make(folder, tmp_path / "cut", method, save_every=0)
    assess = job.evaluator.assess
    out = where if where.startswith("look") else f"{method}-{where}"
    asked: list[str] = []

    def failing(prompt, candidates):
        asked.append(candidates[0].model)
        if candidates[0].model == out:
            raise EvaluatorStopped("no credit is left")
        return assess(prompt, candidates)

    monkeypatch.setattr(job.evaluator, "assess", failing)
    with pytest.raises(EvaluatorStopped):
        end(job, start)
    again = make(folder, tmp_path / "cut", method, save_every=0)
    found = end(again, start)
    rolled = {model for model, _, _ in again.evaluator.asked if "look" not in model}
    first = 0 if where == "look-0" else int(where.removeprefix("look-"))
    assert rolled == {f"{method}-{n}" for n in range(first, 3)}
    last = where == "look-3"
    for name in whole:
        if last and name in ("states", "metrics"):  # the course was over: nothing was trained
            continue
        assert same(whole[name], found[name]), name


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
    assess = job.evaluator.assess

    def failing(prompt, candidates):
        if candidates[0].model == "look-2":
            raise EvaluatorStopped("no credit is left")
        return assess(prompt, candidates)

    monkeypatch.setattr(job.evaluator, "assess", failing)
    with pytest.raises(EvaluatorStopped):
        end(job, start)
    found = end(make(folder, tmp_path / "cut", "grpo", save_every=0), start)
    assert same(found["adapter"], whole["adapter"])
    assert found["summary"] == whole["summary"] and found["states"] == []
