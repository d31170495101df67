"""Policy stage: DPO on preference pairs, from a copy of the newest adapter, which is the reference.

    accelerate launch scripts/dpo.py --config configs/llama3-8b-t4.yaml --beta 0.2
    torchrun --nproc_per_node 2 -- scripts/dpo.py --config configs/quickstart.yaml --use_cpu true

Not here: making pairs (`pair.py`), judging the result (`evaluate_policy.py`).
"""

import sys

from reward.pairs import Pair
from sft import config, lineage, runs
from sft.files import read_rows
from sft.tracking import tracker


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "dpo", __doc__ or "")
    adapter = lineage.start_adapter(recipe)
    inputs = {"pairs": runs.stage_folder(recipe, "pairs", recipe.round) / "pairs.jsonl"}
    inputs |= lineage.base_input(recipe) | ({"adapter": adapter} if adapter else {})
    settings = recipe.settings("seed", "use_cpu", "model", "dpo")
    opened = runs.open_stage(recipe, "dpo", config=settings, inputs=inputs, round=recipe.round)
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused:
            return
        pairs = read_rows(inputs["pairs"], Pair)
        # torch and TRL take seconds to import: mistakes are told before.
        from rlaif.dpo import train_dpo

        summary = train_dpo(recipe, pairs, adapter, stage)
        made_from = [inputs["pairs"], *([adapter] if adapter else [])]
        track.artifact(stage.path("adapter"), "model", uses=made_from)
        stage.finish(["adapter"], **summary)


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
