"""Two processes give the adapter of one: same rows per update, same start, same mathematics."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reward.evaluator import Assessment
from reward.model import HEAD
from reward.pairs import Pair
from sft import checkpoints, config
from sft import model as models
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import read_json, read_rows, write_rows

ROOT = Path(__file__).resolve().parents[1]


def torchrun(processes: int, script: str, *flags: str) -> list[str]:
    """The command that runs a stage script under torchrun with gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return [*command, "--", str(ROOT / "scripts" / script), *flags]


def launch(processes: int, script: str, *flags: str, cwd: Path) -> None:
    """Run a stage script to its end."""
    done = subprocess.run(
        torchrun(processes, script, *flags),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def difference(one: Path, two: Path) -> float:
    """Largest difference of a weight of two adapters."""
    first, second = models.adapter_weights(one), models.adapter_weights(two)
    assert set(first) == set(second)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one(model_folders, talks, tmp_path):
    rows = [{"prompt": t[:-1], "completion": t[-1:]} for t in talks for _ in range(4)]
    varied = []
    for i, row in enumerate(rows):
        prompt = [{**row["prompt"][0], "content": f"{row['prompt'][0]['content']} {i}"}]
        # Long and safe enough to pass the curation of demonstrations.
        reply = f"{row['completion'][0]['content']} A counsellor could help you with it, too."
        completion = [{"role": "assistant", "content": reply}]
        varied.append({"prompt": [*prompt, *row["prompt"][1:]], "completion": completion})
    write_rows(tmp_path / "demonstrations.jsonl", varied)
    pairs = []
    for i, row in enumerate(varied):
        cold = [{"role": "assistant", "content": f"Never mind. {i}"}]
        made = (f"p{i}", row["prompt"], row["completion"], cold, 0.5, 0.75, f"a{i}", f"b{i}")
        pairs.append(Pair(*made, "quality"))
    common = ["--runs_dir", str(tmp_path), "--use_cpu", "--demonstrations"]
    common += [str(tmp_path / "demonstrations.jsonl"), "--model.name_or_path"]
    common += [str(model_folders["llama"]), "--model.dtype", "float32", "--model.system_prompt"]
    common += ["none", "--model.max_length", "256", "--generate.max_new_tokens", "16"]
    common += ["--evaluate.max_new_tokens", "16"]
    common += [
        "--per_device_train_batch_size",
        "2",
        "--learning_rate",
        "1e-3",
        "--logging_steps",
        "1",
        "--warmup_steps",
        "0",
    ]
    for processes, accumulate in ((1, "2"), (2, "1")):
        run = f"with-{processes}"
        settings = [*common, "--run", run, "--gradient_accumulation_steps", accumulate]
        launch(processes, "finetune.py", *settings, cwd=tmp_path)
        start = str(tmp_path / "with-1" / "finetune" / "adapter")  # one start for both
        write_rows(tmp_path / run / "pairs" / "pairs.jsonl", pairs)
        launch(processes, "dpo.py", *settings, "--start_adapter", start, cwd=tmp_path)
        packed = ["--dpo.tree_tokens", "200", "--dpo.per_device_train_batch_size", "1"]
        packed += ["--start_adapter", start, "--run", f"packed-{processes}"]
        write_rows(tmp_path / f"packed-{processes}" / "pairs" / "pairs.jsonl", pairs)
        launch(processes, "dpo.py", *settings, *packed, cwd=tmp_path)
    packs = [tmp_path / f"packed-{n}" / "dpo" / "adapter" for n in (1, 2)]
    assert difference(*packs) < 1e-5
    for stage in ("finetune", "dpo"):
        one, two = (tmp_path / f"with-{n}" / stage / "adapter" for n in (1, 2))
        assert difference(one, two) < 1e-5
    moved = difference(
        tmp_path / "with-1" / "finetune" / "adapter", tmp_path / "with-1" / "dpo" / "adapter"
    )
    assert moved > 1e-3
    assert torch.isfinite(torch.tensor(moved))


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["0", "400"])
def test_two_processes_fit_the_reward_model_of_one(model_folders, talks, tmp_path, budget):
    """Rows per update, centring and report: all as one process has them; also in packs."""
    prompts, candidates, assessments = [], [], []
    for i in range(28):
        said = [{**talks[i % 3][0], "content": f"{talks[i % 3][0]['content']} {i} {i * i}"}]
        prompts.append(Prompt(f"p{i}", said, "test", "sleep", "none", "train"))
        for j in range(3):
            name = f"c{i}-{j}"
            text = f"{talks[j][-1]['content']} {i}"
            candidates.append(Candidate(name, f"p{i}", text, "m", 1.0, 1.0, j, "eos"))
            quality, safe = 0.2 + 0.3 * ((i + j) % 3), (i + j) % 3 > 0
            verdict = ({}, quality, safe, [], "", "judge", "r@1", None)
            assessments.append(Assessment(name, f"p{i}", *verdict))
    common = ["--runs_dir", str(tmp_path), "--use_cpu", "--start_adapter", "none"]
    common += ["--model.name_or_path", str(model_folders["llama"]), "--model.dtype", "float32"]
    common += ["--model.system_prompt", "none", "--model.max_length", "256"]
    common += ["--generate.max_new_tokens", "16", "--evaluate.max_new_tokens", "16"]
    common += ["--per_device_train_batch_size", "1" if int(budget) else "2"]
    common += ["--reward.tree_tokens", budget, "--learning_rate", "1e-3"]
    # Less than an epoch: its last update may be a short one, which processes share otherwise.
    common += ["--logging_steps", "1", "--warmup_steps", "0", "--max_steps", "4"]
    for processes, accumulate in ((1, "2"), (2, "1")):
        run = f"with-{processes}"
        write_rows(tmp_path / run / "candidates" / "prompts.jsonl", prompts)
        write_rows(tmp_path / run / "candidates" / "candidates.jsonl", candidates)
        write_rows(tmp_path / run / "scores" / "assessments.jsonl", assessments)
        settings = [*common, "--run", run, "--gradient_accumulation_steps", accumulate]
        launch(processes, "fit_reward.py", *settings, cwd=tmp_path)
    one, two = (tmp_path / f"with-{n}" / "reward" for n in (1, 2))
    assert difference(one / "adapter", two / "adapter") < 1e-5
    heads = [load_file(folder / "adapter" / HEAD) for folder in (one, two)]
    for name, value in heads[0].items():
        torch.testing.assert_close(value, heads[1][name], atol=1e-5, rtol=0)
    assert float(heads[0]["reward.weight"].abs().max()) > 1e-3
    reports = [read_json(folder / "report.json") for folder in (one, two)]
    assert reports[0]["accuracy"] == reports[1]["accuracy"]
    assert reports[0]["fitted_on"]["prompts"] >= 16
    lines = [read_metrics(folder) for folder in (one, two)]
    assert len(lines[0]) == len(lines[1]) == 4
    for ours, theirs in zip(*lines, strict=True):
        for name in ("loss", "reward_loss", "accuracy", "safety_loss", "lead"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a stage's metrics that tell a loss."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.slow
def test_two_processes_walk_all_stages(tmp_path):
    """Each stage writes its files once, and no process goes on before its input is there."""
    settings = ["--config", str(ROOT / "configs" / "quickstart.yaml"), "--runs_dir", str(tmp_path)]
    settings += ["--use_cpu", "--rounds", "1", "--finetune.max_steps", "3", "--dpo.max_steps", "2"]
    settings += ["--finetune.per_device_train_batch_size", "8"]
    settings += ["--finetune.warmup_steps", "0", "--dpo.warmup_steps", "0"]
    settings += ["--finetune.n_demonstrations", "64", "--generate.n_prompts", "24"]
    settings += ["--evaluate.n_prompts", "12", "--evaluate.crisis_prompts", "4"]
    settings += ["--dpo.per_device_train_batch_size", "4", "--export.force", "true"]
    launch(2, "align.py", *settings, cwd=tmp_path)
    run = tmp_path / "quickstart"
    stages = ("finetune", "candidates", "scores", "pairs", "dpo", "evaluation", "export")
    for stage in stages:
        assert read_json(run / stage / "manifest.json")["status"] == "finished"
    candidates = read_rows(run / "candidates" / "candidates.jsonl", Candidate)
    assert len({c.id for c in candidates}) == len(candidates)
    recipe = config.load(settings, None, "")
    own = [c for c in candidates if not c.borrowed]
    assert len(own) == 24 * recipe.generate.num_return_sequences < len(candidates)
    assert read_json(run / "evaluation" / "report.json")["n_prompts"] == 12


def ppo_flags(folder: Path, base: Path, *more: str) -> list[str]:
    """Short rollouts of a tiny model in the practice clinic, judged by the embedded evaluator."""
    # An untrained model's letters read as an injection now and then: such a reply has no score. It
    # ends no reply either: with a price on that all safe ones are at the floor and teach nothing.
    settings = """
        --use_cpu --start_adapter none --score.max_unscored 0.5
        --model.dtype float32 --model.system_prompt none --model.max_length 256
        --generate.max_new_tokens 16 --evaluate.max_new_tokens 16 --ppo.max_new_tokens 16
        --ppo.prompts_per_iteration 8 --ppo.num_return_sequences 2 --ppo.num_mini_batches 2
        --ppo.batch_size 4 --ppo.per_device_train_batch_size 1 --ppo.n_validation 4
        --ppo.learning_rate 1e-3 --ppo.warmup_steps 0 --ppo.eval_every 1
        --ppo.missing_eos_penalty 0
    """
    recipe = str(ROOT / "configs" / "quickstart.yaml")
    places = ["--config", recipe, "--runs_dir", str(folder), "--model.name_or_path", str(base)]
    return [*places, *settings.split(), *more]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_two_processes_optimise_the_policy_of_one(model_folders, tmp_path, method):
    """PPO draws, scores and updates alike; TRL's trainers draw by process, so they only finish."""
    base = model_folders["llama"]
    for processes in (1, 2):
        more = ("--run", f"with-{processes}", "--iterations", "2", "--method", method)
        if method == "rloo" and processes == 1:
            continue
        launch(processes, "ppo.py", *ppo_flags(tmp_path, base, *more), cwd=tmp_path)
    two = tmp_path / "with-2" / "ppo"
    assert read_json(two / "manifest.json")["status"] == "finished"
    assert len((two / "rollouts.jsonl").read_text().splitlines()) == 16
    looks = [row for row in map(json.loads, (two / "metrics.jsonl").open()) if "eval/kl" in row]
    assert looks[0]["eval/kl"] == pytest.approx(0, abs=1e-4)
    assert len(looks) == 3
    if method == "rloo":
        return
    one = tmp_path / "with-1" / "ppo"
    assert difference(one / "adapter", two / "adapter") < 1e-5
    assert (one / "rollouts.jsonl").read_text() == (two / "rollouts.jsonl").read_text()
    weights = models.adapter_weights(two / "adapter")
    assert max(float(v.abs().max()) for n, v in weights.items() if "lora_B" in n) > 1e-3


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_it_resumes(model_folders, tmp_path):
    """Within a minute, with a status that is not 0; the second start ends as one that was never
    killed."""
    more = ("--iterations", "4", "--save_every", "1")
    whole, cut = (
        ppo_flags(tmp_path, model_folders["llama"], *more, "--run", name)
        for name in ("whole", "cut")
    )
    launch(2, "ppo.py", *whole, cwd=tmp_path)
    saved = tmp_path / "cut" / "ppo" / checkpoints.FOLDER
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(torchrun(2, "ppo.py", *cut), cwd=tmp_path, stdout=log, stderr=log)
        while not list(saved.glob("*")) and job.poll() is None:
            time.sleep(0.05)
        ranks = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(ranks[-1]), signal.SIGKILL)
        began = time.monotonic()
        assert job.wait(timeout=60) != 0
    assert time.monotonic() - began < 60
    assert read_json(tmp_path / "cut" / "ppo" / "manifest.json")["status"] != "finished"
    launch(2, "ppo.py", *cut, cwd=tmp_path)
    assert read_json(tmp_path / "cut" / "ppo" / "manifest.json")["status"] == "finished"
    adapters = [tmp_path / name / "ppo" / "adapter" for name in ("whole", "cut")]
    assert difference(*adapters) == 0
