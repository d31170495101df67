"""Real signals to real processes, alone and under torchrun: nothing is lost, nothing hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_distributed import launch, ppo_flags
from test_resume import CLOCKS, metrics, same

from sft.files import read_json, write_rows

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
TORCHRUN += ["--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", "--"]


def settings(home: Path, model: Path, run: str) -> list[str]:
    flags = ["--runs_dir", str(home), "--run", run, "--use_cpu", "--demonstrations"]
    flags += [str(home / "demonstrations.jsonl"), "--model.name_or_path", str(model)]
    flags += ["--model.dtype", "float32", "--model.system_prompt", "none"]
    flags += ["--model.max_length", "256", "--generate.max_new_tokens", "16"]
    flags += ["--evaluate.max_new_tokens", "16", "--per_device_train_batch_size", "2"]
    flags += ["--gradient_accumulation_steps", "2", "--learning_rate", "1e-3"]
    flags += ["--logging_steps", "7", "--max_steps", "80", "--save_every", "5"]
    return [*flags, "--model.lora_dropout", "0.1"]


def demonstrations(home: Path, talks) -> None:
    rows = []
    for i, talk in enumerate([*talks] * 6):
        asked = [{**talk[0], "content": f"{talk[0]['content']} {i}"}, *talk[1:-1]]
        reply = f"{talk[-1]['content']} A counsellor could help you with it, too."
        rows.append({"prompt": asked, "completion": [{"role": "assistant", "content": reply}]})
    write_rows(home / "demonstrations.jsonl", rows)


def start(command: list[str], home: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=home, env=env, **pipes)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < limit
        time.sleep(0.005)


def rank_of(pid: int) -> str | None:
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = [each.removeprefix(b"RANK=") for each in entries if each.startswith(b"RANK=")]
    return found[0].decode() if found else None


def child_of_rank(launcher: int, rank: str) -> int:
    listed = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return next(int(pid) for pid in listed if rank_of(int(pid)) == rank)


def check_same(home: Path, *names: str) -> None:
    folders = [home / name / "finetune" for name in names]
    assert same(*(load_file(each / "adapter" / "adapter_model.safetensors") for each in folders))
    assert metrics(folders[0]) == metrics(folders[1])
    assert read_json(folders[1] / "manifest.json")["status"] == "finished"


@pytest.mark.slow
def test_a_process_that_is_stopped_in_any_way_goes_on(model_folders, talks, tmp_path):
    demonstrations(tmp_path, talks)
    script = [sys.executable, str(ROOT / "scripts" / "finetune.py")]
    whole = start([*script, *settings(tmp_path, model_folders["llama"], "whole")], tmp_path)
    assert whole.wait(timeout=200) == 0
    command = [*script, *settings(tmp_path, model_folders["llama"], "cut")]
    checkpoints = tmp_path / "cut" / "finetune" / "checkpoints"
    for step, number, code in (
        (5, signal.SIGKILL, -9),
        (20, signal.SIGTERM, 143),
        (35, signal.SIGINT, 130),
    ):
        process = start(command, tmp_path)
        wait_for(checkpoints / f"step-{step:08d}", process)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == code, said[-3000:]
        assert (step == 5) or "resumed: " in said
        assert "Traceback" not in said
        if code > 0:
            assert "stopping after this step" in said
            assert "saved step " in said
    last = start(command, tmp_path)
    said, _ = last.communicate(timeout=200)
    assert last.returncode == 0
    assert "going on: " in said
    check_same(tmp_path, "whole", "cut")


def shown(folder: Path) -> list[dict[str, object]]:
    """The metrics of a run of PPO, looks among them, without what a clock says."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    clocks = ("time", "eps")
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k.split("/")[0] not in clocks} for row in rows]


