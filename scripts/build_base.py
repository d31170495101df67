"""Make the embedded base model from the practice clinic: a tokenizer and a small Llama.

    python scripts/build_base.py --seed 1 --out sft/assets/base

Reproducible from its seed. Takes about 17 minutes on two cores. Not here: SFT (`finetune.py`); the
base has read good and bad counsellors alike.
"""

import argparse
import time
from pathlib import Path

import torch

from sft import base, runs, simulator
from sft.curate import project_demonstrations
from sft.files import sha256_of, write_json
from sft.provenance import versions


def main() -> None:
    """Train and write the model with its manifest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of corpus, weights and order")
    parser.add_argument(
        "--conversations", type=int, default=48_000, help="conversations of the corpus"
    )
    parser.add_argument(
        "--epochs", type=float, default=base.Shape.epochs, help="passes over the corpus"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="the result depends on it in the last digits"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("sft/assets/base"), help="folder of the result"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    started, shape = time.monotonic(), base.Shape(epochs=args.epochs)
    corpus = simulator.base_corpus(args.conversations, args.seed)
    # The project's demonstrations teach the tokenizer words that the clinic does not have; they are
    # no training text.
    plain = [[*row.prompt, *row.completion] for row in project_demonstrations()]
    tokenizer = base.train_tokenizer([*corpus, *plain], shape)
    model, losses = base.pretrain(corpus, tokenizer, shape, args.seed)
    base.save(model, tokenizer, args.out)
    parameters = sum(p.numel() for p in model.parameters())
    manifest = {
        "command": f"python scripts/build_base.py --seed {args.seed} "
        f"--conversations {args.conversations} --epochs {args.epochs}",
        "parameters": parameters,
        "shape": vars(shape),
        "seconds": round(time.monotonic() - started),
        "loss_by_tenth": [round(loss, 4) for loss in losses],
        "versions": versions(),
        "files": {
            p.name: sha256_of(p) for p in sorted(args.out.iterdir()) if p.name != "manifest.json"
        },
    }
    write_json(args.out / "manifest.json", manifest)
    figures = f"{parameters / 1e6:.2f} M parameters, loss {losses[0]:.2f} -> {losses[-1]:.2f}"
    print(f"{figures}: {args.out}")


if __name__ == "__main__":
    runs.run_script(main)
