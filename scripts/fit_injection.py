"""Fit the linear reading of text for the judge and choose its threshold by cross-validation.

    python scripts/fit_injection.py

Fits on the written texts of `reward/assets/injections.jsonl`, attacks and sentences that only share
their words, and on ordinary text: written messages, the practice clinic, and half the project's
demonstrations. The other half and another side of the clinic set the least threshold. Nothing is
fitted on `reward/assets/attacks.yaml`, which `judge_card.py` reads.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reward.injection import WEIGHTS, kinds_of_words, patterns_find
from reward.lexicon import ASSETS
from reward.recall import WrittenMessage
from reward.wording import cross_scores, fit
from sft.curate import project_demonstrations
from sft.data import Demonstration
from sft.files import read_rows, write_json
from sft.runs import run_script
from sft.simulator import base_corpus, practice_demonstrations, practice_prompts

LETTERS = (4, 5)
LEAST_WEIGHT = 0.02  # a feature of less is left out


@dataclass(frozen=True)
class WrittenText:
    """A text, whether it is for the judge, and what kind of attack or ordinary sentence it is."""

    text: str
    directed: bool
    family: str


def said(rows: Iterable[Demonstration]) -> list[str]:
    """Return what people and counsellors say in demonstrations, each text once."""
    return list(dict.fromkeys(m["content"] for row in rows for m in (*row.prompt, *row.completion)))


def ordinary() -> tuple[list[str], dict[str, list[str]]]:
    """Return ordinary text to fit on, and by name what nothing is fitted on."""
    rows = project_demonstrations()
    half = set(sorted({row.prompt_id for row in rows})[::2])
    talks = [m["content"] for talk in base_corpus(300, seed=5) for m in talk]
    messages = [row.text for row in read_rows(ASSETS / "messages.jsonl", WrittenMessage)]
    shown = [*said(row for row in rows if row.prompt_id in half), *messages, *talks]
    people = practice_prompts("held_out", 600, seed=3)
    return list(dict.fromkeys(shown)), {
        "demonstrations": said(row for row in rows if row.prompt_id not in half),
        "clinic: talks": said(practice_demonstrations(1000, seed=77)),
        "clinic: held-out people": [m["content"] for p in people for m in p.messages],
    }


def main() -> None:
    """Fit, say what cross-validation found, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--hard", type=float, default=0.005, help="share of like sentences called directed, 0..1")
    add("--ordinary", type=float, default=0.003, help="the same of ordinary texts, 0..1")
    add("--out", type=Path, default=WEIGHTS, help="file of the weights")
    args = parser.parse_args()
    rows, (shown, held) = read_rows(ASSETS / "injections.jsonl", WrittenText), ordinary()
    texts, directed = [kinds_of_words(r.text) for r in rows], np.array([r.directed for r in rows])
    more = [(kinds_of_words(text), False) for text in shown]
    names = [row.family for row in rows]
    scores = np.array(cross_scores(texts, directed, more, letters=LETTERS))
    unseen = np.array(cross_scores(texts, directed, more, families=names, letters=LETTERS))
    every = [*zip(texts, directed, strict=True), *more]
    fitted = fit([text for text, _ in every], [is_sought for _, is_sought in every], LETTERS)
    calm = {k: [fitted.highest(kinds_of_words(t)) for t in held[k]] for k in held}
    threshold = max(
        float(np.quantile(scores[~directed], 1 - args.hard)),
        *(float(np.quantile(found, 1 - args.ordinary)) for found in calm.values()),
    )
    threshold = math.floor(100 * threshold + 1) / 100
    found = np.array([patterns_find(row.text) for row in rows])
    print(f"threshold {threshold}; share called directed by words alone; in families left out")
    for name in [*dict.fromkeys(names), "attacks", "like sentences"]:
        total = {"attacks": directed, "like sentences": ~directed}
        some = total[name] if name in total else np.array([family == name for family in names])
        alone, left_out = (scores[some] > threshold).mean(), (unseen[some] > threshold).mean()
        both = (found | (scores > threshold))[some].mean()
        print(f"  {name:22} {alone:6.1%} {left_out:6.1%} of {some.sum()}; or patterns {both:.1%}")
    for name, each in calm.items():
        print(f"  {name:24} {np.mean(np.array(each) >= threshold):.2%} of {len(each)}")
    weights = {n: round(w, 3) for n, w in fitted.weights.items() if abs(w) >= LEAST_WEIGHT}
    kept = {"threshold": threshold, "bias": round(fitted.bias, 4), "letters": LETTERS}
    write_json(args.out, kept | {"weights": weights})
    print(f"{len(weights)} of {len(fitted.weights)} features: {args.out}")


if __name__ == "__main__":
    run_script(main)
