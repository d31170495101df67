"""Kills, full disks and damage: a checkpoint is whole and right, or it is not used."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sft import checkpoints, stopping
from sft.checkpoints import newest, steps, write
from sft.files import ResultExists, StorageError
from sft.stopping import stop_requests

ROOT = Path(__file__).resolve().parents[1]
FACTS = {"settings": {"finetune": {"learning_rate": 0.001}}, "rows": "1a2b"}
NAMES = ("weights", "deep/state")

# A small process that saves checkpoints in a fork per line of its input. A boundary is before each
# opening, making, renaming and removing, each fsync, and each piece that is written.
NURSERY = """
import errno, json, os, random, signal, sys
from pathlib import Path
from sft.checkpoints import write
from sft.files import StorageError

facts, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])
sync, count = os.fsync, 0

def fill(folder, step, tick):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        content = random.Random(f"{step} {name}").randbytes(3000)
        with (folder / name).open("wb", buffering=0) as file:
            for first in range(0, 3000, 1000):
                file.write(content[first : first + 1000])
                tick("write")

def work(how, at, folder, step):
    def tick(event, args=()):
        global count
        if how == "full" and event == "open" and not args[2] & os.O_ACCMODE:
            return  # for reading: that needs no room
        if how == "full" and event in ("os.remove", "os.rename", "os.rmdir", "shutil.rmtree"):
            return
        count += 1
        if how == "kill" and count > at:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full" and count > at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def fsync(descriptor):
        tick("fsync")
        sync(descriptor)

    watched = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
    os.fsync = fsync
    sys.addaudithook(lambda event, args: tick(event, args) if event in watched else None)
    while True:
        write(Path(folder), step, lambda place: fill(place, step, tick), facts)
        if how != "forever":
            return
        step += 1

write(Path(sys.argv[3]), 1, lambda place: fill(place, 1, lambda event: None), facts)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        try:
            work(*json.loads(line))
        except StorageError:
            os._exit(StorageError.exit_code)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Processes that save, one after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def start(self, how: str, at: int, folder: Path, step: int) -> int:
        self.process.stdin.write(json.dumps([how, at, str(folder), step]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        return int(self.process.stdout.readline())

    def run(self, how: str, at: int, folder: Path, step: int) -> int:
        """Save and stop so; the exit code."""
        self.start(how, at, folder, step)
        return self.end()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    scratch = str(tmp_path_factory.mktemp("scratch"))
    command = [sys.executable, "-c", NURSERY, json.dumps(FACTS), json.dumps(NAMES), scratch]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, **pipes) as process:
        yield Nursery(process)
        process.stdin.close()


def content(step: int, name: str) -> bytes:
    return random.Random(f"{step} {name}").randbytes(3000)


def filler(step: int) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name in NAMES:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content(step, name))

    return fill


def save(folder: Path, *numbers: int) -> None:
    for step in numbers:
        write(folder, step, filler(step), FACTS)


def check(folder: Path, *allowed: int) -> int:
    """What is found has the bytes of its step; its step."""
    found = newest(folder, FACTS).checkpoint
    assert found is not None
    assert found.step in allowed
    for name in NAMES:
        assert found.path(name).read_bytes() == content(found.step, name)
    return found.step


def test_a_kill_at_any_boundary_of_saving_costs_at_most_that_checkpoint(tmp_path, nursery):
    folder, kept = tmp_path / "checkpoints", tmp_path / "kept"
    save(kept, 1, 2)
    kills, outcomes = 0, {2: 0, 3: 0}
    while True:
        shutil.copytree(kept, folder)
        code = nursery.run("kill", kills, folder, 3)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        outcomes[check(folder, 2, 3)] += 1
        save(folder, 4)
        assert check(folder, 4) == 4
        assert not list(folder.glob(".*"))  # what the kill left is gone
        shutil.rmtree(folder)
        kills += 1
    print(f"{kills} kills, one at each boundary of a save: {outcomes} by the step that is found")
    assert kills >= 30
    assert min(outcomes.values()) > 0


def test_100_kills_at_random_moments_of_saving(tmp_path, nursery):
    began = time.monotonic()
    save(tmp_path / "timed", 1)
    window = 3 * (time.monotonic() - began)
    rng, last, found = random.Random(5), 0, set()
    folder = tmp_path / "checkpoints"
    for _ in range(100):
        pid = nursery.start("forever", 0, folder, last + 1)
        time.sleep(rng.uniform(0, window))
        os.kill(pid, signal.SIGKILL)
        assert nursery.end() == -signal.SIGKILL
        if steps(folder):
            last = check(folder, *range(last, last + 1000))
        # On a busy machine a save takes longer than the one that was timed.
        window *= 1.2 if last in found else 0.9
        found.add(last)
    found.discard(0)
    print(f"100 random kills over {last} saves: always a whole checkpoint, {len(found)} different")
    assert len(found) > 10


