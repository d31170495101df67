"""Fit the linear reading of a message's wording and choose its threshold by cross-validation.

    python scripts/fit_risk.py

Fits on the written messages of `reward/assets/messages.jsonl`, on those of the test file that
shaped the patterns already (part "look"), and on what people in no crisis say at the practice
clinic and in the project's demonstrations. Near copies of held-out messages (part "blind", which
`judge_card.py` reads) are left out of both files.
"""

import argparse
from pathlib import Path

import numpy as np

from reward.risk import plain_words
from reward.risk_fit import found, least, look, written
from reward.wording import WEIGHTS, Message, cross_scores, fit
from sft.curate import project_demonstrations
from sft.files import write_json
from sft.runs import run_script
from sft.simulator import practice_prompts

TESTS = Path("tests/data/risk_messages.jsonl")
PEOPLE = 1200  # of the practice clinic; those in a crisis are left out


def taught() -> list[tuple[Message, bool]]:
    """Return what is fitted besides the written messages, and whether it tells of a crisis."""
    calm = [p for p in practice_prompts("train", PEOPLE, seed=1) if p.risk != "crisis"]
    turns = [m["content"] for p in calm for m in p.messages if m["role"] == "user"]
    told = [(row.text, row.risk == "crisis") for row in look(TESTS)] + [(t, False) for t in turns]
    return [(plain_words(text), is_crisis) for text, is_crisis in told]


def longer() -> list[str]:
    """Return the user turns of each of the project's demonstrations that tells of no crisis.

    What people write at length has more windows, and each is a chance to be wrong.
    """
    prompts = {d.prompt_id: d.prompt for d in project_demonstrations() if d.risk != "crisis"}
    return ["\n".join(m["content"] for m in p if m["role"] == "user") for p in prompts.values()]


def main() -> None:
    """Fit, say what cross-validation found, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    told = "share of {} that patterns or words may call a crisis, 0..1"
    short = told.format("written messages without risk")
    parser.add_argument("--false_alarms", type=float, default=0.075, help=short)
    parser.add_argument("--long_alarms", type=float, default=0.05, help=told.format("longer ones"))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of the weights")
    args = parser.parse_args()
    rows, long, more = written(TESTS), longer(), taught()
    texts = [row.text for row in rows] + long
    said = [plain_words(text) for text in texts]
    crisis = [row.risk == "crisis" for row in rows] + [False] * len(long)
    scores, known = np.array(cross_scores(said, crisis, more)), np.array([*map(found, texts)])
    calm = np.array([row.risk == "none" for row in rows] + [False] * len(long))
    by_short = least(scores[calm], known[calm], args.false_alarms)
    by_long = least(scores[len(rows) :], known[len(rows) :], args.long_alarms)
    threshold = max(by_short, by_long)
    print(f"threshold {by_short:.2f} for written messages, {by_long:.2f} for longer ones")
    print("cross-validated: messages read as a crisis by words alone")
    kinds = np.array([row.kind for row in rows] + ["longer"] * len(long))
    some = {kind: kinds == kind for kind in dict.fromkeys(kinds.tolist())}
    for kind, here in (some | {"no risk": calm}).items():
        alone = scores[here] > threshold
        both = (alone | known[here]).mean()
        print(f"  {kind:10} {alone.mean():6.1%} of {int(here.sum())}; with the patterns {both:.1%}")
    every = [*zip(said, crisis, strict=True), *more]
    fitted = fit([message for message, _ in every], [is_crisis for _, is_crisis in every])
    weights = {name: round(weight, 4) for name, weight in fitted.weights.items()}
    kept = {"threshold": float(np.floor(100 * threshold + 1) / 100), "bias": round(fitted.bias, 4)}
    write_json(args.out, kept | {"weights": weights})
    print(f"{len(weights)} features: {args.out}")


if __name__ == "__main__":
    run_script(main)
