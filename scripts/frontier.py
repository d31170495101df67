"""Gold against proxy over the square root of KL: DPO, best-of-n and PPO, with and without the gate.

    python scripts/ppo.py --config configs/quickstart.yaml
    python scripts/ppo.py --config configs/quickstart.yaml --run quickstart-no-gate \
        --ppo.safety none --start_adapter runs/quickstart/finetune/adapter
    python scripts/frontier.py --config configs/quickstart.yaml

Reads PPO of `<run>` and of `<run>-no-gate`, asks the held-out prompts of their looks, not those of
the proof, and writes `runs/<run>/frontier/frontier.json`, which the report of PPO draws.
"""

import sys
from pathlib import Path

from reward.evaluators import recipe_evaluator
from reward.risk import message_risk
from reward.shards import gather, ledger_in
from rlaif.evaluate import make_judge
from sft import config, lineage, material, runs
from sft.files import UserError, write_json


def main(argv: list[str]) -> None:
    """Compute all points with these command-line arguments."""
    recipe = config.load(argv, "ppo", __doc__ or "")
    start = lineage.baseline_adapter(recipe)
    rounds = range(1, recipe.rounds + 1)
    made = {n: runs.stage_folder(recipe, "dpo", n) / "adapter" for n in rounds}
    there = {n: folder for n, folder in made.items() if folder.is_dir()}
    if not there:
        raise UserError(f"no adapters of DPO in {runs.run_folder(recipe)}: run scripts/align.py")
    ppo = {
        "gate": runs.stage_folder(recipe, "ppo"),
        "none": Path(recipe.runs_dir) / f"{recipe.run}-no-gate" / "ppo",
    }
    inputs = {f"ppo {safety}": folder / "adapter" for safety, folder in ppo.items()}
    inputs |= {f"dpo {n}": folder for n, folder in there.items()}
    settings = recipe.settings("seed", "model", "score", "ppo", "evaluate")
    # torch takes seconds to import: mistakes are told before.
    from rlaif import frontier, frontier_charts

    looks = {safety: frontier.of_looks(folder, safety) for safety, folder in ppo.items()}
    with runs.open_stage(recipe, "frontier", config=settings, inputs=inputs) as stage:
        if not stage.reused:
            gather(stage.folder, ledger_in(runs.stage_folder(recipe, "ppo")))
            asking = frontier.Asking(
                recipe,
                recipe_evaluator(recipe.score, stage.folder),
                make_judge(recipe, stage.path("looks")),
                material.look_prompts(
                    recipe, lambda said: message_risk(said).risk, recipe.ppo.n_validation
                ),
            )
            lines = frontier.lines(asking, looks, there, start)
            write_json(stage.path(frontier_charts.FILE), frontier_charts.to_json(lines))
            stage.finish([frontier_charts.FILE])
        stage.say(frontier_charts.table(stage.path(frontier_charts.FILE)))


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
