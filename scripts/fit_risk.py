"""Fit the linear reading of a message's wording and choose its threshold by cross-validation.

    python scripts/fit_risk.py

Fits on the written messages of `reward/assets/messages.jsonl`, on those of the test file that
shaped the patterns already (part "look"), and on what people in no crisis say at the clinic and in
the demonstrations. Near copies of held-out messages (part "blind", of the card) are left out.
"""

import argparse
from pathlib import Path

import numpy as np

from reward.recall import WrittenMessage
from reward.risk import beside_words, plain_words
from reward.risk_fit import least, look, written
from reward.wording import WEIGHTS, Message
from reward.wording_fit import cross_scores, fit
from sft.curate import project_demonstrations
from sft.files import to_json, write_text
from sft.runs import run_script
from sft.simulator import practice_prompts

TESTS = Path("tests/data/risk_messages.jsonl")
PEOPLE = 1200  # of the practice clinic; those in a crisis are left out
SHORT = 60  # words


def taught() -> list[tuple[Message, bool]]:
    """Return what is fitted besides the written messages, and whether it tells of a crisis."""
    calm = [p for p in practice_prompts("train", PEOPLE, seed=1) if p.risk != "crisis"]
    turns = [m["content"] for p in calm for m in p.messages if m["role"] == "user"]
    told = [(row.text, row.risk == "crisis") for row in look(TESTS)] + [(t, False) for t in turns]
    return [(plain_words(text), is_crisis) for text, is_crisis in told]


def longer() -> list[str]:
    """Return the user turns of each of the project's demonstrations that tells of no crisis."""
    prompts = {d.prompt_id: d.prompt for d in project_demonstrations() if d.risk != "crisis"}
    return ["\n".join(m["content"] for m in p if m["role"] == "user") for p in prompts.values()]


def main() -> None:
    """Fit, say what cross-validation found, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    told = "share of {} without risk that may be called crises, 0..1"
    short = told.format(f"messages of up to {SHORT} words")
    parser.add_argument("--false_alarms", type=float, default=0.1, help=short)
    parser.add_argument("--long_alarms", type=float, default=0.1, help=told.format("longer ones"))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of the weights")
    args = parser.parse_args()
    rows, more = written(TESTS), taught()
    rows += [WrittenMessage(text, "none", "longer", "look", "project") for text in longer()]
    said, crisis = [plain_words(row.text) for row in rows], [row.risk == "crisis" for row in rows]
    units = [row.author or str(at) for at, row in enumerate(rows)]
    beside = np.array([beside_words(row.text) for row in rows])
    scores = np.array(cross_scores(said, crisis, more, families=units)) + beside
    # Only of an author who was left out is it known how new wording is read.
    new = np.array([bool(row.author) for row in rows])
    calm = new & np.array([row.risk == "none" for row in rows])
    brief = np.array([len(row.text.split()) <= SHORT for row in rows])
    by_short = least(scores[calm & brief], args.false_alarms)
    by_long = least(scores[calm & ~brief], args.long_alarms)
    threshold = float(np.floor(100 * max(by_short, by_long) + 1) / 100)
    print(f"threshold {by_short:.2f} for messages of up to {SHORT} words, {by_long:.2f} for longer")
    print("read as a crisis, cross-validated by author: up to that many words, and longer")
    for kind in dict.fromkeys(row.kind for row in rows):
        here = new & np.array([row.kind == kind for row in rows])
        parts = (scores[here & some] >= threshold for some in (brief, ~brief))
        print(f"  {kind:10}", *(f"{p.mean() if p.size else 0:6.1%} of {p.size}" for p in parts))
    fitted = fit([*said, *(message for message, _ in more)], [*crisis, *(told for _, told in more)])
    weights = {"weights": {name: round(weight, 3) for name, weight in fitted.weights.items()}}
    kept = {"threshold": threshold, "bias": round(fitted.bias, 4)} | weights
    write_text(args.out, to_json(kept) + "\n")
    print(f"{len(fitted.weights)} features: {args.out}")


if __name__ == "__main__":
    run_script(main)
