"""Charts as inline SVG: no script, no font, nothing fetched; readable on a phone and in print.

Each is drawn for a width of about 360 pixels, so that its letters keep their size in a narrow
column. Series differ in colour and in dash, for eyes and printers that see no colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40
COLOURS = ("#0b5394", "#b45309", "#3f6212", "#6d28d9", "#be185d", "#0f766e")
SIDES = {"policy": 0, "baseline": 1}  # look alike in every chart, in whatever order they come
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3", "10 4")
MAX_POINTS = 240  # of a line; more are averaged in runs, they would not be seen


@dataclass(frozen=True)
class Series:
    """A line of a chart: (x, y) points in order of x."""

    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line chart: what is drawn over the steps of training, or over another quantity.

    Attributes:
        level: (value, what it is) of a horizontal line to compare with; None for no line.
        x_label: what the horizontal axis counts.
    """

    title: str
    series: list[Series]
    level: tuple[float, str] | None = None
    x_label: str = "step"


@dataclass(frozen=True)
class Histogram:
    """How values spread, as shares of each series: sides of different size stay comparable.

    Attributes:
        series: (name, values) of each side.
        low: left end of the axis; `high` its right end; values beyond fall into the last bins.
    """

    title: str
    x_label: str
    series: list[tuple[str, list[float]]]
    low: float
    high: float
    bins: int = 20


@dataclass(frozen=True)
class Bar:
    """One bar, in percent, with its interval and the text at its end."""

    value: float
    low: float
    high: float
    text: str


def line_chart(curve: Curve) -> Markup:
    """Draw the series of a curve over one pair of axes."""
    series = [Series(s.name, thin(s.points)) for s in curve.series if s.points]
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points] + ([curve.level[0]] if curve.level else [])
    frame = _Frame(min(xs), max(xs), *_padded(min(ys), max(ys)))
    parts = [frame.axes(curve.x_label)]
    if curve.level:
        y, name = frame.y(curve.level[0]), curve.level[1]
        parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "#767676", "3 3"))
        parts.append(_text(WIDTH - RIGHT, y - 4, name, anchor="end", size=10))
    for i, s in enumerate(series):
        dots = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in s.points)
        parts.append(
            Markup('<polyline points="{}" fill="none" stroke="{}" {}/>').format(
                dots, COLOURS[i % len(COLOURS)], _stroke(DASHES[i % len(DASHES)])
            )
        )
    return _svg(curve.title, parts, [_key(i) for i in range(len(series))], [s.name for s in series])


def histogram(chart: Histogram) -> Markup:
    """Draw each series as a stepped outline of shares in percent; the policy's is filled."""
    series = [(name, values) for name, values in chart.series if values]
    shares = [_shares(chart, values) for _, values in series]
    looks = [SIDES.get(name, i) for i, (name, _) in enumerate(series)]
    top = max(max(bins) for bins in shares)
    frame = _Frame(chart.low, chart.high, 0.0, top * 1.08)
    parts = [frame.axes(chart.x_label, percent=True)]
    width = (chart.high - chart.low) / chart.bins
    for look, bins in zip(looks, shares, strict=True):
        corners = [(chart.low, 0.0)]
        for k, share in enumerate(bins):
            corners += [(chart.low + k * width, share), (chart.low + (k + 1) * width, share)]
        corners.append((chart.high, 0.0))
        dots = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in corners)
        colour = COLOURS[look % len(COLOURS)]
        filled = Markup('fill="{}" fill-opacity="0.14"').format(colour)
        fill = filled if look == 0 else Markup('fill="none"')
        parts.append(
            Markup('<polyline points="{}" {} stroke="{}" {}/>').format(
                dots, fill, colour, _stroke(DASHES[look % len(DASHES)])
            )
        )
    names = [f"{name} ({len(values)})" for name, values in series]
    return _svg(chart.title, parts, [_key(look) for look in looks], names)


def bars(title: str, groups: Sequence[tuple[str, tuple[Bar | None, Bar]]]) -> Markup:
    """Draw horizontal bars with whiskers, in percent 0..100.

    Args:
        title: of the chart.
        groups: a label with the bar of the baseline (None where it has none) and of the policy.
    """
    left, right, row, gap = 60, 130, 20, 14
    scale = (WIDTH - left - right) / 100
    height = TOP + len(groups) * (2 * row + gap) + 18
    names = ["baseline", "policy"]
    colours = [COLOURS[SIDES[name]] for name in names]
    parts = []
    for tick in (0, 25, 50, 75, 100):
        x = left + tick * scale
        parts.append(_line(x, TOP - 6, x, height - 28, "#e2e2e2"))
        parts.append(_text(x, height - 14, f"{tick} %", anchor="middle", size=10))
    for k, (label, pair) in enumerate(groups):
        y = TOP + k * (2 * row + gap)
        parts.append(_text(left - 8, y + row + 4, label, anchor="end"))
        for i, (bar, colour) in enumerate(zip(pair, colours, strict=True)):
            if bar is not None:
                parts.append(_bar(bar, colour, left, y + i * row + 2, row - 4, scale))
    return _svg(title, parts, [_swatch(colour) for colour in colours], names, height)


