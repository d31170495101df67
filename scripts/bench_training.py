"""How fast this project trains against TRL: the same pairs, weights and effective batch.

Opponents are TRL as it comes (B0), tuned (B1), and tuned with plain logits of the completions in
place of its head (B2). Contestants take turns, each in a fresh process; a gate in float32 lets
nobody be timed whose loss or gradient differs. Random weights: this measures time and memory, no
quality. Writes `runs/bench/training.json`, with a table (`.md`) and a plot (`.svg`) beside it.

    python scripts/bench_training.py
    python scripts/bench_training.py --works dpo-k4-all --data answers.jsonl
    python scripts/bench_training.py --device cuda --shape llama3-8b --load_in_4bit
"""

import argparse
from pathlib import Path

from rlaif.bench import plot, report
from rlaif.bench.run import Options, run
from rlaif.bench.work import SIZES, WORKS
from sft import provenance
from sft.files import UserError, write_json, write_text
from sft.runs import run_script

NAMES = [work.name for work in WORKS]


def chosen(flag: str, text: str, known: list[str]) -> list[str]:
    """Read comma-separated names, each known; anything else is a `UserError`."""
    names = text.split(",")
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"{flag} {wrong[0]}: give some of {','.join(known)}")
    return names


def main() -> None:
    """Measure, print the tables and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", "--shape", default="small", help=f"one of {','.join(SIZES)}")
    parser.add_argument("--works", default=",".join(NAMES), help="comma-separated, default all")
    parser.add_argument("--against", help="of B0,B1,B2; default all on a CPU, B1 on a GPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--load_in_4bit", action="store_true", help="NF4-quantised base")
    parser.add_argument("--data", type=Path, help="answers with votes (JSONL): their lengths")
    parser.add_argument("--warmups", type=int, default=2, help="updates that do not count")
    parser.add_argument("--repeats", type=int, default=5, help="updates that count, at least 1")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/training.json"))
    args = parser.parse_args()
    for flag, given, least in (("warmups", args.warmups, 0), ("repeats", args.repeats, 1)):
        if given < least:
            raise UserError(f"--{flag} {given}: give at least {least}")
    against = args.against or ("B0,B1,B2" if args.device == "cpu" else "B1")
    options = Options(
        size=SIZES[chosen("--size", args.size, list(SIZES))[0]],
        device=args.device,
        dtype=args.dtype,
        load_in_4bit=args.load_in_4bit,
        against=chosen("--against", against, list(report.OPPONENTS)),
        works=chosen("--works", args.works, NAMES),
        data=args.data,
        warmups=args.warmups,
        repeats=args.repeats,
    )
    figures = run(options, lambda line: print(line, flush=True))
    tables = f"{report.table(figures, args.device)}\n\n{report.rates(figures)}\n"
    about = {"command": provenance.command(), "commit": provenance.git_commit()} | {
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
    }
    write_json(args.out, report.to_json(figures) | about)
    write_text(args.out.with_suffix(".md"), tables)
    if rows := figures.rows():
        write_text(args.out.with_suffix(".svg"), plot.plot(rows, args.device))
    print(f"\n{tables}\nwritten: {args.out}")


if __name__ == "__main__":
    run_script(main)
