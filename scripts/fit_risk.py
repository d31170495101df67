"""Fit the readings of a message, how their evidence is weighed, and the thresholds.

    python scripts/fit_risk.py

Fits on the written messages of `reward/assets/messages.jsonl`, on those of the test file that
shaped the patterns already (part "look"), and on what people without risk say at the clinic and in
the demonstrations; the networks also on written messages amid everyday ones. Written near copies of
held-out messages (part "blind") are left out.
"""

import argparse
from pathlib import Path

import numpy as np

from reward.lexicon import ASSETS
from reward.recall import WrittenMessage
from reward.risk_cues import NOTICED, families, pattern_cues
from reward.risk_evidence import WEIGHTS as WEIGHINGS
from reward.risk_evidence import save_weighings
from reward.risk_fit import CRISIS, PROJECT, Told, amid, cross_evidence, look, read, weigh, written
from reward.wording import WEIGHTS, save_wording
from reward.wording_fit import fit
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
    return [WrittenMessage(text, "none", "longer", "look", PROJECT) for text in texts]


def main() -> None:
    """Fit, say what cross-validation found, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    told = "share of harmless messages, by authors left out, that may be called {}, 0..1"
    parser.add_argument("--false_alarms", type=float, default=0.13, help=told.format("a crisis"))
    parser.add_argument("--concerns", type=float, default=0.15, help=told.format("any risk"))
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder of the weights")
    args = parser.parse_args()
    alone, more = [*written(TESTS), *longer()], taught()
    rows = [*alone, *amid(alone)]
    found = weigh(rows, cross_evidence(rows, more), args.false_alarms, args.concerns)
    save_weighings(found.weighings, args.out / WEIGHINGS.name)
    limits = (found.weighings.crisis.threshold, found.weighings.any_risk.threshold)
    print(f"thresholds: {limits[0]} for a crisis, {limits[1]} for any risk")
    print("by author left out: read as a crisis, at any risk, of how many")
    danger = found.crisis >= limits[0]
    noticed = [bool(families(pattern_cues(row.text)) & NOTICED) for row in rows]
    reads = (danger, danger | (found.any_risk >= limits[1]) | np.array(noticed))
    for kind in dict.fromkeys(row.kind for row in rows if row.author):
        here = np.array([row.kind == kind and bool(row.author) for row in rows])
        print(f"  {kind:16}", *(f"{reading[here].mean():6.1%}" for reading in reads), here.sum())
    said, levels = read([*((row.text, row.risk) for row in alone), *more])
    save_wording(fit(said, [level == CRISIS for level in levels]), args.out / WEIGHTS.name)
    said, levels = read([*((row.text, row.risk) for row in rows), *more])
    save_net(fit_net(said, levels), args.out / NETWORKS.name)
    print(f"written: {args.out}")


if __name__ == "__main__":
    run_script(main)
