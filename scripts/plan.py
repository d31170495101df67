"""Plan: what each stage of a recipe needs of a card, before anything is loaded.

    python scripts/plan.py --config configs/llama3-8b-t4.yaml
    python scripts/plan.py --config configs/llama3-8b-t4.yaml --per_device_train_batch_size 4
    python scripts/plan.py --config configs/quickstart.yaml --card CPU --stages finetune,dpo

It prints parameters, memory by part, tokens and time of each stage, and which setting to change
where one does not fit; then it ends with code 2, with --force true with 0. Bare training settings
mean finetune's; others have their full name (--dpo.tree_tokens 2048). Every figure is computed: how
far those of memory are off is measured by scripts/bench_memory.py.
"""

import sys

from sft import config, runs
from sft.files import UserError


def main(argv: list[str]) -> None:
    """Plan with these command-line arguments."""
    recipe = config.load(argv, "plan", __doc__ or "")
    # torch and transformers take seconds to import: mistakes are told before.
    from rlaif.plan.report import make_plan, text

    plan = make_plan(recipe)
    print(f"\n{text(plan)}")
    if plan.too_large and not recipe.plan.force:
        raise UserError(
            f"{', '.join(plan.too_large)} would not fit a {plan.name}: change what is named above, "
            "or say --force true"
        )


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