@pytest.mark.slow
def test_ppo_that_is_stopped_in_any_way_goes_on(model_folders, tmp_path):
    """Amid a rollout before there is a checkpoint, and later after one."""
    script = [sys.executable, str(ROOT / "scripts" / "ppo.py")]

    def command(run: str, *more: str) -> list[str]:
        settings = ("--iterations", "5", "--save_every", "1", "--safety", "lagrangian")
        settings += ("--ppo.value", "adapter", "--kl_target", "0.5", "--kl_horizon", "100")
        return [
            *script,
            *ppo_flags(tmp_path, model_folders["llama"], *settings, "--run", run, *more),
        ]

    whole = start(command("whole"), tmp_path)
    said, _ = whole.communicate(timeout=200)
    assert whole.returncode == 0, said[-3000:]
    cut = tmp_path / "cut" / "ppo"
    saved = cut / "checkpoints"
    for place, number, code in (
        (cut / "metrics.jsonl", signal.SIGKILL, -9),  # the first look is made
        (saved / "step-00000007", signal.SIGKILL, -9),
        (saved / "step-00000014", signal.SIGTERM, 143),
        (saved / "step-00000021", signal.SIGINT, 130),
        (saved / "step-00000028", signal.SIGKILL, -9),
    ):
        process = start(command("cut"), tmp_path)
        wait_for(place, process)
        time.sleep(0.1)
        process.send_signal(number)
        said, _ = process.communicate(timeout=100)
        assert process.returncode == code, said[-3000:]
        assert ("resumed: " in said) == (place.name > "step-00000007"), said[-3000:]
        assert "Traceback" not in said
        assert ("stopping after this step" in said) == (code > 0)
    other = start(command("cut", "--ppo.lam", "0.5"), tmp_path)
    said, _ = other.communicate(timeout=100)
    assert other.returncode == 4
    assert "ppo.lam: 1.0 there, 0.5 now" in said
    last = start(command("cut"), tmp_path)
    said, _ = last.communicate(timeout=200)
    assert last.returncode == 0, said[-3000:]
    assert "resumed: " in said
    folders = [tmp_path / run / "ppo" for run in ("whole", "cut")]
    assert same(*(load_file(each / "adapter" / "adapter_model.safetensors") for each in folders))
    assert shown(folders[0]) == shown(folders[1])
    replies = [(each / "rollouts.jsonl").read_text(encoding="utf-8") for each in folders]
    assert replies[0] == replies[1] != ""
    summaries = [read_json(each / "manifest.json")["summary"] for each in folders]
    assert summaries[0] == summaries[1]


@pytest.mark.slow
def test_grpo_of_two_processes_goes_on(model_folders, tmp_path):
    """Killed after a rollout, and stopped by a signal: the adapter of two that nobody stopped."""
    settings = ("--iterations", "4", "--save_every", "1", "--method", "grpo")

    def flags(run: str) -> list[str]:
        return ppo_flags(tmp_path, model_folders["llama"], *settings, "--run", run)

    launch(2, "ppo.py", *flags("whole"), cwd=tmp_path)
    saved = tmp_path / "cut" / "ppo" / "checkpoints"
    for step, number in ((1, signal.SIGKILL), (2, signal.SIGTERM)):
        process = start([*TORCHRUN, str(ROOT / "scripts" / "ppo.py"), *flags("cut")], tmp_path)
        per_rollout = 4  # updates: two passes of two mini-batches
        wait_for(saved / f"step-{step * per_rollout:08d}", process)
        if number == signal.SIGKILL:
            os.kill(child_of_rank(process.pid, "1"), number)
        else:
            process.send_signal(number)
        said, _ = process.communicate(timeout=90)
        assert process.returncode != 0
        assert ("saved step " in said) == (number == signal.SIGTERM), said[-3000:]
    launch(2, "ppo.py", *flags("cut"), cwd=tmp_path)
    folders = [tmp_path / run / "ppo" for run in ("whole", "cut")]
    assert same(*(load_file(each / "adapter" / "adapter_model.safetensors") for each in folders))
    rows = [
        [{k: v for k, v in row.items() if k not in {*CLOCKS, "step_time"}} for row in shown(each)]
        for each in folders
    ]
    assert rows[0] == rows[1]


@pytest.fixture(scope="module")
def home(model_folders, talks, tmp_path_factory) -> Path:
    """A runs folder with a training of two processes that nobody stopped."""
    home: Path = tmp_path_factory.mktemp("two")
    demonstrations(home, talks)
    launch(2, "finetune.py", *settings(home, model_folders["llama"], "whole"), cwd=home)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("how", ["0 is killed", "1 is killed", "both are stopped"])
def test_a_launch_of_two_ends_within_a_minute_and_goes_on(model_folders, home, how):
    run = how.replace(" ", "-")
    flags = settings(home, model_folders["llama"], run)
    process = start([*TORCHRUN, str(ROOT / "scripts" / "finetune.py"), *flags], home)
    checkpoints = home / run / "finetune" / "checkpoints"
    wait_for(checkpoints / "step-00000010", process)
    began = time.monotonic()
    if "killed" in how:
        os.kill(child_of_rank(process.pid, how[0]), signal.SIGKILL)
    else:
        process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=90)
    seconds = time.monotonic() - began
    print(f"{how}: the launch ended with {process.returncode} after {seconds:.1f} s")
    assert process.returncode != 0
    assert seconds < 60
    assert ("saved step " in said) == ("stopped" in how)
    held = sorted(checkpoints.glob("step-*"))
    names = sorted(each.name for each in held[-1].glob("process-*"))
    assert names == ["process-0.safetensors", "process-1.safetensors"]
    launch(2, "finetune.py", *flags, cwd=home)
    check_same(home, "whole", run)
