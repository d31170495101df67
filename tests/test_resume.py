"""Stopped after any update and started again, a training ends as if it had never been stopped."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from safetensors.torch import load_file
from test_training import pairs_of, recipe_for
from transformers.trainer_pt_utils import LengthGroupedSampler

from reward.comparisons import Question
from reward.evaluator import Assessment
from reward.pairing import Judged
from reward.train import fit_reward
from rlaif import dpo
from sft import checkpoints, runs
from sft.candidates import Candidate
from sft.config import Recipe
from sft.data import Prompt
from sft.files import CheckFailed, ResultExists, StorageError, read_json
from sft.train import finetune
from sft.trainer_rules import Guard, RowOrder, TrainerRules
from sft.training_state import load_state, random_state, save_state, set_random_state

CLOCKS = {"time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> Iterator[None]:
    """accelerate collects garbage at each start, which takes a second with all libraries loaded."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@dataclass
class Seen:
    """What a training passed through, kept in lists over all its starts."""

    rows: dict[int, list[int]] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Keep the rows of each update and the whole state at the end of a training."""
    kept = Seen()
    step, rewind = TrainerRules.training_step, TrainerRules._finalize_training

    def training_step(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        kept.rows[self.state.global_step] = self.update_rows[1]
        return loss

    def finalize(self, *args, **kwargs):
        kept.states.append(
            {
                "weights": {n: w.detach().clone() for n, w in self.model.named_parameters()},
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.lr_scheduler.state_dict(),
                "scaler": self.accelerator.scaler and self.accelerator.scaler.state_dict(),
                "random": random_state(),
                "sums": self.sums(),
            }
        )
        return rewind(self, *args, **kwargs)

    monkeypatch.setattr(TrainerRules, "training_step", training_step)
    monkeypatch.setattr(TrainerRules, "_finalize_training", finalize)
    return kept


def same(one: Any, two: Any) -> bool:
    """Equal to the bit, through any nesting."""
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


# --- the trainings -----------------------------------------------------------------------------


def questions(talks) -> list[Question]:
    """Ten prompts with three judged replies each."""
    made = []
    for i in range(10):
        said = [{**talks[i % 3][0], "content": f"{talks[i % 3][0]['content']} {i} {i * i}"}]
        prompt = Prompt(f"p{i}", said, "test", "sleep", "none", "train")
        replies = []
        for j in range(3):
            text = f"{talks[j][-1]['content']} {i}"
            candidate = Candidate(f"c{i}-{j}", f"p{i}", text, "m", 1.0, 1.0, j, "eos")
            quality, safe = 0.2 + 0.3 * ((i + j) % 3), (i + j) % 3 > 0
            verdict = ({}, quality, safe, [], "", "judge", "r@1", None)
            replies.append(Judged(candidate, Assessment(candidate.id, f"p{i}", *verdict)))
        made.append(Question(prompt, replies))
    return made


def do(recipe: Recipe, kind: str, material: dict[str, Any]) -> dict[str, Any]:
    """Run a training stage; its summary."""
    name = {"finetune": "finetune", "reward": "reward"}.get(kind, "dpo")
    config = recipe.settings("seed", "model", name)
    with runs.open_stage(recipe, name, config=config, inputs={}) as stage:
        if stage.reused:
            return stage.manifest["summary"]
        if name == "finetune":
            summary = finetune(recipe, material["demonstrations"], stage)
        elif name == "reward":
            summary = fit_reward(recipe, material["questions"], [], None, stage).summary
        else:
            summary = dpo.train_dpo(recipe, material["pairs"], None, stage)
        stage.finish(["adapter"], **summary)
    return summary


PACKED = {"trainer": {"packing": True, "max_length": 120}}
BY_LENGTH = {"trainer": {"train_sampling_strategy": "group_by_length"}}
ONE = {"per_device_train_batch_size": 1}
TWICE = {"gradient_accumulation_steps": 2, "max_steps": -1, "num_train_epochs": 2}
CASES = {
    "finetune": ("finetune", TWICE, {"lora_dropout": 0.2}),
    "finetune, loss scaling": ("finetune", TWICE, {}),
    "finetune, packed": ("finetune", TWICE | PACKED | ONE, {}),
    "finetune, by length": ("finetune", TWICE | BY_LENGTH, {}),
    "dpo, tree": ("dpo", TWICE | ONE, {}),
    "dpo, packs by length": ("dpo", TWICE | ONE | BY_LENGTH | {"tree_tokens": 150}, {}),
    "dpo, pairs": ("dpo", TWICE | ONE | {"tree": False}, {}),
    "reward": ("reward", TWICE | ONE, {}),
}


@pytest.fixture
def material(demonstrations, talks) -> dict[str, Any]:
    return {
        "demonstrations": demonstrations,
        "pairs": pairs_of(talks * 2),
        "questions": questions(talks),
    }


def make_recipe(folder: Path, home: Path, kind: str, training, model, **more: Any) -> Recipe:
    """Logs fall between updates, so that sums cross a stop."""
    training = {"learning_rate": 1e-2, "warmup_steps": 2, "logging_steps": 3} | training
    made = recipe_for(folder, home, **({kind: training} if kind != "reward" else {}), model=model)
    plain = made.model_dump()
    if kind == "reward":
        plain["reward"] |= training | {"report_share": 0.3}
    return Recipe.model_validate(plain | more)


def scale_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16's scaler, whose scale grows, on a CPU in float32."""
    make = TrainerRules.create_accelerator_and_postprocess

    def with_scaler(self):
        make(self)
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=2)

    monkeypatch.setattr(TrainerRules, "create_accelerator_and_postprocess", with_scaler)


