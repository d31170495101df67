"""Supervised stage: counselling demonstrations in, the SFT adapter out.

    python scripts/finetune.py --config configs/quickstart.yaml --learning_rate 1e-3
    accelerate launch scripts/finetune.py --config configs/llama3-8b-multi-gpu.yaml

Not here: evaluation (`evaluate_policy.py`) and full-parameter training (adapters only).
"""

import sys

from reward.risk import message_risk
from sft import config, lineage, material, runs
from sft.files import write_rows
from sft.tracking import tracker


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "finetune", __doc__ or "")
    settings = recipe.settings(
        "seed", "use_cpu", "demonstrations", "prompts", "held_out", "model", "finetune"
    )
    inputs = material.files(recipe) | lineage.base_input(recipe)
    opened = runs.open_stage(recipe, "finetune", config=settings, inputs=inputs)
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused:
            return
        rows, left_out = material.demonstrations(
            recipe, lambda messages: message_risk(messages).risk
        )
        stage.say(
            f"{len(rows)} demonstrations; {left_out} left out because a held-out prompt says the same"
        )
        from sft.train import (
            finetune,
        )  # torch and TRL take seconds to import; mistakes are told before

        summary = finetune(recipe, rows, stage)
        if stage.is_main:
            write_rows(stage.path("demonstrations.jsonl"), rows)
        track.artifact(stage.path("adapter"), "adapter-sft", "model", uses={})
        stage.finish(["adapter", "demonstrations.jsonl"], **summary, overlapping_held_out=left_out)


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
