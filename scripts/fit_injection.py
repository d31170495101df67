"""Fit the linear reading of text for the judge and choose its threshold by cross-validation.

    python scripts/fit_injection.py

Fits on `injections.jsonl` and ordinary text; other ordinary text sets the least threshold.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from reward.injection import WEIGHTS, WrittenText, kinds_of_words, patterns_find
from reward.lexicon import ASSETS
from reward.recall import WrittenMessage
from reward.wording import save_wording
from reward.wording_fit import cross_scores, fit, hundredth
from sft.curate import project_demonstrations
from sft.data import Demonstration
from sft.files import read_rows
from sft.runs import run_script
from sft.simulator import base_corpus, practice_demonstrations, practice_prompts

LETTERS, LEAST_WEIGHT = (4, 5), 0.08  # a feature of less is left out
ORDINARY, LIKE = 0.003, 0.015  # ordinary texts, like sentences that may be called directed, 0..1


def said(rows: Iterable[Demonstration]) -> list[str]:
    """Return what is said in demonstrations, each text once."""
    return list(dict.fromkeys(m["content"] for row in rows for m in (*row.prompt, *row.completion)))


def ordinary() -> tuple[list[str], dict[str, list[str]]]:
    """Return ordinary text to fit on, and by name what nothing is fitted on."""
    rows, people = project_demonstrations(), practice_prompts("held_out", 600, seed=3)
    half = set(sorted({row.prompt_id for row in rows})[::2])
    talks = [m["content"] for talk in base_corpus(300, seed=5) for m in talk]
    written = read_rows(ASSETS / "messages.jsonl", WrittenMessage)
    # With those of known authors the threshold fell: twice as many real answers were called so.
    talks += [row.text for row in written if not row.author]
    shown = [*said(row for row in rows if row.prompt_id in half), *talks]
    return list(dict.fromkeys(shown)), {
        "demonstrations": said(row for row in rows if row.prompt_id not in half),
        "talks of the clinic": said(practice_demonstrations(1000, seed=77)),
        "held-out people": [m["content"] for p in people for m in p.messages],
    }


def main() -> None:
    """Fit, say what cross-validation found, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of the weights")
    out = parser.parse_args().out
    rows, (shown, held) = read_rows(ASSETS / "injections.jsonl", WrittenText), ordinary()
    texts, is_directed = [kinds_of_words(r.text) for r in rows], [r.directed for r in rows]
    more, families = [(kinds_of_words(t), False) for t in shown], [row.family for row in rows]
    scores = np.array(cross_scores(texts, is_directed, more, 0, None, LETTERS, scaled=False))
    unseen = np.array(cross_scores(texts, is_directed, more, 0, families, LETTERS, scaled=False))
    signs = [*is_directed, *(d for _, d in more)]
    fitted = fit([*texts, *(t for t, _ in more)], signs, LETTERS, scaled=False)
    calm = {k: np.array([fitted.highest(kinds_of_words(t)) for t in held[k]]) for k in held}
    directed, least = np.array(is_directed), [np.quantile(x, 1 - ORDINARY) for x in calm.values()]
    threshold = hundredth(max(*least, np.quantile(scores[~directed], 1 - LIKE)))
    both = np.array([patterns_find(row.text) for row in rows]) | (scores >= threshold)
    groups = {row.family: np.array(families) == row.family for row in rows if row.directed}
    print(f"threshold {threshold}; called directed by words, where the family is new, or patterns")
    for name, some in {**groups, "attacks": directed, "like sentences": ~directed}.items():
        told = (scores >= threshold, unseen >= threshold, both)
        print(f"  {name:20}", *(f"{each[some].mean():6.1%}" for each in told), "of", some.sum())
    for name, high in calm.items():
        print(f"  {name:20} {(high >= threshold).mean():6.2%} of {len(high)}")
    weights = {name: w for name, w in fitted.weights.items() if abs(w) >= LEAST_WEIGHT}
    save_wording(replace(fitted, weights=weights, threshold=threshold), out)
    print(f"{len(weights)} of {len(fitted.weights)} features: {out}")


if __name__ == "__main__":
    run_script(main)