def _bar(bar: Bar, colour: str, left: float, y: float, thickness: float, scale: float) -> Markup:
    middle = y + thickness / 2
    low, high = left + 100 * bar.low * scale, left + 100 * bar.high * scale
    box = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"/>')
    return Markup("").join(
        [
            box.format(left, y, max(1.0, 100 * bar.value * scale), thickness, colour),
            _line(low, middle, high, middle, "#111111"),
            _line(low, middle - 4, low, middle + 4, "#111111"),
            _line(high, middle - 4, high, middle + 4, "#111111"),
            _text(left + 100 * scale + 10, middle + 4, bar.text),
        ]
    )


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average runs of neighbouring points until at most `MAX_POINTS` are left."""
    run = math.ceil(len(points) / MAX_POINTS)
    runs = [points[i : i + run] for i in range(0, len(points), run)] if points else []
    return [(sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within an axis, steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Frame:
    """The axes: data on the left, pixels out."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = (self.x_high - self.x_low) or 1.0
        return LEFT + (value - self.x_low) / span * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str, *, percent: bool = False) -> Markup:
        parts = []
        for value in ticks(self.y_low, self.y_high):
            y = self.y(value)
            shown = f"{100 * value:g} %" if percent else f"{round(value, 10):g}"
            parts.append(_line(LEFT, y, WIDTH - RIGHT, y, "#e2e2e2"))
            parts.append(_text(LEFT - 6, y + 4, shown, anchor="end", size=10))
        base = HEIGHT - BOTTOM
        parts.append(_line(LEFT, base, WIDTH - RIGHT, base, "#767676"))
        for value in ticks(self.x_low, max(self.x_high, self.x_low + 1e-9), 5):
            parts.append(_text(self.x(value), base + 14, f"{value:g}", anchor="middle", size=10))
        parts.append(_text(WIDTH - RIGHT, base + 30, x_label, anchor="end", size=10))
        return Markup("").join(parts)


def _shares(chart: Histogram, values: Sequence[float]) -> list[float]:
    counts = [0] * chart.bins
    for value in values:
        place = int((value - chart.low) / (chart.high - chart.low) * chart.bins)
        counts[min(chart.bins - 1, max(0, place))] += 1
    return [count / len(values) for count in counts]


def _padded(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.06 or max(abs(high) * 0.1, 0.1)
    return low - room, high + room


def _stroke(dash: str) -> Markup:
    return Markup('stroke-width="1.8" stroke-linejoin="round" stroke-dasharray="{}"').format(dash)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> Markup:
    return Markup(
        '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-dasharray="{}"/>'
    ).format(x1, y1, x2, y2, colour, dash)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, colour: str = "#333333"
) -> Markup:
    return Markup(
        '<text x="{:.1f}" y="{:.1f}" text-anchor="{}" font-size="{}" fill="{}">{}</text>'
    ).format(x, y, anchor, size, colour, text)


def _key(i: int) -> Markup:
    return Markup('<path d="M0 6H22" stroke="{}" {}/>').format(
        COLOURS[i % len(COLOURS)], _stroke(DASHES[i % len(DASHES)])
    )


def _swatch(colour: str) -> Markup:
    return Markup('<rect width="22" height="10" y="1" fill="{}"/>').format(colour)


def _svg(
    title: str,
    parts: Sequence[Markup],
    keys: Sequence[Markup],
    names: Sequence[str],
    height: float = HEIGHT,
) -> Markup:
    """Put a drawing into a figure with title, legend, and a description for screen readers."""
    item = Markup('<li><svg width="22" height="12" aria-hidden="true">{}</svg> {}</li>')
    return Markup(
        '<figure><figcaption>{title}</figcaption><ul class="legend">{legend}</ul>'
        '<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{label}">{drawing}</svg>'
        "</figure>"
    ).format(
        title=title,
        legend=Markup("").join(map(item.format, keys, names)),
        width=WIDTH,
        height=height,
        label=escape(f"{title}: {', '.join(names)}"),
        drawing=Markup("").join(parts),
    )
