"""Proof stage: the aligned policy against the SFT model on held-out prompts, as table and report.

    python scripts/evaluate_policy.py --config configs/quickstart.yaml
    python scripts/evaluate_policy.py --config configs/quickstart.yaml --policy ppo
    python scripts/evaluate_policy.py --config configs/quickstart.yaml --adapter path/of/adapter

Not here: the evaluator of the training data, which may not judge the result.
"""

import sys

from reward.risk import message_risk
from reward.shards import KEPT
from rlaif import proof
from rlaif.evaluate import make_judge
from sft import config, lineage, material, runs
from sft.candidates import Sampling
from sft.tracking import tracker

SETTINGS = ("seed", "use_cpu", "prompts", "held_out", "held_out_share", "model", "evaluate")


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "evaluate", __doc__ or "")
    policy, baseline = lineage.policy_adapter(recipe), lineage.baseline_adapter(recipe)
    name = lineage.proof_stage(recipe, "evaluation")
    folder = runs.stage_folder(recipe, name)
    judge, trained_on = make_judge(recipe, folder), proof.training_files(recipe)
    inputs = material.files(recipe) | lineage.base_input(recipe) | trained_on | {"policy": policy}
    inputs |= {"baseline": baseline} if baseline else {}
    inputs |= proof.drawn_files(recipe)
    settings = recipe.settings(*SETTINGS) | {"rubric": judge.rubric}
    opened = runs.open_stage(recipe, name, config=settings, inputs=inputs, keep=KEPT)
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if not stage.reused:
            prompts = material.held_out_prompts(recipe, lambda said: message_risk(said).risk)
            proof.check_held_out(trained_on, prompts)
            # torch takes seconds to import: mistakes are told before.
            from sft.generate import replies_of

            adapters = {"policy": policy, "baseline": baseline}
            sampling = Sampling.of(recipe.evaluate, k=1, seed=recipe.seed)
            replies = replies_of(recipe, adapters, prompts, sampling)
            stage.say(replies["policy"].line(1))
            if not stage.is_main:
                return
            sides = {side: made.candidates for side, made in replies.items()}
            report = proof.prove(recipe, judge, prompts, sides, adapters, stage)
            stage.log({f"policy/{c.name}": c.policy.value for c in report.measures})
            track.table("samples", *proof.sample_table(stage.path("samples.jsonl")))
            compared = [each for each in (policy, baseline) if each]
            track.artifact(stage.path("report.json"), "report", uses=compared)
            too_long = len(replies["policy"].too_long)
            stage.finish(proof.OUTPUTS, passed=report.passed, too_long=too_long)
        stage.say(f"\n{stage.path('table.txt').read_text(encoding='utf-8')}")
        stage.say(f"report: {stage.path('report.html')}")


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
