"""The ratios of the training benchmark as one SVG file."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.bench.figures import Row
from rlaif.bench.report import TARGETS, title
from rlaif.bench.svg import Dot, draw
from rlaif.bench.work import WORKS
from rlaif.charts import COLOURS

COLOUR_OF = dict(zip(("B0", "B1", "B2"), COLOURS, strict=False))


def plot(rows: Sequence[Row], device: str) -> str:
    """A dot and its range for each ratio, a bar at the target, a line at 1.

    Args:
        rows: at least one.
        device: whose targets are drawn.
    """
    targets, dots = TARGETS[device], []
    for row in rows:
        target = targets.get(row.work.name) if row.work in WORKS else None
        aim = target.low if target and target.against == row.against else None
        label = f"{title(row.work)}: {row.against}"
        dots.append(Dot(label, row.ratio, COLOUR_OF[row.against], aim))
    aims = [t.low for name, t in targets.items() if _shown(rows, name)]
    heading = "times as fast, or as long a prompt, as the opponent; | = target"
    return draw(dots, heading, "Ratios of the training benchmark", aims)


def _shown(rows: Sequence[Row], name: str) -> bool:
    return any(row.work.name == name and row.work in WORKS for row in rows)
