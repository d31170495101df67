"""Supervised stage: counselling demonstrations in, the SFT adapter out.

    python scripts/finetune.py --config configs/quickstart.yaml --learning_rate 1e-3
    accelerate launch scripts/finetune.py --config configs/llama3-8b-multi-gpu.yaml

Not here: evaluation (`evaluate_policy.py`) and full-parameter training (adapters only).
"""

import sys

from reward.evaluators import why_unsafe
from reward.risk import message_risk
from sft import config, lineage, material, runs
from sft.files import write_json, write_rows
from sft.tracking import tracker

SETTINGS = (
    *("seed", "use_cpu", "demonstrations", "prompts", "held_out", "held_out_share"),
    *("model", "finetune"),
)


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "finetune", __doc__ or "")
    inputs = material.files(recipe) | lineage.base_input(recipe)
    settings = recipe.settings(*SETTINGS)
    opened = runs.open_stage(recipe, "finetune", config=settings, inputs=inputs)
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused:
            return
        lessons = material.demonstrations(recipe, lambda said: message_risk(said).risk, why_unsafe)
        stage.say(f"demonstrations: {lessons.arithmetic}")
        for reason, count in lessons.figures.get("dropped", {}).items():
            stage.say(f"  dropped: {count} {reason}")
        # torch and TRL take seconds to import: mistakes are told before.
        from sft.train import finetune

        summary = finetune(recipe, lessons.rows, stage)
        if stage.is_main:
            write_rows(stage.path("demonstrations.jsonl"), lessons.rows)
            write_json(stage.path("curation.json"), lessons.figures)
        lessons_file = stage.path("demonstrations.jsonl")
        read_from = [inputs["demonstrations"]] if "demonstrations" in inputs else []
        track.artifact(lessons_file, "dataset", uses=read_from)
        track.artifact(stage.path("adapter"), "model", uses=[lessons_file])
        stage.finish(["adapter", "demonstrations.jsonl", "curation.json"], **summary)


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
