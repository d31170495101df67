"""Kills and signals amid a scoring run: nothing saved is lost, little is paid twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reward import rehearsal
from reward.evaluator import Assessment
from reward.ledger import open_ledger
from reward.rehearsal import Call, Reply
from sft.files import read_rows

IN_FLIGHT = 8

# A process that has loaded everything and starts a scoring run per line of its input, as a fork.
NURSERY = """
import os, signal, sys
from pathlib import Path
from reward.remote import OpenAIEvaluator
from reward.rubric import load_rubric
from reward.score import score
from reward.service import Service
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import write_rows
from sft.runs import run_script

url, folder, rows, in_flight = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
prompts = [
    Prompt(f"p{i}", [{"role": "user", "content": f"Day {i}."}], "t", "t", "none", "train")
    for i in range(rows)
]
candidates = [
    Candidate(f"c{i}", f"p{i}", f"How was day {i}?", "m", 1.0, 1.0, 0, "eos") for i in range(rows)
]
rubric = load_rubric()

def run(name):
    service = Service("judge", url, max_in_flight=in_flight)
    evaluator = OpenAIEvaluator(rubric, service, ledger=folder / f"{name}.sqlite")
    made = score(evaluator, prompts, candidates, lambda n: None, partial=folder / "none")
    write_rows(folder / f"{name}.jsonl", made)

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        sys.stdin = open(os.devnull)
        run_script(lambda: run(line.strip()))
    print(pid, flush=True)
    status = os.waitpid(pid, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@dataclass
class Judge:
    """A judge that needs a moment for an answer and counts what it is asked."""

    delay: float
    calls: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, call: Call) -> Reply:
        text = rehearsal.material(call.body)
        with self.lock:
            self.calls[text] += 1
            jitter = 0.5 + (sum(self.calls.values()) * 7 % 11) / 11
        return Reply(body=rehearsal.judge(call).body, delay=self.delay * jitter)

    def total(self) -> int:
        with self.lock:
            return sum(self.calls.values())


class Runs:
    """Scoring runs over the same rows, one after the other."""

    def __init__(self, nursery: subprocess.Popen[str], judge: Judge, folder: Path) -> None:
        self.nursery, self.judge, self.folder = nursery, judge, folder

    def start(self, name: str) -> int:
        self.nursery.stdin.write(f"{name}\n")
        self.nursery.stdin.flush()
        return int(self.nursery.stdout.readline())

    def end(self) -> int:
        return int(self.nursery.stdout.readline())

    def stored(self, name: str) -> set[str]:
        with open_ledger(self.folder / f"{name}.sqlite") as ledger:
            return ledger.answered()

    def interrupt(self, number: signal.Signals, after: float) -> tuple[int, int, set[str]]:
        """Send a signal so long after the first call of a run: exit code, calls lost, what is
        stored."""
        before, asked = self.stored("cut"), self.judge.total()
        pid = self.start("cut")
        while self.judge.total() == asked:
            time.sleep(0.002)
        time.sleep(after)
        subprocess.run(["kill", f"-{number.value}", str(pid)], check=True)
        code = self.end()
        after_all = self.stored("cut")
        assert before <= after_all  # nothing saved is lost
        return code, (self.judge.total() - asked) - (len(after_all) - len(before)), after_all

    def finish(self, name: str) -> list[Assessment]:
        self.start(name)
        assert self.end() == 0
        return read_rows(self.folder / f"{name}.jsonl", Assessment)


@contextmanager
def runs(folder: Path, rows: int, delay: float) -> Iterator[Runs]:
    judge = Judge(delay)
    with rehearsal.running(judge) as url:
        command = [sys.executable, "-c", NURSERY, url, str(folder), str(rows), str(IN_FLIGHT)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as nursery:
            yield Runs(nursery, judge, folder)
            nursery.stdin.close()


def check_interrupted(folder: Path, *, rows: int, kills: int, terms: int, delay: float) -> None:
    rng = random.Random(5)
    plan = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    rng.shuffle(plan)
    lost: dict[signal.Signals, list[int]] = {signal.SIGKILL: [], signal.SIGTERM: []}
    with runs(folder, rows, delay) as run:
        for number in plan:
            code, gone, stored = run.interrupt(number, rng.uniform(0.0, 2 * delay))
            assert len(stored) < rows, "the run ended before it was interrupted: more rows"
            assert code == (-9 if number == signal.SIGKILL else 143)
            lost[number].append(gone)
        made = run.finish("cut")
        assert max(run.judge.calls.values()) > 1 or not any(lost[signal.SIGKILL])
        extra = run.judge.total() - rows
        uninterrupted = run.finish("whole")
    assert made == uninterrupted
    assert all(each.scored for each in made)
    assert all(0 <= gone <= IN_FLIGHT for gone in lost[signal.SIGKILL])
    assert set(lost[signal.SIGTERM]) <= {0}
    assert extra == sum(lost[signal.SIGKILL])
    mean = extra / max(1, kills)
    print(f"{kills} kills: {mean:.2f} calls paid again per kill; {terms} SIGTERMs: 0")


def test_a_few_kills_and_signals(tmp_path):
    check_interrupted(tmp_path, rows=120, kills=3, terms=2, delay=0.05)


@pytest.mark.slow
def test_200_kills_and_50_signals_over_one_run(tmp_path):
    check_interrupted(tmp_path, rows=6_000, kills=200, terms=50, delay=0.05)


def test_ctrl_c_saves_what_is_on_the_wire(tmp_path):
    with runs(tmp_path, 60, 0.05) as run:
        code, lost, stored = run.interrupt(signal.SIGINT, 0.05)
        assert (code, lost) == (130, 0)
        assert 0 < len(stored) < 60


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    with runs(tmp_path, 20, 30.0) as run:  # answers take half a minute
        pid = run.start("cut")
        while run.judge.total() < IN_FLIGHT:
            time.sleep(0.01)
        began = time.monotonic()
        for _ in range(2):
            subprocess.run(["kill", f"-{signal.SIGINT.value}", str(pid)], check=True)
            time.sleep(0.3)
        assert run.end() == 130
        assert time.monotonic() - began < 10
