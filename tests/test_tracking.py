"""Laws of tracking: never needs a network, says the same to the file, leaks no text and no key."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import wandb

from sft import tracking
from sft.config import Recipe
from sft.files import sha256_of
from sft.runs import open_stage
from sft.tracking import Tracker, artifact_name, tracker

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
recipe = Recipe(run="x", tracking=kind, log_text=log_text, rounds=2, round=2)
config = recipe.settings("seed", "dpo")
with (
    runs.open_stage(recipe, "dpo", config=config, inputs={"text": Path("text")}, round=2) as stage,
    tracker(recipe.tracking, recipe, stage) as track,
):
    stage.log({"rewards/margins": 0.5}, step=1)
    stage.log({"rewards/margins": 0.75, "loss": float("nan")}, step=2)
    track.table("samples", ["prompt", "reply"], [[text, "fine"]])
    print(text)
    stage.path("adapter").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "samples.jsonl"):
        stage.path("adapter").joinpath(name).write_text(text if name == "samples.jsonl" else "{}")
    home = Path("runs/x")
    sources = [home / "dpo/adapter", home / "round-2/pairs/pairs.jsonl", Path("text")]
    for path in (*sources[:2], home / "finetune/demonstrations.jsonl"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{path.name} {text}")
    track.artifact(home / "finetune/demonstrations.jsonl", "dataset", uses=[Path("text")])
    track.artifact(stage.path("adapter"), "model", uses=sources)
    stage.finish(["adapter"])
"""


@dataclass
class Tracked:
    """What a tracked stage left behind."""

    folder: Path
    out: str
    seconds: float

    def metrics(self) -> list[dict[str, float]]:
        lines = (self.folder / "runs/x/round-2/dpo/metrics.jsonl").read_text().splitlines()
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
    for said in (b"rewards/margins", b"x-adapter-dpo-round-2", b"adapter_model.safetensors"):
        assert said in sent
    # What it was made from has the round's name that it was logged under.
    assert b"x-pairs-round-2" in sent
    assert b"x-adapter-dpo\\" in sent or b'x-adapter-dpo"' in sent
    assert b"not of this run: sha-" in sent


def test_of_the_demonstrations_the_hash_is_logged_and_the_text_only_if_asked(
    silent: Tracked, open_hearted: Tracked
) -> None:
    text = f"demonstrations.jsonl {TEXT}".encode()
    for tracked in (silent, open_hearted):
        sent = tracked.sent()
        assert b"x-demonstrations" in sent
        assert hashlib.sha256(text).hexdigest().encode() in sent
        assert (text in sent) == (tracked is open_hearted)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/x/finetune/adapter", "x-adapter-sft"),
        ("runs/x/dpo/adapter", "x-adapter-dpo"),
        ("runs/x/round-2/dpo/adapter", "x-adapter-dpo-round-2"),
        ("runs/x/round-12/candidates/candidates.jsonl", "x-candidates-round-12"),
        ("runs/x/round-2/reward/adapter", "x-adapter-reward-round-2"),
        ("runs/x/evaluation/report.json", "x-report"),
        ("runs/y/dpo/adapter", None),
        ("somewhere/dpo/adapter", None),
        ("runs/x/dpo/metrics.jsonl", None),
        ("runs/x", None),
    ],
)
def test_names_say_run_stage_and_round(path: str, name: str | None) -> None:
    # The round that is worked on does not matter: the proof is round 1's and judges the last one's.
    for number in (1, 2):
        recipe = Recipe(run="x", rounds=2, round=number)
        assert artifact_name(recipe, Path(path)) == name


class Service:
    """A W&B run that has a network, and keeps what is asked of it."""

    offline, dir = False, "somewhere"

    def __init__(self) -> None:
        self.used: list[str] = []
        self.logged: list[tuple[wandb.Artifact, list[str]]] = []

    def define_metric(self, *_: object, **__: object) -> None: ...
    def finish(self, **_: object) -> None: ...

    def use_artifact(self, version: str) -> None:
        self.used.append(version)

    def log_artifact(self, artifact: wandb.Artifact, aliases: list[str]) -> None:
        self.logged.append((artifact, aliases))


def test_each_version_is_linked_to_the_round_that_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb-data"))
    service = Service()
    monkeypatch.setattr(tracking, "_init", lambda recipe, stage: service)
    recipe = Recipe(run="x", tracking="wandb", rounds=2, round=2)
    first = Path("runs/x/dpo/adapter")
    first.mkdir(parents=True)
    first.joinpath("adapter_config.json").write_text("{}")
    with (
        open_stage(recipe, "candidates", config={}, inputs={}, round=2) as stage,
        tracker("wandb", recipe, stage) as track,
    ):
        for text in ("one", "other"):
            stage.path("candidates.jsonl").write_text(text)
            track.artifact(stage.path("candidates.jsonl"), "dataset", uses=[first])
        with pytest.raises(ValueError, match="no output that has a name"):
            track.artifact(Path("elsewhere.jsonl"), "dataset")
        stage.finish([])
    assert service.used == [f"x-adapter-dpo:sha-{sha256_of(first)[:12]}"] * 2
    (one, aliases), (other, _) = service.logged
    assert one.name == "x-candidates-round-2"
    assert aliases == ["latest", f"sha-{hashlib.sha256(b'one').hexdigest()[:12]}"]
    # Their text stays here, and they are two versions all the same.
    assert [*one.manifest.entries] == ["hashes.json"]
    assert one.digest != other.digest


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
