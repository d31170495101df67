"""What the embedded evaluator is worth: agreement with votes, recall of crises, speed.

Reads answers that people voted on, compares pairs of answers to one question with unequal votes,
and puts a plain word count beside the evaluator. No weight was fitted on those answers; their
figures were looked at while measures that grow with length alone were removed.

    python scripts/bench_evaluator.py --data answers.jsonl
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from reward import agreement
from reward.agreement import Answer, Share
from reward.offline import EmbeddedEvaluator
from sft.files import write_json
from sft.runs import run_script

MESSAGES = Path(__file__).resolve().parents[1] / "tests" / "data" / "risk_messages.jsonl"


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="answers with upvotes (JSONL)")
    parser.add_argument("--messages", type=Path, default=MESSAGES, help="written messages (JSONL)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/evaluator.json"))
    args = parser.parse_args()

    evaluator = EmbeddedEvaluator()
    grouped = agreement.read_answers(args.data)
    found, rate = agreement.judge(evaluator, grouped)
    pairs = [
        p
        for p in agreement.unequal_pairs(answers for _, answers in grouped.values())
        if found[p.better.id].scored and found[p.worse.id].scored
    ]

    def quality(answer: Answer) -> float:
        return found[answer.id].quality or 0.0

    def safe_first(answer: Answer) -> float:
        return quality(answer) + (1.0 if found[answer.id].safe else 0.0)

    figures: dict[str, Share] = {}
    for name, some in (
        ("all pairs", pairs),
        ("lengths within 20 %", agreement.length_matched(pairs, 0.2)),
        ("lengths within 10 %", agreement.length_matched(pairs, 0.1)),
    ):
        figures[f"word count, {name}"] = agreement.pair_accuracy(some, lambda a: float(a.words))
        figures[f"quality, {name}"] = agreement.pair_accuracy(some, quality)
        figures[f"safe first, then quality, {name}"] = agreement.pair_accuracy(some, safe_first)
    figures |= agreement.risk_figures(args.messages)

    for name, share in figures.items():
        interval = f"{100 * share.low:5.1f} .. {100 * share.high:5.1f}"
        print(f"{name:52} {100 * share.value:5.1f} %  [{interval}]  n = {share.n}")
    unscored = sum(not a.scored for a in found.values())
    print(f"{len(found)} answers, {unscored} unscored, {rate:.0f} assessments per second")
    write_json(
        args.out,
        {
            "evaluator": evaluator.name,
            "rubric": evaluator.rubric,
            "figures": {name: asdict(share) for name, share in figures.items()},
            "assessments_per_second": round(rate, 1),
        },
    )
    print(f"written: {args.out}")


if __name__ == "__main__":
    run_script(main)
