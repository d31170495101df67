"""The ratios of the training benchmark as one SVG file: no script, no font, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from rlaif.bench.figures import Row
from rlaif.bench.report import TARGETS, title
from rlaif.bench.work import WORKS
from rlaif.charts import COLOURS, ticks

WIDTH, LEFT, RIGHT, LINE, TOP, BOTTOM = 720, 300, 20, 22, 34, 30
COLOUR_OF = dict(zip(("B0", "B1", "B2"), COLOURS, strict=False))


def plot(rows: Sequence[Row], device: str) -> str:
    """A dot and its range for each ratio, a bar at the target, a line at 1.

    Args:
        rows: at least one.
        device: whose targets are drawn.
    """
    top = 1.05 * max(max(row.ratio.high for row in rows), 1.0)
    targets = TARGETS[device]
    top = max([top, *(1.05 * t.low for name, t in targets.items() if _shown(rows, name))])
    height = TOP + LINE * len(rows) + BOTTOM

    def x(value: float) -> float:
        return LEFT + value / top * (WIDTH - LEFT - RIGHT)

    parts = [_text(LEFT, 16, "times as fast, or as long a prompt, as the opponent; | = target")]
    for tick in ticks(0.0, top, 6):
        parts.append(_line(x(tick), TOP - 8, x(tick), height - BOTTOM, "#e2e2e2"))
        parts.append(_text(x(tick), height - 12, f"{tick:g}", "middle"))
    parts.append(_line(x(1.0), TOP - 8, x(1.0), height - BOTTOM, "#767676"))
    for number, row in enumerate(rows):
        y, colour = TOP + LINE * number + LINE / 2, COLOUR_OF[row.against]
        ratio = row.ratio
        parts.append(_text(LEFT - 10, y + 4, f"{title(row.work)}: {row.against}", "end"))
        parts.append(_line(x(ratio.low), y, x(ratio.high), y, colour, 3))
        parts.append(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="{}"/>').format(
                x(ratio.value), y, colour
            )
        )
        target = targets.get(row.work.name) if row.work in WORKS else None
        if target and target.against == row.against:
            parts.append(_line(x(target.low), y - 8, x(target.low), y + 8, "#111111", 2))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" '
        'aria-label="Ratios of the training benchmark" font-family="sans-serif">'
        '<rect width="100%" height="100%" fill="#ffffff"/>{}</svg>\n'
    ).format(WIDTH, height, Markup("").join(parts))


def _shown(rows: Sequence[Row], name: str) -> bool:
    return any(row.work.name == name and row.work in WORKS for row in rows)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> Markup:
    return Markup(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}"/>'
    ).format(x1, y1, x2, y2, colour, width)


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup(
        '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" font-size="12" fill="#333333">{}</text>'
    ).format(x, y, anchor, text)
