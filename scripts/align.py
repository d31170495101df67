"""The whole main job in one process: all stages and rounds of a recipe, then proof and export.

    python scripts/align.py --config configs/quickstart.yaml
    python scripts/align.py --config configs/quickstart.yaml --policy ppo
    accelerate launch scripts/align.py --config configs/llama3-8b-multi-gpu.yaml

What is finished is reused, so a stopped run goes on with the same command. Not here: anything but
the order of the stages.
"""

import sys
import time

import dpo
import evaluate_policy
import export
import finetune
import fit_reward
import generate
import pair
import ppo
import refine
import score

from sft import config, runs

ROUND = (
    ("candidates", generate),
    ("scores", score),
    ("refine", refine),
    ("pairs", pair),
    ("dpo", dpo),
)
REWARD = (("candidates", generate), ("scores", score), ("reward", fit_reward))


def main(argv: list[str]) -> None:
    """Run the stages with these command-line arguments (dotted where they belong to one stage)."""
    recipe = config.load(argv, None, __doc__ or "")
    steps = [("finetune", finetune, 1)] if recipe.start_adapter is None else []
    if recipe.policy == "ppo":
        needed = REWARD if recipe.ppo.reward == "model" else ()
        steps += [(name, module, 1) for name, module in (*needed, ("ppo", ppo))]
    else:
        rounds = range(1, recipe.rounds + 1)
        stages = [each for each in ROUND if each[1] is not refine or recipe.pair.refined]
        steps += [(name, module, round) for round in rounds for name, module in stages]
    steps += [("evaluation", evaluate_policy, 1), ("export", export, 1)]
    started = time.monotonic()
    for number, (name, module, round) in enumerate(steps, 1):
        elapsed = time.monotonic() - started
        if runs.is_main():
            done = f"[{number}/{len(steps)}] {name}, round {round} ({elapsed:.0f} s so far)"
            print(f"\n{done}", flush=True)
        module.main([*argv, "--round", str(round)])


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
