"""The alignment figures: the whole main job for several seeds, judged by the clinic's truth.

    python scripts/bench_alignment.py --seeds 3407,1,11
    python scripts/bench_alignment.py --seeds 3407,1,11 --policy ppo

Each seed is a run of its own (`runs/bench-seed-<n>`, reused where finished). The held-out prompts
are the same for all, so intervals draw prompts, each with its replies of every seed. Not here: how
a run is made (`align.py`).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import align

from rlaif.compare import build_report
from rlaif.measures import Resampling
from rlaif.report import table
from rlaif.results import JudgedReply
from rlaif.safety import Gate
from sft import runs
from sft.files import UserError, read_json, read_rows, write_json


@dataclass(frozen=True)
class Sample:
    """One line of a run's `samples.jsonl`."""

    policy: JudgedReply
    baseline: JudgedReply
    preference: float | None


def read_seeds(text: str) -> list[int]:
    """Read comma-separated whole numbers from 0, each once; anything else is a `UserError`."""
    parts = text.split(",")
    numbers = all(part.isascii() and part.isdigit() for part in parts)
    if not numbers or len(set(map(int, parts))) < len(parts):
        raise UserError(f"--seeds {text}: not different whole numbers like 3407,1,11")
    return [int(part) for part in parts]


def main() -> None:
    """Run the seeds and pool their replies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.yaml", help="recipe of the runs")
    parser.add_argument("--seeds", default="3407,1,11", help="comma-separated whole numbers from 0")
    parser.add_argument("--policy", default="dpo", choices=["dpo", "ppo"], help="what is proved")
    args, settings = parser.parse_known_args()
    suffix = "" if args.policy == "dpo" else f"-{args.policy}"
    seeds = read_seeds(args.seeds)
    pooled, each = list[Sample](), []
    for seed in seeds:
        name = f"bench-seed-{seed}"
        flags = ["--run", name, "--seed", str(seed), "--policy", args.policy, *settings]
        align.main(["--config", args.config, "--export.force", "true", *flags])
        folder = Path("runs") / name / f"evaluation{suffix}"
        pooled += read_rows(folder / "samples.jsonl", Sample)
        each.append({"seed": seed, "measures": read_json(folder / "report.json")["measures"]})
    report = build_report(
        [row.policy for row in pooled],
        [row.baseline for row in pooled],
        [row.preference for row in pooled],
        policy=f"{len(seeds)} seeds",
        baseline=f"SFT of the same {len(seeds)} seeds",
        policy_hash="pooled",
        evaluator="practice-clinic",
        rubric="ground-truth",
        prompts_hash="pooled",
        gate=Gate(),
        resampling=Resampling(n=2000, seed=0),
    )
    path = Path(f"runs/bench/alignment{suffix}.json")
    write_json(path, report.to_json() | {"seeds": each})
    print(f"\n{table(report)}\nwritten: {path}")


if __name__ == "__main__":
    runs.run_script(main)
