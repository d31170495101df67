"""The alignment figures: the whole main job for several seeds, judged by the practice clinic's
truth.

    python scripts/bench_alignment.py --seeds 3407,1,2

Each seed is a run of its own (`runs/bench-seed-<n>`, reused where finished). The held-out prompts
are the same for all, so intervals draw prompts, each with its replies of every seed. Writes
`runs/bench/alignment.json`. Not here: how a run is made (`align.py`).
"""

import argparse
import json
from pathlib import Path

import align

from rlaif.compare import build_report
from rlaif.measures import Resampling
from rlaif.report import table
from rlaif.results import JudgedReply
from rlaif.safety import Gate
from sft import runs
from sft.files import write_json

Rows = tuple[list[JudgedReply], list[JudgedReply], list[float | None]]


def read_run(folder: Path) -> Rows:
    """Judged replies of both sides and the preferences of one run."""
    sides: Rows = ([], [], [])
    with (folder / "samples.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            for side, name in zip(sides[:2], ("policy", "baseline"), strict=True):
                side.append(
                    JudgedReply(**row[name] | {"violations": tuple(row[name]["violations"])})
                )
            sides[2].append(row["preference"])
    return sides


def main() -> None:
    """Run the seeds and pool their replies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.yaml", help="recipe of the runs")
    parser.add_argument("--seeds", default="3407,1,2", help="comma-separated seeds")
    args, settings = parser.parse_known_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    pooled: Rows = ([], [], [])
    each = []
    for seed in seeds:
        name = f"bench-seed-{seed}"
        flags = ["--run", name, "--seed", str(seed), "--export.force", "true", *settings]
        align.main(["--config", args.config, *flags])
        for all_rows, rows in zip(
            pooled, read_run(Path("runs") / name / "evaluation"), strict=True
        ):
            all_rows.extend(rows)  # type: ignore[arg-type]
        report = json.loads((Path("runs") / name / "evaluation" / "report.json").read_text())
        each.append({"seed": seed, "measures": report["measures"]})
    report = build_report(
        *pooled,
        policy=f"{len(seeds)} seeds",
        baseline=f"SFT of the same {len(seeds)} seeds",
        policy_hash="pooled",
        evaluator="practice-clinic",
        rubric="ground-truth",
        prompts_hash="pooled",
        gate=Gate(),
        resampling=Resampling(n=2000, seed=0),
    )
    write_json(Path("runs/bench/alignment.json"), report.to_json() | {"seeds": each})
    print(f"\n{table(report)}\nwritten: runs/bench/alignment.json")


if __name__ == "__main__":
    runs.run_script(main)
