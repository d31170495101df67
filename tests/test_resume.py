"""Stopped after any update and started again, a training ends as if it had never been stopped."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
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
from sft import checkpoints, resume, runs
from sft.candidates import Candidate
from sft.config import Recipe
from sft.data import Prompt
from sft.files import CheckFailed, ResultExists, StorageError
from sft.resume import Keeper
from sft.train import finetune
from sft.trainer_rules import RowOrder, TrainerRules
from sft.training_state import load_state, random_state, save_state, set_random_state

CLOCKS = {"time", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


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
TWICE = {"gradient_accumulation_steps": 2, "max_steps": -1, "num_train_epochs": 2}
CASES = {
    "finetune": ("finetune", TWICE | {"per_device_train_batch_size": 2}, {}),
    "finetune, packed": ("finetune", TWICE | PACKED | {"per_device_train_batch_size": 1}, {}),
    "finetune, dropout": ("finetune", TWICE, {"lora_dropout": 0.2}),
    "finetune, by length": ("finetune", TWICE | BY_LENGTH, {}),
    "dpo, tree": ("dpo", TWICE | {"per_device_train_batch_size": 1}, {}),
    "dpo, packs": (
        "dpo",
        TWICE | {"per_device_train_batch_size": 1, "tree_tokens": 150},
        {},
    ),
    "dpo, pairs": ("dpo", TWICE | {"per_device_train_batch_size": 1, "tree": False}, {}),
    "dpo, by length": ("dpo", TWICE | BY_LENGTH | {"per_device_train_batch_size": 1}, {}),
    "reward": ("reward", TWICE | {"per_device_train_batch_size": 1}, {}),
}


@pytest.fixture
def material(demonstrations, talks) -> dict[str, Any]:
    return {
        "demonstrations": demonstrations,
        "pairs": pairs_of(talks) + [p for p in pairs_of(talks[1:])],
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


@pytest.mark.parametrize("case", CASES)
def test_stopped_after_every_update_it_ends_as_if_never_stopped(
    case, model_folders, tmp_path, material, seen, monkeypatch, capsys
):
    kind, training, model = CASES[case]
    whole = make_recipe(model_folders["llama"], tmp_path / "whole", kind, training, model)
    summary = do(whole, kind, material)
    expected_rows, expected = dict(seen.rows), seen.states[0]
    assert len(expected_rows) >= 4
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