@pytest.mark.parametrize("case", CASES)
def test_stopped_after_every_update_it_ends_as_if_never_stopped(
    case, model_folders, tmp_path, material, seen, monkeypatch, capsys
):
    kind, training, model = CASES[case]
    if "scaling" in case:
        scale_losses(monkeypatch)
    whole = make_recipe(model_folders["llama"], tmp_path / "whole", kind, training, model)
    summary = do(whole, kind, material)
    expected_rows, expected = dict(seen.rows), seen.states[0]
    assert len(expected_rows) >= 4
    assert ("scaling" in case) == (
        expected["scaler"] is not None and expected["scaler"]["scale"] > 2
    )
    seen.rows.clear()
    # A signal amid each update, so that each start does one update.
    step, at = TrainerRules.training_step, []

    def stopped(self, *args, **kwargs):
        at.append(self.state.global_step)
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    cut = make_recipe(
        model_folders["llama"], tmp_path / "cut", kind, training | {"save_every": 0}, model
    )
    monkeypatch.setattr(TrainerRules, "training_step", stopped)
    for number in range(len(expected_rows)):
        random.seed(number), np.random.seed(number), torch.manual_seed(number)
        with pytest.raises(SystemExit) as ended:
            do(cut, kind, material)
        assert ended.value.code == 143
        assert at[-1] == number
        assert f"step {number}\n" in capsys.readouterr().out or number == 0
    monkeypatch.setattr(TrainerRules, "training_step", None)  # the end was saved: nothing is left
    again = do(cut, kind, material)
    assert seen.rows == expected_rows
    assert same(seen.states[-1], expected)
    folders = [tmp_path / name / "t" / kind for name in ("whole", "cut")]
    files = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in folders]
    assert same(*files)
    if kind == "reward":
        assert same(*(load_file(f / "adapter" / "reward_head.safetensors") for f in folders))
    assert metrics(folders[1]) == metrics(folders[0])
    assert again == summary
    assert not (folders[1] / checkpoints.FOLDER).exists()


# --- other ends --------------------------------------------------------------------------------


def finetune_recipe(folder: Path, home: Path, training=None, **more: Any) -> Recipe:
    training = TWICE | {"save_every": 1} | (training or {})
    return make_recipe(folder, home, "finetune", training, {"lora_dropout": 0.2}, **more)


class Crash(BaseException):
    """The process is gone, with no time for anything."""


