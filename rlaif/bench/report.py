"""The training benchmark's figures as JSON, as tables with their targets, and as a plot.

A ratio is the opponent's time over ours, so that more is better for this project; of prompts it is
our length over the opponent's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlaif.bench.figures import Figures, Row
from rlaif.bench.work import OTHER_LENGTHS, OURS, WORKS, Work

OPPONENTS = {
    "B0": "TRL as it comes (B0)",
    "B1": "TRL tuned (B1)",
    "B2": "and plain head (B2)",
}
TITLES = {
    "dpo-pair": "DPO, one pair per prompt",
    "dpo-k4-best": "DPO, K = 4, best against rest",
    "dpo-k4-all": "DPO, K = 4, all pairs",
    "rm-k4-all": "reward model, K = 4, all pairs",
    "dpo-pair-short": "DPO, one pair, short prompt",
    "sft-packed": "SFT with packing",
    "max-prompt": "longest prompt in the same memory, K = 4",
}


@dataclass(frozen=True)
class Target:
    """The ratio to reach against an opponent; `high` is where more was not hoped for."""

    against: str
    low: float
    high: float | None = None

    def __str__(self) -> str:
        span = f"{self.low:g} to {self.high:g}" if self.high else f"at least {self.low:g}"
        return f"{span} ({self.against})"


# By device, by work.
TARGETS: Mapping[str, Mapping[str, Target]] = {
    "cpu": {
        "dpo-pair": Target("B2", 1.5),
        "dpo-k4-best": Target("B2", 3.0),
        "dpo-k4-all": Target("B2", 5.5),
        "rm-k4-all": Target("B1", 5.5),
        "dpo-pair-short": Target("B2", 0.95),
        "sft-packed": Target("B1", 0.95, 1.1),
        "max-prompt": Target("B2", 1.7),
    },
    "cuda": {
        "dpo-pair": Target("B1", 1.6),
        "dpo-k4-best": Target("B1", 3.0),
        "dpo-k4-all": Target("B1", 6.0),
    },
}


def title(work: Work) -> str:
    """A work's name in tables, with its lengths."""
    lengths = "counsel-chat's lengths" if work.ratio is None else f"rho = {work.lengths}"
    if work.ratio is None:
        return f"DPO, K = 2 to 4, all pairs, {lengths}"
    return TITLES[work.name] if work.probe else f"{TITLES[work.name]}, {lengths}"


def table(figures: Figures, device: str) -> str:
    """The ratios in Markdown: a line per work, a column per opponent, and the target."""
    by_work: dict[Work, dict[str, Row]] = {}
    for row in figures.rows():
        by_work.setdefault(row.work, {})[row.against] = row
    reasons = {each.work: each.reason for each in figures.not_measured() if not each.against}
    lines = [
        f"| | {' | '.join(OPPONENTS.values())} | target | |",
        f"|---|{'---|' * len(OPPONENTS)}---|---|",
    ]
    for work in (*WORKS, *OTHER_LENGTHS):
        target = TARGETS[device].get(work.name) if work in WORKS else None
        found = by_work.get(work, {})
        cells = [_cell(found.get(name)) for name in OPPONENTS]
        if work in reasons:
            verdict = f"not measured: {reasons[work]}"
        elif target and target.against in found:
            verdict = "met" if found[target.against].ratio.value >= target.low else "missed"
        else:
            verdict = "not measured" if target else ""
        lines.append(f"| {title(work)} | {' | '.join(cells)} | {target or ''} | {verdict} |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.ratio.value:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})"


def rates(figures: Figures) -> str:
    """Useful work per second and peak memory of each contestant, in Markdown."""
    lines = [
        "| work | who | per second | spread | prompts per second | peak MiB |",
        "|---|---|---|---|---|---|",
    ]
    for each in figures.timings:
        rate = each.per_second
        lines.append(
            f"| {title(each.work)} | {each.who} | {rate.value:.2f} {each.work.unit} "
            f"| {rate.low:.2f} to {rate.high:.2f} | {each.prompts_per_second:.2f} "
            f"| {each.peak / 2**20:.0f} |"
        )
    for longest in figures.longest:
        lines.append(
            f"| {title(longest.work)} | {OURS} | {longest.fits} words | next tried "
            f"{longest.beyond} | | as {longest.against} with {longest.base}: "
            f"{longest.cap / 2**20:.0f} |"
        )
    return "\n".join(lines)


def to_json(figures: Figures) -> dict[str, Any]:
    """The figures as plain values; `rows` are those of the targets' works."""
    rows = figures.rows()
    return {
        "rows": [_row(row) for row in rows if row.work in WORKS],
        "other_lengths": [
            _row(row) | {"lengths": row.work.lengths} for row in rows if row.work not in WORKS
        ],
        "not_measured": [
            {
                "work": each.work.name,
                "lengths": each.work.lengths,
                "against": each.against,
                "reason": each.reason,
            }
            for each in figures.not_measured()
        ],
        "contestants": [
            {
                "work": each.work.name,
                "lengths": each.work.lengths,
                "who": each.who,
                "unit": each.work.unit,
                "per_second": each.per_second.value,
                "prompts_per_second": each.prompts_per_second,
                "seconds": list(each.seconds),
                "amount": each.amount,
                "peak_bytes": each.peak,
            }
            for each in figures.timings
        ],
        "longest_prompt": [
            {"against": e.against, "bytes": e.cap, "words": e.base, "ours": e.fits}
            for e in figures.longest
        ],
        "gate": [
            {"work": work.name, "lengths": work.lengths, **asdict(each)}
            for work, found in figures.gates.items()
            for each in found
        ],
        **asdict(figures.ready),
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "work": row.work.name,
        "against": row.against,
        "ratio": row.ratio.value,
        "low": row.ratio.low,
        "high": row.ratio.high,
    }
