"""Pair stage: assessments in, preference pairs out, and why the other candidates are in none.

    python scripts/pair.py --config configs/quickstart.yaml --margin 0.1 --strategy best_worst

Not here: asking the evaluator (`score.py`). A changed margin costs nothing.
"""

import sys

from reward.evaluator import Assessment
from reward.pairs import balance_line, make_pairs, pairs_line, tie_line
from reward.refine import refined_pairs
from sft import config, runs
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import UserError, read_rows, write_json, write_rows
from sft.tracking import tracker


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "pair", __doc__ or "")
    candidates = runs.stage_folder(recipe, "candidates", recipe.round)
    inputs = {
        "prompts": candidates / "prompts.jsonl",
        "candidates": candidates / "candidates.jsonl",
        "assessments": runs.stage_folder(recipe, "scores", recipe.round) / "assessments.jsonl",
    }
    if recipe.pair.refined:
        inputs["refined"] = runs.stage_folder(recipe, "refine", recipe.round) / "pairs.jsonl"
    settings = recipe.settings("pair")
    opened = runs.open_stage(recipe, "pairs", config=settings, inputs=inputs, round=recipe.round)
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused or not stage.is_main:
            return
        result = make_pairs(
            read_rows(inputs["prompts"], Prompt),
            read_rows(inputs["candidates"], Candidate),
            read_rows(inputs["assessments"], Assessment),
            recipe.pair,
        )
        write_json(stage.path("dropped.json"), result.report())
        stage.say(pairs_line(result))
        if recipe.pair.margin == "auto":
            stage.say(tie_line(result))
        stage.say(balance_line(result))
        for what, counts in (
            ("candidates", result.candidates),
            ("comparisons", result.comparisons),
            ("prompts", result.prompts),
        ):
            listed = " + ".join(f"{n} {reason}" for reason, n in counts.most_common())
            stage.say(f"  {what}: {listed} = {sum(counts.values())}")
        refined = refined_pairs(inputs["refined"]) if recipe.pair.refined else []
        stage.say(f"{len(refined)} more of rewritten replies")
        if not (result.pairs or refined):
            why = stage.path("dropped.json")
            raise UserError(f"no pair is left: {why} has the reasons; try a smaller --margin")
        write_rows(stage.path("pairs.jsonl"), [*result.pairs, *refined])
        by_rule = {f"pairs/{rule}": n for rule, n in result.by_rule.items()}
        stage.log({"pairs": len(result.pairs), "refined": len(refined), **by_rule})
        sides = [
            [p.chosen[0]["content"], p.rejected[0]["content"], p.margin, p.rule]
            for p in result.pairs[:100]
        ]
        track.table("pairs", ["chosen", "rejected", "margin", "rule"], sides)
        made_from = [inputs["candidates"], inputs["assessments"]]
        track.artifact(stage.path("pairs.jsonl"), "dataset", uses=made_from)
        outputs = ["pairs.jsonl", "dropped.json"]
        stage.finish(outputs, **result.report(), refined=len(refined))


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
