"""The real client against a real server: `transformers serve` with the embedded base model."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from reward.ledger import open_ledger
from reward.remote import OpenAIEvaluator
from reward.replies import ServedPolicy
from reward.rubric import load_rubric
from reward.service import Service
from sft.candidates import Candidate, Sampling
from sft.data import Prompt
from sft.hub import model_source
from sft.recipe import Recipe

pytestmark = pytest.mark.slow
STARTS_WITHIN_S = 120
SAID = ("I cannot sleep before exams.", "My brother and I had a row.")
PROMPTS = [
    Prompt(f"p{i}", [{"role": "user", "content": text}], "t", "t", "none", "train")
    for i, text in enumerate(SAID)
]
REPLIES = [
    Candidate(f"c{i}", f"p{i}", "That sounds hard. What happened?", "m", 1.0, 1.0, 0, "eos")
    for i in range(len(SAID))
]
MODEL = model_source("embedded")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}: pip install '.[serving]'")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(server, port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


def _await(server: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < until:
        assert server.poll() is None, "transformers serve ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except urllib.error.HTTPError:
            return  # it speaks
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"transformers serve did not answer within {STARTS_WITHIN_S} s")


def test_a_model_that_writes_no_json_leaves_every_reply_unscored_and_is_paid_once(
    url: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.sqlite"
    evaluator = OpenAIEvaluator(load_rubric(), Service(MODEL, url, 2), ledger=ledger)
    found = evaluator.assess_all(PROMPTS, REPLIES, lambda count: None)
    assert [a.candidate_id for a in found] == ["c0", "c1"]
    for verdict in found:
        assert verdict.quality is None and verdict.safe is None
        assert verdict.unscored in ("not JSON", "truncated", "duplicate key") or (
            verdict.unscored or ""
        ).startswith("invalid verdict")
    with open_ledger(ledger) as opened:
        assert len(opened.answered()) == 2
        count, tokens_in, tokens_out = opened.tokens()
    assert count >= 4 and tokens_in > 0 and tokens_out > 0  # each asked more than once, and kept
    # What is stored is final: nobody is asked again, whether the server is there or not.
    gone = OpenAIEvaluator(load_rubric(), Service(MODEL, "http://127.0.0.1:9/v1"), ledger=ledger)
    again = gone.assess_all(PROMPTS, REPLIES, lambda count: None)
    assert [a.unscored for a in again] == [a.unscored for a in found]
    with open_ledger(ledger) as opened:
        assert opened.tokens()[0] == count


def test_the_served_base_writes_candidates_that_are_paid_once(url: str, tmp_path: Path) -> None:
    generate = {"backend": "openai", "base_url": url, "served_model": MODEL, "max_in_flight": 2}
    recipe = Recipe(run="r", model={"system_prompt": "none"}, generate=generate)
    sampling = Sampling(2, 1.0, 1.0, 40, 4, 3)
    made = ServedPolicy(recipe, None).replies(PROMPTS, sampling, tmp_path)
    assert len(made.candidates) == 4 and made.too_long == []
    assert all(each.text and each.model == "base" for each in made.candidates)
    assert {each.stop for each in made.candidates} <= {"eos", "length"}
    with open_ledger(tmp_path / "ledger.sqlite") as opened:
        count, tokens_in, tokens_out = opened.tokens()
    assert count == 4 and tokens_in > 0 and 0 < tokens_out <= 4 * 40
    away = {**generate, "base_url": "http://127.0.0.1:9/v1"}
    gone = Recipe(run="r", model={"system_prompt": "none"}, generate=away)
    assert ServedPolicy(gone, None).replies(PROMPTS, sampling, tmp_path) == made
