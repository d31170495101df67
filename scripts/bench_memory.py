"""How far the plan's memory is off: each stage planned, then measured in a fresh process.

Random weights. On a CPU: peak of resident memory beyond interpreter and libraries. On CUDA: the
most that PyTorch reserved, with its share of the card capped (a T4 has 14.7 GiB, 0.6 of which are
CUDA's own), a 4-bit base and checkpointing. Writes `runs/bench/memory.json`.

    python scripts/bench_memory.py
    python scripts/bench_memory.py --device cuda --shape llama3-8b --cap 14.1
"""

import argparse
from pathlib import Path

import torch

from rlaif.plan.bench import SHAPES, STAGES, Asked, compare
from sft import provenance
from sft.files import UserError, write_json
from sft.runs import run_script


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="medium")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated, default all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cap", type=float, default=14.1, help="GiB of the GPU, above 0")
    parser.add_argument("--load_in_4bit", action="store_true", help="on a CPU, too")
    parser.add_argument("--checkpointing", action="store_true", help="on a CPU, too")
    parser.add_argument("--prompt", type=int, help="tokens; 256, on a GPU 1748")
    parser.add_argument("--reply", type=int, help="tokens; 64, on a GPU 300")
    parser.add_argument("--k", type=int, default=4, help="replies to each prompt, at least 2")
    parser.add_argument("--rows", type=int, default=1, help="rows or prompts at once, at least 1")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/memory.json"))
    args = parser.parse_args()
    on_gpu = args.device == "cuda"
    args.prompt = args.prompt or (1748 if on_gpu else 256)
    args.reply = args.reply or (300 if on_gpu else 64)
    for flag, least in (("prompt", 16), ("reply", 8), ("k", 2), ("rows", 1), ("cap", 0.1)):
        if vars(args)[flag] < least:
            raise UserError(f"--{flag} {vars(args)[flag]}: give at least {least}")
    stages = tuple(args.stages.split(","))
    if wrong := [name for name in stages if name not in STAGES]:
        raise UserError(f"--stages {wrong[0]}: give some of {','.join(STAGES)}")
    if on_gpu and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; leave it at cpu")
    asked = Asked(
        shape=args.shape,
        prompt=args.prompt,
        reply=args.reply,
        k=args.k,
        rows=args.rows,
        checkpointing=args.checkpointing or on_gpu,
        load_in_4bit=args.load_in_4bit or on_gpu,
        cap=args.cap if on_gpu else 0.0,
    )
    found = compare(asked, stages, lambda text: print(text, flush=True))
    about = {
        "command": provenance.command(),
        "commit": provenance.git_commit(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
    }
    write_json(args.out, {"rows": [each.row() for each in found], "asked": vars(asked)} | about)
    print(f"written: {args.out}")


if __name__ == "__main__":
    run_script(main)
