"""RLOO and GRPO by TRL's trainers on a tiny model: lineage, prompts, scores, what is kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TALKS
from test_resume import CLOCKS

from reward.evaluator import Assessment
from rlaif import online, ppo_state
from rlaif.evaluate import EvaluatorJudge
from rlaif.online_source import Source
from rlaif.ppo_course import Job
from rlaif.ppo_reward import Verdicts
from rlaif.roles import Roles
from rlaif.rollout import fitting
from sft import model as models
from sft.candidates import Candidate
from sft.config import Recipe
from sft.data import Prompt
from sft.files import CheckFailed, UserError
from sft.runs import Stage
from sft.train import snapshot

PROMPTS = [
    Prompt(f"p{i}", [{"role": "user", "content": f"{talk[0]['content']} {i}"}],
           "test", "sleep", "none", "train")
    for i, talk in enumerate(TALKS * 2)
]  # fmt: skip
HELD_OUT = [
    Prompt(f"h{i}", p.messages, "test", "sleep", "none", "held_out")
    for i, p in enumerate(PROMPTS[3:])
]
METHODS = pytest.mark.parametrize("method", ["rloo", "grpo"])


class ByHash:
    """Grades replies by a hash of their text, remembers them, and does not judge some."""

    name, rubric = "hash", "hash@1"

    def __init__(self, silent: int = 0) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.silent = silent

    def assess(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Assessment]:
        found = []
        for i, each in enumerate(candidates):
            self.asked.append((each.model, prompt.id, each.text))
            drawn = hashlib.sha256(each.text.encode()).digest()
            held = i < self.silent and not each.model.endswith("-look")
            quality, safe = (None, None) if held else (drawn[0] / 255, drawn[1] > 60)
            reason = "refused" if held else None
            found.append(Assessment(each.id, prompt.id, {}, quality, safe, [], "", self.name,
                                    self.rubric, reason))  # fmt: skip
        return found


def recipe_for(folder: Path, runs_dir: Path, **settings: object) -> Recipe:
    """Float32 on the CPU: two rollouts of four prompts with three replies, two updates each."""
    model = {"name_or_path": str(folder), "dtype": "float32", "system_prompt": "none",
             "max_length": 120, "lora_r": 4} | settings.pop("model", {})  # type: ignore[operator]  # fmt: skip
    score = settings.pop("score", {})
    section: dict[str, object] = {
        "method": "rloo", "iterations": 2, "prompts_per_iteration": 4, "num_return_sequences": 3,
        "num_mini_batches": 2, "num_ppo_epochs": 1, "per_device_train_batch_size": 2,
        "max_new_tokens": 6, "learning_rate": 1e-2, "warmup_steps": 0, "n_validation": 3,
        "eval_every": 1, "missing_eos_penalty": 0.1, "batch_size": 6,
    }  # fmt: skip
    short = {"max_new_tokens": 6}
    tree = {"run": "r", "runs_dir": str(runs_dir), "use_cpu": True, "model": model, "score": score}
    return Recipe.model_validate(
        tree | {"ppo": section | settings, "generate": short, "evaluate": short}
    )


@pytest.fixture
def start(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """An adapter that says something else than the base."""
    section = recipe_for(model_folders["llama"], tmp_path).model
    made = models.new_adapter(
        models.load_base(section, models.choose_precision("float32", use_cpu=True)), section
    )
    torch.manual_seed(1)
    for name, value in made.named_parameters():
        if "lora_" in name:
            value.data = 0.05 * torch.randn_like(value)
    models.save_adapter(made, tmp_path / "start", str(model_folders["llama"]))
    return tmp_path / "start"


def job_for(recipe: Recipe, folder: Path, evaluator: ByHash) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"config": recipe.settings("seed", "model", "ppo"), "inputs": {}}
    stage = Stage(folder, manifest, reused=False, is_main=True)
    return Job(recipe, PROMPTS, HELD_OUT, evaluator, EvaluatorJudge(ByHash()), stage)


def trainer_for(job: Job, start: Path | None, rows: Sequence[int] = (0, 1, 2, 3) * 2) -> Any:
    """A trainer on the prompts of these numbers."""
    roles = Roles(job.recipe, start, None, 1.0)
    source = Source(job, roles, fitting(roles.chat, PROMPTS, 6))
    return online.make_trainer(source, rows, fitting(roles.chat, HELD_OUT, 6))


def logged(job: Job) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, without what a clock says."""
    lines = job.stage.path("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    clocks = {*CLOCKS, "step_time"}
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]


