"""Proof stage: the aligned policy against the SFT model on held-out prompts, as a table and a
self-contained report.

    python scripts/evaluate_policy.py --config configs/quickstart.yaml
    python scripts/evaluate_policy.py --config configs/quickstart.yaml --adapter
    runs/other/dpo/adapter

Not here: the evaluator of the training data, which may not judge the result.
"""

import sys

from reward.evaluators import make_evaluator
from reward.risk import message_risk
from rlaif import proof
from rlaif.evaluate import ClinicJudge, EvaluatorJudge, Judge
from sft import config, lineage, material, runs
from sft.candidates import Sampling
from sft.config import Recipe
from sft.tracking import tracker


def judge_of(recipe: Recipe) -> Judge:
    """Who judges the result by the recipe."""
    section = recipe.evaluate
    if section.judge == "practice-clinic":
        return ClinicJudge()
    evaluator = make_evaluator(
        section.judge,
        rubric=recipe.score.rubric,
        model=section.judge_model,
        base_url=section.base_url,
    )
    return EvaluatorJudge(evaluator)


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "evaluate", __doc__ or "")
    adapters = {
        "policy": lineage.policy_adapter(recipe),
        "baseline": lineage.baseline_adapter(recipe),
    }
    judge, trained_on = judge_of(recipe), proof.training_files(recipe)
    settings = recipe.settings(
        "seed", "use_cpu", "prompts", "held_out", "held_out_share", "model", "evaluate"
    )
    inputs = material.files(recipe) | lineage.base_input(recipe) | trained_on
    inputs |= {name: folder for name, folder in adapters.items() if folder}
    opened = runs.open_stage(
        recipe, "evaluation", config=settings | {"rubric": judge.rubric}, inputs=inputs
    )
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if not stage.reused:
            prompts = material.held_out_prompts(
                recipe, lambda messages: message_risk(messages).risk
            )
            proof.check_held_out(trained_on, prompts)
            from sft import (
                generate,
                model,
            )  # torch takes seconds to import; mistakes are told before
            from sft.chat import Chat, system_prompt

            speakers = model.load_speakers(recipe.model, adapters, use_cpu=recipe.use_cpu)
            chat = Chat(
                speakers.tokenizer,
                system_prompt(recipe.model.system_prompt),
                recipe.model.max_length,
            )
            sampling, replies = Sampling.of(recipe.evaluate, k=1, seed=recipe.seed), {}
            for side, adapter in adapters.items():
                name, label = lineage.name_of(adapter), f"replies of the {side}"
                with (
                    runs.Progress(len(prompts), label, unit="prompts") as bar,
                    speakers.active(side) as who,
                ):
                    replies[side] = generate.generate(
                        who, chat, prompts, sampling, model_name=name, advance=bar.advance
                    )
            too_long = len(replies["policy"].too_long)
            stage.say(f"{len(prompts)} held-out prompts; {too_long} too long and left out")
            if not stage.is_main:
                return
            sides = {side: made.candidates for side, made in replies.items()}
            report = proof.prove(recipe, judge, prompts, sides, adapters, stage)
            stage.log({f"policy/{c.name}": c.policy.value for c in report.measures})
            track.artifact(
                stage.path("report.json"),
                "report",
                "report",
                uses={"adapter-dpo": adapters["policy"]},
            )
            stage.finish(proof.OUTPUTS, passed=report.passed, too_long=too_long)
        stage.say(
            f"\n{stage.path('table.txt').read_text(encoding='utf-8')}\nreport: {stage.path('report.html')}"
        )


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