def test_a_disk_that_fills_at_any_boundary_keeps_the_checkpoints_and_says_so(tmp_path, nursery):
    folder, kept = tmp_path / "checkpoints", tmp_path / "kept"
    save(kept, 1, 2)
    boundary, found = 0, []
    while True:
        shutil.copytree(kept, folder)
        code = nursery.run("full", boundary, folder, 3)
        found.append(check(folder, 2, 3))
        assert not list(folder.glob(".*"))
        shutil.rmtree(folder)
        if code == 0:
            break
        assert code == StorageError.exit_code
        boundary += 1
    assert boundary >= 15
    assert found[0] == 2


def test_a_full_disk_of_a_native_library_keeps_the_checkpoints(tmp_path):
    save(tmp_path, 1)

    def fill(folder: Path) -> None:
        filler(2)(folder)
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(StorageError, match="step 2 was not written, earlier ones are kept"):
        write(tmp_path, 2, fill, FACTS)
    assert check(tmp_path, 1) == 1
    assert os.listdir(tmp_path) == ["step-00000001"]


def test_100_damaged_files_are_never_loaded(tmp_path):
    folder, kept = tmp_path / "checkpoints", tmp_path / "kept"
    save(kept, 1, 2)
    rng, passed = random.Random(5), 0
    for number in range(100):
        shutil.copytree(kept, folder)
        name = rng.choice([*NAMES, "manifest.json"])
        path = folder / "step-00000002" / name
        held = bytearray(path.read_bytes())
        if number % 2:
            held = held[: rng.randrange(len(held))]
        else:
            held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
        path.write_bytes(held)
        search = newest(folder, FACTS)
        if check(folder, 1, 2) == 1:
            passed += 1
            assert search.passed_over[0].startswith("passed over: step-00000002: ")
            if name != "manifest.json":
                assert name in search.passed_over[0]
        else:  # a bit in the manifest's white space, or its last line end
            assert name == "manifest.json"
            assert json.loads(held) == json.loads((kept / "step-00000002" / name).read_bytes())
        shutil.rmtree(folder)
    print(f"100 damaged files: {passed} checkpoints passed over, the others say the same")
    assert passed >= 90


def test_nothing_whole_is_nothing_and_says_why(tmp_path):
    assert newest(tmp_path / "none", FACTS).checkpoint is None
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    (tmp_path / "step-00000002" / "weights").unlink()
    search = newest(tmp_path, FACTS)
    assert search.checkpoint is None
    assert search.passed_over == (
        "passed over: step-00000002: weights is missing",
        "passed over: step-00000001: it has no manifest",
    )
    os.rename(tmp_path / "step-00000002", tmp_path / "step-00000009")
    assert "its manifest is of step 2" in newest(tmp_path, FACTS).passed_over[0]


def test_other_settings_or_data_are_refused_by_name(tmp_path):
    save(tmp_path, 7)
    other = {"settings": {"finetune": {"learning_rate": 0.002}}, "rows": "3c4d", "processes": 2}
    with pytest.raises(ResultExists) as raised:
        newest(tmp_path, other)
    text = str(raised.value)
    assert "settings.finetune.learning_rate: 0.001 there, 0.002 now" in text
    assert "rows: 1a2b there, 3c4d now" in text
    assert "processes: not set there, 2 now" in text
    assert "--resume never" in text


def test_other_versions_are_told(tmp_path, monkeypatch):
    save(tmp_path, 7)
    monkeypatch.setattr(checkpoints.provenance, "versions", lambda: {"torch": "9"})
    line = newest(tmp_path, FACTS).line()
    assert "step 7" in line
    assert "torch" in line
    assert "9 now: numbers may round otherwise" in line


def test_two_are_kept_and_a_course_that_was_left_is_not(tmp_path):
    save(tmp_path, 1, 2, 3, 4)
    assert list(steps(tmp_path)) == [4, 3]
    (tmp_path / "step-00000004" / "weights").write_bytes(b"")
    assert check(tmp_path, 3) == 3
    save(tmp_path, 4)
    assert check(tmp_path, 4) == 4
    save(tmp_path, 2)  # from an older one on
    assert list(steps(tmp_path)) == [2]
    with pytest.raises(KeyError, match="has no secret"):
        newest(tmp_path, FACTS).checkpoint.path("secret")


# --- being stopped -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_waits_for_the_step_and_ends_as_ever(number, error, capfd):
    before = signal.getsignal(number)
    with pytest.raises(error) as ended, stop_requests() as stop:
        stop.leave()  # nothing came
        os.kill(os.getpid(), number)
        assert stop.number == number
        stop.leave()
    assert number == signal.SIGINT or ended.value.code == 143
    assert signal.getsignal(number) is before
    assert "stopping after this step" in capfd.readouterr().err


def test_a_second_ctrl_c_does_not_wait_but_a_launchers_echo_does(monkeypatch):
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # at once: the launcher passes it on
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGINT
        monkeypatch.setattr(stopping, "ECHO_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