@METHODS
def test_it_learns_from_the_start_and_keeps_the_best_look(model_folders, start, tmp_path, method):
    recipe = recipe_for(model_folders["llama"], tmp_path, method=method)
    evaluator = ByHash()
    job = job_for(recipe, tmp_path / "stage", evaluator)
    summary = online.train_online(job, start, None)
    assert summary["iterations"] == 2
    assert summary["kept"]["iteration"] in (1, 2)
    kept, begin = (
        models.adapter_weights(tmp_path / "stage" / "adapter"),
        models.adapter_weights(start),
    )
    assert all(not torch.equal(kept[name], begin[name]) for name in begin)
    assert all(value.dtype == torch.float32 for value in kept.values())
    lines = logged(job)
    kl = [row["kl"] for row in lines if "kl" in row]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert any(row.get("safety/unsafe") is not None and "reward" in row for row in lines)
    looks = [row for row in lines if "eval/unsafe" in row]
    assert len(looks) == 3
    assert looks[0]["eval/win_rate"] == 0.5 and looks[0]["eval/kl"] == pytest.approx(0, abs=1e-4)
    assert looks[-1]["eval/kl"] != 0


@METHODS
def test_whoever_rewards_reads_what_the_policy_wrote(model_folders, start, tmp_path, method):
    """Each rollout's prompts in PPO's order, three replies to each, as `sft.chat` reads them."""
    recipe = recipe_for(model_folders["llama"], tmp_path, method=method, eval_every=0)
    evaluator = ByHash()
    job = job_for(recipe, tmp_path / "stage", evaluator)
    trainer = trainer_for(job, start, [0, 1, 2, 3, 4, 5, 0, 1])
    source = trainer.source
    trainer.looks.due = lambda step: False
    assert set(trainer.eos_token_ids) == source.stops
    seen: list[torch.Tensor] = []
    plain = trainer._generate_and_score_completions

    def spy(inputs):
        made = plain(inputs)
        for row, mask in zip(made["prompt_ids"], made["prompt_mask"], strict=True):
            seen.append(row[mask.bool()].tolist())
        return made

    trainer._generate_and_score_completions = spy
    trainer.train()
    asked = [(model, prompt) for model, prompt, _ in evaluator.asked]
    wanted = [(f"{method}-{n}", f"p{i}") for n, rows in enumerate(((0, 1, 2, 3), (4, 5, 0, 1)))
              for i in rows for _ in range(3)]  # fmt: skip
    assert asked == wanted
    ids = {each.prompt.id: each.ids for each in source.asked}
    assert seen == [ids[prompt] for _, prompt in wanted]
    shown = [json.loads(line) for line in (tmp_path / "stage" / "rollouts.jsonl").open()]
    assert [row["reply"] for row in shown] == [text for _, _, text in evaluator.asked]
    assert [row["rollout"] for row in shown] == [0] * 12 + [1] * 12


def test_rollouts_after_a_look_stay_for_readers(model_folders, start, tmp_path):
    recipe = recipe_for(model_folders["llama"], tmp_path, iterations=4, eval_every=2)
    job = job_for(recipe, tmp_path / "stage", ByHash())
    online.train_online(job, start, None)
    assert [row["rollout"] for row in ppo_state.shown(job.stage)] == [0] * 12 + [2] * 12 + [3] * 12
    columns, rows = ppo_state.table(job.stage, n=5)
    assert [row[columns.index("rollout")] for row in rows] == [0] * 5 + [2] * 5 + [3] * 5


def test_what_ends_a_line_elsewhere_ends_none_of_a_rollout(model_folders, start, tmp_path):
    job = job_for(recipe_for(model_folders["llama"], tmp_path), tmp_path / "stage", ByHash())
    asked = [SimpleNamespace(prompt=PROMPTS[0])]
    rollout = SimpleNamespace(asked=asked, texts=["one\u2028two\x85"], k=1,
                              replies=[SimpleNamespace(ended=True)])  # fmt: skip
    verdicts = Verdicts(torch.ones(1), torch.ones(1, dtype=bool), torch.ones(1, dtype=bool), {})
    for number in range(2):
        ppo_state.show(job, number, rollout, None, verdicts, torch.ones(1))
    assert [row["reply"] for row in ppo_state.shown(job.stage)] == rollout.texts * 2


@METHODS
def test_a_reply_without_a_verdict_has_no_advantage_and_is_not_logged(
    model_folders, start, tmp_path, method, caplog
):
    recipe = recipe_for(
        model_folders["llama"], tmp_path, method=method, score={"max_unscored": 0.5}, kl_coef=0.0
    )
    job = job_for(recipe, tmp_path / "stage", ByHash(silent=1))
    trainer = trainer_for(job, start)
    rows = [{"prompt": str(i)} for i in range(4) for _ in range(3)]
    trainer.model.train()
    with caplog.at_level(logging.DEBUG):
        made = trainer._generate_and_score_completions(rows)
    advantages = made["advantages"].view(4, 3)
    assert torch.equal(advantages[:, 0], torch.zeros(4))
    assert (advantages[:, 1:].abs() > 0).any()
    # The others are compared with each other alone: their advantages cancel.
    assert advantages[:, 1:].sum(dim=1).abs().max() < 1e-4
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "sleep" not in said and "exams" not in said