def crash_at(monkeypatch: pytest.MonkeyPatch, micro_batch: int) -> None:
    """Crash after the forward and backward pass of that micro-batch of a start."""
    step, passed = TrainerRules.training_step, []

    def crashing(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        passed.append(loss)
        if len(passed) > micro_batch:
            raise Crash
        return loss

    monkeypatch.setattr(TrainerRules, "training_step", crashing)


def exported(home: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(
        home / "t" / "finetune" / "adapter" / "adapter_model.safetensors"
    )
    return found


def test_killed_at_any_micro_batch_it_goes_on_from_the_last_checkpoint(
    model_folders, tmp_path, material, seen, monkeypatch, capsys
):
    do(finetune_recipe(model_folders["llama"], tmp_path / "whole"), "finetune", material)
    rows = dict(seen.rows)
    home = tmp_path / "cut"
    cut = finetune_recipe(model_folders["llama"], home, {"save_every": 2})
    for micro_batch in (0, 1, 2, 3, 4, 2, 3, 0, 4):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            crash_at(patch, micro_batch)
            do(cut, "finetune", material)
        assert len(list((home / "t/finetune").glob("checkpoints/step-*"))) <= checkpoints.KEEP
    do(cut, "finetune", material)
    assert "step 4\n" in capsys.readouterr().out
    assert seen.rows == rows
    assert same(exported(home), exported(tmp_path / "whole"))
    assert metrics(home / "t/finetune") == metrics(tmp_path / "whole/t/finetune")


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    model_folders, tmp_path, material, monkeypatch, capsys, damage
):
    do(finetune_recipe(model_folders["llama"], tmp_path / "whole"), "finetune", material)
    home = tmp_path / "cut"
    cut = finetune_recipe(model_folders["llama"], home)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, 6)
        do(cut, "finetune", material)
    newest = home / "t/finetune/checkpoints/step-00000003"
    for name in ("state.safetensors", "process-0.safetensors"):
        held = bytearray((newest / name).read_bytes())
        held = held[:-1] if damage == "truncated" else held[:-1] + bytes([held[-1] ^ 1])
        (newest / name).write_bytes(held)
    capsys.readouterr()
    do(cut, "finetune", material)
    said = capsys.readouterr().out
    assert "checkpoints/step-00000002, step 2\n" in said
    assert "passed over: step-00000003: process-0.safetensors " in said
    assert same(exported(home), exported(tmp_path / "whole"))
    assert metrics(home / "t/finetune") == metrics(tmp_path / "whole/t/finetune")


def test_other_settings_or_rows_are_refused_until_told_to_start_again(
    model_folders, tmp_path, material, monkeypatch, capsys
):
    folder = model_folders["llama"]
    recipe = finetune_recipe(folder, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, 3)
        do(recipe, "finetune", material)
    held = read_json(tmp_path / "t/finetune/manifest.json")
    other = finetune_recipe(folder, tmp_path, {"weight_decay": 0.1})
    with pytest.raises(ResultExists, match=r"finetune\.weight_decay: 0\.0 there, 0\.1 now") as told:
        do(other, "finetune", material)
    assert "--resume never" in str(told.value)
    assert read_json(tmp_path / "t/finetune/manifest.json") == held
    fewer = material | {"demonstrations": material["demonstrations"][:-1]}
    with pytest.raises(ResultExists, match="rows: "):
        do(recipe, "finetune", fewer)
    # How often to save is no other result.
    seldom = finetune_recipe(folder, tmp_path, {"save_every": 50})
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, 0)
        do(seldom, "finetune", material)
    assert "step 1\n" in capsys.readouterr().out
    # Overwriting means results: what was begun under these settings goes on.
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, 0)
        do(finetune_recipe(folder, tmp_path, overwrite=True), "finetune", material)
    assert "step 1\n" in capsys.readouterr().out
    changed = {"weight_decay": 0.1}
    for training, more in ((changed, {"overwrite": True}), (changed, {"resume": "never"})):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            crash_at(patch, 3)
            do(finetune_recipe(folder, tmp_path, training, **more), "finetune", material)
        assert "starting afresh" in capsys.readouterr().out
    do(finetune_recipe(folder, tmp_path, changed), "finetune", material)
    do(finetune_recipe(folder, tmp_path, changed | {"save_every": 7}), "finetune", {})
    assert "reused" in capsys.readouterr().out


