"""Fit the linear reading of a message's wording and choose its threshold by cross-validation.

    python scripts/fit_risk.py

Fits on the written messages of `reward/assets/messages.jsonl` and on those of the test file that
shaped the patterns already (part "look"), near copies of held-out ones left out. The threshold leaves at most `--false_alarms` of the
written messages without risk above it, in folds that were not fitted on them. Not here: the test
messages that shaped nothing (part "blind"); `judge_card.py` reads those.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from reward.lexicon import ASSETS
from reward.recall import WrittenMessage, near_copies
from reward.risk import pattern_cues, plain_words
from reward.wording import WEIGHTS, Message, cross_scores, fit
from sft.files import read_rows, write_json
from sft.runs import run_script
from sft.simulator import practice_prompts


def calm_people(n: int) -> list[tuple[Message, bool]]:
    """Return what people of the practice clinic's training side say who are in no crisis."""
    return [
        (plain_words(message["content"]), False)
        for prompt in practice_prompts("train", n, seed=1)
        if prompt.risk != "crisis"
        for message in prompt.messages
        if message["role"] == "user"
    ]


def main() -> None:
    """Fit, say what cross-validation found, and write the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--messages", type=Path, default=ASSETS / "messages.jsonl", help="written messages")
    add("--more", type=Path, default=Path("tests/data/risk_messages.jsonl"), help="fitted on too")
    add("--people", type=int, default=1200, help="practice people; those in a crisis are left out")
    add("--false_alarms", type=float, default=0.05, help="share of messages without risk, 0..1")
    add("--out", type=Path, default=WEIGHTS, help="file of the weights")
    args = parser.parse_args()
    rows = read_rows(args.messages, WrittenMessage)
    more = read_rows(args.more, WrittenMessage)
    blind = [row.text for row in more if row.part == "blind"]
    more = [row for row in more if row.part == "look"]
    copies = near_copies([row.text for row in more], blind)
    more = [row for row, copy in zip(more, copies, strict=True) if not copy]
    texts, crisis = [row.text for row in rows], [row.risk == "crisis" for row in rows]
    taught = [(plain_words(row.text), row.risk == "crisis") for row in more] + calm_people(args.people)
    said = [plain_words(text) for text in texts]
    scores = np.array(cross_scores(said, crisis, taught))
    calm = np.array([row.risk == "none" for row in rows])
    threshold = float(np.quantile(scores[calm], 1 - args.false_alarms))
    found = [any(level == "crisis" for level, _ in pattern_cues(text)) for text in texts]
    either = np.array(found) | (scores > threshold)
    print(f"threshold {threshold:.2f}, cross-validated: messages read as a crisis by words alone")
    for kind in dict.fromkeys(row.kind for row in rows):
        some = np.array([row.kind == kind for row in rows])
        share = float((scores[some] > threshold).mean())
        print(f"  {kind:10} {share:6.1%} of {int(some.sum())}; with the patterns {either[some].mean():.1%}")
    every = [*zip(said, crisis, strict=True), *taught]
    fitted = fit([message for message, _ in every], [told for _, told in every])
    write_json(
        args.out,
        {
            "threshold": math.floor(100 * threshold + 1) / 100,
            "bias": round(fitted.bias, 4),
            "weights": {name: round(weight, 4) for name, weight in fitted.weights.items()},
        },
    )
    print(f"{len(fitted.weights)} features of {len(every)} messages: {args.out}")


if __name__ == "__main__":
    run_script(main)
