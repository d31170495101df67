"""How fast this project's PPO is against TRL 1.12.0's, the last release that had one.

Both learn with a LoRA of rank 16 on the same bf16 base of random weights, from the same prompts,
with replies of the same fixed length: this measures time and memory, no quality. Contestants take
turns, each in a fresh process. Ours is `value: head`, the default, or `value: adapter`; TRL's value
model learns by a LoRA, too, or wholly, as in its own example (`trl-1.12.0-full-value`). TRL 1.12.0
is installed into --trl, and nowhere else, where it is not there yet: that needs a package index.
Writes `runs/bench/ppo.json`, with a table (`.md`) and a plot (`.svg`) beside it.

    python scripts/bench_ppo.py
    python scripts/bench_ppo.py --k 1 --prompts 32
"""

import argparse
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rlaif.bench import ppo_report
from rlaif.bench.ppo_process import install_trl
from rlaif.bench.ppo_run import run
from rlaif.bench.ppo_work import LEAST, OPPONENT, WHO, PpoJob
from rlaif.bench.work import SIZES
from sft import provenance
from sft.files import UserError, write_json, write_text
from sft.runs import run_script


def main() -> None:
    """Measure, print the tables and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="of the model")
    parser.add_argument("--who", default=",".join(WHO), help="comma-separated, default all")
    parser.add_argument("--trl", type=Path, default=Path(f"runs/bench/{OPPONENT}"), help="folder")
    parser.add_argument("--prompts", type=int, default=8, help="of a rollout")
    parser.add_argument("--k", type=int, default=4, help="replies to each prompt")
    parser.add_argument("--reply", type=int, default=72, help="tokens of each reply, at least 2")
    parser.add_argument("--epochs", type=int, default=2, help="passes over a rollout")
    parser.add_argument("--mini_batches", type=int, default=4, help="updates in a pass")
    parser.add_argument("--rows", type=int, default=16, help="replies generated at once")
    parser.add_argument("--warmups", type=int, default=1, help="iterations that do not count")
    parser.add_argument("--repeats", type=int, default=5, help="iterations that count")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of a process")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/ppo.json"))
    args = parser.parse_args()
    for flag, given, least in (("warmups", args.warmups, 0), ("repeats", args.repeats, 1)):
        if given < least:
            raise UserError(f"--{flag} {given}: give at least {least}")
    with TemporaryDirectory() as folder:
        asked = {name: vars(args)[name] for name in (*LEAST, "size", "dtype")}
        job = PpoJob(folder=folder, iterations=args.warmups + args.repeats, **asked)
        who = args.who.split(",")
        job.check(who)
        trl, say = install_trl(args.trl), partial(print, flush=True)
        courses = run(job, who, trl, args.warmups, args.threads, say)
    from rlaif.bench.ppo_bytes import llama3_8b  # loads torch: not beside what is measured

    computed = llama3_8b()
    lines = "\n".join(f"- {each}" for each in computed)
    tables = f"{ppo_report.table(courses)}\n\n{ppo_report.amounts(courses)}\n\n{lines}\n"
    about = {"command": provenance.command(), "commit": provenance.git_commit()} | {
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "threads": args.threads,
    }
    eight = {each.who: each.total for each in computed}
    write_json(args.out, ppo_report.to_json(courses) | {"llama3_8b_bytes": eight} | about)
    write_text(args.out.with_suffix(".md"), tables)
    write_text(args.out.with_suffix(".svg"), ppo_report.plot(courses))
    print(f"\n{tables}\nwritten: {args.out}")


if __name__ == "__main__":
    run_script(main)
