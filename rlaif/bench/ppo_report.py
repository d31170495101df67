"""The PPO benchmark's figures: ratios, tables with targets, a plot, and what 8B parameters hold.

A ratio is TRL's figure over ours, so that more is better for this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rlaif.bench.ppo_work import OPPONENT, PARTS, Course
from rlaif.bench.rules import Ratio, paired_ratio
from rlaif.bench.svg import Dot, draw
from rlaif.charts import COLOURS

GIB = 2**30
MODEL = "weights-and-optimiser"
WORKS = ("iteration", *PARTS, MODEL)
TARGETS = {"iteration": 2.0, "update": 1.8, MODEL: 2.1}
TITLES = {
    "iteration": "an iteration",
    "generate": "of it, generating",
    "score": "of it, scoring",
    "update": "of it, updates",
    MODEL: "weights and optimiser",
}


@dataclass(frozen=True)
class Row:
    """How many times as much TRL takes of something.

    Attributes:
        work: one of `WORKS`.
        ours: `ppo.value` of ours.
        against: TRL's form.
    """

    work: str
    ours: str
    against: str
    ratio: Ratio


def rows(courses: Sequence[Course]) -> list[Row]:
    """All ratios: each of ours against each form of TRL."""
    ours = [each for each in courses if not each.who.startswith(OPPONENT)]
    found = []
    for us in ours:
        for them in courses:
            if not them.who.startswith(OPPONENT):
                continue
            for work in WORKS:
                if work == MODEL:
                    exact = them.held.model / us.held.model
                    ratio = Ratio(exact, exact, exact)
                else:
                    ratio = paired_ratio(them.of(work), us.of(work))
                found.append(Row(work, us.who, them.who, ratio))
    return found


def table(courses: Sequence[Course]) -> str:
    """Ratios in Markdown: a line per work, a column per pair of contestants, and the target.

    The target is met or missed by the first pair: the default value function against TRL with
    adapters on both of its learning models.
    """
    found = rows(courses)
    pairs = list(dict.fromkeys((row.ours, row.against) for row in found))
    heads = [f"`value: {ours}` over {against}" for ours, against in pairs]
    lines = [f"| | {' | '.join(heads)} | wanted |", f"|---|{'---|' * len(pairs)}---|"]
    for work in WORKS:
        some = [row.ratio for row in found if row.work == work]
        cells = [f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})" for r in some]
        target, verdict = TARGETS.get(work), ""
        if target:
            verdict = f"{target:g}: {'met' if some[0].value >= target else 'missed'}"
        lines.append(f"| {TITLES[work]} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines)


def amounts(courses: Sequence[Course]) -> str:
    """Seconds and MiB of each contestant, in Markdown; of seconds median, least and greatest."""
    parts = ("iteration", *PARTS)
    lines = [
        f"| | {' | '.join(f'{part}, s' for part in parts)} | weights, MiB | optimiser, MiB "
        "| peak, MiB | of it libraries |",
        f"|---|{'---|' * (len(parts) + 4)}",
    ]
    for each in courses:
        cells = [
            f"{median(each.of(p)):.2f} ({min(each.of(p)):.2f} to {max(each.of(p)):.2f})"
            for p in parts
        ]
        held = each.held
        sizes = (held.weights, held.optimizer)
        cells += [f"{size / 2**20:.1f}" for size in sizes]
        cells += [f"{size / 2**20:.0f}" for size in (held.peak, held.libraries)]
        lines.append(f"| {each.who} | {' | '.join(cells)} |")
    return "\n".join(lines)


def to_json(courses: Sequence[Course]) -> dict[str, Any]:
    """The figures as plain values; `rows` are those of the targets' works by the first of ours."""
    found = rows(courses)
    first = found[0].ours
    return {
        "rows": [_row(r) for r in found if r.work in TARGETS and r.ours == first],
        "others": [
            {"value": r.ours, **_row(r)} for r in found if r.work not in TARGETS or r.ours != first
        ],
        "contestants": [asdict(each) for each in courses],
        "value": first,
    }


def _row(row: Row) -> dict[str, Any]:
    ratio = row.ratio
    about = {"work": row.work, "against": row.against}
    return about | {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}


def plot(courses: Sequence[Course]) -> str:
    """A dot and its range for each ratio of the targets' works, and the target."""
    found = rows(courses)
    against = list(dict.fromkeys(row.against for row in found))
    dots = [
        Dot(
            f"{TITLES[row.work]}: {row.ours} over {row.against}",
            row.ratio,
            COLOURS[against.index(row.against)],
            TARGETS[row.work],
        )
        for row in found
        if row.work in TARGETS
    ]
    return draw(dots, "TRL's figure over ours; | = target", "Ratios of the PPO benchmark")
