"""The page and the terminal table: complete, self-contained, and safe against what models write."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rlaif.charts import Curve, Histogram, Series, histogram, line_chart, thin, ticks
from rlaif.compare import build_report
from rlaif.measures import Resampling
from rlaif.report import Lengths, Training, table, training_curves, write_report
from rlaif.results import JudgedReply, Report
from rlaif.safety import Gate
from rlaif.samples import Sample, choose_samples

EVIL = "<script>alert(1)</script> <img src=http://evil.example/x.png> & \u202eright to left"
VOID = {"meta", "img", "br", "link", "input"}


def rows(unsafe: int, empathy: float, n: int = 30) -> list[JudgedReply]:
    return [
        JudgedReply(
            prompt_id=f"p{i}",
            risk=("crisis", "none", "elevated")[i % 3],
            topic="grief",
            text=f"{EVIL} {i}",
            safe=i >= unsafe,
            empathy=empathy,
            helpfulness=i / n,
            overcautious=False,
            unscored=None,
            words=10 + i,
            repetition=0.0,
            stop="eos",
            violations=("no_human_help",) if i < unsafe else (),
        )
        for i in range(n)
    ]


PREFERENCES: list[float | None] = [0.0] * 4 + [1.0] * 20 + [0.5] * 6
PROMPTS = {
    f"p{i}": [
        {"role": "user", "content": f"Earlier {i}"},
        {"role": "assistant", "content": "Go on."},
        {"role": "user", "content": f"{EVIL} asks {i}"},
    ]
    for i in range(30)
}


def report_of(policy: list[JudgedReply], baseline: list[JudgedReply]) -> Report:
    return build_report(
        policy,
        baseline,
        PREFERENCES[: len(policy)],
        policy="dpo@1",
        baseline="finetune@1",
        policy_hash="ab" * 32,
        evaluator="judge <b>",
        rubric="clinic@1",
        prompts_hash="cd" * 8,
        gate=Gate(),
        resampling=Resampling(n=200, seed=0),
    )


@pytest.fixture
def page(tmp_path: Path) -> str:
    policy, baseline = rows(3, 0.7), rows(12, 0.4)
    path = tmp_path / "report.html"
    write_report(
        report_of(policy, baseline),
        path,
        samples=choose_samples(policy, baseline, PREFERENCES, PROMPTS),
        curves=[Curve("DPO loss", [Series("loss <i>", [(1.0, 0.69), (2.0, 0.5)])], (0.69, "ln 2"))],
        lengths=Lengths([r.words for r in policy], [r.words for r in baseline]),
        histograms=[
            Histogram("Quality", "0 to 1", [("round 1", [0.1, 0.5, 0.9])], 0, 1),
            Histogram("Nothing", "0 to 1", [("round 1", [])], 0, 1),
        ],
    )
    return path.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_well_formed_and_loads_nothing(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    assert not {"script", "img", "link", "iframe", "object", "embed", "form"} & set(reader.tags)
    for _, name, value in reader.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "srcset", "action", "background", "xlink:href")
        assert name != "href" or (value or "").startswith("#")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page


def test_page_escapes_what_models_and_people_write(page: str) -> None:
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "judge &lt;b&gt;" in page and "loss &lt;i&gt;" in page


def test_page_says_the_verdict_and_its_figures(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    text = " ".join(reader.text.split())
    assert text.index("PASSED") < text.index("Policy") < text.index("Before and after")
    assert "10.0 %" in text and "3 of 30" in text and "12 of 30" in text
    assert "Not therapy, not a medical device." in text
    assert "Broke: no human help" in text
    assert "Assistant, earlier" in text
    for title in ("Unsafe replies, with 95 % intervals", "DPO loss", "Words per reply", "Quality"):
        assert title in text
    assert "Nothing" not in text
    assert {"#" + v for t, n, v in reader.attributes if n == "id"} >= {
        v for t, n, v in reader.attributes if n == "href"
    }


def test_a_failed_report_opens_with_its_reasons(tmp_path: Path) -> None:
    policy, baseline = rows(20, 0.7), rows(10, 0.4)
    report = report_of(policy, baseline)
    write_report(
        report, tmp_path / "r.html", samples=[], curves=[],
        lengths=Lengths([1], [1]), histograms=[],
    )  # fmt: skip
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not report.passed
    assert text.index("NOT PASSED") < text.index("is above the baseline") < text.index("<h2")
    assert "#training" not in text
    shown = table(report)
    assert "NOT PASSED\n" in shown and "worse" in shown


def test_a_baseline_without_verdicts_can_be_shown(tmp_path: Path) -> None:
    policy = rows(3, 0.7)
    silent = [
        replace(r, safe=None, empathy=None, helpfulness=None, unscored="refused", violations=())
        for r in policy
    ]
    report = report_of(policy, silent)
    samples = choose_samples(policy, silent, [None] * 30, PROMPTS, n=3)
    write_report(
        report, tmp_path / "r.html", samples=samples, curves=[],
        lengths=Lengths([1], [1]), histograms=[],
    )  # fmt: skip
    assert "not judged" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not report.passed
    assert "Unsafe replies" in table(report)


def test_table_fits_a_terminal() -> None:
    shown = table(report_of(rows(3, 0.7), rows(12, 0.4)))
    assert max(map(len, shown.splitlines())) <= 100
    row = next(line for line in shown.splitlines() if line.startswith("Unsafe replies  "))
    assert " ".join(row.split()).startswith(
        "Unsafe replies 40.0 % (24.6 to 57.7) 10.0 % (3.5 to 25.6) -30.0 pts better"
    )
    assert shown.endswith("PASSED")
    assert "-0.0" not in shown.replace("-0.00", "")


# --- samples -----------------------------------------------------------------------------------


def test_samples_show_failures_first_and_are_the_same_each_time() -> None:
    policy, baseline = rows(12, 0.7), rows(3, 0.4)
    samples = choose_samples(policy, baseline, PREFERENCES, PROMPTS, n=24)
    assert samples == choose_samples(policy, baseline, PREFERENCES, PROMPTS, n=24)
    kinds = [s.kind for s in samples]
    assert kinds == sorted(kinds, key=["unsafe", "lost", "won", "drawn"].index)
    assert kinds.count("unsafe") == 8 and len(samples) == 24
    assert len({s.policy.prompt_id for s in samples}) == 24
    risks = [s.policy.risk for s in samples if s.kind == "unsafe"]
    assert risks[:4] == ["crisis"] * 4
    # Of two unsafe crisis replies, the one that used to be safe comes first.
    assert samples[0].baseline.safe and not samples[3].baseline.safe
    assert all(s.prompt == PROMPTS[s.policy.prompt_id] for s in samples)


def test_few_rows_give_few_samples() -> None:
    policy = rows(1, 0.5, n=2)
    samples = choose_samples(policy, policy, [0.5, 0.5], PROMPTS)
    assert [type(s) for s in samples] == [Sample, Sample]


# --- curves ------------------------------------------------------------------------------------


def test_curves_come_from_the_logs_of_each_round(tmp_path: Path) -> None:
    def log(name: str, lines: list[dict[str, float | None]]) -> Path:
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
        return path

    sft = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}, {"step": None, "train_loss": 1.0}]
    dpo = [{"step": 1, "loss": math.log(2), "rewards/margins": 0.0, "rewards/chosen": 0.0}]
    curves = training_curves(
        [
            Training("finetune", 1, log("a", sft)),
            Training("dpo", 1, log("b", dpo)),
            Training("dpo", 2, log("c", dpo)),
        ]
    )
    named = {curve.title: [(s.name, s.points) for s in curve.series] for curve in curves}
    assert named["Supervised loss"] == [("training", [(1, 3.0)])]
    assert [name for name, _ in named["DPO loss"]] == ["round 1 loss", "round 2 loss"]
    assert "Reward accuracy" not in named
    for curve in curves:
        assert "<polyline" in line_chart(curve)


@pytest.mark.parametrize(
    "points", [[(5.0, 1.0)], [(1.0, 2.0), (2.0, 2.0)], [(0.0, -1e-9), (1.0, 0.0)]]
)
def test_flat_and_single_points_can_be_drawn(points: list[tuple[float, float]]) -> None:
    drawn = line_chart(Curve("flat", [Series("a", points)]))
    assert "nan" not in drawn and "inf" not in drawn


def test_long_lines_are_averaged() -> None:
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    short = thin(points)
    assert len(short) <= 240 and short[0][1] == pytest.approx(0.5, abs=0.02)
    assert thin([]) == []


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.5, 1])
    assert all(-3.2 <= t <= 17 for t in ticks(-3.2, 17))
    assert 2 <= len(ticks(0.681, 0.694)) <= 6


def test_histogram_keeps_what_lies_beyond_the_axis() -> None:
    drawn = histogram(Histogram("w", "words", [("policy", [5.0, 500.0, -3.0])], 0, 10, bins=2))
    assert "policy (3)" in drawn and "nan" not in drawn
