"""The ways of asking a judge, against a service that plays one over a real socket."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_faults import mixed
from test_paying import BatchService

from reward import rehearsal
from reward.asking import Asking, Way
from reward.assemble import Desk, Heard, majority_safe
from reward.batch import ask_in_batches
from reward.budget import Prices
from reward.client import Unread
from reward.confidence import repeat_noise
from reward.evaluator import Assessment, direct_verdict
from reward.ledger import open_ledger
from reward.pairing import LEAST_SAFETY_MARGIN, Judged, Pair, compare
from reward.pairs import make_pairs
from reward.questions import Interview, Said
from reward.rehearsal import Call, Reply, completion
from reward.remote import OpenAIEvaluator
from reward.request import Form
from reward.rubric import load_rubric
from reward.service import Pace, Service
from reward.several import LETTERS, Together, shuffled
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import CheckFailed, EvaluatorStopped
from sft.pair_settings import PairSection

RUBRIC = load_rubric()
PRICES = Prices(tokens_in=2.0, tokens_out=8.0)
HASTE = Pace(base_s=0.001, longest_s=0.01)
K = 4
MODES = {
    "one": Asking(),
    "repeats": Asking(repeats=3),
    "together": Asking(ask="together"),
    "together twice": Asking(ask="together", repeats=2),
    "pairwise": Asking(ask="pairwise"),
    "expected": Asking(expected_grades=True),
}
# Requests per prompt with K replies.
COUNTS = {"one": K, "repeats": 3 * K, "together": 1, "together twice": 2,
          "pairwise": K + K * (K - 1), "expected": K}  # fmt: skip


def rows(n: int, k: int = K) -> tuple[list[Prompt], list[Candidate]]:
    prompts = [
        Prompt(f"p{i}", [{"role": "user", "content": f"Work is a lot. Day {i}."}], "t", "t",
               "none", "train")
        for i in range(n)
    ]  # fmt: skip
    return prompts, [
        Candidate(f"c{i}-{j}", f"p{i}", f"That sounds tiring, {j}. What happened on day {i}?",
                  "m", 1.0, 1.0, j, "eos")
        for i in range(n) for j in range(k)
    ]  # fmt: skip


class Recording:
    """A judge that answers by `script` (None = as rehearsed) and keeps what it was asked."""

    def __init__(self, script: Callable[[Call], Reply | None] = lambda call: None) -> None:
        self.script, self.lock = script, threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.tokens = Counter[str]()

    def __call__(self, call: Call) -> Reply:
        with self.lock:
            self.bodies.append(call.body)
            reply = self.script(call) or rehearsal.judge(call)
            if isinstance(reply.body, dict):
                self.tokens.update(reply.body.get("usage", {}))
        return reply

    @property
    def billed(self) -> float:
        return PRICES.cost(self.tokens["prompt_tokens"], self.tokens["completion_tokens"])


def evaluator(url: str, path: Path | None, asking: Asking, **options: Any) -> OpenAIEvaluator:
    offline = options.pop("offline", False)
    service = Service("judge", url, **{"prices": PRICES, "max_in_flight": 8} | options)
    return OpenAIEvaluator(RUBRIC, service, ledger=path, pace=HASTE, asking=asking, offline=offline)


def score(judge: OpenAIEvaluator, n: int, k: int = K) -> list[Assessment]:
    return judge.assess_all(*rows(n, k), lambda count: None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


# --- money, in each mode -----------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_asks_what_it_says_and_pays_once(path, mode):
    asking, judge = MODES[mode], Recording()
    with rehearsal.running(judge) as url:
        told = evaluator(url, path, asking).forecast(*rows(12))
        assert (told.requests, judge.bodies) == (12 * COUNTS[mode], [])
        progress: list[int] = []
        made = evaluator(url, path, asking).assess_all(*rows(12), progress.append)
        assert len(judge.bodies) == 12 * COUNTS[mode]
        assert told.cost == pytest.approx(judge.billed, rel=0.2)
        assert sum(progress) == 12 * K
        # Nothing is asked or paid again, and everything is read the same, also by nobody's help.
        assert score(evaluator(url, path, asking), 12) == made
        assert evaluator(url, path, asking).forecast(*rows(12)).cost == 0
        assert len(judge.bodies) == 12 * COUNTS[mode]
    assert score(evaluator("http://localhost:1/v1", path, asking, offline=True), 12) == made
    assert all(a.scored for a in made)
    assert sum(a.cost for a in made) == pytest.approx(judge.billed)
    assert sum(a.tokens for a in made) == sum(
        judge.tokens[name] for name in ("prompt_tokens", "completion_tokens")
    )


@pytest.mark.parametrize("mode", MODES)
def test_with_answers_in_the_ledger_the_forecast_is_their_mean_by_kind(path, mode):
    asking, judge = MODES[mode], Recording()
    with rehearsal.running(judge) as url:
        score(evaluator(url, path, MODES["one"]), 30)  # of another kind, in all modes but one
        score(evaluator(url, path, asking), 30)
        before = judge.billed
        told = evaluator(url, path, asking).forecast(*rows(60))
        assert told.measured >= 30
        score(evaluator(url, path, asking), 60)
        assert told.cost == pytest.approx(judge.billed - before, rel=0.05)


@pytest.mark.parametrize("mode", MODES)
def test_the_cap_holds_in_each_mode(path, mode):
    judge = Recording()
    with rehearsal.running(judge) as url:
        with pytest.raises(EvaluatorStopped, match=r"max_cost is reached"):
            score(evaluator(url, path, MODES[mode], max_cost=0.15), 100)
        assert 0.05 < judge.billed <= 0.15
        stopped_at = len(judge.bodies)
        made = score(evaluator(url, path, MODES[mode], max_cost=100.0), 20)
        assert all(a.scored for a in made)
        assert len(judge.bodies) <= stopped_at + 20 * COUNTS[mode]


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_gives_what_single_calls_give(path, tmp_path, mode, monkeypatch):
    monkeypatch.setitem(ask_in_batches.__kwdefaults__, "poll_s", 0.01)
    service = BatchService()
    with rehearsal.running(service) as url:
        made = score(evaluator(url, path, MODES[mode], batch=True), 5)
    assert len(service.asked) == 5 * COUNTS[mode]
    with rehearsal.running(rehearsal.judge) as url:
        assert score(evaluator(url, tmp_path / "other", MODES[mode]), 5) == made


def test_the_first_answers_of_repeats_are_those_already_paid(path):
    judge = Recording()
    with rehearsal.running(judge) as url:
        score(evaluator(url, path, Asking()), 5)
        score(evaluator(url, path, Asking(repeats=3)), 5)
    assert len(judge.bodies) == 5 * K * 3


def test_todays_keys_are_those_of_answers_already_paid():
    # Ledgers hold answers under them: a change here is a second bill for everybody.
    keys = {
        "none": "77bde22cdb9e88bc58d4da50c57d4510",
        "elevated": "52595746bbd693c420fc497ffa6e9565",
        "crisis": "58cce356835bd20a68ea6b52b16a6020",
    }
    said, reply = "My exam is on Monday.\u200b ü", "That sounds tiring. What keeps you awake?"
    candidate = Candidate("c", "p", reply, "m", 1.0, 1.0, 0, "eos")
    for risk, key in keys.items():
        prompt = Prompt("p", [{"role": "user", "content": said}], "t", "sleep", risk, "train")
        form = Form(RUBRIC, risk, "judge")
        assert form.request(prompt, candidate).key == key
        assert len({form.request(prompt, candidate, n).key for n in (1, 2, 3)}) == 3


def test_another_limit_of_tokens_is_another_request(monkeypatch):
    prompts, candidates = rows(1)
    interview = Interview(RUBRIC, "judge", Asking(ask="together"), Way())
    before = interview.plan(prompts, candidates, {}).questions.keys()
    monkeypatch.setattr("reward.several.EACH", 600)
    assert not before & interview.plan(prompts, candidates, {}).questions.keys()


def test_the_same_words_under_another_risk_are_asked_for_themselves(path):
    prompts, candidates = rows(1, 2)
    prompts += [replace(prompts[0], id="q", risk="crisis")]
    candidates += [replace(c, id=f"q-{c.id}", prompt_id="q") for c in candidates]
    with rehearsal.running(Recording()) as url:
        judge = evaluator(url, path, Asking(ask="pairwise"))
        made = judge.assess_all(prompts, candidates, lambda count: None)
    assert all(a.scored for a in made) and len(made) == 4


def test_a_reply_without_another_is_not_asked_about_in_pairs(path):
    judge = Recording()
    with rehearsal.running(judge) as url:
        made = score(evaluator(url, path, Asking(ask="pairwise")), 2, 1)
    assert [a.unscored for a in made] == ["nothing to compare with"] * 2
    assert not judge.bodies


@pytest.mark.parametrize("mode", MODES)
def test_mixed_faults_are_met_in_each_mode(path, mode):
    faults, lock, calls = mixed(random.Random(2)), threading.Lock(), Counter[str]()

    def faulty(call: Call) -> Reply | None:
        with lock:
            calls["all"] += 1
        return faults(calls["all"], call)

    with rehearsal.running(Recording(faulty)) as url:
        made = score(evaluator(url, path, MODES[mode], timeout_s=0.5), 15)
    assert sum(a.scored for a in made) >= 0.9 * len(made)
    assert calls["all"] <= 2.0 * 15 * COUNTS[mode]
    # What was scored has the grades of a run without a fault, and is read again without a call.
    with rehearsal.running(rehearsal.judge) as url:
        clean = score(evaluator(url, None, MODES[mode]), 15)
    for one, other in zip(made, clean, strict=True):
        if one.scored and len(one.judgements) == len(other.judgements):
            assert (one.criteria, one.safe) == (other.criteria, other.safe)
    assert score(evaluator("http://localhost:1/v1", path, MODES[mode], offline=True), 15) == made


# --- repeats -----------------------------------------------------------------------------------


def by_turns(call: Call, verdicts: list[dict[str, Any]], seen: Counter[str]) -> Reply:
    """The n-th verdict of a list to the n-th request about the same texts."""
    text = rehearsal.material(call.body)
    seen[text] += 1
    said = rehearsal.verdict(call.body) | verdicts[(seen[text] - 1) % len(verdicts)]
    return Reply(body=completion(json.dumps(said)))


def flow(**wrong: bool) -> dict[str, Any]:
    """Grades of 3 and a safe reply, but for some answers."""
    safe = {name: item.safe_answer for name, item in RUBRIC.items("none").items()}
    return dict.fromkeys(RUBRIC.criteria, 3) | safe | wrong


def repeated(n: int, verdicts: list[dict[str, Any]]) -> Assessment:
    seen = Counter[str]()
    judge = Recording(lambda call: by_turns(call, verdicts, seen))
    with rehearsal.running(judge) as url:
        (made,) = score(evaluator(url, None, Asking(repeats=n), max_in_flight=1), 1, 1)
    return made


def test_repeats_are_kept_and_their_mean_counts():
    first = next(iter(RUBRIC.criteria))
    made = repeated(3, [flow(), flow() | {first: 5}, flow() | {first: 4, "critique": "the middle"}])
    weight = RUBRIC.criteria[first].weight / sum(c.weight for c in RUBRIC.criteria.values())
    assert made.criteria[first] == 4
    assert made.quality == pytest.approx(0.5 + weight / 4)
    assert sorted(round((j.quality - 0.5) / weight * 4, 6) for j in made.judgements) == [0, 1, 2]
    assert {j.judge for j in made.judgements} == {"openai:judge"}
    assert made.critique == "the middle"  # of the repeat nearest the mean
    assert repeat_noise([made]).degrees == 2


@pytest.mark.parametrize(
    ("verdicts", "safe"), [("ss", True), ("su", False), ("ssu", True), ("suu", False),
                           ("ssuu", False), ("uu", False)]
)  # fmt: skip
def test_safety_is_the_majoritys_and_a_tie_is_unsafe(verdicts, safe):
    name = next(n for n, i in RUBRIC.items("none").items() if i.verdict == "unsafe")
    wrong = flow(**{name: not RUBRIC.items("none")[name].safe_answer})
    made = repeated(len(verdicts), [wrong if v == "u" else flow() for v in verdicts])
    assert (made.safe, made.flags) == (safe, [] if safe else [name])
    assert [j.safe for j in made.judgements].count(True) == verdicts.count("s")
    assert majority_safe([v == "s" for v in verdicts]) is safe


def test_a_repeat_that_cannot_be_read_is_left_out_and_all_of_them_are_a_reason():
    bad = {"empathy": "4/5"}
    seen = Counter[str]()

    def once_refused(call: Call) -> Reply | None:
        text = rehearsal.material(call.body)
        seen[text] += 1
        return Reply(body=completion(None, finish="content_filter")) if seen[text] == 1 else None

    with rehearsal.running(Recording(once_refused)) as url:
        (made,) = score(evaluator(url, None, Asking(repeats=3), max_in_flight=1), 1, 1)
    assert (made.scored, len(made.judgements)) == (True, 2)
    made = repeated(2, [flow() | bad])
    assert (made.unscored, made.judgements) == ("invalid verdict: literal_error", [])


# --- all in one request ------------------------------------------------------------------------


def test_the_order_is_shuffled_by_the_texts_and_the_ids_tell_nothing_of_it():
    prompts, candidates = rows(300, 5)
    places: Counter[tuple[int, int]] = Counter()
    ranks: Counter[int] = Counter()
    for number, prompt in enumerate(prompts):
        texts = [c.text for c in candidates[5 * number : 5 * number + 5]]
        order, ids = shuffled(prompt, texts, 1)
        assert (order, ids) == shuffled(prompt, texts, 1)
        # In whatever order the candidates come, the judge sees the same.
        turned, same = shuffled(prompt, texts[::-1], 1)
        assert ([4 - i for i in turned], same) == (order, ids)
        assert shuffled(prompt, texts, 2) != (order, ids)
        assert len(set(ids)) == 5
        assert all(set(name) <= set(LETTERS) for name in ids)
        places.update(enumerate(order))
        ranks.update([sorted(ids).index(ids[0])])
    # 300 / 5 = 60 each, standard deviation 6.9: five of them are allowed for.
    assert all(abs(places[place, i] - 60) < 35 for place in range(5) for i in range(5))
    assert all(abs(ranks[rank] - 60) < 35 for rank in range(5))


def test_together_gives_each_reply_the_verdict_it_gets_alone(path):
    judge = Recording()
    with rehearsal.running(judge) as url:
        alone = score(evaluator(url, path, Asking()), 10)
        together = score(evaluator(url, path, Asking(ask="together")), 10)
    plain = [replace(a, tokens=0, cost=0.0) for a in alone]
    assert [replace(a, tokens=0, cost=0.0) for a in together] == plain
    # One request has the rubric once.
    assert judge.tokens["prompt_tokens"] > 0
    assert sum(a.tokens for a in together) < 0.5 * sum(a.tokens for a in alone)


def test_replies_together_are_fenced_and_split_when_they_are_too_long():
    (prompt,), candidates = rows(1, 7)
    sheet = Together(RUBRIC, "none", "judge")
    texts = [c.text for c in candidates]
    request, order, ids = sheet.request(prompt, texts, 1)
    body = request.body(request.max_tokens)
    mark, material, end = body["messages"][1]["content"].split("\n")
    assert mark == end
    assert mark in body["messages"][0]["content"]
    assert mark != request.body(9)["messages"][1]["content"].split("\n")[0]
    shown = json.loads(material)["replies"]
    assert [(r["id"], r["reply"]) for r in shown] == [
        (name, texts[i]) for name, i in zip(ids, order, strict=True)
    ]
    assert [len(p) for p in sheet.parts(prompt, texts, 100_000, 1)] == [7]
    sizes = [len(part) for part in sheet.parts(prompt, texts, 4000, 1)]
    assert 1 < len(sizes) < 7
    assert max(sizes) - min(sizes) <= 1
    assert sorted(i for part in sheet.parts(prompt, texts, 4000, 1) for i in part) == list(range(7))
    assert [len(p) for p in sheet.parts(prompt, texts, 1000, 1)] == [1] * 7


def test_a_reply_alone_is_asked_as_one_by_one(path):
    judge = Recording()
    with rehearsal.running(judge) as url:
        one = score(evaluator(url, path, Asking()), 3)
        split = Asking(ask="together", request_tokens=1000)
        assert score(evaluator(url, path, split), 3) == one
    assert len(judge.bodies) == 3 * K


@pytest.mark.parametrize("change", ["drop", "twice", "other", "swap names"])
def test_an_answer_without_each_id_once_is_no_answer(change, path):
    def wrong(call: Call) -> Reply:
        said = rehearsal.verdict(call.body)
        verdicts = said["verdicts"]
        if change == "drop":
            verdicts.pop()
        elif change == "twice":
            verdicts[0]["id"] = verdicts[1]["id"]
        elif change == "other":
            verdicts[0]["id"] = "c0-0"
        else:
            verdicts.append(dict(verdicts[0]))
        return Reply(body=completion(json.dumps(said)))

    with rehearsal.running(wrong) as url:
        made = score(evaluator(url, path, Asking(ask="together")), 2)
    assert {a.unscored for a in made} == {"ids differ"}


# --- the sample --------------------------------------------------------------------------------


def test_the_sample_is_paid_in_the_forecast_and_its_agreement_is_kept(path):
    judge, asking = Recording(), Asking(ask="together", agreement_prompts=5)
    with rehearsal.running(judge) as url:
        told = evaluator(url, path, asking).forecast(*rows(20))
        assert told.requests == 20 + 5 * K
        whole = evaluator(url, path, asking)
        score(whole, 20)
    assert len(judge.bodies) == 20 + 5 * K
    assert told.cost == pytest.approx(judge.billed, rel=0.2)
    assert whole.facts["together/order_agreement"] == 1.0
    assert whole.facts["together/safety_replies"] == 5 * K


def test_the_sample_is_asked_once_by_one_evaluator(path):
    judge, asking = Recording(), Asking(ask="together", agreement_prompts=3)
    with rehearsal.running(judge) as url:
        whole = evaluator(url, path, asking)
        prompts, candidates = rows(20)
        for first in (0, 10):  # as PPO's rollouts, each with other prompts
            some = {prompt.id for prompt in prompts[first : first + 10]}
            whole.assess_all(
                prompts, [c for c in candidates if c.prompt_id in some], lambda count: None
            )
        assert len(judge.bodies) == 20 + 3 * K


@pytest.mark.parametrize("ask", ["together", "one"])
def test_a_sample_without_scores_stops_the_stage_before_the_rest_is_paid(path, ask):
    def refused(call: Call) -> Reply | None:
        together = "verdicts" in rehearsal.verdict(call.body)
        if together == (ask == "together"):
            return Reply(body=completion(None, finish="content_filter"))
        return None

    judge, asking = Recording(refused), Asking(ask="together", agreement_prompts=3)
    with rehearsal.running(judge) as url:
        with pytest.raises(CheckFailed, match="max_unscored" if ask == "together" else "measured"):
            score(evaluator(url, path, asking), 100)
        assert len(judge.bodies) == 3 + 3 * K


def test_replies_that_no_judge_sees_are_no_sample(path):
    judge, asking = Recording(), Asking(ask="together", agreement_prompts=3)
    prompts, candidates = rows(2, 2)
    empty = [replace(candidate, text=" ") for candidate in candidates]
    with rehearsal.running(judge) as url:
        made = evaluator(url, path, asking).assess_all(prompts, empty, lambda count: None)
    assert {a.unscored for a in made} == {"empty"} and not judge.bodies


def test_a_judge_whom_company_moves_stops_the_stage_before_the_rest_is_paid(path, capsys):
    def by_place(call: Call) -> Reply | None:
        said = rehearsal.verdict(call.body)
        if "verdicts" not in said:
            return None
        for place, verdict in enumerate(said["verdicts"]):
            verdict.update(dict.fromkeys(RUBRIC.criteria, 5 - min(place, 4)))
        return Reply(body=completion(json.dumps(said)))

    judge, asking = Recording(by_place), Asking(ask="together", agreement_prompts=10)
    with rehearsal.running(judge) as url:
        with pytest.raises(CheckFailed, match=r"order .* of \d+ pairs.*min_agreement.*set score"):
            score(evaluator(url, path, asking), 100)
        assert len(judge.bodies) == 10 + 10 * K
        lax = replace(asking, min_agreement=0.0)
        assert all(a.scored for a in score(evaluator(url, path, lax), 20))
    assert "note: together as one by one: order" in capsys.readouterr().err


# --- two by two --------------------------------------------------------------------------------


def comparing(better: Callable[[str, str], str]) -> Recording:
    """A judge that finds all replies safe and compares the words of the first and the second."""

    def script(call: Call) -> Reply:
        said = rehearsal.verdict(call.body)
        if "better" in said:
            shown = json.loads(rehearsal.material(call.body))
            said["better"] = better(shown["first"], shown["second"])
        else:
            said |= {n: i.safe_answer for n, i in RUBRIC.items("none").items()}
        return Reply(body=completion(json.dumps(said)))

    return Recording(script)


def pairwise(better: Callable[[str, str], str], k: int = K) -> list[Assessment]:
    with rehearsal.running(comparing(better)) as url:
        return score(evaluator(url, None, Asking(ask="pairwise")), 1, k)


def pairs_of(made: list[Assessment], k: int, **settings: Any) -> Any:
    prompts, candidates = rows(1, k)
    section = PairSection(strategy="all", margin=0.0, **settings)
    return make_pairs(prompts, candidates, made, section)


def test_a_judge_with_a_fixed_order_gives_that_order():
    made = pairwise(lambda a, b: "first" if a < b else "second")
    assert [a.quality for a in made] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    result = pairs_of(made, K)
    assert {(p.chosen_id, p.rejected_id) for p in result.pairs} == {
        (f"c0-{i}", f"c0-{j}") for i, j in combinations(range(K), 2)
    }
    turned = pairs_of(pairwise(lambda a, b: "second" if a < b else "first"), K)
    assert {(p.rejected_id, p.chosen_id) for p in turned.pairs} == {
        (p.chosen_id, p.rejected_id) for p in result.pairs
    }


@pytest.mark.parametrize("always", ["first", "second"])
def test_a_judge_that_prefers_a_place_prefers_nothing(always):
    made = pairwise(lambda a, b: always)
    assert {outcome for a in made for outcome in a.compared.values()} == {"order"}
    assert {a.quality for a in made} == {0.5}
    result = pairs_of(made, K)
    assert (result.pairs, result.comparisons["tie (changed with the order)"]) == ([], 6)


def test_only_verdicts_that_survive_the_swap_make_pairs():
    def better(a: str, b: str) -> str:
        if {a[20], b[20]} == {"0", "1"}:
            return "first"  # whichever stands first
        return "first" if a < b else "second"

    made = pairwise(better)
    assert made[0].compared == {"c0-1": "order", "c0-2": "better", "c0-3": "better"}
    assert made[3].compared == dict.fromkeys(["c0-0", "c0-1", "c0-2"], "worse")
    chosen = {(p.chosen_id, p.rejected_id) for p in pairs_of(made, K).pairs}
    assert chosen == {("c0-0", "c0-2"), ("c0-0", "c0-3"), ("c0-1", "c0-2"), ("c0-1", "c0-3"),
                      ("c0-2", "c0-3")}  # fmt: skip


def test_preferences_in_a_circle_make_no_pair():
    wins = {("0", "1"), ("1", "2"), ("2", "0")}
    made = pairwise(lambda a, b: "first" if (a[20], b[20]) in wins else "second", 3)
    assert [a.quality for a in made] == [0.5] * 3
    assert pairs_of(made, 3).pairs == []


def test_a_pair_never_goes_against_its_own_comparison():
    # Copeland's order may differ from a single comparison; such a pair says nothing.
    wins = {("3", "0"), *((a, b) for a, b in combinations("01234", 2) if (a, b) != ("0", "3"))}
    made = pairwise(lambda a, b: "first" if (a[20], b[20]) in wins else "second", 5)
    assert made[0].quality > made[3].quality
    assert direct_verdict(made[0], made[3]) == "worse"
    assert direct_verdict(made[3], made[0]) == "better"
    prompts, candidates = rows(1, 5)
    sides = [Judged(candidates[i], made[i]) for i in (0, 3)]
    section = PairSection(margin=0.0)
    assert compare(*sides, prompts[0], section) == "comparisons in a circle"
    assert compare(*sides[::-1], prompts[0], section) == "comparisons in a circle"
    sides = [Judged(candidates[i], made[i]) for i in (0, 2)]
    assert isinstance(compare(*sides, prompts[0], section), Pair)


def test_safety_stays_a_verdict_per_reply():
    name = next(n for n, i in RUBRIC.items("none").items() if i.verdict == "unsafe")
    judge = comparing(lambda a, b: "first" if a < b else "second")
    inner = judge.script

    def unsafe_first(call: Call) -> Reply | None:
        reply = inner(call)
        said = json.loads(reply.body["choices"][0]["message"]["content"])  # type: ignore[index,union-attr]
        if name in said and ", 0." in rehearsal.material(call.body):
            said[name] = not RUBRIC.items("none")[name].safe_answer
        return Reply(body=completion(json.dumps(said)))

    judge.script = unsafe_first
    with rehearsal.running(judge) as url:
        made = score(evaluator(url, None, Asking(ask="pairwise")), 1)
    assert [a.safe for a in made] == [False, True, True, True]
    assert made[0].quality == 1.0
    result = pairs_of(made, K)
    assert "c0-0" not in {p.chosen_id for p in result.pairs}
    # The unsafe one wins every comparison, and loses to each safe one all the same.
    margins = sorted(p.margin for p in result.pairs if p.rule == "safety")
    assert margins == pytest.approx([LEAST_SAFETY_MARGIN, 1 / 3, 2 / 3])


def test_a_repeat_with_a_comparison_that_cannot_be_read_is_left_out():
    plan = Interview(RUBRIC, "judge", Asking(ask="pairwise", repeats=2), Way()).plan(*rows(1), {})
    desk, made = Desk(plan, RUBRIC, "judge", 2), {}
    for key, question in plan.questions.items():
        said: dict[str, Any] = {"critique": "", **flow()}
        if question.kind == "preference":  # the earlier reply in the first repeat, then the later
            earlier = question.slots[0] < question.slots[1]
            said["better"] = "first" if earlier == (question.repeat == 1) else "second"
        missing = question.slots == (1, 0) and question.repeat == 1
        heard = Unread("not JSON") if missing else Heard([Said(said)], 1, 0.0)
        made |= {a.candidate_id: a for a in desk.take(key, heard)}
    assert [len(made[f"c0-{i}"].judgements) for i in range(4)] == [1, 1, 2, 2]
    assert [made[f"c0-{i}"].quality for i in range(4)] == pytest.approx([0, 1 / 3, 0.5, 0.5])


def test_two_that_were_not_compared_with_each_other_are_no_tie():
    verdict = Assessment("a", "p", {}, 1.0, True, [], "", "judge", "r@1", None,
                         compared={"c": "better"})  # fmt: skip
    other = replace(verdict, candidate_id="b", quality=0.0, compared={"c": "worse"})
    assert direct_verdict(verdict, other) == direct_verdict(other, verdict) == "missing"
    prompts, candidates = rows(1, 2)
    sides = [Judged(c, v) for c, v in zip(candidates, (verdict, other), strict=True)]
    assert compare(*sides, prompts[0], PairSection()) == "not compared with each other"


def test_comparisons_that_cannot_be_read_are_missing_and_not_ties():
    def some_bad(call: Call) -> Reply | None:
        said = rehearsal.verdict(call.body)
        if "better" not in said:
            return None
        shown = rehearsal.material(call.body)
        bad = ", 0." in shown and ", 1." in shown
        return Reply(body=completion("the first!")) if bad else None

    with rehearsal.running(Recording(some_bad)) as url:
        made = score(evaluator(url, None, Asking(ask="pairwise")), 1)
        two = score(evaluator(url, None, Asking(ask="pairwise")), 1, 2)
        single = score(evaluator(url, None, Asking(ask="pairwise")), 1, 1)
    # A share of fewer opponents than the others had is no score beside theirs.
    assert [a.unscored for a in made] == ["comparison: not JSON"] * 2 + [None] * 2
    assert set(made[2].compared) == {"c0-0", "c0-1", "c0-3"}
    assert {a.unscored for a in two} == {"comparison: not JSON"}
    assert [a.unscored for a in single] == ["nothing to compare with"]
    assert all(a.tokens > 0 for a in two)  # safety was answered, and paid


def test_identical_replies_are_one_and_their_verdicts_both_ones():
    prompts, candidates = rows(1)
    twin = replace(candidates[0], id="twin")
    judge = comparing(lambda a, b: "first" if a < b else "second")
    with rehearsal.running(judge) as url:
        judged = evaluator(url, None, Asking(ask="pairwise"))
        made = judged.assess_all(prompts, [*candidates, twin], lambda count: None)
    assert len(judge.bodies) == COUNTS["pairwise"]
    assert made[-1].quality == made[0].quality == 1.0
    assert (made[-1].tokens, made[-1].cost) == (0, 0.0)
    assert made[3].compared == dict.fromkeys(["c0-0", "twin", "c0-1", "c0-2"], "worse")


PLAN = Interview(RUBRIC, "judge", Asking(ask="pairwise"), Way()).plan(*rows(1), {})
TURNED = {"first": "second", "second": "first", "tie": "tie"}


def told(verdicts: list[str], unsafe: set[int], *, turned: bool = False) -> list[Assessment]:
    """Assessments where the n-th comparison says the n-th verdict, or the other one."""
    desk, left, made = Desk(PLAN, RUBRIC, "judge", 1), list(verdicts), []
    name = next(n for n, i in RUBRIC.items("none").items() if i.verdict == "unsafe")
    for key, question in PLAN.questions.items():
        said: dict[str, Any] = {"critique": "", **flow()}
        if question.kind == "preference":
            verdict = left.pop()
            said["better"] = TURNED[verdict] if turned else verdict
        elif question.slots[0] in unsafe:
            said[name] = not said[name]
        made += desk.take(key, Heard([Said(said)], 1, 0.0))
    return sorted(made, key=lambda a: a.candidate_id)


@given(
    st.lists(st.sampled_from(sorted(TURNED)), min_size=12, max_size=12),
    st.sets(st.integers(0, 3)),
)
def test_the_laws_of_pairs_hold_whatever_comparisons_say(verdicts, unsafe):
    made = told(verdicts, unsafe)
    assert all(a.scored and 0 <= (a.quality or 0.0) <= 1 for a in made)
    for one, other in combinations(made, 2):
        both = (direct_verdict(one, other), direct_verdict(other, one))
        assert both in {("better", "worse"), ("worse", "better"), ("tie", "tie"),
                        ("order", "order")}  # fmt: skip
    pairs = pairs_of(made, K).pairs
    for pair in pairs:
        places = (int(pair.chosen_id[-1]), int(pair.rejected_id[-1]))
        assert places[0] not in unsafe
        assert (pair.rule == "safety") == (places[1] in unsafe)
        assert pair.margin > 0
        if pair.rule == "quality":
            assert made[places[0]].compared[pair.rejected_id] == "better"
    # Turned round, every verdict turns the pairs by quality round.
    turned = pairs_of(told(verdicts, unsafe, turned=True), K).pairs
    assert {(p.chosen_id, p.rejected_id, round(p.margin, 9)) for p in pairs
            if p.rule == "quality"} == {
        (p.rejected_id, p.chosen_id, round(p.margin, 9)) for p in turned if p.rule == "quality"
    }  # fmt: skip


# --- the form, found out -----------------------------------------------------------------------

AUTO = Asking(structured="auto")


def only(*structures: str) -> Callable[[Call], Reply | None]:
    """A service that takes some forms and refuses the others."""

    def script(call: Call) -> Reply | None:
        form = call.body.get("response_format", {"type": "plain"})["type"]
        if form in structures:
            return None
        return Reply(400, {"error": {"message": f"response_format {form}: unknown"}})

    return script


def ignoring(call: Call) -> Reply | None:
    """A service that ignores JSON schemas: it answers them in prose."""
    if call.body.get("response_format", {}).get("type") == "json_schema":
        return Reply(body=completion("I think that it is a good reply."))
    return None


def test_a_service_that_takes_schemas_is_asked_nothing_more(path):
    judge = Recording()
    with rehearsal.running(judge) as url:
        made = score(evaluator(url, path, AUTO), 5)
        assert len(judge.bodies) == 5 * K
        assert score(evaluator(url, path, Asking()), 5) == made  # under the same keys
        assert len(judge.bodies) == 5 * K
    assert all(a.scored for a in made)


@pytest.mark.parametrize(
    ("script", "form", "extra"),
    [(only("json_object", "plain"), "json_object", 3), (only("plain"), "plain", 4),
     (ignoring, "json_object", 3)],
)  # fmt: skip
@pytest.mark.parametrize("ask", ["one", "together", "pairwise"])
def test_the_best_form_that_a_service_takes_is_found_once(path, capsys, script, form, extra, ask):
    judge, asking = Recording(script), Asking(ask=ask, structured="auto")
    n = 6 * COUNTS[ask]
    with rehearsal.running(judge) as url:
        made = score(evaluator(url, path, asking), 6)
        assert len(judge.bodies) == n + extra  # the first request, and the trials
        assert f"takes no JSON schema: it is asked for {form}" in capsys.readouterr().err
        # It is noted, so that nothing is found out again, and the dry run knows.
        assert evaluator(url, path, asking).forecast(*rows(6)).answered == n
        assert score(evaluator(url, path, asking), 6) == made
        score(evaluator(url, path, asking), 8)
        assert len(judge.bodies) == 8 * COUNTS[ask] + extra
        assert score(evaluator(url, path, asking, offline=True), 6) == made
    assert all(a.scored for a in made)
    outlined = [b for b in judge.bodies if "exactly this form" in b["messages"][0]["content"]]
    assert len(outlined) >= n


def test_an_answer_in_another_form_is_another_request():
    prompts, candidates = rows(1, 1)
    keys = set()
    for structured in ("json_schema", "json_object", "plain"):
        for expected in (False, True):
            asking = Asking(structured=structured, expected_grades=expected)
            plan = Interview(RUBRIC, "judge", asking, asking.ways()[0]).plan(
                prompts, candidates, {}
            )
            keys |= plan.questions.keys()
    assert len(keys) == 6


def test_another_address_is_found_out_for_itself(path):
    first, second = Recording(only("plain")), Recording()
    with rehearsal.running(first) as one, rehearsal.running(second) as other:
        score(evaluator(one, path, AUTO), 2)
        made = score(evaluator(other, path, AUTO), 2)
    assert all(a.scored for a in made)
    assert {b["response_format"]["type"] for b in second.bodies} == {"json_schema"}


def test_a_service_that_answers_in_no_form_stops_with_the_reasons(path):
    with rehearsal.running(lambda call: Reply(body=completion("Good."))) as url:
        with pytest.raises(EvaluatorStopped, match=r"json_schema: not in that form; json_object"):
            score(evaluator(url, path, AUTO), 50)
        with open_ledger(path) as ledger:
            assert len(ledger.answered()) == 4  # one request and three trials


def test_the_trials_count_in_the_cap(path):
    judge = Recording(only("plain"))
    with rehearsal.running(judge) as url, pytest.raises(EvaluatorStopped, match="max_cost"):
        score(evaluator(url, path, AUTO, max_cost=0.001), 5)
    assert judge.billed <= 0.001


# --- expected grades ---------------------------------------------------------------------------

EXPECTED = Asking(expected_grades=True)


def test_grades_are_means_over_the_probabilities_of_their_digits(path, capsys):
    with rehearsal.running(rehearsal.judge) as url:
        plain = score(evaluator(url, path, Asking()), 5)
        made = score(evaluator(url, path, EXPECTED), 5)
        together = score(evaluator(url, path, replace(EXPECTED, ask="together")), 5)
    for a, b, c in zip(plain, made, together, strict=True):
        # Rehearsed: 0.75 for the grade, the rest evenly beside it; 1 and 5 have one neighbour.
        assert b.criteria == pytest.approx(
            {n: g + {1: 0.25, 5: -0.25}.get(g, 0) for n, g in a.criteria.items()}, abs=1e-4
        )
        assert c.criteria == b.criteria
        assert (b.safe, b.critique) == (a.safe, a.critique)
        assert "plain_grades" not in b.flags
    assert "plain grades" not in capsys.readouterr().err


def test_a_service_without_probabilities_is_told_and_its_plain_answers_count(path, capsys):
    def without(call: Call) -> Reply | None:
        body = rehearsal.judge(call).body
        body["choices"][0].pop("logprobs", None)  # type: ignore[index]
        return Reply(body=body)

    judge = Recording(without)
    with rehearsal.running(judge) as url:
        plain = score(evaluator(url, path, Asking()), 5)
        made = score(evaluator(url, path, replace(EXPECTED, structured="auto")), 5)
        assert "gives no log-probabilities: grades are the plain ones" in capsys.readouterr().err
        # Found out once with three more calls, after which the answers already paid are read.
        assert len(judge.bodies) == 5 * K + 3
        fixed = score(evaluator(url, path, EXPECTED), 5)
        assert f"{5 * K} of {5 * K} candidates have plain grades" in capsys.readouterr().err
    assert [a.criteria for a in made] == [a.criteria for a in fixed] == [a.criteria for a in plain]
    assert all("plain_grades" in a.flags for a in [*made, *fixed])


@pytest.mark.parametrize("structured", ["auto", "json_schema"])
def test_a_service_that_refuses_probabilities_is_asked_without(path, capsys, structured):
    def refusing(call: Call) -> Reply | None:
        text = {"error": {"message": "logprobs is not supported"}}
        return Reply(400, text) if "logprobs" in call.body else None

    with rehearsal.running(refusing_judge := Recording(refusing)) as url:
        made = score(evaluator(url, path, replace(EXPECTED, structured=structured)), 5)
    assert all(a.scored for a in made)
    assert len(refusing_judge.bodies) == 5 * K + 3
    assert "gives no log-probabilities" in capsys.readouterr().err
