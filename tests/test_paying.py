"""What a run costs: told before, capped, never paid again; rescoring, batches, shards."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from reward import rehearsal
from reward.batch import ask_in_batches
from reward.budget import Budget, Prices, estimated_tokens
from reward.client import Unread, settle
from reward.evaluator import Assessment
from reward.ledger import Answer, Attempt, open_ledger
from reward.rehearsal import Call, Reply
from reward.remote import OpenAIEvaluator
from reward.rubric import DEFAULT_RUBRIC, load_rubric
from reward.service import Pace, Service
from reward.shards import LEDGER, answering, gather, ledger_in, of_shard, stage_name
from rlaif.evaluate import judge_all, make_judge
from sft import config
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import EvaluatorStopped, UserError, read_json, read_rows, write_rows
from sft.recipe import Recipe

RUBRIC = load_rubric()
PRICES = Prices(tokens_in=2.0, tokens_out=8.0)
HASTE = Pace(base_s=0.001, longest_s=0.01)
TALE = "I could not sleep after the call with my sister, and at work I snapped at a colleague. "


def rows(n: int, per_prompt: int = 1) -> tuple[list[Prompt], list[Candidate]]:
    prompts = [
        Prompt(
            f"p{i}", [{"role": "user", "content": f"{TALE} Day {i}."}], "t", "t", "none", "train"
        )
        for i in range(n)
    ]
    return prompts, [
        Candidate(f"c{i}-{k}", f"p{i}", f"That sounds tiring, {k}. What happened on day {i}?",
                  "m", 1.0, 1.0, k, "eos")
        for i in range(n) for k in range(per_prompt)
    ]  # fmt: skip


class Counting:
    """A judge that counts its calls and the tokens it would bill."""

    def __init__(self) -> None:
        self.lock, self.calls = threading.Lock(), 0
        self.tokens = Counter[str]()

    def __call__(self, call: Call) -> Reply:
        reply = rehearsal.judge(call)
        with self.lock:
            self.calls += 1
            self.tokens.update(reply.body["usage"])
        return reply

    @property
    def billed(self) -> float:
        return PRICES.cost(self.tokens["prompt_tokens"], self.tokens["completion_tokens"])


def evaluator(url: str, path: Path, **options: Any) -> OpenAIEvaluator:
    service = Service("judge", url, **{"prices": PRICES, "max_in_flight": 8} | options)
    return OpenAIEvaluator(RUBRIC, service, ledger=path, pace=HASTE)


def score(judge: OpenAIEvaluator, n: int) -> list[Assessment]:
    return judge.assess_all(*rows(n), lambda count: None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


# --- before: the dry run -----------------------------------------------------------------------


def test_a_dry_run_calls_nobody_and_is_within_20_per_cent_of_what_is_then_spent(path):
    judge = Counting()
    with rehearsal.running(judge) as url:
        told = evaluator(url, path).forecast(*rows(60))
        assert (judge.calls, path.exists()) == (0, False)
        assert (told.requests, told.answered, told.measured) == (60, 0, 0)
        score(evaluator(url, path), 60)
        assert told.cost == pytest.approx(judge.billed, rel=0.2)
        assert told.tokens_in == pytest.approx(judge.tokens["prompt_tokens"], rel=0.2)
        # With answers in the ledger it is their mean, and what is answered costs nothing.
        before = judge.billed
        told = evaluator(url, path).forecast(*rows(200))
        assert (told.requests, told.answered, told.measured) == (200, 60, 60)
        score(evaluator(url, path), 200)
        assert told.cost == pytest.approx(judge.billed - before, rel=0.05)
        assert evaluator(url, path).forecast(*rows(200)).cost == 0
    with open_ledger(path) as ledger:
        assert ledger.spent() == pytest.approx(judge.billed)


def test_without_prices_the_cost_is_unknown_and_a_cap_is_refused(path):
    unpriced = evaluator("http://localhost:1/v1", path, prices=None)
    assert "cost unknown" in unpriced.forecast(*rows(2)).line()
    with pytest.raises(UserError, match="max_cost needs price_in and price_out"):
        Service("judge", max_cost=1.0)
    given = ["--run", "t", "--max_cost", "5", "--price_in", "2"]
    with pytest.raises(UserError, match=r"score\.max_cost .* a cap needs both prices"):
        config.load(given, "score", "")


def test_tokens_are_estimated_near_four_characters_each_in_prose():
    assert estimated_tokens(TALE) == pytest.approx(len(TALE) / 4.3, rel=0.15)


# --- while: the cap ----------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [0.0, 0.05, 0.2])
def test_the_cap_is_never_exceeded_and_the_rest_goes_on_with_a_higher_one(path, cap):
    judge = Counting()
    with rehearsal.running(judge) as url:
        with pytest.raises(EvaluatorStopped, match=r"max_cost is reached.*raise --max_cost"):
            score(evaluator(url, path, max_cost=cap), 300)
        assert judge.billed <= cap
        # At most the reserve of one call is left over: the cap is used.
        assert judge.billed >= cap - 0.03
        stopped_at = judge.calls
        assert all(a.scored for a in score(evaluator(url, path, max_cost=100.0), 300))
        assert judge.calls == 300
        assert stopped_at < 300


def test_calls_of_unknown_outcome_count_at_the_most_they_can_cost(path):
    silent = Reply(fault="silent")
    with rehearsal.running(lambda call: silent) as url:
        judge = evaluator(url, path, timeout_s=0.05, max_cost=0.1)
        with pytest.raises(EvaluatorStopped, match="max_cost"):
            score(judge, 50)
    with open_ledger(path) as ledger:
        assert 0.05 < ledger.spent() <= 0.1


def test_a_call_that_a_kill_caught_counts_in_the_next_run(path):
    judge = Counting()
    with open_ledger(path) as ledger:
        ledger.append([Attempt("lost", "sent", cost=0.19)])
    with rehearsal.running(judge) as url:
        with pytest.raises(EvaluatorStopped, match="max_cost"):
            score(evaluator(url, path, max_cost=0.2), 300)
        assert judge.billed <= 0.01


def test_a_budget_keeps_what_is_reserved_apart():
    budget = Budget(PRICES, cap=1.0, spent=0.25)
    assert budget.reserve(0.5)
    assert not budget.reserve(0.5)
    budget.settle(0.5, 0.1)
    assert (budget.spent, budget.reserved) == (0.35, 0.0)
    assert budget.reserve(0.5)


# --- afterwards: the same answers read anew ----------------------------------------------------


def stage(folder: Path, n: int) -> list[str]:
    """A run with finished candidates; returns the flags of its score stage."""
    prompts, candidates = rows(n)
    made = folder / "t" / "candidates"
    write_rows(made / "prompts.jsonl", prompts)
    write_rows(made / "candidates.jsonl", candidates)
    return ["--run", "t", "--runs_dir", str(folder), "--evaluator", "openai",
            "--evaluator_model", "judge"]  # fmt: skip


@pytest.fixture
def score_script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "scripts"))
    import score as module

    return module


def test_new_weights_are_read_from_the_stored_answers_without_a_call(
    tmp_path, score_script, capsys, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    flags, judge = stage(tmp_path, 12), Counting()
    with rehearsal.running(judge) as url:
        flags += ["--base_url", url, "--price_in", "2", "--price_out", "8"]
        score_script.main([*flags, "--dry_run"])
        assert "dry run: 12 requests, 0 answered before, 12 to ask" in capsys.readouterr().out
        assert not (tmp_path / "t" / "scores").exists()
        score_script.main(flags)
        assert judge.calls == 12
        made = tmp_path / "t" / "scores" / "assessments.jsonl"
        before = read_rows(made, Assessment)
        summary = read_json(made.parent / "manifest.json")["summary"]
        assert summary["cost"] == pytest.approx(judge.billed)
        # How a service is reached shapes no result: it is reused.
        score_script.main([*flags, "--max_in_flight", "4", "--max_cost", "9"])
        assert "reused" in capsys.readouterr().out
    content = yaml.safe_load(DEFAULT_RUBRIC.read_text(encoding="utf-8"))
    for number, criterion in enumerate(content["criteria"].values()):
        criterion["weight"] = float(number == 0)
    weights = tmp_path / "rubric.yaml"
    weights.write_text(yaml.safe_dump(content, sort_keys=False))
    score_script.main([*flags, "--rescore", "--rubric", str(weights)])  # nobody listens any more
    after = read_rows(made, Assessment)
    first = next(iter(RUBRIC.criteria))
    assert [a.quality for a in after] == [(a.criteria[first] - 1) / 4 for a in before]
    assert [(a.criteria, a.safe) for a in after] == [(a.criteria, a.safe) for a in before]
    with pytest.raises(UserError, match="the embedded evaluator has none"):
        score_script.main([*flags, "--rescore", "--evaluator", "embedded"])


def answer(text: str, finish: str = "stop") -> Answer:
    return Answer("k", text, finish, "m", 1, 1, 0.0, 1.0)


@pytest.mark.parametrize(
    ("texts", "ask", "final"),
    [
        ([], None, Unread("not asked")),
        (["bad"], None, Unread("bad")),
        (["bad", "good"], "good", "good"),
        (["bad"] * 4, Unread("bad"), Unread("bad")),
        (["bad", "cut"], None, Unread("truncated")),
        (["cut", "cut"], Unread("truncated"), Unread("truncated")),
        (["cut", "good", "cut"], "good", "good"),
        (["no"], Unread("refused"), Unread("refused")),
    ],
)
def test_what_several_answers_come_to(texts, ask, final):
    finishes = {"cut": "length", "no": "refusal"}
    answers = [answer(text, finishes.get(text, "stop")) for text in texts]

    def read(given: Answer) -> str | Unread:
        return given.text if given.text == "good" else Unread(given.text)

    assert settle(answers, read) == ask
    assert settle(answers, read, final=True) == final


# --- batches -----------------------------------------------------------------------------------


class BatchService:
    """Files and batches of OpenAI's API; `status` and `answers` say how a batch ends."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.status, self.share, self.polls = "completed", 1.0, 1
        self.output = True
        self.crash = False
        self.asked = Counter[str]()

    def __call__(self, call: Call) -> Reply:
        path = call.path.partition("?")[0].removeprefix("/v1/")
        if call.method == "POST" and path == "files":
            name = f"file-{len(self.files)}"
            parts = call.raw.split(b"\r\n\r\n")
            self.files[name] = next(p for p in parts if p.startswith(b'{"custom_id"')).rpartition(
                b"\r\n--")[0]  # fmt: skip
            return Reply(body={"id": name, "object": "file"})
        if call.method == "POST" and path == "batches":
            made = {
                **{"id": f"batch-{len(self.batches)}", "object": "batch", "status": "in_progress"},
                **{"created_at": 0, "left": self.polls, **call.body},
            }
            self.batches[made["id"]] = made
            return Reply(fault="reset") if self.crash else Reply(body=made)
        if path == "batches":
            return Reply(body={"object": "list", "data": list(self.batches.values()),
                               "has_more": False})  # fmt: skip
        if path.startswith("batches/"):
            return Reply(body=self._advance(self.batches[path.partition("/")[2]]))
        if path.endswith("/content"):
            return Reply(body=self.files[path.split("/")[1]])
        return Reply(404, {"error": {"message": path}})

    def _advance(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["left"] -= 1
        if batch["left"] < 0 and batch["status"] == "in_progress":
            batch["status"] = self.status
            lines = self.files[batch["input_file_id"]].splitlines()
            done, failed = [], []
            for number, line in enumerate(lines):
                row = json.loads(line)
                self.asked[row["custom_id"]] += 1
                if number < self.share * len(lines):
                    body = rehearsal.judge(
                        Call("POST", "", {}, json.dumps(row["body"]).encode())
                    ).body
                    response = {"status_code": 200, "body": body}
                    done.append({"custom_id": row["custom_id"], "response": response})
                elif self.status == "expired":
                    error = {"code": "batch_expired", "message": "too late"}
                    failed.append({"custom_id": row["custom_id"], "error": error})
                else:
                    response = {"status_code": 500, "body": {"error": {"message": "oops"}}}
                    failed.append({"custom_id": row["custom_id"], "response": response})
            for name, found in (("output_file_id", done), ("error_file_id", failed)):
                if found and (self.output or name == "error_file_id"):
                    self.files[f"{batch['id']}-{name}"] = "\n".join(
                        json.dumps(row) for row in found
                    ).encode()
                    batch[name] = f"{batch['id']}-{name}"
        return batch


def batched(url: str, path: Path, n: int, **options: Any) -> list[Assessment]:
    return score(evaluator(url, path, batch=True, **options), n)


@pytest.fixture
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ask_in_batches.__kwdefaults__, "poll_s", 0.01)


