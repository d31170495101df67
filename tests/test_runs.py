"""Laws of the run folder: done once, never lost, never overwritten unasked, one writer."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sft import files, provenance, runs, waiting
from sft.config import Recipe
from sft.files import (
    CheckFailed,
    EvaluatorStopped,
    ResultExists,
    StorageError,
    UserError,
    read_json,
    write_json,
)
from sft.progress import Progress, duration
from sft.runs import open_stage, run_script, stage_folder

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Every test works in a folder of its own, as one process, and gives SIGTERM back."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def manifest(name: str = "dpo") -> dict[str, Any]:
    found: dict[str, Any] = read_json(Path("runs/x") / name / "manifest.json")
    return found


def do(
    recipe: Recipe | None = None,
    name: str = "dpo",
    *,
    inputs: dict[str, Path] | None = None,
    config: dict[str, Any] | None = None,
    text: str = "result",
    body: Callable[[runs.Stage], None] = lambda stage: None,
) -> bool:
    """Run a stage that writes one file; whether it was reused."""
    recipe = recipe or Recipe(run="x")
    config = recipe.settings("seed", "dpo") if config is None else config
    with open_stage(recipe, name, config=config, inputs=inputs or {}) as stage:
        if not stage.reused:
            body(stage)
            stage.path("out.txt").write_text(text)
            stage.finish(["out.txt"], rows=1)
        return stage.reused


# --- done once ---------------------------------------------------------------------------------


def test_a_finished_stage_is_reused_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert not do()
    before = manifest()
    assert do()
    assert "reused: runs/x/dpo" in capsys.readouterr().out
    assert manifest() == before


def test_the_manifest_holds_what_made_the_result(place: Path) -> None:
    (place / "pairs.jsonl").write_text("pairs")
    do(inputs={"pairs": Path("pairs.jsonl")})
    found = manifest()
    assert found["status"] == "finished"
    assert found["seed"] == 3407
    assert found["config"]["dpo"]["beta"] == 0.1
    assert found["inputs"]["pairs"]["path"] == "pairs.jsonl"
    assert found["inputs"]["pairs"]["sha256"] == files.sha256_of(place / "pairs.jsonl")
    assert found["outputs"] == {"out.txt": files.sha256_of(Path("runs/x/dpo/out.txt"))}
    assert found["summary"] == {"rows": 1}
    assert found["versions"]["torch"]
    assert found["hardware"]["cpus"]
    assert found["seconds"] >= 0
    assert found["command"].startswith("python ")
    assert str(place) not in json.dumps(found)


def test_settings_without_effect_do_not_ask_for_a_new_result() -> None:
    first = Recipe(run="x")
    second = Recipe(run="x", tracking="wandb", log_text=True, rounds=3)
    names = ("run", "tracking", "log_text", "rounds", "overwrite", "seed", "dpo")
    do(first, config=first.settings(*names))
    assert do(second, config=second.settings(*names))


def test_other_settings_are_refused_by_name_and_nothing_is_touched() -> None:
    do()
    other = Recipe(run="x", seed=4, dpo={"beta": 0.2})
    with pytest.raises(ResultExists) as raised:
        do(other)
    text = str(raised.value)
    assert "dpo.beta: 0.1 there, 0.2 now" in text
    assert "seed: 3407 there, 4 now" in text
    assert "learning_rate" not in text
    assert "--overwrite true" in text
    assert Path("runs/x/dpo/out.txt").read_text() == "result"
    assert manifest()["status"] == "finished"


def test_inputs_are_compared_by_contents_not_by_path(place: Path) -> None:
    (place / "a.jsonl").write_text("same")
    (place / "b.jsonl").write_text("same")
    a, b = Path("a.jsonl"), Path("b.jsonl")
    do(inputs={"prompts": a}, config={"prompts": "a.jsonl"})
    assert do(inputs={"prompts": b}, config={"prompts": "b.jsonl"})
    b.write_text("other")
    with pytest.raises(ResultExists, match=r"input prompts: the contents of b\.jsonl have changed"):
        do(inputs={"prompts": b}, config={"prompts": "b.jsonl"})
    with pytest.raises(ResultExists, match="input prompts: no longer given"):
        do(config={})


def test_overwrite_does_it_again_whatever_is_there() -> None:
    do()
    recipe = Recipe(run="x", overwrite=True, dpo={"beta": 0.2})
    assert not do(recipe, text="new")
    assert Path("runs/x/dpo/out.txt").read_text() == "new"
    assert manifest()["config"]["dpo"]["beta"] == 0.2


def test_a_lost_output_is_made_again_and_an_edited_one_is_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    do()
    Path("runs/x/dpo/out.txt").write_text("a clinician's correction")
    assert do()
    assert "out.txt was changed since it was written" in capsys.readouterr().out
    Path("runs/x/dpo/out.txt").unlink()
    assert not do()
    assert "has lost out.txt" in capsys.readouterr().out


def test_files_of_others_are_never_cleared() -> None:
    folder = Path("runs/x/dpo")
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ResultExists, match="files that no stage wrote"):
            do(Recipe(run="x", overwrite=overwrite))
    assert os.listdir(folder) == ["thesis.txt"]


def test_later_rounds_have_folders_of_their_own() -> None:
    recipe = Recipe(run="x", rounds=2)
    assert stage_folder(recipe, "dpo") == Path("runs/x/dpo")
    assert stage_folder(recipe, "dpo", 2) == Path("runs/x/round-2/dpo")


# --- inputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "script"),
    [("pairs/pairs.jsonl", "pair"), ("round-2/candidates/candidates.jsonl", "generate")],
)
def test_a_missing_input_names_the_script_that_writes_it(path: str, script: str) -> None:
    with pytest.raises(UserError, match=rf"does not exist: run scripts/{script}\.py"):
        do(inputs={"it": Path("runs/x") / path})
    assert not Path("runs/x/dpo").exists()


def test_the_output_of_an_unfinished_stage_is_no_input() -> None:
    def stop(stage: runs.Stage) -> None:
        stage.path("pairs.jsonl").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(name="pairs", body=stop)
    with pytest.raises(UserError, match=r"unfinished stage \(interrupted\): run scripts/pair\.py"):
        do(inputs={"pairs": Path("runs/x/pairs/pairs.jsonl")})


# --- unfinished --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (SystemExit(143), "interrupted", "SystemExit"),
        (UserError("no pairs: lower the margin"), "failed", "no pairs: lower the margin"),
        (ValueError("I feel so alone"), "failed", "ValueError"),
    ],
)
def test_an_unfinished_stage_says_why_and_how_to_go_on(
    error: BaseException, status: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(stage: runs.Stage) -> None:
        stage.path("half.txt").write_text("half")
        raise error

    with pytest.raises(type(error)):
        do(body=stop)
    found = manifest()
    assert (found["status"], found["reason"]) == (status, reason)
    assert f"{status}: runs/x/dpo is unfinished" in capsys.readouterr().err
    assert found["command"] in capsys.readouterr().err + f"To go on: {found['command']}"
    assert not do()
    assert f"starting afresh: runs/x/dpo is unfinished ({status})" in capsys.readouterr().out
    assert manifest()["status"] == "finished"
    assert "reason" not in manifest()
    assert sorted(os.listdir("runs/x/dpo")) == ["manifest.json", "out.txt"]


def test_what_is_to_be_kept_survives_a_fresh_start() -> None:
    def stop(stage: runs.Stage) -> None:
        stage.path("ledger.sqlite-wal").write_text("paid for")
        stage.path("checkpoints").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(name="scores", body=stop)
    recipe = Recipe(run="x")
    with open_stage(recipe, "scores", config={}, inputs={}, keep=["ledger.sqlite*"]) as stage:
        assert stage.path("ledger.sqlite-wal").read_text() == "paid for"
        assert not stage.path("checkpoints").exists()
        stage.finish([])


def test_a_signal_after_the_end_loses_nothing() -> None:
    recipe = Recipe(run="x")
    with (
        pytest.raises(SystemExit),
        open_stage(recipe, "dpo", config=recipe.settings("seed", "dpo"), inputs={}) as stage,
    ):
        stage.path("out.txt").write_text("result")
        stage.finish(["out.txt"])
        raise SystemExit(143)
    assert manifest()["status"] == "finished"
    assert do()


def test_leaving_without_finish_or_output_is_a_defect() -> None:
    with (
        pytest.raises(RuntimeError, match="without Stage"),
        open_stage(Recipe(run="x"), "dpo", config={}, inputs={}),
    ):
        pass
    assert manifest()["status"] == "failed"
    with (
        pytest.raises(FileNotFoundError, match="lost"),
        open_stage(Recipe(run="x"), "dpo", config={}, inputs={}) as stage,
    ):
        stage.finish(["lost.txt"])


def test_a_full_disk_at_the_end_leaves_the_stage_unfinished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(stage: runs.Stage) -> None:
        monkeypatch.setattr(files.os, "fsync", full)

    with pytest.raises(StorageError, match="disk is full"):
        do(body=fill)
    monkeypatch.setattr(files.os, "fsync", sync)
    assert manifest()["status"] == "running"
    assert not do()
    assert manifest()["status"] == "finished"


def test_two_processes_do_not_work_on_one_stage() -> None:
    def again(stage: runs.Stage) -> None:
        with pytest.raises(UserError, match="another process is working on runs/x/dpo"):
            do()

    do(body=again)
    assert manifest()["status"] == "finished"


# --- the process -------------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
from pathlib import Path
from sft import runs
from sft.config import Recipe

def main():
    how, *rest = sys.argv[1:]
    recipe = Recipe(run="x", dpo={"beta": float(rest[0]) if rest else 0.1})
    if how == "done":
        with runs.open_stage(recipe, "finetune", config={}, inputs={}) as stage:
            stage.finish([])
    time.sleep(0.4 if how == "late" and os.environ.get("RANK") == "0" else 0)
    with runs.open_stage(recipe, "dpo", config=recipe.settings("dpo"), inputs={}) as stage:
        print("decided", os.environ.get("RANK"), stage.reused, stage.is_main, flush=True)
        stage.log({"loss": 1.0})
        if how in ("wait", "done"):
            print("ready", flush=True)
            time.sleep(60)
        if how == "full":
            raise OSError(28, "No space left on device")
        if how == "defect":
            raise ValueError("a defect")
        if not stage.reused:
            stage.say("working")
            if stage.is_main:
                stage.path("out.txt").write_text("result")
            stage.finish(["out.txt"])

runs.run_script(main)
"""


