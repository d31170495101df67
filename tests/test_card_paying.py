"""What a judge card of a service costs: told before, capped, asked at once, never paid again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reward import figures, rehearsal
from reward.ledger import open_ledger
from reward.rehearsal import Call, Reply
from reward.shards import LEDGER
from sft.files import EvaluatorStopped, UserError, read_json

ROOT = Path(__file__).resolve().parents[1]
PRICES = ["--price_in", "2", "--price_out", "8"]
Run = Callable[..., Path]


class Judge:
    """A judge that needs a moment, and counts its calls, those at once, and what it would bill."""

    def __init__(self, delay: float = 0.0) -> None:
        self.delay, self.lock = delay, threading.Lock()
        self.calls, self.most, self.billed = 0, 0, 0.0
        self._ends: list[float] = []

    def __call__(self, call: Call) -> Reply:
        reply = rehearsal.judge(call)
        used = reply.body["usage"]
        now = time.monotonic()
        with self.lock:
            self.calls += 1
            self.billed += (2 * used["prompt_tokens"] + 8 * used["completion_tokens"]) / 1e6
            self._ends = [end for end in self._ends if end > now] + [now + self.delay]
            self.most = max(self.most, len(self._ends))
        return Reply(body=reply.body, delay=self.delay)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"I feel low, day {i}.", "reply": f"{words}, day {i}.", "overall": grade}
        for i in range(6)
        for words, grade in (("That sounds hard. What helps you", 4), ("Get over it", 1))
    ]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def flags(data: Path, url: str, *more: str) -> list[str]:
    given = ["--data", str(data), "--evaluator", "openai", "--model", "judge", "--base_url", url]
    return [*given, "--probes", "1", *more]


@pytest.fixture
def run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(figures, "RESAMPLES", 50)
    import judge_card

    def made(url: str, *more: str, out: str = "card") -> Path:
        folder = tmp_path / out
        given = flags(data, url, "--out", str(folder), *more)
        monkeypatch.setattr(sys, "argv", ["judge_card.py", *given])
        judge_card.main()
        return folder

    return made


def card(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = read_json(folder / "card.json")
    return made


@pytest.mark.parametrize("asking", [[], ["--ask", "together", "--repeats", "2"]])
def test_a_card_made_again_asks_nothing_and_says_the_same(run: Run, asking: list[str]) -> None:
    judge = Judge()
    with rehearsal.running(judge) as url:
        first = card(run(url, *asking))
        calls = judge.calls
        assert calls > 50 and card(run(url, *asking)) == first
        assert judge.calls == calls
        # Nor does it matter how many are asked at once.
        assert card(run(url, *asking, "--max_in_flight", "1", out="other")) == first
    assert judge.calls == 2 * calls


def test_asked_again_is_another_question_and_the_ledger_knows_its_answer(run: Run) -> None:
    said = Counter[str]()

    def moody(call: Call) -> Reply:
        """Another grade each time that it is asked the same."""
        text = rehearsal.material(call.body)
        said[text] += 1
        verdict = rehearsal.verdict(call.body)
        grade = 1 + said[text] % 5
        verdict |= {name: grade for name, value in verdict.items() if type(value) is int}
        return Reply(body=rehearsal.completion(json.dumps(verdict)))

    with rehearsal.running(moody) as url:
        first = card(run(url))
        again = {line["name"]: line["evaluator"]["value"] for line in first["order"]}
        assert again["grade moves when asked again"] == 1.0
        asked = sum(said.values())
        assert card(run(url)) == first and sum(said.values()) == asked


def test_calls_are_made_at_once_and_never_more_than_allowed(run: Run) -> None:
    judge = Judge(delay=0.02)
    with rehearsal.running(judge) as url:
        run(url, "--max_in_flight", "6")
    assert 4 <= judge.most <= 6


def test_a_dry_run_calls_nobody_and_counts_what_is_then_asked(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    def told() -> str:
        (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("dry run:")]
        return line

    judge = Judge()
    with rehearsal.running(judge) as url:
        folder = run(url, *PRICES, "--dry_run")
        before = told()
        assert judge.calls == 0 and not folder.exists()
        run(url, *PRICES)
        assert f"dry run: {judge.calls} requests, 0 answered before, {judge.calls} to" in before
        cost = float(before.rpartition("$")[2])
        assert cost == pytest.approx(judge.billed, rel=0.2)
        capsys.readouterr()
        run(url, *PRICES, "--dry_run")
        assert f"{judge.calls} answered before, 0 to ask" in told()


@pytest.mark.parametrize("cap", [0.0, 0.12])
def test_the_cap_holds_over_all_runs_and_a_higher_one_goes_on(run: Run, cap: float) -> None:
    judge = Judge()
    with rehearsal.running(judge) as url:
        for _ in range(2):
            with pytest.raises(EvaluatorStopped, match="max_cost is reached"):
                run(url, *PRICES, "--max_cost", str(cap))
            assert judge.billed <= cap
        folder = run(url, *PRICES, "--max_cost", "9")
        calls, whole = judge.calls, card(folder)
        assert card(run(url, *PRICES, out="whole")) == whole
        assert judge.calls == 2 * calls  # nothing of the capped runs was paid again
    with open_ledger(folder / LEDGER) as ledger:
        assert ledger.spent() == pytest.approx(judge.billed / 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--max_cost", "1"], "max_cost needs price_in and price_out"),
        (["--max_in_flight", "0"], "--max_in_flight: Input should be greater than"),
        (["--base_url", "http://judge.example.org/v1"], "--base_url: .* as plain text"),
        (["--base_url", "https://a.example/v1", "--allow_remote", "b.example"],
         "say --allow_remote a.example"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
def test_settings_of_the_service_are_held_to_what_a_recipe_is(
    run: Run, given: list[str], said: str, dry: list[str]
) -> None:
    with pytest.raises(UserError, match=said):
        run("http://localhost:1/v1", *given, *dry)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_waits_for_the_calls_on_the_wire(
    data: Path, tmp_path: Path, run: Run, number: signal.Signals, code: int
) -> None:
    judge = Judge(delay=0.1)
    with rehearsal.running(judge) as url:
        given = flags(data, url, "--out", str(tmp_path / "card"), "--max_in_flight", "4")
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / "judge_card.py"), *given],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        while judge.calls < 6 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in told, told
        sent = judge.calls
        assert not (tmp_path / "card" / "card.json").exists()
        with open_ledger(tmp_path / "card" / LEDGER) as ledger:
            assert ledger.tokens()[0] == sent
        judge.delay = 0.0
        whole = card(run(url))
        calls = judge.calls
        assert card(run(url, out="whole")) == whole
    assert judge.calls == 2 * calls  # none was paid twice
