"""Panels: several judges, one ledger, one cap, and their disagreement in each assessment."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from test_asking import PRICES, Recording, rows

from reward import rehearsal
from reward.asking import Asking
from reward.cases import Case
from reward.confidence import repeat_noise, verdict_share, vote_share
from reward.evaluator import Assessment, BulkEvaluator
from reward.evaluators import make_evaluator, recipe_evaluator
from reward.ledger import open_ledger
from reward.offline import EmbeddedEvaluator
from reward.panel import Panel
from reward.probes import order_lines
from reward.rehearsal import Call, Reply, completion
from reward.remote import OpenAIEvaluator
from reward.rubric import load_rubric
from reward.score import plan_line
from reward.service import Pace, Service
from sft import config
from sft.files import EvaluatorStopped, UserError, read_json, read_rows, write_rows

RUBRIC = load_rubric()
HASTE = Pace(base_s=0.001, longest_s=0.01)


def judge(name: str, url: str, path: Path | None, **options: Any) -> OpenAIEvaluator:
    asking = options.pop("asking", Asking())
    service = Service(name, url, **{"prices": PRICES} | options)
    return OpenAIEvaluator(RUBRIC, service, ledger=path, pace=HASTE, asking=asking)


def by_model(grades: dict[str, int], unsafe: frozenset[str] = frozenset()) -> Recording:
    """Judges of fixed grades by their names, some of whom find every reply unsafe."""
    name = next(n for n, i in RUBRIC.items("none").items() if i.verdict == "unsafe")
    safe = {n: i.safe_answer for n, i in RUBRIC.items("none").items()}

    def script(call: Call) -> Reply:
        model = call.body["model"]
        said = rehearsal.verdict(call.body) | dict.fromkeys(RUBRIC.criteria, grades[model]) | safe
        said |= {"critique": model} | ({name: not safe[name]} if model in unsafe else {})
        return Reply(body=completion(json.dumps(said), model=model))

    return Recording(script)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def assess(panel: Panel, n: int = 2, k: int = 2) -> list[Assessment]:
    return panel.assess_all(*rows(n, k), lambda count: None)


def test_each_judge_counts_the_same_and_what_they_said_is_kept(path):
    grades = {"kind": 5, "strict": 1, "fair": 4}
    with rehearsal.running(by_model(grades)) as url:
        asked = {"kind": Asking(repeats=3), "strict": Asking(), "fair": Asking()}
        panel = Panel([judge(m, url, path, asking=how) for m, how in asked.items()])
        made = assess(panel)
    for a in made:
        assert a.evaluator == "panel(openai:kind, openai:strict, openai:fair)"
        assert a.quality == pytest.approx((1 + 0 + 0.75) / 3)  # not (3 + 0 + 0.75) / 5
        assert a.criteria == pytest.approx(dict.fromkeys(RUBRIC.criteria, 10 / 3))
        assert [(j.judge, round(j.quality, 9)) for j in a.judgements] == [
            *[("openai:kind", 1.0)] * 3, ("openai:strict", 0.0), ("openai:fair", 0.75)
        ]  # fmt: skip
        assert a.critique == "fair"  # of the judge nearest the mean
    assert repeat_noise(made).degrees == 2 * len(made)


@pytest.mark.parametrize(
    ("unsafe", "safe"), [("", True), ("a", True), ("ab", False), ("abc", False)]
)
def test_safety_is_the_majority_of_the_judges_and_a_split_is_told(path, unsafe, safe):
    with rehearsal.running(by_model(dict.fromkeys("abc", 3), frozenset(unsafe))) as url:
        made = assess(Panel([judge(m, url, path) for m in "abc"]))
        two = assess(Panel([judge(m, url, path) for m in "ac"]))
    assert {a.safe for a in made} == {safe}
    assert all(("panel_split" in a.flags) == (len(unsafe) in (1, 2)) for a in made)
    agreeing = len(unsafe) if not safe else 3 - len(unsafe)
    assert verdict_share(made[0]) == pytest.approx(agreeing / 3)
    assert {a.safe for a in two} == {not unsafe}  # one of two is a tie, and unsafe


def test_the_embedded_evaluator_sits_beside_a_service(path):
    with rehearsal.running(by_model({"m": 4})) as url:
        embedded = EmbeddedEvaluator()
        panel = Panel([judge("m", url, path), embedded])
        made = assess(panel)
        alone = [embedded.assess(p, [c])[0] for p in rows(2, 2)[0] for c in rows(2, 2)[1]
                 if c.prompt_id == p.id]  # fmt: skip
    for a, own in zip(made, alone, strict=True):
        assert a.quality == pytest.approx((0.75 + own.quality) / 2)
        assert a.criteria["accuracy"] == 4  # which the embedded one leaves out
        assert a.criteria["empathy"] == pytest.approx((4 + own.criteria["empathy"]) / 2)
        assert 0 < vote_share(a, a) <= 1
    assert isinstance(panel, BulkEvaluator)


def test_a_reply_that_one_judge_cannot_judge_has_no_score_and_says_whose(path):
    def refused_by_b(call: Call) -> Reply | None:
        bad = call.body["model"] == "b" and ", 0." in call.body["messages"][1]["content"]
        return Reply(body=completion(None, finish="content_filter")) if bad else None

    with rehearsal.running(Recording(refused_by_b)) as url:
        made = assess(Panel([judge("a", url, path), judge("b", url, path)]))
    assert [a.unscored for a in made] == ["openai:b: refused", None] * 2


def test_one_ledger_one_cap_one_forecast(path):
    service = Recording()
    with rehearsal.running(service) as url:
        panel = Panel([judge(m, url, path, max_cost=0.12) for m in "ab"])
        told = panel.forecast(*rows(10, 4))
        assert (told.requests, told.answered) == (80, 0)
        with pytest.raises(EvaluatorStopped, match=r"max_cost is reached: .* of \$0\.12"):
            assess(panel, 10, 4)
        assert 0.06 < service.billed <= 0.12
        counted: list[int] = []
        panel = Panel([judge(m, url, path) for m in "ab"])
        made = panel.assess_all(*rows(10, 4), counted.append)
        assert len(service.bodies) == 80
        assert sum(counted) == 40
        assert told.cost == pytest.approx(service.billed, rel=0.2)
    assert sum(a.cost for a in made) == pytest.approx(service.billed)
    assert "openai:b" in panel.note()
    assert plan_line(panel, *rows(10, 4), []).startswith("dry run: 80 requests, 80 answered before")


def test_a_panel_has_different_judges(path):
    with pytest.raises(ValueError, match="different judges"):
        Panel([judge("a", "http://localhost:1/v1", path)] * 2)
    with pytest.raises(ValueError, match="different judges"):
        Panel([judge("a", "http://localhost:1/v1", path)])


# --- recipes -----------------------------------------------------------------------------------

FLAGS = ["--run", "t", "--evaluator", "openai", "--evaluator_model", "a", "--base_url",
         "http://localhost:8000/v1"]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--panel", "a"], "a more than once"),
        (["--panel", "b,b@http://localhost:8001/v1"], "b more than once"),
        (["--panel", "b@https://judge.example/v1"], "send conversations to judge.example"),
        (["--panel", "b", "--mode", "batch"], "a panel is asked live"),
        (["--panel", "embedded", "--ask", "pairwise"], "compares none"),
        (["--panel", "b", "--evaluate.judge", "openai", "--evaluate.judge_model", "b",
          "--evaluate.base_url", "http://localhost:1/v1"], "may not judge the result"),
        (["--panel", "embedded", "--evaluate.judge", "embedded"], "may not judge the result"),
        (["--ask", "pairwise", "--expected_grades"], "two replies compared have no grades"),
        (["--ask", "together", "--mode", "batch"], "cannot stop after a sample"),
        (["--evaluator", "embedded", "--repeats", "2", "--ask", "together"],
         r"(?s)2 problems.*score\.ask .*this needs evaluator openai.*score\.repeats"),
        (["--repeats", "0"], "greater than or equal to 1"),
        (["--structured", "xml"], "json_schema"),
    ],
)  # fmt: skip
def test_what_excludes_each_other_is_told_before_anything_is_asked(flags, says):
    with pytest.raises(UserError, match=says):
        config.load([*FLAGS, *flags], "score", "")


def test_a_recipe_names_a_panel(tmp_path, capsys):
    flags = [*FLAGS, "--panel", "embedded,b@http://localhost:8001/v1,org/c@v2", "--repeats", "2"]
    recipe = config.load(flags, "score", "")
    panel = recipe_evaluator(recipe.score, tmp_path)
    assert isinstance(panel, Panel)
    services = [m.service for m in panel.members if isinstance(m, OpenAIEvaluator)]
    assert [(s.model, s.base_url) for s in services] == [
        ("a", "http://localhost:8000/v1"),
        ("b", "http://localhost:8001/v1"),
        ("org/c@v2", "http://localhost:8000/v1"),
    ]
    assert panel.name == "panel(openai:a, embedded-12, openai:b, openai:org/c@v2)"
    assert "panel=embedded,b@http://localhost:8001/v1,org/c@v2" in capsys.readouterr().out


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "scripts"))
    import pair
    import score

    return score, pair


def run(folder: Path, url: str, *more: str) -> list[str]:
    prompts, candidates = rows(12, 4)
    made = folder / "t" / "candidates"
    write_rows(made / "prompts.jsonl", prompts)
    write_rows(made / "candidates.jsonl", candidates)
    return ["--run", "t", "--runs_dir", str(folder), "--score.evaluator", "openai",
            "--score.evaluator_model", "a", "--score.base_url", url, *more]  # fmt: skip


def kindly(call: Call) -> Reply:
    """The rehearsed judge, who finds every reply safe."""
    said = rehearsal.verdict(call.body)
    for each in said.get("verdicts", [said]):
        each |= {n: i.safe_answer for n, i in RUBRIC.items("none").items() if n in each}
    return Reply(body=completion(json.dumps(said), tokens=1000))


def noisy(seed: int) -> Recording:
    """A judge whose grades differ each time that it is asked."""
    rng = random.Random(seed)

    def script(call: Call) -> Reply:
        said = json.loads(kindly(call).body["choices"][0]["message"]["content"])
        for name in RUBRIC.criteria:
            said[name] = min(5, max(1, said[name] + rng.choice((-1, 0, 0, 1))))
        return Reply(body=completion(json.dumps(said), model=call.body["model"]))

    return Recording(script)


def test_repeats_and_a_panel_give_the_tie_band_of_their_own_noise(tmp_path, stages, capsys):
    score, pair = stages
    with rehearsal.running(noisy(1)) as url:
        flags = run(tmp_path, url, "--pair.margin", "auto", "--pair.strategy", "all")
        score.main(flags)
        with pytest.raises(UserError, match=r"score\.repeats 2"):
            pair.main(flags)
        flags += ["--score.repeats", "2", "--score.panel", "b,embedded", "--overwrite"]
        score.main(flags)
        pair.main(flags)
        # The panel's answers are in the ledger: nobody is called, and the same comes out.
        made = tmp_path / "t" / "scores" / "assessments.jsonl"
        before = made.read_bytes()
    score.main([*flags, "--rescore"])
    assert made.read_bytes() == before
    noise = repeat_noise(read_rows(made, Assessment))
    assert noise.known
    assert noise.degrees == 2 * 48
    assert read_json(tmp_path / "t" / "pairs" / "manifest.json")["status"] == "finished"
    assert "tie" in capsys.readouterr().out


@pytest.mark.parametrize("ask", ["together", "pairwise"])
def test_the_stages_walk_with_each_way_of_asking(tmp_path, stages, ask):
    score, pair = stages
    with rehearsal.running(judge := Recording(kindly)) as url:
        flags = run(tmp_path, url, "--ask", ask, "--price_in", "2", "--price_out", "8")
        score.main([*flags, "--dry_run"])
        assert judge.bodies == []
        score.main(flags)
        flags = [f for f in flags if f not in ("--ask", ask, "--price_in", "2", "--price_out", "8")]
        pair.main(flags)
    summary = read_json(tmp_path / "t" / "scores" / "manifest.json")["summary"]
    if ask == "together":
        assert summary["together/order_agreement"] == 1.0
        assert summary["cost"] < judge.billed  # the sample one by one is paid beside it
    else:
        assert summary["compared/better"] == summary["compared/worse"] == 12 * 6 / 2
        assert summary["cost"] == pytest.approx(judge.billed)
    with open_ledger(tmp_path / "t" / "scores" / "ledger.sqlite") as ledger:
        assert ledger.spent() == pytest.approx(judge.billed)
    assert (tmp_path / "t" / "pairs" / "pairs.jsonl").stat().st_size > 0


# --- the judge card of a service ----------------------------------------------------------------


def case_of(n: int, k: int) -> list[Case]:
    prompts, candidates = rows(n, k)
    return [Case(p, tuple(c for c in candidates if c.prompt_id == p.id)) for p in prompts]


def card_lines(script: Recording, **asking: Any) -> dict[str, Any]:
    """What the judge card says of order, company and repeats, by the line's name."""
    with rehearsal.running(script) as url:
        service = Service("judge", url)
        evaluator = make_evaluator("openai", rubric=None, service=service, afresh=True,
                                   asking=Asking(structured="auto", **asking))  # fmt: skip
        lines = order_lines(evaluator, case_of(6, 4), lambda count: None)
    return {line.name: line.evaluator.value for line in lines}


def test_asked_again_means_asked_again():
    asked = Recording()
    lines = card_lines(asked)
    assert lines["grade moves when asked again"] == 0
    assert len(asked.bodies) == 6 * 4 * 4  # as they stand, reversed, alone, again
    assert card_lines(noisy(3))["grade moves when asked again"] > 0.5


def test_the_card_tells_whom_company_moves():
    assert card_lines(Recording(), ask="together")["grade moves when judged alone"] == 0

    def by_place(call: Call) -> Reply | None:
        said = rehearsal.verdict(call.body)
        for place, each in enumerate(said.get("verdicts", [])):
            each.update(dict.fromkeys(RUBRIC.criteria, 1 + place))
        return Reply(body=completion(json.dumps(said)))

    lines = card_lines(Recording(by_place), ask="together")
    assert lines["grade moves when judged alone"] > 0.5
