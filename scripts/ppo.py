"""Policy stage: PPO with the evaluator or the reward model as reward, on one base model.

    accelerate launch scripts/ppo.py --config configs/quickstart.yaml
    python scripts/ppo.py --config configs/quickstart.yaml --reward model --safety lagrangian
    python scripts/ppo.py --config configs/quickstart.yaml --method rloo
    torchrun --nproc_per_node 2 -- scripts/ppo.py --config configs/quickstart.yaml --use_cpu true

An evaluator's ledger goes on from that of the scores: --score.max_cost caps both together. Not
here: fitting the reward model (`fit_reward.py`), judging the result (`evaluate_policy.py
--policy ppo`).
"""

import sys
from pathlib import Path

from reward.evaluators import recipe_evaluator
from reward.risk import message_risk
from reward.rubric import DEFAULT_RUBRIC
from reward.shards import KEPT, gather, ledger_in
from rlaif.evaluate import make_judge
from sft import config, lineage, material, runs
from sft.files import write_rows
from sft.tracking import tracker

SETTINGS = (
    *("seed", "use_cpu", "prompts", "held_out", "held_out_share"),
    *("crisis_share", "elevated_share", "model", "score", "ppo"),
)
JUDGED = "looks"  # folder of what the judge was asked, apart from what the evaluator was
# What shapes the looks, which choose the checkpoint.
LOOKS = (
    *("judge", "judge_model", "people", "n_prompts", "crisis_prompts"),
    *("temperature", "top_p"),
)


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "ppo", __doc__ or "")
    section, start = recipe.ppo, lineage.baseline_adapter(recipe)
    reward = runs.stage_folder(recipe, "reward") / "adapter" if section.reward == "model" else None
    named = {"adapter": start, "reward": reward}
    adapters = {name: path for name, path in named.items() if path is not None}
    inputs = material.files(recipe) | lineage.base_input(recipe) | adapters
    inputs["rubric"] = Path(recipe.score.rubric or DEFAULT_RUBRIC)
    settings = recipe.settings(*SETTINGS) | {"round_seed": recipe.round_seed}
    settings["looks"] = recipe.evaluate.model_dump(include=set(LOOKS))
    opened = runs.open_stage(recipe, "ppo", config=settings, inputs=inputs, keep=(*KEPT, JUDGED))
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused:
            return
        n = section.iterations * section.prompts_per_iteration
        prompts = material.training_prompts(recipe, lambda said: message_risk(said).risk, n)
        looks = material.look_prompts(
            recipe, lambda said: message_risk(said).risk, section.n_validation
        )
        asks = stage.is_main and section.reward == "evaluator"
        if asks:
            gather(stage.folder, ledger_in(runs.stage_folder(recipe, "scores")))
        evaluator = recipe_evaluator(recipe.score, stage.folder) if asks else None
        judge = make_judge(recipe, stage.path(JUDGED))
        # torch takes seconds to import: mistakes are told before.
        from rlaif import online, ppo, ppo_course, ppo_state

        if stage.is_main:
            write_rows(stage.path("prompts.jsonl"), prompts)
            write_rows(stage.path("looks.jsonl"), looks)
        job = ppo_course.Job(recipe, prompts, looks, evaluator, judge, stage)
        train = ppo.train_ppo if section.method == "ppo" else online.train_online
        summary = train(job, start, reward)
        track.table("rollouts", *ppo_state.table(stage))
        track.artifact(stage.path("adapter"), "model", uses=[*adapters.values()])
        stage.finish(["adapter", "prompts.jsonl", "looks.jsonl"], **summary)


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
