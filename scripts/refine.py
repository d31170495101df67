"""Refine stage: the evaluator's critique goes back, and the policy rewrites its best replies.

    python scripts/refine.py --config configs/quickstart.yaml --n_prompts 60
    python scripts/pair.py --config configs/quickstart.yaml --refined true

The judge is that of the scores, and its ledger goes on from theirs: --score.max_cost caps both
together. Not here: other pairs (`pair.py`, which takes these in with --refined true).
"""

import sys
from collections.abc import Sequence

from reward import backend
from reward.evaluator import Assessment
from reward.evaluators import recipe_evaluator
from reward.refine import Refiner
from reward.score import check_unscored, live_note, score
from reward.shards import KEPT, gather, ledger_in
from sft import config, launch, lineage, runs
from sft.candidates import Candidate, Sampling
from sft.data import Prompt
from sft.files import UserError, read_rows, write_json, write_rows
from sft.tracking import tracker

SETTINGS = ("seed", "use_cpu", "round", "model", "generate", "score", "refine")
ASKED, PARTIAL = "replies", "partial.jsonl"  # what a server answered; what survives a stop


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "refine", __doc__ or "")
    if launch.world_size() > 1 or recipe.score.ask == "pairwise":
        raise UserError("refine works in one process and with grades (score.ask one or together)")
    adapter, number = lineage.start_adapter(recipe), recipe.round
    stages = ("refine", "candidates", "scores")
    folder, sampled, scores = (runs.stage_folder(recipe, name, number) for name in stages)
    inputs = {name: sampled / f"{name}.jsonl" for name in ("prompts", "candidates")}
    inputs |= {"assessments": scores / "assessments.jsonl"} | lineage.base_input(recipe)
    inputs |= {"adapter": adapter} if adapter else {}
    evaluator = recipe_evaluator(recipe.score, folder)
    rules = recipe.pair.model_dump(include={"margin", "max_length_ratio"})
    settings = recipe.settings(*SETTINGS) | rules | {"rubric": evaluator.rubric}
    keep = [PARTIAL, ASKED, *KEPT]
    opened = runs.open_stage(
        recipe, "refine", config=settings, inputs=inputs, round=number, keep=keep
    )
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused:
            return
        gather(folder, ledger_in(scores))

        def rewrite(prompts: list[Prompt], turn: int) -> Sequence[Candidate]:
            how = Sampling.of(recipe.generate, k=1, seed=(recipe.round_seed + turn) % 2**32)
            return backend.sample(recipe, adapter, prompts, how, stage.path(ASKED)).candidates

        def judge(prompts: list[Prompt], rows: list[Candidate]) -> Sequence[Assessment]:
            with runs.Progress(len(rows), "verdicts", note=live_note(evaluator)) as bar:
                return score(evaluator, prompts, rows, bar.advance, partial=stage.path(PARTIAL))

        by = recipe.refine, recipe.pair, recipe.score.redact_names
        result = Refiner(rewrite, judge, *by).refine(
            read_rows(inputs["prompts"], Prompt),
            read_rows(inputs["candidates"], Candidate),
            read_rows(inputs["assessments"], Assessment),
        )
        check_unscored(result.assessments, recipe.score.max_unscored)
        for each in result.passes:
            stage.log(each.figures(), step=each.number)
        stage.say(result.text())
        for name in ("candidates", "assessments", "pairs"):
            write_rows(stage.path(f"{name}.jsonl"), getattr(result, name))
        write_json(stage.path("report.json"), result.report())
        track.artifact(stage.path("pairs.jsonl"), "dataset", uses=[inputs["assessments"]])
        outputs = ("candidates.jsonl", "assessments.jsonl", "pairs.jsonl", "report.json")
        stage.finish(outputs, **result.report())
        stage.path(PARTIAL).unlink(missing_ok=True)


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