@METHODS
def test_too_many_replies_without_a_verdict_end_the_run(model_folders, start, tmp_path, method):
    recipe = recipe_for(model_folders["llama"], tmp_path, method=method)
    job = job_for(recipe, tmp_path / "stage", ByHash(silent=1))
    with pytest.raises(CheckFailed, match="refused"):
        online.train_online(job, start, None)


@METHODS
@pytest.mark.parametrize("from_base", [True, False])
def test_before_the_first_step_policy_and_reference_are_one(
    model_folders, start, tmp_path, method, from_base
):
    """Law 5, in both ways of computing it: this project's and TRL's."""
    recipe = recipe_for(model_folders["llama"], tmp_path, method=method)
    job = job_for(recipe, tmp_path / "stage", ByHash())
    trainer = trainer_for(job, None if from_base else start)
    roles = trainer.source.roles
    assert trainer.looks.look(0).kl == 0.0
    seen = []
    plain = trainer.training_step

    def step(*args, **kwargs):
        loss = plain(*args, **kwargs)
        seen.extend(trainer._metrics["train"]["kl"])
        return loss

    trainer.training_step = step
    begin = {name: value.detach().clone() for name, value in roles.model.named_parameters()}
    trainer.train()
    assert seen[0] == pytest.approx(0.0, abs=1e-7)
    for name, value in roles.model.named_parameters():
        assert torch.equal(value, begin[name]) != (".default." in name), name


def test_a_4_bit_base_keeps_float32_adapters(model_folders, start, tmp_path):
    recipe = recipe_for(model_folders["llama"], tmp_path, model={"load_in_4bit": True})
    job = job_for(recipe, tmp_path / "stage", ByHash())
    roles = Roles(recipe, start, None, 1.0)
    before = snapshot(roles.model)
    source = Source(job, roles, fitting(roles.chat, PROMPTS, 6))
    held_out = fitting(roles.chat, HELD_OUT, 6)
    trainer = online.make_trainer(source, [0, 1, 2, 3] * 2, held_out)
    after = snapshot(roles.model)
    assert all(value.dtype == torch.float32 for value in after.values())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert trainer.looks.look(0).kl == 0.0


def test_the_price_of_unsafe_replies_moves(model_folders, start, tmp_path):
    recipe = recipe_for(model_folders["llama"], tmp_path, safety="lagrangian", max_unsafe=0.0)
    job = job_for(recipe, tmp_path / "stage", ByHash())
    online.train_online(job, start, None)
    prices = [row["safety/multiplier"] for row in logged(job) if "safety/multiplier" in row]
    assert prices[0] == 0.0 < prices[1]


def test_processes_must_share_a_mini_batch_evenly(model_folders, tmp_path, monkeypatch):
    recipe = recipe_for(model_folders["llama"], tmp_path)
    job = job_for(recipe, tmp_path / "stage", ByHash())
    precision = models.choose_precision("float32", use_cpu=True)
    made = online.online_options(job, precision)
    assert made["per_device_train_batch_size"] == 6 and made["gradient_accumulation_steps"] == 1
    assert made["steps_per_generation"] == 2 and made["max_steps"] == 4
    monkeypatch.setattr(online, "PartialState", lambda: SimpleNamespace(num_processes=3))
    with pytest.raises(UserError, match="2 mini-batches x 3 processes"):
        online.online_options(job, precision)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"value": "adapter"}, "ppo.value"),
        ({"kl_target": 3.0}, "ppo.kl_target"),
        ({"num_return_sequences": 1}, "at least 2"),
        ({"prompts_per_iteration": 5}, "5 prompts do not divide into 2"),
    ],
)
def test_what_the_method_would_not_read_is_refused(model_folders, tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        recipe_for(model_folders["llama"], tmp_path, **settings)
    if "num_return_sequences" not in settings:
        recipe_for(model_folders["llama"], tmp_path, **settings, method="ppo")


@METHODS
def test_no_number_ends_the_run_before_the_update(model_folders, start, tmp_path, method):
    recipe = recipe_for(model_folders["llama"], tmp_path, method=method)
    job = job_for(recipe, tmp_path / "stage", ByHash())
    trainer = trainer_for(job, start)
    model = trainer.model
    before = snapshot(model)
    plain = trainer._compute_loss
    trainer._compute_loss = lambda *args: plain(*args) * float("nan")
    with pytest.raises(CheckFailed, match="Rollout 1"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
