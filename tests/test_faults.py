"""Every row of the table of faults, against a scripted service over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from reward import rehearsal
from reward.budget import Prices
from reward.call import Caller
from reward.evaluator import Assessment
from reward.faults import retry_after
from reward.gate import Gate
from reward.ledger import open_ledger
from reward.rehearsal import Call, Reply, completion
from reward.remote import OpenAIEvaluator
from reward.rubric import load_rubric
from reward.service import Pace, Service
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import EvaluatorStopped, StorageError, UserError
from sft.progress import Progress

RUBRIC = load_rubric()
HASTE = Pace(base_s=0.001, longest_s=0.01)


def rows(n: int) -> tuple[list[Prompt], list[Candidate]]:
    """A prompt with a reply, n times."""
    prompts = [
        Prompt(f"p{i}", [{"role": "user", "content": f"Day {i}."}], "t", "t", "none", "train")
        for i in range(n)
    ]
    return prompts, [
        Candidate(f"c{i}", f"p{i}", f"How was day {i}?", "m", 1.0, 1.0, 0, "eos") for i in range(n)
    ]


def text_of(call: Call) -> str:
    """What tells requests apart: the texts without the marks."""
    return rehearsal.material(call.body)


class Faulty:
    """A judge whose n-th answer to each request is what `faults(n, call)` says; None = a good one.

    `times` has the second at which each call came, by request.
    """

    def __init__(self, faults: Callable[[int, Call], Reply | None]) -> None:
        self.faults = faults
        self.calls: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {}
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, call: Call) -> Reply:
        text = text_of(call)
        self.calls[text] += 1
        self.times.setdefault(text, []).append(time.monotonic())
        self.bodies.append(call.body)
        return self.faults(self.calls[text], call) or rehearsal.judge(call)


@contextmanager
def judged_by(
    faults: Callable[[int, Call], Reply | None], path: Path, **service: Any
) -> Iterator[tuple[Faulty, OpenAIEvaluator]]:
    judge = Faulty(faults)
    with rehearsal.running(judge) as url:
        options = {"base_url": url} | service
        yield judge, OpenAIEvaluator(RUBRIC, Service("judge", **options), ledger=path, pace=HASTE)


def first(reply: Reply) -> Callable[[int, Call], Reply | None]:
    """This to the first call of each request, then good answers."""
    return lambda n, call: reply if n == 1 else None


def score(evaluator: OpenAIEvaluator, n: int) -> list[Assessment]:
    prompts, candidates = rows(n)
    return evaluator.assess_all(prompts, candidates, lambda count: None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


# --- messages that repeat the request -----------------------------------------------------------


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("written", [str, json.dumps, repr])
def test_a_message_that_repeats_the_request_is_on_no_screen_and_in_no_ledger(
    path, capsys, status, written
):
    said = "Nobody knows that I have not slept since the funeral of my \u00fcncle Joe."
    prompt = Prompt("p", [{"role": "user", "content": said}], "t", "t", "none", "train")
    reply = Candidate("c", "p", "What helps you?", "m", 1.0, 1.0, 0, "eos")

    def echo(n: int, call: Call) -> Reply:
        told = written(text_of(call))
        return Reply(status, {"error": {"message": f"bad request: {told}"}})

    with judged_by(echo, path) as (_, evaluator):
        assert not evaluator.assess(prompt, [reply])[0].scored
    screen = capsys.readouterr().err
    assert "repeats the request" in screen and "funeral" not in screen
    assert not any(b"funeral" in file.read_bytes() for file in path.parent.iterdir())


@pytest.mark.parametrize("choices", [5, True, "no", {"0": {}}, [], None, [7]])
def test_choices_that_are_none_are_no_answer(path, choices):
    with judged_by(first(Reply(200, {"choices": choices})), path) as (judge, evaluator):
        assert score(evaluator, 1)[0].scored
    assert list(judge.calls.values()) == [2]


# --- 429 ---------------------------------------------------------------------------------------

LIMITED = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}


@pytest.mark.parametrize(
    ("headers", "least"),
    [
        ({"retry-after": "1"}, 1.0),
        ({"retry-after": "0.3"}, 0.3),
        ({"Retry-After-Ms": "400"}, 0.4),
        ({"retry-after": "date"}, 1.0),
        ({}, 0.0),
    ],
)
def test_a_wait_that_the_service_asks_for_is_kept(path, headers, least):
    def limit(n: int, call: Call) -> Reply | None:
        if n > 1:
            return None
        told = dict(headers)
        if told.get("retry-after") == "date":  # dates have whole seconds
            told["retry-after"] = formatdate(time.time() + 2, usegmt=True)
        return Reply(429, LIMITED, told)

    with judged_by(limit, path) as (judge, evaluator):
        assert score(evaluator, 1)[0].scored
    (times,) = judge.times.values()
    assert len(times) == 2
    assert least <= times[1] - times[0] < least + 5
    with open_ledger(path) as ledger:
        assert ledger.outcomes() == {"rate limit": 1}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "1"}, 1),
        ({"retry-after": "30"}, 30),
        ({"retry-after": "300"}, 300),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30),
        ({"retry-after": "Wed, 21 Oct 2015 07:00:00 GMT"}, 0),
        ({"retry-after": "-5"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, 86400),
        ({}, None),
    ],
)
def test_every_form_of_a_wait_is_read(headers, seconds):
    assert retry_after(headers, now=1445412480.0) == seconds  # 07:28:00 of that day


def test_one_that_is_told_to_wait_holds_back_all_and_a_countdown_shows(path):
    seen: list[str] = []

    def limit(n: int, call: Call) -> Reply | None:
        return (
            Reply(429, LIMITED, {"retry-after": "2"})
            if n == 1 and "Day 0." in call.body["messages"][1]["content"]
            else None
        )

    with judged_by(limit, path, max_in_flight=1) as (judge, evaluator):
        prompts, candidates = rows(3)
        evaluator.assess_all(prompts, candidates, lambda count: seen.append(evaluator.note()))
    stops = [judge.times[text] for text in judge.times]
    assert min(t for times in stops for t in times[-1:]) - stops[0][0] >= 2
    assert any("1 x 429" in note and "the service asks to wait 2 s" in note for note in seen)
    assert any("wait 1 s" in note for note in seen)


def test_a_service_that_always_refuses_ends_at_a_limit(path):
    with judged_by(lambda n, call: Reply(429, LIMITED), path) as (judge, evaluator):
        assert score(evaluator, 2)[0].unscored == "rate limit"
    assert set(judge.calls.values()) == {HASTE.limited}


# --- what no call would survive ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(429, {"error": {"message": "pay", "code": "insufficient_quota"}}), "Add credit"),
        (Reply(402, {"error": {"message": "pay"}}), "Add credit"),
        (Reply(401, {"error": {"message": "who?"}}), "Check OPENAI_API_KEY"),
        (Reply(403, {"error": {"message": "not here"}}), "Check OPENAI_API_KEY"),
        (Reply(404, {"error": {"message": "no such model"}}), "Change the model"),
        (Reply(200, {"error": {"message": "pay", "code": "insufficient_quota"}}), "Add credit"),
    ],
)
def test_it_stops_within_the_calls_in_flight_and_loses_nothing(path, reply, says):
    lock, count = threading.Lock(), Counter[str]()

    def after_ten(n: int, call: Call) -> Reply | None:
        with lock:
            count["all"] += 1
            bad = count["all"] > 10
            count["bad"] += bad
        return reply if bad else None

    with judged_by(after_ten, path, max_in_flight=6) as (judge, evaluator):
        with pytest.raises(EvaluatorStopped, match=says) as stopped:
            score(evaluator, 100)
        assert stopped.value.exit_code == 3
        assert count["bad"] <= 6
        with open_ledger(path) as ledger:
            assert len(ledger.answered()) == 10
    with judged_by(lambda n, call: None, path) as (judge, evaluator):
        assert all(a.scored for a in score(evaluator, 100))
        assert sum(judge.calls.values()) == 90


# --- what passes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        *[(Reply(s, {"error": {"message": "oops"}}), f"service: {s}") for s in range(500, 505)],
        (Reply(fault="reset"), "connection lost"),
        (Reply(200, {"error": {"message": "overloaded"}}), "service: 500"),
        (Reply(200, {"error": {"message": "x", "code": 503}}), "service: 503"),
        (Reply(200, {"error": "overloaded"}), "service: 500"),
        (Reply(200, completion(None)), "empty answer"),
        (Reply(200, completion("")), "empty answer"),
        (Reply(200, completion("  \n")), "empty answer"),
        (Reply(200, b"<html>busy</html>", {"content-type": "text/html"}), "service: not JSON"),
        (Reply(200, b"[" * 99_999), "service: not JSON"),
        (Reply(200, []), "service: no object"),
        (Reply(200, {"choices": None}), "service: no choices"),
        (Reply(200, {"choices": [None]}), "service: no choices"),
        (Reply(200, {"choices": [{"message": "hm"}]}), "empty answer"),
        (Reply(502, b"<html>bad gateway</html>", {"content-type": "text/html"}), "service: 502"),
    ],
)
def test_a_passing_failure_is_tried_again_and_stored_as_an_attempt(path, reply, outcome):
    with judged_by(first(reply), path) as (judge, evaluator):
        assert all(a.scored for a in score(evaluator, 3))
    assert set(judge.calls.values()) == {2}
    with open_ledger(path) as ledger:
        assert ledger.outcomes() == {outcome: 3}
        assert ledger.tokens()[0] == 3


def test_a_failure_that_stays_is_unscored_with_its_name_and_asked_again_next_time(path):
    down = Reply(500, {"error": {"message": "oops"}})
    with judged_by(lambda n, call: down, path) as (judge, evaluator):
        assert {a.unscored for a in score(evaluator, 2)} == {"service: 500"}
        assert set(judge.calls.values()) == {HASTE.tries}
    with judged_by(lambda n, call: None, path) as (judge, evaluator):
        assert all(a.scored for a in score(evaluator, 2))


def test_the_jitter_is_full(monkeypatch):
    # Draws between 0 and the cap, which doubles up to the longest wait.
    drawn: list[float] = []
    monkeypatch.setattr("reward.client.random.uniform", lambda low, high: drawn.append(high) or 0.0)
    down = Reply(500, {"error": {"message": "oops"}})
    judge = Faulty(lambda n, call: down)
    pace = Pace(tries=6, base_s=0.5, longest_s=5.0)
    with rehearsal.running(judge) as url:
        score(OpenAIEvaluator(RUBRIC, Service("judge", url), pace=pace), 1)
    assert drawn == [1.0, 2.0, 4.0, 5.0, 5.0]


def unknown_host(*args: Any, **options: Any) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize("url", ["http://judge.invalid/v1", "http://127.0.0.1:1/v1"])
def test_a_name_or_port_that_nobody_answers_is_told_and_ends_the_run(path, url, monkeypatch):
    if "invalid" in url:
        monkeypatch.setattr(socket, "getaddrinfo", unknown_host)
    pace = Pace(tries=10_000, base_s=0.001, longest_s=0.01, silence_s=0.3)
    evaluator = OpenAIEvaluator(RUBRIC, Service("judge", url), ledger=path, pace=pace)
    with pytest.raises(EvaluatorStopped, match=r"answered nothing.*cannot be reached.*is kept"):
        score(evaluator, 50)


def test_a_certificate_that_nobody_trusts_names_ssl_cert_file(path, capsys, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    certificate = path.with_name("localhost.pem")  # signed by itself
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    names = ["-keyout", "key.pem", "-out", "own.pem"]
    subprocess.run(["openssl", *made, *names], cwd=path.parent, check=True, capture_output=True)
    parts = [path.with_name(name).read_text() for name in ("key.pem", "own.pem")]
    certificate.write_text("".join(parts))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with rehearsal.running(rehearsal.judge, context) as url:
        service = Service("judge", url.replace("127.0.0.1", "localhost"))
        evaluator = OpenAIEvaluator(RUBRIC, service, ledger=path, pace=HASTE)
        assert score(evaluator, 1)[0].unscored == "connection: TLS"
        assert "export SSL_CERT_FILE=" in capsys.readouterr().err
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert score(evaluator, 1)[0].scored


@pytest.mark.parametrize("fault", ["silent", "drip"])
def test_no_bytes_and_a_slow_drip_end_at_the_timeout(path, fault):
    with judged_by(first(Reply(fault=fault)), path, timeout_s=0.4) as (judge, evaluator):
        assert score(evaluator, 1)[0].scored
        (times,) = judge.times.values()
        assert 0.2 <= times[1] - times[0] < 5  # by the server's clock, from when it had the call
    with judged_by(lambda n, call: Reply(fault=fault), path, timeout_s=0.05) as (judge, evaluator):
        began = time.monotonic()
        assert score(evaluator, 2)[1].unscored == "timeout"  # the first row is in the ledger
        assert time.monotonic() - began < HASTE.tries * (0.05 + HASTE.longest_s) + 8


# --- what a judge may answer -------------------------------------------------------------------


def test_an_answer_that_is_no_verdict_is_asked_again_and_its_text_is_kept(path):
    wrong = Reply(200, completion('{"empathy": "4/5"}'))
    with judged_by(first(wrong), path) as (judge, evaluator):
        assert score(evaluator, 1)[0].scored
        assert sum(judge.calls.values()) == 2
    with open_ledger(path) as ledger:
        (key,) = ledger.answered()
        wrong_one, _right_one = ledger.answers(key)
        assert wrong_one.text == '{"empathy": "4/5"}'


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, completion(None, finish="content_filter")),
        Reply(200, {"choices": [{"message": {"refusal": "I cannot", "content": None}}]}),
    ],
)
def test_a_refusal_is_counted_and_never_asked_or_imputed(path, reply):
    with judged_by(lambda n, call: reply, path) as (judge, evaluator):
        for _ in range(2):
            (made,) = score(evaluator, 1)
            assert (made.unscored, made.quality, made.safe) == ("refused", None, None)
        assert sum(judge.calls.values()) == 1


def test_a_cut_answer_gets_twice_the_tokens_once(path):
    cut = Reply(200, completion('{"critique": "it', finish="length"))
    with judged_by(first(cut), path) as (judge, evaluator):
        assert score(evaluator, 1)[0].scored
        limits = [body["max_completion_tokens"] for body in judge.bodies]
        assert limits == [limits[0], 2 * limits[0]]


def test_an_answer_that_is_cut_twice_is_truncated_for_good(path):
    cut = Reply(200, completion('{"critique": "it', finish="length"))
    with judged_by(lambda n, call: cut, path) as (judge, evaluator):
        for _ in range(2):
            assert score(evaluator, 1)[0].unscored == "truncated"
        assert sum(judge.calls.values()) == 2


def test_another_model_than_asked_is_told_once_and_stored(path, capsys):
    def other(n: int, call: Call) -> Reply:
        return Reply(body=rehearsal.judge(call).body | {"model": "small-judge"})  # type: ignore[operator]

    with judged_by(other, path) as (_, evaluator):
        assert all(a.scored for a in score(evaluator, 3))
    assert capsys.readouterr().err.count("answers as 'small-judge', asked was 'judge'") == 1
    with open_ledger(path) as ledger:
        assert {ledger.answers(key)[0].model for key in ledger.answered()} == {"small-judge"}


def test_a_dated_version_of_the_model_is_no_other_model(path, capsys):
    def dated(n: int, call: Call) -> Reply:
        return Reply(body=rehearsal.judge(call).body | {"model": "judge-2026-01-01"})  # type: ignore[operator]

    with judged_by(dated, path) as (_, evaluator):
        score(evaluator, 1)
    assert "asked was" not in capsys.readouterr().err


def test_the_same_row_twice_at_once_is_one_call(path):
    prompts, candidates = rows(2)
    twins = [
        Candidate(f"t{i}", c.prompt_id, c.text, "m", 1.0, 1.0, 1, "eos")
        for i, c in enumerate(candidates)
    ]
    with judged_by(lambda n, call: Reply(delay=0.1, body=rehearsal.judge(call).body), path) as (
        judge, evaluator,
    ):  # fmt: skip
        made = evaluator.assess_all(prompts, [*candidates, *twins], lambda count: None)
    assert set(judge.calls.values()) == {1}
    assert [a.candidate_id for a in made] == ["c0", "c1", "t0", "t1"]
    assert [a.quality for a in made[:2]] == [a.quality for a in made[2:]]
    assert sum(a.tokens > 0 for a in made) == 2  # paid once, told once


# --- the disk and other processes --------------------------------------------------------------


def test_a_full_disk_stops_the_work_at_once_and_leaves_the_ledger_intact(path, monkeypatch):
    with judged_by(lambda n, call: None, path, max_in_flight=4) as (judge, evaluator):
        score(evaluator, 5)

        real = Caller.__init__

        def full(self: Caller, service: Service, ledger: Any, pace: Pace, hint: str) -> None:
            real(self, service, ledger, pace, hint)
            pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
            ledger._db.execute(f"PRAGMA max_page_count = {pages + 2}")

        monkeypatch.setattr(Caller, "__init__", full)
        with pytest.raises(StorageError, match="free some space") as stopped:
            score(evaluator, 300)
        assert stopped.value.exit_code == 6
        asked = sum(judge.calls.values())
        assert asked < 100
        monkeypatch.undo()
        with open_ledger(path) as ledger:
            stored = len(ledger.answered())
            assert ledger._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert asked - stored <= 4  # what was on the wire
        assert all(a.scored for a in score(evaluator, 300))


def test_two_runs_on_one_ledger_are_refused(path):
    with (
        open_ledger(path),
        judged_by(lambda n, call: None, path) as (judge, evaluator),
        pytest.raises(UserError, match=r"another process is working on .*delete"),
    ):
        score(evaluator, 1)
    assert judge.calls == {}


# --- how many at once --------------------------------------------------------------------------


def test_calls_at_once_grow_to_the_ceiling_and_halve_when_the_service_is_overloaded():
    gate = Gate(64)

    async def drive() -> list[float]:
        limits = [gate.limit]
        for _ in range(200):
            gate.leave(await gate.enter(), overload=False)
        limits.append(gate.limit)
        late = await gate.enter()
        other = await gate.enter()
        gate.leave(late, overload=True)
        limits.append(gate.limit)
        gate.leave(other, overload=True)  # it left before the decrease: it says nothing new
        limits.append(gate.limit)
        gate.leave(await gate.enter(), overload=False)
        limits.append(gate.limit)
        return limits

    assert asyncio.run(drive()) == [8, 64, 32, 32, 32 + 1 / 32]


def test_never_more_calls_at_once_than_allowed(path):
    slow = Reply(delay=0.05)

    def faults(n: int, call: Call) -> Reply:
        return Reply(body=rehearsal.judge(call).body, delay=slow.delay)

    with judged_by(faults, path, max_in_flight=3) as (judge, evaluator):
        score(evaluator, 30)
    came = sorted(at for times in judge.times.values() for at in times)
    assert all(later - at > 0.02 for at, later in zip(came, came[3:], strict=False))


# --- all together ------------------------------------------------------------------------------


def mixed(rng: random.Random) -> Callable[[int, Call], Reply | None]:
    """30 % of all calls fail, in every way that passes."""
    kinds = [
        Reply(429, LIMITED), Reply(429, LIMITED, {"retry-after-ms": "20"}),
        Reply(500, {"error": {"message": "oops"}}), Reply(503, b"busy"), Reply(fault="reset"),
        Reply(200, {"error": {"message": "overloaded"}}), Reply(200, completion(None)),
        Reply(200, b"<html>"), Reply(200, completion("4/5")),
        Reply(200, completion('{"empathy": NaN}')),
        Reply(200, completion('{"critique": "it', finish="length")), Reply(fault="silent"),
    ]  # fmt: skip
    lock = threading.Lock()

    def faults(n: int, call: Call) -> Reply | None:
        with lock:
            return rng.choice(kinds) if rng.random() < 0.3 else None

    return faults


def mixed_faults(path: Path, n: int) -> tuple[float, float]:
    """Share of rows with a score, and calls per scored row."""
    with judged_by(mixed(random.Random(1)), path, timeout_s=0.5) as (judge, evaluator):
        made = score(evaluator, n)
    scored = sum(a.scored for a in made)
    return scored / n, sum(judge.calls.values()) / scored


def test_mixed_faults_cost_few_calls_and_few_rows(path):
    share, calls = mixed_faults(path, 400)
    assert share >= 0.99
    assert calls <= 1.55


@pytest.mark.slow
def test_30_per_cent_of_faults_over_5_000_rows(path):
    share, calls = mixed_faults(path, 5_000)
    print(f"{share:.2%} scored, {calls:.3f} calls per scored row")
    assert share >= 0.995
    assert calls <= 1.5


def test_the_live_line_says_all_that_a_user_waits_for(path):
    stream = io.StringIO()

    def limited(n: int, call: Call) -> Reply | None:
        if "Day 1." in text_of(call):
            return Reply(200, completion(None, finish="content_filter"))
        return Reply(429, LIMITED) if n == 1 else None

    with judged_by(limited, path, prices=Prices(1.0, 2.0), max_cost=9.0) as (_, evaluator):
        prompts, candidates = rows(4)
        with Progress(4, "scores", "candidates", stream, note=evaluator.note) as bar:
            evaluator.assess_all(prompts, candidates, bar.advance)
            line = bar.line(2.0)
    assert line.startswith("scores: 4/4 candidates (100%), 2/s, 0 s left, $0.0")
    assert line.endswith("of $9 spent, 3 x 429, 25.0% unscored")


# --- what a filter turned down, and calls that are sent elsewhere --------------------------------

FILTERED = {"error": {"message": "filtered", "code": "content_filter", "type": None}}


@pytest.mark.parametrize(
    "reply",
    [
        Reply(400, FILTERED),
        Reply(403, FILTERED),
        Reply(400, {"error": {"message": "filtered", "type": "content_filter"}}),
        Reply(200, FILTERED),
        Reply(200, completion(None, finish="content_filter")),
    ],
)
def test_what_a_content_filter_turned_down_is_refused_once_and_for_all(path, reply):
    prices = Prices(1.0, 4.0)

    def filter_one(n: int, call: Call) -> Reply | None:
        return reply if "day 1?" in text_of(call) else None

    with judged_by(filter_one, path, prices=prices, max_cost=1.0) as (judge, evaluator):
        found = score(evaluator, 3)
        assert [a.unscored for a in found] == [None, "refused", None]
        assert set(judge.calls.values()) == {1}
    with open_ledger(path) as ledger:
        assert ledger.tokens()[0] == 3 and ledger.outcomes() == {}
        assert ledger.spent() > 0.0
        spent = ledger.spent()
    # Neither asked again nor made into a number, by another run or by reading the answers anew.
    with judged_by(lambda n, call: None, path, prices=prices, max_cost=1.0) as (judge, evaluator):
        again = score(evaluator, 3)
        assert [a.unscored for a in again] == [None, "refused", None]
        assert not judge.calls
    offline = OpenAIEvaluator(RUBRIC, Service("judge"), ledger=path, offline=True)
    assert [a.unscored for a in score(offline, 3)] == [None, "refused", None]
    with open_ledger(path) as ledger:
        assert ledger.spent() == spent


def test_a_filter_that_turns_everything_down_is_no_mistake_in_the_settings(path):
    with judged_by(lambda n, call: Reply(400, FILTERED), path) as (_, evaluator):
        assert {a.unscored for a in score(evaluator, 30)} == {"refused"}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("proxied", [False, True])
def test_conversations_follow_no_redirect(path, status, proxied, monkeypatch):
    elsewhere = Faulty(lambda n, call: None)
    if proxied:  # the SDK's own transport is used then
        monkeypatch.setattr("reward.call.needs_proxy", lambda url: True)
    with rehearsal.running(elsewhere) as other:
        away = Reply(status, b"", {"location": f"{other}/chat/completions"})
        refused = pytest.raises(EvaluatorStopped, match=r"follow no redirect; give base_url")
        with judged_by(lambda n, call: away, path) as (_, evaluator), refused:
            score(evaluator, 2)
        assert not elsewhere.calls
