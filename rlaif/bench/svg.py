"""Ratios with their ranges as one SVG file: no script, no font, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rlaif.bench.rules import Ratio
from rlaif.charts import ticks

WIDTH, LEFT, RIGHT, LINE, TOP, BOTTOM = 720, 300, 20, 22, 34, 30


@dataclass(frozen=True)
class Dot:
    """A line of the drawing: a ratio, its range, and where it should be; None = nowhere."""

    label: str
    ratio: Ratio
    colour: str
    target: float | None


def draw(dots: Sequence[Dot], heading: str, label: str, aims: Sequence[float] = ()) -> str:
    """A dot and its range for each ratio, a bar at its target, a line at 1.

    Args:
        dots: at least one.
        heading: what is drawn.
        label: of the picture, for readers that do not see it.
        aims: values that have to be on the axis, too.
    """
    tops = [dot.ratio.high for dot in dots] + [dot.target for dot in dots if dot.target]
    top = 1.05 * max([*tops, *aims, 1.0])
    height = TOP + LINE * len(dots) + BOTTOM

    def x(value: float) -> float:
        return LEFT + value / top * (WIDTH - LEFT - RIGHT)

    parts = [_text(LEFT, 16, heading)]
    for tick in ticks(0.0, top, 6):
        parts.append(_line(x(tick), TOP - 8, x(tick), height - BOTTOM, "#e2e2e2"))
        parts.append(_text(x(tick), height - 12, f"{tick:g}", "middle"))
    parts.append(_line(x(1.0), TOP - 8, x(1.0), height - BOTTOM, "#767676"))
    for number, dot in enumerate(dots):
        y, ratio = TOP + LINE * number + LINE / 2, dot.ratio
        parts.append(_text(LEFT - 10, y + 4, dot.label, "end"))
        parts.append(_line(x(ratio.low), y, x(ratio.high), y, dot.colour, 3))
        parts.append(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" fill="{}"/>').format(
                x(ratio.value), y, dot.colour
            )
        )
        if dot.target:
            parts.append(_line(x(dot.target), y - 8, x(dot.target), y + 8, "#111111", 2))
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" '
        'aria-label="{}" font-family="sans-serif">'
        '<rect width="100%" height="100%" fill="#ffffff"/>{}</svg>\n'
    ).format(WIDTH, height, label, Markup("").join(parts))


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> Markup:
    return Markup(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}"/>'
    ).format(x1, y1, x2, y2, colour, width)


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup(
        '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" font-size="12" fill="#333333">{}</text>'
    ).format(x, y, anchor, text)
