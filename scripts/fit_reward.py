"""Reward stage: judged candidates in; a reward, a safety head and what they are worth out.

    python scripts/fit_reward.py --config configs/quickstart.yaml
    accelerate launch scripts/fit_reward.py --config configs/llama3-8b-t4.yaml --round 1

It starts from a copy of the newest adapter. Not here: asking the evaluator (`score.py`), making
pairs (`pair.py`).
"""

import sys

from reward.comparisons import gather
from reward.evaluator import Assessment
from reward.pairing import Pair
from sft import config, ground_truth, lineage, material, runs
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import read_rows, write_json, write_text
from sft.tracking import tracker


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "reward", __doc__ or "")
    adapter = lineage.start_adapter(recipe)
    candidates = runs.stage_folder(recipe, "candidates", recipe.round)
    inputs = {
        "prompts": candidates / "prompts.jsonl",
        "candidates": candidates / "candidates.jsonl",
        "assessments": runs.stage_folder(recipe, "scores", recipe.round) / "assessments.jsonl",
    }
    if recipe.reward.comparisons == "pairs":
        inputs["pairs"] = runs.stage_folder(recipe, "pairs", recipe.round) / "pairs.jsonl"
    inputs |= lineage.base_input(recipe) | ({"adapter": adapter} if adapter else {})
    settings = recipe.settings("seed", "use_cpu", "model", "reward")
    settings |= {"least_difference": recipe.pair.margin}
    opened = runs.open_stage(recipe, "reward", config=settings, inputs=inputs, round=recipe.round)
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if not stage.reused:
            questions = gather(
                read_rows(inputs["prompts"], Prompt),
                read_rows(inputs["candidates"], Candidate),
                read_rows(inputs["assessments"], Assessment),
            )
            pairs = read_rows(inputs["pairs"], Pair) if "pairs" in inputs else []
            # torch and transformers take seconds to import: mistakes are told before.
            from reward import held_out, report
            from reward.train import fit_reward

            def truth_of(prompt: Prompt, text: str) -> held_out.Truth | None:
                if prompt.source != material.CLINIC:
                    return None
                found = ground_truth.judge(prompt.messages, text, prompt.risk)
                return held_out.Truth((found.empathy + found.helpfulness) / 2, found.safe)

            fitted = fit_reward(recipe, questions, pairs, adapter, stage)
            if not stage.is_main:
                return
            # The truth is asked here: no module that labels training data may know of it.
            made = report.build(fitted, truth_of, ground_truth.TIE)
            write_json(stage.path("report.json"), made)
            stage.log(report.figures(made))
            write_text(stage.path("table.txt"), report.table(made))
            made_from = [
                inputs[name] for name in ("assessments", "pairs", "adapter") if name in inputs
            ]
            track.artifact(stage.path("adapter"), "model", uses=made_from)
            stage.finish(["adapter", "report.json", "table.txt"], **fitted.summary)
        stage.say(f"\n{stage.path('table.txt').read_text(encoding='utf-8')}")
        stage.say(f"report: {stage.path('report.json')}")


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