def start(*argv: str, **env: str) -> subprocess.Popen[str]:
    Path("script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, "script.py", *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        assert process.poll() is None


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [
        (signal.SIGTERM, 143, "interrupted"),
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGKILL, -9, "running"),
    ],
)
def test_a_signal_ends_with_its_code_and_the_next_run_goes_on(
    number: signal.Signals, code: int, status: str
) -> None:
    process = start("done")
    wait_until_ready(process)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert "Traceback" not in err
    assert manifest("finetune")["status"] == "finished"
    assert manifest()["status"] == status
    if code > 0:
        assert "To go on: python script.py done" in err
    second = start("quick")
    out, _ = second.communicate(timeout=20)
    assert second.returncode == 0
    assert f"is unfinished ({status})" in out
    assert manifest()["status"] == "finished"


@pytest.mark.parametrize(("how", "code", "traceback"), [("full", 6, False), ("defect", 1, True)])
def test_a_full_disk_has_its_code_and_a_defect_its_traceback(
    how: str, code: int, traceback: bool
) -> None:
    process = start(how)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert ("Traceback" in err) == traceback
    assert manifest()["status"] == "failed"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("no"), 2),
        (EvaluatorStopped("no"), 3),
        (ResultExists("no"), 4),
        (CheckFailed("no"), 5),
        (StorageError("no"), 6),
        (KeyboardInterrupt(), 130),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 6),
    ],
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == code
    assert len(capsys.readouterr().err.splitlines()) == 1