def test_a_disk_that_fills_amid_training_keeps_the_checkpoint_before(
    model_folders, tmp_path, material, monkeypatch
):
    do(finetune_recipe(model_folders["llama"], tmp_path / "whole"), "finetune", material)
    home, sync, full = tmp_path / "cut", os.fsync, OSError(28, "No space left on device")

    def fsync(descriptor):
        if (home / "t/finetune/checkpoints/step-00000002").is_dir():
            raise full
        sync(descriptor)

    cut = finetune_recipe(model_folders["llama"], home)
    with monkeypatch.context() as patch, pytest.raises(StorageError) as ended:
        patch.setattr(os, "fsync", fsync)
        do(cut, "finetune", material)
    assert ended.value.exit_code == 6
    names = os.listdir(home / "t/finetune/checkpoints")
    assert sorted(names) == ["step-00000001", "step-00000002"]
    do(cut, "finetune", material)
    assert same(exported(home), exported(tmp_path / "whole"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stops_before_the_update_and_names_the_rows(
    model_folders, tmp_path, material, monkeypatch, where, value, packed
):
    training = {"trainer": {"packing": True, "max_length": 120}} if packed else {}
    recipe = finetune_recipe(model_folders["llama"], tmp_path, training)
    compute, seen = TrainerRules.compute_loss, []

    def poisoned(self, model, inputs, *args, **kwargs):
        loss = compute(self, model, inputs, *args, **kwargs)
        seen.append((self, self.batch_rows))
        if self.state.global_step != 1:
            return loss
        if where == "loss":
            return loss * value
        last = [each for each in model.parameters() if each.requires_grad][-1]
        last.register_hook(lambda gradient: gradient * value)
        return loss

    monkeypatch.setattr(TrainerRules, "compute_loss", poisoned)
    with pytest.raises(CheckFailed, match=r"(the loss|a gradient) became .* in step 2") as told:
        do(recipe, "finetune", material)
    assert where in str(told.value)
    assert "stopped before the update" in str(told.value)
    trainer, rows = seen[-1]
    bad = rows if where == "loss" else [n for _, some in seen[2:] for n in some]
    assert f"Rows {', '.join(map(str, bad))} (" in str(told.value)
    for number in bad:
        assert all(each in str(told.value) for each in trainer.train_dataset[number]["ids"])
    saved = load_file(tmp_path / "t/finetune/checkpoints/step-00000001/weights.safetensors")
    now = {n: w.detach() for n, w in trainer.model.named_parameters() if w.requires_grad}
    assert same(saved, now)
    spoken = [m["content"] for row in material["demonstrations"] for m in row.completion]
    assert not any(text in str(told.value) for text in spoken)


def test_fp16s_scaler_may_leave_out_an_update_and_lower_its_scale():
    class Fake:
        pass

    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, float("inf")])
    trainer, state = Fake(), Fake()
    trainer.model, trainer.accelerator, state.global_step = Fake(), Fake(), 4
    trainer.model.parameters = lambda: iter([weight])
    trainer.where = lambda *, update: "Rows [7]" if update else ""
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.accelerator.scaler.scale(torch.ones(()))
    Guard(trainer).on_pre_optimizer_step(None, state, None)
    trainer.accelerator.scaler.update(1.0)
    with pytest.raises(CheckFailed, match=r"became inf in step 5.*Rows \[7\]"):
        Guard(trainer).on_pre_optimizer_step(None, state, None)


# --- parts -------------------------------------------------------------------------------------


def test_the_order_of_rows_is_that_of_transformers_and_accelerate():
    theirs = SeedableRandomSampler(range(50), data_seed=11)
    lengths = torch.randint(5, 90, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    draw = torch.Generator().manual_seed(11)
    grouped = LengthGroupedSampler(8, lengths=lengths, generator=draw)
    mine, by_length = RowOrder(11, 50, None, 8), RowOrder(11, 50, lengths, 8)
    for epoch in range(3):
        theirs.set_epoch(epoch)
        assert list(mine) == list(theirs) == RowOrder(11, 50, None, 8).of(epoch)
        assert list(by_length) == list(grouped) == RowOrder(11, 50, lengths, 8).of(epoch)


def test_a_state_comes_back_to_the_bit(tmp_path):
    shared = torch.rand(3)
    state = {
        0: {"step": torch.tensor(7.0), "half": torch.rand(2, 3).to(torch.bfloat16)},
        "twice": [shared, shared, shared[:2]],
        "bytes": torch.tensor([1, 255], dtype=torch.uint8),
        "numbers": [0.1, 1e-300, float("inf"), 3, True, None, "text", [], {}],
        "random": random_state(),
    }
    save_state(tmp_path / "state", state)
    assert same(load_state(tmp_path / "state"), state)
    found = load_state(tmp_path / "state")["random"]
    drawn = random.gauss(0, 1), np.random.normal(), torch.rand(2)
    set_random_state(found)
    assert same(drawn, (random.gauss(0, 1), np.random.normal(), torch.rand(2)))
    with pytest.raises(TypeError, match="/model: Linear has no place in a checkpoint"):
        save_state(tmp_path / "state", {"model": torch.nn.Linear(1, 1)})
