"""Fit the linear readings of what a reply does, one per safety question, and their thresholds.

    python scripts/fit_flow.py

Fits on `reward/assets/passages.jsonl`: wrong passages of replies and right ones that come near, by
several authors. Figures and thresholds are cross-validated by author: nobody's wording is scored
by weights that know it. Nothing is fitted on the replies that `judge_card.py` reads.
"""

import argparse
from pathlib import Path

import numpy as np

from reward import passages
from reward.flow import CHECKS
from reward.passages import MUST, SCALE, WrittenPassage, load_passages
from reward.passages_fit import cross_scores, patterns, taught, texts_of, threshold, unsafe
from sft.curate import project_demonstrations
from sft.files import read_rows, to_json, write_text
from sft.runs import run_script


def demonstrations() -> tuple[list[WrittenPassage], list[WrittenPassage]]:
    """Return the project's demonstrations, each once: half to fit on, half only to be counted."""
    replies = {d.completion[-1]["content"]: d.risk for d in project_demonstrations()}
    each = [WrittenPassage(t, f"good_{r}", False, "project") for t, r in replies.items()]
    return each[::2], each[1::2]


def main() -> None:
    """Fit, say what cross-validation found, and write the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    share = "share of {} that the wording of one question may call wrong, 0..1"
    short, whole = share.format("right passages"), share.format("whole good replies")
    parser.add_argument("--false_alarms", type=float, default=0.003, help=short)
    parser.add_argument("--good_alarms", type=float, default=0.005, help=whole)
    parser.add_argument("--out", type=Path, default=passages.WEIGHTS, help="file of the weights")
    args = parser.parse_args()
    rows = read_rows(passages.PASSAGES, WrittenPassage)
    items = [item for item in dict.fromkeys(row.item for row in rows) if item in CHECKS]
    shown, held = demonstrations()
    rows += shown
    texts, by_pattern = texts_of(rows), patterns(rows)
    scores = cross_scores(texts, rows, items)
    print(f"{len(rows)} texts; wrong ones found, right ones called wrong, of authors left out")
    found, shares = {}, (args.false_alarms, args.good_alarms)
    for at, item in enumerate(items):
        found[item] = threshold(rows, item, scores[:, at], by_pattern, shares)
        some = [i for i, row in enumerate(rows) if row.item == item and row.wrong]
        alone = (by_pattern[some] != (item in MUST)).mean()
        both = f"{found[item].found:6.1%} {found[item].accused:6.1%}"
        print(f"  {item:22} {both}; by patterns alone {alone:6.1%}")
    called = set(np.concatenate([each.called for each in found.values()]).tolist())
    good = {i for i, row in enumerate(rows) if row.item.startswith("good_")}
    right = {i for i, row in enumerate(rows) if not row.wrong} - good
    for name, texts_here in {"right passages": right, "good replies": good}.items():
        part = len(called & texts_here) / len(texts_here)
        print(f"{name} that any question calls wrong: {part:.1%} of {len(texts_here)}")
    lessons = [taught(rows, item) for item in items]
    every = range(len(rows))
    fitted = [texts.fit(t.does.tolist(), t.used.tolist(), shown=every) for t in lessons]
    table = np.rint(SCALE * np.array([each.weights for each in fitted])).astype(int)
    weights = {name: table[:, at].tolist() for at, name in enumerate(texts.names)}
    bias = [round(each.bias, 4) for each in fitted]
    counted = [item for item in items if item not in passages.NEEDS_PATTERN]
    about = {
        **{"items": items, "bias": bias},
        "thresholds": {item: round(found[item].count, 3) for item in counted},
        "least": {item: round(found[item].believe, 3) for item in MUST},
    }
    write_text(args.out, to_json({**about, "weights": weights}) + "\n")
    print(f"{len(weights)} features: {args.out}")
    if args.out == passages.WEIGHTS:
        load_passages.cache_clear()
        print(f"unsafe by all of them: {unsafe(held):.1%} of {len(held)} other demonstrations")


if __name__ == "__main__":
    run_script(main)
