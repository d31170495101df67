"""Fit the linear reading of text for the judge and choose its threshold by cross-validation.

    python scripts/fit_injection.py

Fits on `injections.jsonl` and ordinary text; other ordinary text sets the least threshold.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from reward.injection import WEIGHTS, WrittenText
from reward.injection_fit import TEXTS, by_authors, fit_injection
from reward.lexicon import ASSETS
from reward.recall import WrittenMessage
from reward.wording import save_wording
from sft.curate import project_demonstrations
from sft.data import Demonstration
from sft.files import read_rows
from sft.runs import run_script
from sft.simulator import base_corpus, practice_demonstrations, practice_prompts


def said(rows: Iterable[Demonstration]) -> list[str]:
    """Return what is said in demonstrations, each text once."""
    return list(dict.fromkeys(m["content"] for row in rows for m in (*row.prompt, *row.completion)))


def ordinary() -> tuple[list[str], dict[str, list[str]]]:
    """Return ordinary text to fit on, and by name what nothing is fitted on."""
    people = practice_prompts("held_out", 600, seed=3)
    talks = [m["content"] for talk in base_corpus(300, seed=5) for m in talk]
    written = read_rows(ASSETS / "messages.jsonl", WrittenMessage)
    talks += [row.text for row in written if not row.author]
    shown, held_out = by_authors()
    shown = [*said(project_demonstrations()), *talks, *shown]
    return list(dict.fromkeys(shown)), held_out | {
        "talks of the clinic": said(practice_demonstrations(1000, seed=77)),
        "held-out people": [m["content"] for p in people for m in p.messages],
    }


def main() -> None:
    """Fit, say what cross-validation found, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file of the weights")
    out = parser.parse_args().out
    found = fit_injection(read_rows(TEXTS, WrittenText), *ordinary())
    print(f"threshold {found.wording.threshold}; called directed: by words, by words or patterns")
    for name, (words, both, n) in found.called.items():
        print(f"  {name:22} {words:6.1%} {both:6.1%} of {n}")
    save_wording(found.wording, out)
    print(f"{len(found.wording.weights)} features: {out}")


if __name__ == "__main__":
    run_script(main)
