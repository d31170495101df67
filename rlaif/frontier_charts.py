"""Points of gold against proxy over KL, and their charts. Needs no torch; see `rlaif.frontier`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from rlaif.charts import Curve, Series
from sft.files import read_json

FILE = "frontier.json"


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


def curves(path: Path) -> list[Curve]:
    """The charts of a `frontier.json`: of each setting gold and proxy, and what was unsafe."""
    made = []
    titles = {"gate": "with the safety gate", "none": "without it"}
    for setting, methods in read_json(path).items():
        lines = {name: [Point(**each) for each in points] for name, points in methods.items()}
        for value, words in (
            ("gold", "Gold: grade by the judge, unsafe = 0"),
            ("proxy", "Proxy: score by what rewards"),
            ("unsafe", "Unsafe replies by the judge"),
        ):
            series = [
                Series(name, sorted((math.sqrt(p.kl), getattr(p, value)) for p in points))
                for name, points in lines.items()
            ]
            label = "square root of KL, nats a reply"
            made.append(Curve(f"{words}, {titles[setting]}", series, x_label=label))
    return made