# --- launches of several processes -------------------------------------------------------------


def launch_two(*argv: str, port: str = "29500") -> list[tuple[int, str, str]]:
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": port}
    both = [start(*argv, RANK=str(number), **shared) for number in (0, 1)]
    texts = [each.communicate(timeout=30) for each in both]
    return [(each.returncode, *text) for each, text in zip(both, texts, strict=True)]


@pytest.mark.parametrize("how", ["quick", "late"])
def test_all_processes_decide_alike_and_one_writes(how: str) -> None:
    (code, out, _), (other_code, other_out, other_err) = launch_two(how)
    assert (code, other_code) == (0, 0), other_err
    assert "decided 0 False True" in out
    assert other_out == "decided 1 False False\n"
    assert manifest()["status"] == "finished"
    assert manifest()["command"] == f"torchrun --nproc_per_node 2 -- script.py {how}"
    assert Path("runs/x/dpo/metrics.jsonl").read_text().count("\n") == 1
    assert [name for name in os.listdir("runs/x") if "launch" in name] == []

    (_, out, _), (_, other_out, _) = launch_two(how)
    assert "decided 0 True True" in out
    assert other_out == "decided 1 True False\n"


def test_a_refusal_ends_all_processes_and_is_told_once() -> None:
    launch_two("quick")
    (code, _, err), (other_code, other_out, other_err) = launch_two("quick", "0.3")
    assert (code, other_code) == (4, 4)
    assert "dpo.beta: 0.1 there, 0.3 now" in err
    assert (other_out, other_err) == ("", "")


