"""What the pair stage made, of whom, and what it dropped and why: `dropped.json` and the terminal.

Every count that has a total comes with its arithmetic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import get_args

from reward.confidence import TIE_Z, RepeatNoise, variance_share
from reward.evaluator import Assessment
from reward.pairing import WITHOUT_REPEATS, Pair
from sft.data import Prompt, Risk
from sft.pair_settings import LONGER

RISKS: tuple[Risk, ...] = get_args(Risk)


@dataclass
class Pairing:
    """Pairs, and why the rest became none: `dropped.json`.

    Attributes:
        pairs: what is trained on.
        candidates: candidates by what became of them.
        comparisons: comparisons among a prompt's own replies, "kept" or by reason.
        with_borrowed: comparisons of a prompt's best reply with a borrowed one, the same way.
        prompts: prompts by whether they have pairs, or by reason.
        balance: by "risk" and by "topic", for each of its values: prompts, prompts with pairs,
            pairs, and pairs by rule.
        noise: the evaluator's repeatability.
        asked: how often a candidate was judged, the median over candidates, in independent answers.
        margin: the setting that the tie band comes from.
    """

    pairs: list[Pair] = field(default_factory=list)
    candidates: Counter[str] = field(default_factory=Counter)
    comparisons: Counter[str] = field(default_factory=Counter)
    with_borrowed: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    by_rule: Counter[str] = field(default_factory=Counter)
    balance: dict[str, dict[str, Counter[str]]] = field(
        default_factory=lambda: {"risk": {}, "topic": {}}
    )
    noise: RepeatNoise = WITHOUT_REPEATS
    asked: float = 1.0
    margin: float | str = 0.0

    def add(self, prompt: Prompt, pairs: Sequence[Pair], why_none: str) -> None:
        """Count a prompt with its pairs, or the reason why it has none."""
        self.pairs += pairs
        self.prompts["with pairs" if pairs else why_none] += 1
        self.by_rule.update(pair.rule for pair in pairs)
        for name, value in (("risk", prompt.risk), ("topic", prompt.topic)):
            counts = self.balance[name].setdefault(value, Counter())
            counts.update({"prompts": 1, "with pairs": bool(pairs), "pairs": len(pairs)})
            counts.update({"safety": 0, "quality": 0})
            counts.update(pair.rule for pair in pairs)

    @property
    def borrowed(self) -> int:
        """Pairs against borrowed replies."""
        return self.with_borrowed["kept"]

    @property
    def band(self) -> float:
        """Tie band of two candidates that were asked as often as the median one."""
        if not isinstance(self.margin, str):
            return self.margin
        return TIE_Z * self.noise.sd * math.sqrt(2 / self.asked)

    def report(self) -> dict[str, object]:
        """Counts by reason, each group adding up to the total that is given beside it."""
        kept = self.comparisons["kept"]
        return {
            "pairs": len(self.pairs),
            "pairs_arithmetic": f"{kept} kept + {self.borrowed} against borrowed replies"
            f" = {len(self.pairs)}",
            "pairs_by_rule": dict(self.by_rule),
            "pairs_by_risk": {risk: n["pairs"] for risk, n in self.balance["risk"].items()},
            "pairs_against_borrowed": self.borrowed,
            "candidates": _with_total(self.candidates),
            "comparisons": _with_total(self.comparisons),
            "comparisons_with_borrowed": _with_total(self.with_borrowed),
            "prompts": _with_total(self.prompts),
            "tie_band": {
                "margin": self.margin,
                "band": self.band,
                "repeat_sd": self.noise.sd if self.noise.known else None,
                "degrees_of_freedom": self.noise.degrees,
                "candidates_with_repeats": self.noise.repeated,
                "median_answers": self.asked,
            },
            "chosen_longer": {"than_rejected_times": LONGER, **self.longer()},
            "balance": {
                name: {value: dict(counts) for value, counts in sorted(by_value.items())}
                for name, by_value in self.balance.items()
            },
        }

    def longer(self) -> dict[str, dict[str, float]]:
        """Of the pairs by each rule, those whose chosen reply is much longer."""
        found: dict[str, dict[str, float]] = {}
        for rule in ("quality", "safety"):
            pairs = [pair for pair in self.pairs if pair.rule == rule]
            longer = sum(pair.lengthening > LONGER for pair in pairs)
            share = longer / len(pairs) if pairs else 0.0
            found[rule] = {"pairs": len(pairs), "longer": longer, "share": share}
        return found


def median_answers(assessments: Sequence[Assessment]) -> float:
    """How many independent answers stand behind a scored candidate, the median; 1 = asked once."""
    shares = [1 / variance_share(a) for a in assessments if a.scored]
    return median(shares) if shares else 1.0


def _with_total(counts: Counter[str]) -> dict[str, object]:
    arithmetic = " + ".join(f"{n} {name}" for name, n in counts.items())
    return {
        "total": sum(counts.values()),
        **counts,
        "arithmetic": f"{arithmetic or 0} = {sum(counts.values())}",
    }


def pairs_line(result: Pairing) -> str:
    """One line for the terminal, with its arithmetic."""
    risk: Mapping[str, Mapping[str, int]] = result.balance["risk"]
    counts = {name: risk[name]["pairs"] if name in risk else 0 for name in RISKS}
    rule: Mapping[str, int] = result.by_rule
    return (
        f"{len(result.pairs)} pairs = {rule['safety']} by safety ({result.borrowed} against "
        f"borrowed replies) + {rule['quality']} by quality; "
        f"by risk of the message: {counts['none']} none + {counts['elevated']} elevated + "
        f"{counts['crisis']} crisis"
    )


def balance_line(result: Pairing) -> str:
    """One line for the terminal: pairs per prompt by risk and topic, and length."""
    rates = {
        name: {value: counts["pairs"] / counts["prompts"] for value, counts in by_value.items()}
        for name, by_value in result.balance.items()
    }
    risks = ", ".join(
        f"{rates['risk'][name]:.2f} {name}" for name in RISKS if name in rates["risk"]
    )
    topics = sorted(rates["topic"].items(), key=lambda item: (item[1], item[0]))
    (fewest, low), (most, high) = topics[0], topics[-1]
    empty = sum(rate == 0 for _, rate in topics)
    longer = result.longer()
    shares = ", ".join(f"{longer[rule]['share']:.0%} by {rule}" for rule in longer)
    return (
        f"balance: pairs per prompt by risk {risks}; by topic {low:.2f} ({fewest}) to {high:.2f} "
        f"({most}), {empty} of {len(topics)} topics without; chosen > {LONGER:g} times longer: "
        f"{shares}"
    )


def tie_line(result: Pairing) -> str:
    """One line for the terminal: where a tie band that was not given comes from."""
    return (
        f"tie band {result.band:.4f} = {TIE_Z} x {result.noise.sd:.4f} x sqrt(2 / "
        f"{result.asked:g}), from {result.noise.repeated} candidates judged more than once "
        f"({result.noise.degrees} degrees of freedom)"
    )
