"""Score stage: the evaluator gives every candidate a verdict, or the reason why there is none.

    python scripts/score.py --config configs/quickstart.yaml
    python scripts/score.py --config configs/llama3-8b-t4.yaml --base_url http://localhost:8000/v1
    python scripts/score.py --config configs/llama3-8b-t4.yaml --dry_run
    python scripts/score.py --config configs/llama3-8b-t4.yaml --shard 3/16

The key of a service comes from the environment (OPENAI_API_KEY) alone. Not here: which candidates
become pairs (`pair.py`): scoring may cost money, pairing is free.
"""

import sys
from pathlib import Path

from reward.evaluators import recipe_evaluator
from reward.score import (
    check_unscored,
    facts,
    judged_line,
    live_note,
    plan_line,
    score,
    summary,
)
from reward.shards import KEPT, answering, gather, ledgers_of, of_shard, stage_name
from sft import config, runs
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import read_rows, write_rows
from sft.tracking import tracker

PARTIAL = "partial.jsonl"  # survives a stopped run


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "score", __doc__ or "")
    section, number = recipe.score, recipe.round
    name = stage_name("scores", section.shard)
    folder = runs.stage_folder(recipe, name, number)
    candidates = runs.stage_folder(recipe, "candidates", number)
    evaluator = recipe_evaluator(section, folder)
    inputs = {name: candidates / f"{name}.jsonl" for name in ("prompts", "candidates")}
    if section.dry_run:
        prompts = of_shard(read_rows(inputs["prompts"], Prompt), section.shard)
        rows = answering(prompts, read_rows(inputs["candidates"], Candidate))
        others = ledgers_of(folder, section.ledgers)
        print(plan_line(evaluator, prompts, rows, others), flush=True)
        return
    inputs |= {"rubric": Path(section.rubric)} if section.rubric else {}
    settings = recipe.settings("score") | {"rubric": evaluator.rubric, "evaluator": evaluator.name}
    if section.rescore:  # the same answers, read anew, replace what was read before
        recipe = recipe.model_copy(update={"overwrite": True})
    opened = runs.open_stage(
        recipe, name, config=settings, inputs=inputs, round=number, keep=[PARTIAL, *KEPT]
    )
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused or not stage.is_main:
            return
        prompts = of_shard(read_rows(inputs["prompts"], Prompt), section.shard)
        rows = answering(prompts, read_rows(inputs["candidates"], Candidate))
        if taken := gather(folder, section.ledgers):
            stage.say(f"{taken} answers taken over from other ledgers")
        with runs.Progress(len(rows), "scores", "candidates", note=live_note(evaluator)) as bar:
            assessments = score(evaluator, prompts, rows, bar.advance, partial=stage.path(PARTIAL))
        write_rows(stage.path("assessments.jsonl"), assessments)
        counts = summary(rows, assessments) | facts(evaluator)
        stage.log(counts)
        stage.say(judged_line(evaluator, counts))
        check_unscored(assessments, section.max_unscored)
        some = [[a.candidate_id, a.critique] for a in assessments[:100]]
        track.table("assessments", ["candidate_id", "critique"], some)
        track.artifact(stage.path("assessments.jsonl"), "dataset", uses=[inputs["candidates"]])
        stage.finish(["assessments.jsonl"], **counts)
        stage.path(PARTIAL).unlink(missing_ok=True)


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
