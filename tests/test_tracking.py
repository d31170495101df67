"""Laws of tracking: never needs a network, says the same to the file, leaks no text and no key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sft.config import Recipe
from sft.runs import open_stage
from sft.tracking import Tracker, tracker

ROOT = Path(__file__).resolve().parents[1]
TEXT = "I-have-told-nobody-about-this"
KEY = "0123456789abcdef0123456789abcdef01234567"

SCRIPT = """
import sys
from pathlib import Path
from sft import runs
from sft.config import Recipe
from sft.tracking import tracker

kind, log_text, text = sys.argv[1] , sys.argv[2] == "true", Path("text").read_text()
recipe = Recipe(run="x", tracking=kind, log_text=log_text)
config = recipe.settings("seed", "dpo")
with (
    runs.open_stage(recipe, "dpo", config=config, inputs={"pairs": Path("text")}) as stage,
    tracker(recipe.tracking, recipe, stage) as track,
):
    stage.log({"rewards/margins": 0.5}, step=1)
    stage.log({"rewards/margins": 0.75, "loss": float("nan")}, step=2)
    track.table("samples", ["prompt", "reply"], [[text, "fine"]])
    print(text)
    stage.path("adapter").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "samples.jsonl"):
        stage.path("adapter").joinpath(name).write_text(text if name == "samples.jsonl" else "{}")
    track.artifact(stage.path("adapter"), "adapter-dpo", "model", uses={"pairs": Path("text")})
    stage.finish(["adapter"])
"""


@dataclass
class Tracked:
    """What a tracked stage left behind."""

    folder: Path
    out: str
    seconds: float

    def metrics(self) -> list[dict[str, float]]:
        lines = (self.folder / "runs/x/dpo/metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]

    def sent(self) -> bytes:
        """Everything W&B keeps, to send it now or with `wandb sync`."""
        places = (self.folder / "runs/x/wandb", self.folder / "wandb-data")
        files = [each for place in places for each in place.rglob("*") if each.is_file()]
        return b"".join(str(each).encode() + each.read_bytes() for each in sorted(files))


def track(folder: Path, kind: str, log_text: str, **env: str) -> Tracked:
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(SCRIPT)
    (folder / "text").write_text(TEXT)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "RANK", "WORLD"))}
    places = {"HOME": str(folder), "WANDB_DATA_DIR": str(folder / "wandb-data")}
    places |= {"WANDB_CACHE_DIR": str(folder / "cache"), "NETRC": str(folder / "netrc")}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "script.py", kind, log_text],
        cwd=folder,
        env={**kept, **places, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Tracked(folder, done.stdout, time.monotonic() - started)


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """Without an account, without `log_text`."""
    return track(tmp_path_factory.mktemp("silent"), "wandb", "false")


@pytest.fixture(scope="module")
def open_hearted(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """With a key, a server that does not answer, and `log_text`."""
    unreachable = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    return track(tmp_path_factory.mktemp("open"), "wandb", "true", **unreachable)


def test_without_an_account_it_works_offline_and_says_how_to_upload(silent: Tracked) -> None:
    assert "W&B offline: no WANDB_API_KEY in the environment and no login" in silent.out
    assert "wandb sync runs/x/wandb/offline-run-" in silent.out
    assert silent.seconds < 40


def test_without_a_network_it_works_offline_at_once(open_hearted: Tracked) -> None:
    assert "W&B offline: 127.0.0.1 cannot be reached" in open_hearted.out
    assert open_hearted.seconds < 40


def test_metrics_and_lineage_are_recorded(silent: Tracked) -> None:
    sent = silent.sent()
    for said in (b"rewards/margins", b"x-adapter-dpo", b"x-pairs", b"adapter_model.safetensors"):
        assert said in sent


def test_no_conversation_is_recorded_unless_asked(silent: Tracked, open_hearted: Tracked) -> None:
    assert TEXT.encode() not in silent.sent()
    assert TEXT.encode() in open_hearted.sent()


def test_the_key_is_in_no_file(open_hearted: Tracked) -> None:
    files = [each for each in open_hearted.folder.rglob("*") if each.is_file()]
    assert [each for each in files if KEY.encode() in each.read_bytes()] == []


def test_without_wandb_the_metrics_file_has_the_same(silent: Tracked, tmp_path: Path) -> None:
    alone = track(tmp_path / "alone", "none", "false")
    assert alone.metrics() == silent.metrics() != []
    assert "W&B" not in alone.out
    assert not (alone.folder / "runs/x/wandb").exists()


def test_reused_stages_and_other_processes_do_not_talk_to_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(run="x", tracking="wandb")
    with open_stage(recipe, "dpo", config={}, inputs={}) as stage:
        stage.finish([])
    with open_stage(recipe, "dpo", config={}, inputs={}) as stage:
        assert type(tracker("wandb", recipe, stage)) is Tracker
    stage.reused, stage.is_main = False, False
    assert type(tracker("wandb", recipe, stage)) is Tracker