def test_a_batch_gives_what_single_calls_give(path, fast_polls, tmp_path):
    service = BatchService()
    with rehearsal.running(service) as url:
        made = batched(url, path, 20)
        assert batched(url, path, 20) == made
    assert set(service.asked.values()) == {1}
    with rehearsal.running(rehearsal.judge) as url:
        assert score(evaluator(url, tmp_path / "other"), 20) == made


def test_a_batch_to_this_machine_goes_through_no_proxy(path, fast_polls, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    seen: list[Call] = []

    def proxy(call: Call) -> Reply:
        seen.append(call)
        return Reply(500, {"error": {"message": "no"}})

    with rehearsal.running(BatchService()) as url, rehearsal.running(proxy) as other:
        for name in ("HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, other.removesuffix("/v1"))
        assert all(a.scored for a in batched(url, path, 2))
    assert not seen


def test_a_batch_whose_id_never_came_back_is_adopted_and_not_paid_again(path, fast_polls):
    service = BatchService()
    service.crash = True
    with rehearsal.running(service) as url:
        with pytest.raises(EvaluatorStopped, match="the same command goes on with them"):
            batched(url, path, 10)
        service.crash = False
        with open_ledger(path) as ledger:
            assert [note.batch for note in ledger.open_batches()] == [""]
        assert all(a.scored for a in batched(url, path, 10))
    assert len(service.batches) == 1
    assert set(service.asked.values()) == {1}


@pytest.mark.parametrize("cap", [None, 1.0])
def test_answers_of_a_batch_that_tell_no_tokens_cost_the_most_they_can(path, fast_polls, cap):
    class Untold(BatchService):
        def _advance(self, batch: dict[str, Any]) -> dict[str, Any]:
            batch = super()._advance(batch)
            for name in [n for n in self.files if n.endswith("output_file_id")]:
                lines = map(json.loads, self.files[name].splitlines())
                told = [dict(line, response=dict(line["response"])) for line in lines]
                for number, line in enumerate(told):
                    line["response"]["body"].pop("usage", None)
                    if number == 0:  # a filter's answer is final, and counts as one
                        error = {"error": {"code": "content_filter", "message": "no"}}
                        line["response"] = {"status_code": 400, "body": error}
                self.files[name] = "\n".join(map(json.dumps, told)).encode()
            return batch

    with rehearsal.running(Untold()) as url:
        made = batched(url, path, 10, max_cost=cap)
    most = PRICES.tokens_out * 700 / 1e6  # beside what the request itself may cost
    with open_ledger(path) as ledger:
        assert 10 * most < ledger.spent() < 50 * most
    assert sum(a.scored for a in made) == 9


def test_a_run_that_ends_while_a_batch_works_goes_on_with_it(path, fast_polls):
    service = BatchService()
    service.polls = 10**9

    class Enough(Exception):
        pass

    def tick(count: int) -> None:
        if service.batches:
            raise Enough

    with rehearsal.running(service) as url:
        with pytest.raises(Enough):
            evaluator(url, path, batch=True).assess_all(*rows(10), tick)
        service.batches["batch-0"]["left"] = 1
        assert all(a.scored for a in batched(url, path, 10))
    assert len(service.batches) == 1


def test_many_requests_are_several_batches(path, fast_polls, monkeypatch):
    monkeypatch.setattr("reward.batch.MOST_REQUESTS", 3)
    service = BatchService()
    with rehearsal.running(service) as url:
        assert all(a.scored for a in batched(url, path, 10))
    sizes = [len(service.files[b["input_file_id"]].splitlines()) for b in service.batches.values()]
    assert sizes == [3, 3, 3, 1]


def test_an_expired_batch_keeps_its_part_and_the_rest_is_sent_again(path, fast_polls):
    service = BatchService()
    service.status, service.share = "expired", 0.5
    with rehearsal.running(service) as url:
        made = batched(url, path, 16)
    assert [batch["status"] for batch in service.batches.values()] == ["expired"] * 4
    assert sum(a.scored for a in made) == 15  # 8 + 4 + 2 + 1
    assert {a.unscored for a in made} == {None, "batch: batch_expired (too late)"}
    assert max(service.asked.values()) == 4


def test_a_completed_batch_may_have_no_output_file(path, fast_polls):
    service = BatchService()
    service.share = 0.0
    with rehearsal.running(service) as url:
        assert {a.unscored for a in batched(url, path, 4)} == {"batch: service: 500 (oops)"}


class Complaining(BatchService):
    """Turns every row down with an error of its own, made from the row's text."""

    def __init__(self, error: Callable[[str], dict[str, Any]], *, alone: bool = False) -> None:
        super().__init__()
        self.share, self.error, self.alone = 0.0, error, alone

    def _advance(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super()._advance(batch)
        if name := batch.get("error_file_id"):
            rows = map(json.loads, self.files[batch["input_file_id"]].splitlines())
            told = []
            for row in rows:
                error = self.error(row["body"]["messages"][-1]["content"])
                response = {"status_code": 400, "body": {"error": error}}
                said = {"error": error} if self.alone else {"response": response}
                told.append({"custom_id": row["custom_id"], **said})
            self.files[name] = "\n".join(map(json.dumps, told)).encode()
        return batch


SECRET = "sk-of-the-batches-0123456789"


@pytest.mark.parametrize(
    ("error", "alone", "reason"),
    [
        ({"type": "invalid_request_error", "message": "no such field: x"}, False,
         "batch: service: 400 (invalid_request_error: no such field: x)"),
        ({"code": "server_error", "message": "try later"}, True, "batch: server_error (try later)"),
        ({"message": f"the key {SECRET} may not"}, False,
         "batch: service: 400 (the key [key] may not)"),
        ({"code": f"no {SECRET}", "message": SECRET}, True, "batch: failed ([key])"),
        ({"message": "long " * 99}, False, "batch: service: 400 (" + "long " * 31 + "[...])"),
        ({}, False, "batch: service: 400"),
    ],
)  # fmt: skip
def test_a_row_that_fails_in_a_batch_says_why_in_the_services_words(
    path, fast_polls, monkeypatch, error, alone, reason
):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with rehearsal.running(Complaining(lambda text: error, alone=alone)) as url:
        assert {a.unscored for a in batched(url, path, 2)} == {reason}
    assert not any(SECRET.encode() in file.read_bytes() for file in path.parent.iterdir())


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("known", [True, False])
def test_what_a_person_wrote_is_in_no_reason_and_in_no_ledger(path, fast_polls, alone, known):
    words = {"code": "my sister", "message": "not read: {}"}
    service = Complaining(lambda text: {k: v.format(text) for k, v in words.items()}, alone=alone)
    with rehearsal.running(service) as url:
        if not known:  # another run sent it, about other rows
            service.polls, tick = 10**9, Stopping(service)
            with pytest.raises(KeyboardInterrupt):
                evaluator(url, path, batch=True).assess_all(*rows(8), tick)
            service.polls = service.batches["batch-0"]["left"] = 1
        made = batched(url, path, 3)
    assert not any("sister" in str(a.unscored) for a in made)
    assert all("repeats the request" in str(a.unscored) for a in made)
    assert not any(b"sister" in file.read_bytes() for file in path.parent.iterdir())


class Stopping:
    """Stops a run that waits for its first batch."""

    def __init__(self, service: BatchService) -> None:
        self.service = service

    def __call__(self, count: int) -> None:
        if self.service.batches:
            raise KeyboardInterrupt


def test_a_refused_batch_stops_the_run(path, fast_polls):
    service = BatchService()
    service.status, service.share, service.output = "failed", 0.0, False
    with rehearsal.running(service) as url, pytest.raises(EvaluatorStopped, match="refuses the"):
        batched(url, path, 4)


def test_the_cap_holds_in_batches_too(path, fast_polls):
    service = BatchService()
    with rehearsal.running(service) as url:
        with pytest.raises(EvaluatorStopped, match="max_cost is reached"):
            batched(url, path, 100, max_cost=0.3)
        with open_ledger(path) as ledger:
            assert 0 < ledger.spent() <= 0.3
        assert len(service.asked) < 100


# --- shards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 16])
def test_the_shards_hold_every_prompt_once(n):
    prompts, candidates = rows(200, per_prompt=2)
    parts = [of_shard(prompts, f"{i}/{n}") for i in range(1, n + 1)]
    assert sorted(p.id for part in parts for p in part) == sorted(p.id for p in prompts)
    assert all(len(part) > 50 / n for part in parts)
    renamed = [replace(p, id=f"other-{p.id}") for p in prompts]
    assert [p.messages for p in of_shard(renamed, f"1/{n}")] == [p.messages for p in parts[0]]
    assert len(answering(parts[0], candidates)) == 2 * len(parts[0])


def test_shards_are_scored_apart_and_read_together_without_a_call(tmp_path, score_script, capsys):
    flags, judge = stage(tmp_path, 40), Counting()
    with rehearsal.running(judge) as url:
        flags += ["--base_url", url]
        for number in (1, 2, 3):
            score_script.main([*flags, "--shard", f"{number}/3"])
        assert judge.calls == 40
        score_script.main([*flags, "--price_in", "2", "--price_out", "8", "--dry_run"])
        told = capsys.readouterr().out
        assert "40 requests, 40 answered before, 0 to ask" in told and "$0" in told
        assert not (tmp_path / "t" / "scores").exists()
        score_script.main(flags)
        assert judge.calls == 40
        home = tmp_path / "t"
        assert {path.name for path in home.iterdir()} == {
            "candidates", "scores", *(f"scores-{i}-of-3" for i in (1, 2, 3)),
        } | {path.name for path in home.glob(".*")}  # fmt: skip
        made = read_rows(home / "scores" / "assessments.jsonl", Assessment)
        apart = [
            row for i in (1, 2, 3)
            for row in read_rows(home / f"scores-{i}-of-3" / "assessments.jsonl", Assessment)
        ]  # fmt: skip
    key = [row.candidate_id for row in made]
    assert sorted(apart, key=lambda row: key.index(row.candidate_id)) == made
    # Ledgers that were copied from elsewhere are named; taking them over twice changes nothing.
    copy = [str(home / f"scores-{i}-of-3" / "ledger.sqlite") for i in (1, 2, 3)]
    assert gather(tmp_path / "elsewhere" / "scores", copy) == 40
    assert gather(tmp_path / "elsewhere" / "scores", copy) == 0


def test_a_later_stage_goes_on_from_the_scores_answers_and_their_cost(tmp_path):
    scores = tmp_path / "scores"
    assert ledger_in(scores) == [] and gather(tmp_path / "ppo", ledger_in(scores)) == 0
    assert not (tmp_path / "ppo").exists()
    with open_ledger(scores / LEDGER) as ledger:
        ledger.append([replace(answer("good"), cost=0.5), Attempt("j", "timeout", "", 0.25)])
    for new in (1, 0):  # the second time as after a stop
        assert gather(tmp_path / "ppo", ledger_in(scores)) == new
        with open_ledger(tmp_path / "ppo" / LEDGER) as ledger:
            assert ledger.spent() == 0.75


def test_a_shard_that_is_none_is_told():
    assert stage_name("scores", None) == "scores"
    assert stage_name("scores", "3/16") == "scores-3-of-16"
    for wrong in ("17/16", "0/4", "a/b", "3"):
        with pytest.raises(UserError, match="shard"):
            config.load(["--run", "t", "--shard", wrong], "score", "")


# --- the judge of the result -------------------------------------------------------------------


def test_the_judge_of_the_result_asks_many_at_once_and_pays_once(tmp_path):
    prompts, policy = rows(30)
    baseline = [replace(c, id=f"b-{c.id}", text=f"{c.text} Tell me more.") for c in policy]
    judge = Counting()
    with rehearsal.running(judge) as url:
        section = {"judge": "openai", "judge_model": "judge", "base_url": url}
        recipe = Recipe(run="t", evaluate=section | {"price_in": 2, "price_out": 8})
        seen: list[int] = []
        first = make_judge(recipe, tmp_path)
        found = judge_all(first, prompts, policy, baseline, seen.append)
        assert (judge.calls, sum(seen)) == (60, 60)
        assert judge_all(make_judge(recipe, tmp_path), prompts, policy, baseline, seen.append) == (
            found
        )
        assert judge.calls == 60
    assert len(found[0]) == 30
    assert "spent" in first.note()
    with open_ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.spent() == pytest.approx(judge.billed)
