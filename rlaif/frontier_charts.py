"""Points of gold against proxy over KL, and their charts. Needs no torch; see `rlaif.frontier`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from rlaif.charts import Curve, Series
from sft.files import read_json

FILE = "frontier.json"
TITLES = {"gate": "with the safety gate", "none": "without it"}


@dataclass(frozen=True)
class Point:
    """One policy, or one n of best-of-n.

    Attributes:
        label: which one.
        kl: nats a reply from the start, 0 or more.
        proxy: mean score of its replies by what rewards.
        gold: mean grade by the judge, 0 to 1, unsafe replies 0.
        unsafe: share of unsafe replies by the judge.
    """

    label: str
    kl: float
    proxy: float
    gold: float
    unsafe: float


def to_json(lines: dict[str, dict[str, list[Point]]]) -> dict[str, object]:
    """Points by setting ("gate", "none") and method, for `frontier.json`."""
    return {
        setting: {name: [asdict(p) for p in points] for name, points in methods.items()}
        for setting, methods in lines.items()
    }


def _points(path: Path) -> dict[str, dict[str, list[Point]]]:
    return {
        setting: {name: [Point(**each) for each in points] for name, points in methods.items()}
        for setting, methods in read_json(path).items()
    }


def table(path: Path) -> str:
    """The points of a `frontier.json` as lines of text."""
    return "\n".join(
        f"{setting:5} {name:10} {p.label:12} KL {p.kl:5.2f}  proxy {p.proxy:6.3f}  "
        f"gold {p.gold:.3f}  unsafe {p.unsafe:.1%}"
        for setting, methods in _points(path).items()
        for name, points in methods.items()
        for p in points
    )


def curves(path: Path) -> list[Curve]:
    """The charts of a `frontier.json`: of each setting gold and proxy, and what was unsafe."""
    made = []
    for setting, methods in _points(path).items():
        for title, ys in (
            ("Gold: grade by the judge, unsafe = 0", lambda p: p.gold),
            ("Proxy: score by what rewards", lambda p: p.proxy),
            ("Unsafe replies by the judge", lambda p: p.unsafe),
        ):
            series = [
                Series(name, sorted((math.sqrt(p.kl), ys(p)) for p in points))
                for name, points in methods.items()
            ]
            label = "square root of KL, nats a reply"
            made.append(Curve(f"{title}, {TITLES[setting]}", series, x_label=label))
    return made