def test_the_decision_of_a_killed_launch_is_not_believed() -> None:
    stale = {"launch": "/29500/////1/1/1", "reused": True, "exit_code": None}
    write_json(Path("runs/x/.dpo.launch"), stale)
    write_json(Path("runs/x/.dpo.launch.1"), {"launch": stale["launch"]})
    (_, out, _), (_, other_out, _) = launch_two("late")
    assert "decided 0 False True" in out
    assert other_out == "decided 1 False False\n"


@pytest.mark.parametrize("number", ["0", "1"])
def test_a_process_that_is_left_alone_says_so(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PATIENCE_S", 0.2)
    monkeypatch.setenv("RANK", number)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the same runs folder"):
        do()


def test_the_token_tells_launches_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    first = waiting.token(Path("a"))
    assert waiting.token(Path("a")) != first
    assert str(os.getppid()) in first
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert f"/{os.getppid()}/" not in waiting.token(Path("b"))


# --- provenance --------------------------------------------------------------------------------


def test_the_commit_is_that_of_a_tracked_file_and_tells_of_changes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*argv: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        line = ["git", *who, *argv]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()

    source = place / "runs.py"
    source.write_text("1")
    monkeypatch.setattr(provenance, "SOURCE", source)
    assert provenance.git_commit() is None
    git("init")
    assert provenance.git_commit() is None
    git("add", "runs.py")
    git("commit", "-m", "first")
    assert provenance.git_commit() == git("rev-parse", "HEAD")
    source.write_text("2")
    assert provenance.git_commit() == git("rev-parse", "HEAD") + "+changes"


# --- metrics and progress ----------------------------------------------------------------------


def test_metrics_are_one_object_a_line_and_nan_is_null() -> None:
    heard: list[tuple[dict[str, Any], int | None]] = []

    def body(stage: runs.Stage) -> None:
        stage.follow(lambda metrics, step: heard.append((dict(metrics), step)))
        stage.log({"loss": 0.5, "rows": 3}, step=1)
        stage.log({"loss": float("nan"), "rate": float("inf")})

    do(body=body)
    lines = [json.loads(line) for line in Path("runs/x/dpo/metrics.jsonl").read_text().splitlines()]
    assert [line.pop("time") >= 0 for line in lines] == [True, True]
    assert lines == [
        {"step": 1, "loss": 0.5, "rows": 3},
        {"step": None, "loss": None, "rate": None},
    ]
    assert heard == [({"loss": 0.5, "rows": 3}, 1), ({"loss": None, "rate": None}, None)]


def test_progress_has_share_rate_and_remaining_time() -> None:
    bar = Progress(480, "scores", unit="replies", stream=io.StringIO())
    bar.done = 120
    assert bar.line(10.0) == "scores: 120/480 replies (25%), 12/s, 30 s left"
    bar.done = 0
    assert bar.line(0.0).endswith("? left")
    assert Progress(0, "x", stream=io.StringIO()).line(1.0) == "x: 0 items, 0/s"
    assert [duration(s) for s in (8.6, 125, 3_780)] == ["9 s", "2 min 5 s", "1 h 3 min"]


def test_progress_outside_a_terminal_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with Progress(6, "steps", stream=stream) as bar:
        for _ in range(6):
            bar.advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == "steps: 3/6 items (50%), 0.25/s, 12 s left"
    assert lines[-1] == "steps: 6 items in 28 s, 0.214/s"


def test_progress_is_shown_by_process_0_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(2, "items") as bar:
        bar.advance(2)
    assert "items: 2 items in" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    with Progress(2, "items") as bar:
        bar.advance(2)
    assert capsys.readouterr().err == ""
