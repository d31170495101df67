"""Fit the linear reading of a message's wording and choose its threshold by cross-validation.

    python scripts/fit_risk.py

Fits on the written messages of `reward/assets/messages.jsonl`, on those of the test file that
shaped the patterns already (part "look"), and on what practice people in no crisis say. Near copies
of held-out messages (part "blind", which `judge_card.py` reads) are left out of both files.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reward.lexicon import ASSETS
from reward.recall import WrittenMessage, near_copies
from reward.risk import pattern_cues, plain_words
from reward.wording import WEIGHTS, Message, cross_scores, fit
from sft.curate import project_demonstrations
from sft.files import read_rows, write_json
from sft.runs import run_script
from sft.simulator import practice_prompts

TESTS = Path("tests/data/risk_messages.jsonl")
PEOPLE = 1200  # of the practice clinic; those in a crisis are left out


def apart(rows: Sequence[WrittenMessage]) -> list[WrittenMessage]:
    """Return the messages that nearly copy no held-out one."""
    held_out = [row.text for row in read_rows(TESTS, WrittenMessage) if row.part == "blind"]
    copies = near_copies([row.text for row in rows], held_out)
    return [row for row, copy in zip(rows, copies, strict=True) if not copy]


def written() -> list[WrittenMessage]:
    """Return the written messages that are fitted and cross-validated on."""
    return apart(read_rows(ASSETS / "messages.jsonl", WrittenMessage))


def taught() -> list[tuple[Message, bool]]:
    """Return what is fitted besides the written messages, and whether it tells of a crisis."""
    look = apart([row for row in read_rows(TESTS, WrittenMessage) if row.part == "look"])
    calm = [p for p in practice_prompts("train", PEOPLE, seed=1) if p.risk != "crisis"]
    turns = [m["content"] for p in calm for m in p.messages if m["role"] == "user"]
    told = [(row.text, row.risk == "crisis") for row in look]
    told += [(text, False) for text in turns]
    return [(plain_words(text), is_crisis) for text, is_crisis in told]


def main() -> None:
    """Fit, say what cross-validation found, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    told = "share of written messages without risk above the threshold, 0..1; half of long ones"
    parser.add_argument("--false_alarms", type=float, default=0.05, help=told)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of the weights")
    args = parser.parse_args()
    rows, more = written(), taught()
    said, crisis = [plain_words(row.text) for row in rows], [row.risk == "crisis" for row in rows]
    scores = np.array(cross_scores(said, crisis, more))
    calm = np.array([row.risk == "none" for row in rows])
    threshold = float(np.quantile(scores[calm], 1 - args.false_alarms))
    found = [any(level == "crisis" for level, _ in pattern_cues(row.text)) for row in rows]
    either = np.array(found) | (scores > threshold)
    print(f"threshold {threshold:.2f}, cross-validated: messages read as a crisis by words alone")
    for kind in dict.fromkeys(row.kind for row in rows):
        some = np.array([row.kind == kind for row in rows])
        alone, both = (scores[some] > threshold).mean(), either[some].mean()
        print(f"  {kind:10} {alone:6.1%} of {int(some.sum())}; with the patterns {both:.1%}")
    every = [*zip(said, crisis, strict=True), *more]
    fitted = fit([message for message, _ in every], [is_crisis for _, is_crisis in every])
    weights = {name: round(weight, 4) for name, weight in fitted.weights.items()}
    # What people write at length has more windows, and each is a chance to be wrong: the project's
    # demonstrations, on which nothing was fitted, set the least threshold.
    told_long = {d.prompt_id: d.prompt for d in project_demonstrations() if d.risk != "crisis"}
    long = [
        max(fitted.highest(plain_words(m["content"])) for m in prompt if m["role"] == "user")
        for prompt in told_long.values()
    ]
    threshold = max(threshold, float(np.quantile(long, 1 - args.false_alarms / 2)))
    print(f"threshold {threshold:.2f} after {len(long)} longer messages that are no crisis")
    kept = {"threshold": math.floor(100 * threshold + 1) / 100, "bias": round(fitted.bias, 4)}
    write_json(args.out, kept | {"weights": weights})
    print(f"{len(weights)} features: {args.out}")


if __name__ == "__main__":
    run_script(main)
