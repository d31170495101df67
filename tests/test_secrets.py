"""A key that is a canary: it reaches the service it is for, and nothing else keeps it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from reward import rehearsal
from reward.evaluator import Assessment
from reward.faults import storable
from reward.rehearsal import Call, Reply
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import read_rows, write_rows

ROOT = Path(__file__).resolve().parents[1]
KEY = "sk-canary-4f1c9b27e0d3a865b1c7"
SAID = "I-have-told-nobody-about-this"


class Quoting:
    """A careless service: it sends back the key that it was given, wherever there is room for it.

    In the first `times` answers as an error of that status, then in the answers themselves, once
    with a character of it escaped.
    """

    def __init__(self, status: int, times: int) -> None:
        self.status, self.left = status, times
        self.keys: set[str] = set()

    def __call__(self, call: Call) -> Reply:
        self.keys.add(call.headers["authorization"])
        if self.left:
            self.left -= 1
            said = f"Incorrect API key provided: {KEY}. You can find yours in the settings."
            error = {"message": said, "code": KEY, "type": f"key {KEY}", "param": KEY}
            headers = {"location": f"https://elsewhere.example/v1?key={KEY}", "x-key": KEY}
            return Reply(self.status, {"error": error}, headers)
        said = {**rehearsal.verdict(call.body), "critique": f"Bearer {KEY} says hello."}
        text = json.dumps(said)
        if "sounds hard" in rehearsal.material(call.body):
            text = text.replace("canary-", "canary\\u002d")
        made = rehearsal.completion(text, model=f"judge {KEY}")
        made |= {"id": KEY, "system_fingerprint": KEY}
        return Reply(body=made, headers={"x-request-id": KEY})


@dataclass
class Ran:
    """What a scoring stage left behind."""

    home: Path
    done: subprocess.CompletedProcess[str]

    def files(self) -> list[Path]:
        return [path for path in self.home.rglob("*") if path.is_file()]

    @property
    def scores(self) -> Path:
        return self.home / "runs/x/scores"


def score(home: Path, service: Quoting) -> Ran:
    folder = home / "runs/x/candidates"
    folder.mkdir(parents=True)
    said = [{"role": "user", "content": SAID}]
    write_rows(folder / "prompts.jsonl", [Prompt("p", said, "t", "t", "none", "train")])
    texts = ["What happened then?", "That sounds hard."]
    made = [Candidate(f"c{i}", "p", text, "m", 1.0, 1.0, i, "eos") for i, text in enumerate(texts)]
    write_rows(folder / "candidates.jsonl", made)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "RANK", "WORLD"))}
    places = {"HOME": str(home), "WANDB_DATA_DIR": str(home / "wandb-data")}
    places |= {"WANDB_CACHE_DIR": str(home / "cache"), "NETRC": str(home / "netrc")}
    with rehearsal.running(service) as url:
        command = [sys.executable, str(ROOT / "scripts/score.py"), "--run", "x"]
        command += ["--tracking", "wandb", "--score.evaluator", "openai", "--base_url", url]
        done = subprocess.run(
            [*command, "--evaluator_model", "judge"],
            cwd=home,
            env={**kept, **places, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    return Ran(home, done)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """Two replies scored, after failures that quote the key."""
    service = Quoting(500, 2)
    ran = score(tmp_path_factory.mktemp("finished"), service)
    assert ran.done.returncode == 0, ran.done.stderr
    assert service.keys == {f"Bearer {KEY}"}
    yield ran


@pytest.fixture(scope="module")
def sent_on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """A stage that ended because the service named another address."""
    ran = score(tmp_path_factory.mktemp("sent-on"), Quoting(302, 9))
    assert ran.done.returncode == 3, ran.done.stderr
    yield ran


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """A stage that ended because the key was refused."""
    ran = score(tmp_path_factory.mktemp("refused"), Quoting(401, 9))
    assert ran.done.returncode == 3, ran.done.stderr
    assert "Check OPENAI_API_KEY" in ran.done.stderr
    yield ran


def test_the_key_is_in_no_file_and_on_no_screen(finished: Ran, refused: Ran, sent_on: Ran) -> None:
    for ran in (finished, refused, sent_on):
        names = {path.name for path in ran.files()}
        assert {"manifest.json", "ledger.sqlite"} <= names
        assert any(path.suffix == ".wandb" for path in ran.files())
        assert [path for path in ran.files() if KEY.encode() in path.read_bytes()] == []
        assert KEY not in ran.done.stdout + ran.done.stderr
        assert not any(KEY in word for word in ran.done.args)
    # It was quoted, and taken out.
    assert "[key]" in refused.done.stderr and "[key]" in sent_on.done.stderr
    made = read_rows(finished.scores / "assessments.jsonl", Assessment)
    assert [each.critique for each in made] == ["Bearer [key] says hello."] * 2


def test_the_manifest_repeats_the_command_without_the_key(finished: Ran) -> None:
    manifest = json.loads((finished.scores / "manifest.json").read_text(encoding="utf-8"))
    assert "--evaluator_model judge" in manifest["command"]
    assert KEY not in json.dumps(manifest) and "OPENAI_API_KEY" not in json.dumps(manifest)


def test_no_conversation_goes_to_the_tracking_service_or_the_screen(finished: Ran) -> None:
    sent = [path for path in finished.files() if "wandb" in path.relative_to(finished.home).parts]
    sent += [path for path in finished.files() if path.suffix == ".wandb"]
    assert sent and not any(SAID.encode() in path.read_bytes() for path in sent)
    assert SAID not in finished.done.stdout + finished.done.stderr


def test_what_sqlite_holds_is_text_and_numbers_as_json_knows_them(finished: Ran) -> None:
    kinds: set[str] = set()
    with closing(sqlite3.connect(finished.scores / "ledger.sqlite")) as ledger:
        tables = [name for (name,) in ledger.execute("SELECT name FROM sqlite_master "
                                                     "WHERE type = 'table'")]  # fmt: skip
        rows = [row for table in tables for row in ledger.execute(f"SELECT * FROM {table}")]
        models = {name for (name,) in ledger.execute("SELECT model FROM answers")}
        answers = [text for (text,) in ledger.execute("SELECT text FROM answers")]
    for row in rows:
        assert json.loads(json.dumps(row, allow_nan=False)) == list(row)
        kinds |= {type(value).__name__ for value in row}
    assert kinds <= {"str", "int", "float"}  # no bytes: nothing to unpickle
    assert models == {"judge [key]"} and "u002d" not in "".join(answers)
    assert len(answers) == 2 and all(isinstance(json.loads(text), dict) for text in answers)


@pytest.mark.parametrize("key", ["EMPTY", "", "token-abc123", KEY])
def test_only_what_can_be_a_secret_is_taken_out_of_answers(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    text = f"It feels EMPTY (\\u0041, {key})."
    assert storable(text) == (text.replace(key, "[key]") if len(key) > 9 else text)
    written = "".join(f"\\u{ord(c):04X}" for c in KEY)
    assert storable(f'"{written}"') == ('"[key]"' if key == KEY else f'"{written}"')
