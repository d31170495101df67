"""Gold against proxy over the square root of KL: DPO, best-of-n and PPO, with and without the gate.

    python scripts/ppo.py --config configs/quickstart.yaml
    python scripts/ppo.py --config configs/quickstart.yaml --run no-gate --ppo.safety none \
        --start_adapter runs/quickstart/finetune/adapter
    python scripts/frontier.py --config configs/quickstart.yaml --ppo.without_gate no-gate

Writes `runs/<run>/frontier/frontier.json`, which the report of `evaluate_policy.py` draws. Asks the
held-out prompts of PPO's looks, not those of the proof.
"""

import sys
from pathlib import Path

from reward.evaluators import recipe_evaluator
from reward.risk import message_risk
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
    ppo = runs.stage_folder(recipe, "ppo") / runs.METRICS
    other = Path(recipe.runs_dir) / recipe.ppo.without_gate / "ppo" / runs.METRICS
    # torch takes seconds to import: mistakes are told before.
    from rlaif import frontier, frontier_charts

    looks = {"gate": frontier.of_looks(ppo), "none": frontier.of_looks(other)}
    prompts = material.look_prompts(
        recipe, lambda said: message_risk(said).risk, recipe.ppo.n_validation
    )
    folder = runs.run_folder(recipe) / "frontier"
    lines = {}
    for safety, points in looks.items():
        asked = recipe.model_copy(update={"ppo": recipe.ppo.model_copy(update={"safety": safety})})
        asking = frontier.Asking(
            asked, recipe_evaluator(recipe.score, folder), make_judge(recipe, folder), prompts
        )
        print(f"{safety}: best of n, and {len(there)} rounds of DPO", flush=True)
        lines[safety] = {
            "PPO": points,
            "best of n": frontier.best_of_n(asking, start, 16),
            "DPO": [
                frontier.of_adapter(asking, f"round {n}", adapter, start)
                for n, adapter in there.items()
            ],
        }
    write_json(folder / frontier_charts.FILE, frontier_charts.to_json(lines))
    for safety, methods in lines.items():
        for name, points in methods.items():
            for p in points:
                print(
                    f"{safety:5} {name:10} {p.label:12} KL {p.kl:5.2f}  proxy {p.proxy:6.3f}  "
                    f"gold {p.gold:.3f}  unsafe {p.unsafe:.1%}"
                )


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
