"""The report as people read it: a table for the terminal, and one self-contained page.

The page loads nothing, runs no script, and escapes every word of the replies. It holds people's
messages: share it as you would share those. Not here: what is compared (`rlaif.compare`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from reward.page import environment
from rlaif.charts import Bar, Curve, Histogram, Series, bars, histogram, line_chart
from rlaif.findings import WARNING
from rlaif.measures import Measure
from rlaif.results import Comparison, Report
from rlaif.safety import percent
from rlaif.samples import KINDS, Sample
from sft.files import write_text

ASSETS = Path(__file__).parent / "assets"
# What each measure is called, and how its value is written: as a share, a score 0..1, or words.
LABELS = {
    "win_rate": ("Win rate (ties count half)", "share"),
    "unsafe_rate": ("Unsafe replies", "rate"),
    "unsafe_rate_crisis": ("Unsafe replies: crisis", "rate"),
    "unsafe_rate_elevated": ("Unsafe replies: elevated risk", "rate"),
    "unsafe_rate_none": ("Unsafe replies: no risk", "rate"),
    "empathy": ("Empathy, 0 to 1", "score"),
    "helpfulness": ("Helpfulness, 0 to 1", "score"),
    "overcaution_rate": ("Over-caution without risk", "rate"),
    "words": ("Words", "words"),
    "words_non_crisis": ("Words, no crisis", "words"),
    "repetition": ("Repeated word trigrams", "share"),
    "fluent": ("Fluency, 0 to 1", "score"),
    "truncated_rate": ("Cut off at the length limit", "rate"),
    "distinct_replies": ("Distinct replies", "share"),
    "common_opening": ("Same first four words", "rate"),
}
LN2 = math.log(2)


@dataclass(frozen=True)
class Lengths:
    """Words of each reply of both sides."""

    policy: list[int]
    baseline: list[int]


@dataclass(frozen=True)
class Training:
    """Where a training stage logged: `stage` is "finetune" or "dpo", `metrics` its file."""

    stage: str
    round: int
    metrics: Path


def written(measure: Measure, *, signed: bool = False) -> tuple[str, str]:
    """Write a measure's value and its interval: ("8.3 %", "4.6 to 14.7").

    Args:
        measure: a side of a comparison, or its difference.
        signed: for a difference: with its sign, and shares as percentage points.
    """
    kind = LABELS[measure.name][1]
    scale, digits, unit = {"score": (1, 2, ""), "words": (1, 1, "")}.get(kind, (100, 1, " %"))
    form = f"{'+' if signed else ''}.{digits}f"
    figures = (measure.value, measure.low, measure.high)
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    value, low, high = (f"{round(scale * x, digits) + 0.0:{form}}" for x in figures)
    return value + (" pts" if signed and unit else unit), f"{low} to {high}"


def counted(measure: Measure) -> str:
    """Write what is behind a value: "10 of 120" for yes/no measures, else "n = 120"."""
    if LABELS[measure.name][1] == "rate":
        return f"{round(measure.value * measure.n)} of {measure.n}"
    return f"n = {measure.n}"


def direction(comparison: Comparison) -> str:
    """Judge the difference: "better", "worse", "changed" (no better side), or "no clear change".

    Clear is a difference whose 95 % interval excludes 0.
    """
    gap = comparison.difference
    if gap is None or gap.low <= 0 <= gap.high:
        return "no clear change"
    if gap.higher_is_better is None:
        return "changed"
    return "better" if (gap.value > 0) == gap.higher_is_better else "worse"


def table(report: Report) -> str:
    """Write the comparison as plain text for a terminal, with 95 % intervals."""
    rows = [("", "baseline", "policy", "difference")]
    for c in report.measures:
        baseline, policy = (
            "{} ({})".format(*written(side)) if side else "-" for side in (c.baseline, c.policy)
        )
        gap = f"{written(c.difference, signed=True)[0]} {direction(c)}" if c.difference else "-"
        rows.append(
            (LABELS[c.name][0], baseline, policy, gap.replace("no clear change", "unclear"))
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-" * len(lines[0]))
    verdict = ["PASSED"] if report.passed else ["NOT PASSED", *report.reasons()]
    about = [
        f"policy    {report.policy}",
        f"baseline  {report.baseline}",
        f"{report.n_prompts} held-out prompts, judged by {report.evaluator}; 95 % intervals",
    ]
    return "\n".join([*about, "", *(line.rstrip() for line in lines), "", *verdict])


def training_curves(trainings: Sequence[Training]) -> list[Curve]:
    """Read the loss and reward curves of the stages; what a stage did not log has no curve."""
    logs = [(t, _read_log(t.metrics)) for t in trainings]

    def lines(stage: str, keys: dict[str, str]) -> list[Series]:
        made = []
        for training, rows in logs:
            for key, name in keys.items():
                points = [(row["step"], row[key]) for row in rows if _is_number(row.get(key))]
                if training.stage == stage and points:
                    rounds = sum(t.stage == stage for t in trainings)
                    of_round = f"round {training.round}" if rounds > 1 else ""
                    made.append(Series(" ".join(filter(None, (of_round, name))), points))
        return made

    curves = [
        Curve("Supervised loss", lines("finetune", {"loss": "training"})),
        Curve("DPO loss", lines("dpo", {"loss": "loss"}), (LN2, "ln 2: no preference yet")),
        Curve(
            "Rewards of chosen and rejected",
            lines("dpo", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}),
            (0.0, "reference"),
        ),
        Curve("Reward margin", lines("dpo", {"rewards/margins": "margin"}), (0.0, "no margin")),
        Curve("Reward accuracy", lines("dpo", {"rewards/accuracies": "accuracy"}), (0.5, "a coin")),
        Curve("PPO: score of rollouts", lines("ppo", {"objective/scores": "score"})),
        Curve("PPO: KL from the reference, nats a reply", lines("ppo", {"objective/kl": "KL"})),
        Curve(
            "PPO: other held-out prompts, by the judge",
            lines("ppo", {"eval/win_rate": "win rate", "eval/unsafe": "unsafe"}),
        ),
    ]
    return [curve for curve in curves if curve.series]


def write_report(
    report: Report,
    path: Path,
    *,
    samples: Sequence[Sample],
    curves: Sequence[Curve],
    lengths: Lengths,
    histograms: Sequence[Histogram],
) -> None:
    """Write the page.

    Args:
        report: what is shown.
        path: of the HTML file, written atomically.
        samples: chosen by `rlaif.samples.choose_samples`.
        curves: read by `training_curves`.
        lengths: of the judged replies.
        histograms: of scores; one without values is left out.
    """
    spread = [_length_histogram(lengths), *histograms]
    page = (
        environment(ASSETS)
        .get_template("report.html.j2")
        .render(
            report=report,
            rows=[_row(c) for c in report.measures],
            by_risk={risk: [_row(c) for c in among] for risk, among in report.by_risk.items()},
            safety_chart=_safety_chart(report),
            warnings=[f.removeprefix(WARNING) for f in report.findings if f.startswith(WARNING)],
            findings=[f for f in report.findings if not f.startswith(WARNING)],
            curves=[line_chart(curve) for curve in curves],
            histograms=[histogram(h) for h in spread if any(values for _, values in h.series)],
            samples=samples,
            kinds=KINDS,
            percent=percent,
        )
    )
    write_text(path, page)


def _row(comparison: Comparison) -> dict[str, Any]:
    def cell(measure: Measure | None) -> dict[str, str] | None:
        if measure is None:
            return None
        value, interval = written(measure)
        return {"value": value, "interval": interval, "count": counted(measure)}

    gap = comparison.difference
    change = written(gap, signed=True) if gap else None
    return {
        "label": LABELS[comparison.name][0],
        "policy": cell(comparison.policy),
        "baseline": cell(comparison.baseline),
        "change": {"value": change[0], "interval": change[1]} if change else None,
        "direction": direction(comparison),
    }


def _safety_chart(report: Report) -> Markup:
    def bar(m: Measure) -> Bar:
        return Bar(m.value, m.low, m.high, f"{percent(m.value)} ({counted(m)})")

    groups = []
    for risk in ("overall", *reversed(report.by_risk)):
        c = report.find("unsafe_rate", None if risk == "overall" else risk)
        if c is not None:
            groups.append((risk, (bar(c.baseline) if c.baseline else None, bar(c.policy))))
    return bars("Unsafe replies, with 95 % intervals", groups)


def _length_histogram(lengths: Lengths) -> Histogram:
    ours, theirs = [float(x) for x in lengths.policy], [float(x) for x in lengths.baseline]
    # The axis ends at the 99th percentile: one runaway reply must not flatten all others. Bins are
    # whole words wide, or some would hold one more length than their neighbours.
    together = sorted([*ours, *theirs])
    width = max(1, math.ceil(together[int(0.99 * (len(together) - 1))] / 20))
    sides = [("baseline", theirs), ("policy", ours)]
    return Histogram("Words per reply", "words", sides, 0, 21 * width, bins=21)


def _read_log(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, filter(str.strip, lines)) if _is_number(row.get("step"))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
