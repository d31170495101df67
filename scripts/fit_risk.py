"""Fit the readings of a message's wording and choose their thresholds by cross-validation.

    python scripts/fit_risk.py

Fits on the written messages of `reward/assets/messages.jsonl`, on those of the test file that
shaped the patterns already (part "look"), and on what people without risk say at the clinic and in
the demonstrations; the networks also on written messages amid everyday ones. Written near copies of
held-out messages (part "blind") are left out.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from reward.recall import WrittenMessage
from reward.risk_fit import CRISIS, SHORT, Told, amid, cross_read, least, look, read, written
from reward.wording import WEIGHTS, save_wording
from reward.wording_fit import fit, hundredth
from reward.wording_net import NETWORKS, save_net
from reward.wording_net_fit import fit_net
from sft.curate import project_demonstrations
from sft.runs import run_script
from sft.simulator import practice_prompts

TESTS = Path("tests/data/risk_messages.jsonl")
PEOPLE = 1200  # of the practice clinic; those at risk are left out


def taught() -> list[Told]:
    """Return the messages that are fitted besides the written ones."""
    calm = [p for p in practice_prompts("train", PEOPLE, seed=1) if p.risk == "none"]
    turns = [m["content"] for p in calm for m in p.messages if m["role"] == "user"]
    return [*((row.text, row.risk) for row in look(TESTS)), *((turn, "none") for turn in turns)]


def longer() -> list[WrittenMessage]:
    """Return the user turns of each of the project's demonstrations that tells of no risk."""
    prompts = {d.prompt_id: d.prompt for d in project_demonstrations() if d.risk == "none"}
    texts = ["\n".join(m["content"] for m in p if m["role"] == "user") for p in prompts.values()]
    return [WrittenMessage(text, "none", "longer", "look", "project") for text in texts]


def main() -> None:
    """Fit, say what cross-validation found, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    told = "share of messages without risk that wording may call {}, 0..1"
    parser.add_argument("--false_alarms", type=float, default=0.1, help=told.format("crises"))
    parser.add_argument("--concerns", type=float, default=0.07, help=told.format("risky at all"))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of the linear weights")
    parser.add_argument("--net", type=Path, default=NETWORKS, help="file of the networks")
    args = parser.parse_args()
    alone, more = [*written(TESTS), *longer()], taught()
    rows = [*alone, *amid(alone)]
    scores = cross_read(rows, more)
    # Only of an author who was left out is it known how new wording is read.
    new = np.array([bool(row.author) for row in rows])
    calm = new & np.array([row.risk == "none" for row in rows])
    crisis = hundredth(least(scores.crisis[calm], args.false_alarms))
    any_risk = hundredth(least(scores.concern[calm], args.concerns))
    print(f"thresholds: {crisis} for a crisis, {any_risk} for any risk")
    print(f"by author left out, up to {SHORT} words and longer: read as a crisis, at any risk")
    danger = scores.crisis >= crisis
    reads = (danger, danger | (scores.concern >= any_risk))
    brief = np.array([len(row.text.split()) <= SHORT for row in rows])
    for kind in dict.fromkeys(row.kind for row in rows):
        here = new & np.array([row.kind == kind for row in rows])
        parts = [reading[here & some] for some in (brief, ~brief) for reading in reads]
        print(f"  {kind:13}", *(f"{p.mean() if p.size else 0:6.1%} of {p.size}" for p in parts))
    said, levels = read([*((row.text, row.risk) for row in alone), *more])
    linear = fit(said, [level == CRISIS for level in levels])
    save_wording(replace(linear, threshold=crisis), args.out)
    said, levels = read([*((row.text, row.risk) for row in rows), *more])
    save_net(replace(fit_net(said, levels), threshold=any_risk), args.net)
    print(f"written: {args.out}, {args.net}")


if __name__ == "__main__":
    run_script(main)
