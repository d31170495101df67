"""Score stage: the evaluator gives every candidate a verdict, or the reason why there is none.

    python scripts/score.py --config configs/quickstart.yaml
    python scripts/score.py --config configs/llama3-8b-t4.yaml --base_url http://localhost:8000/v1

The key of a service comes from the environment (OPENAI_API_KEY) alone. Not here: which candidates
become pairs (`pair.py`): scoring may cost money, pairing is free.
"""

import sys
from pathlib import Path

from reward.evaluators import make_evaluator
from reward.score import check_unscored, score, summary
from sft import config, runs
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import read_rows, write_rows
from sft.tracking import tracker

PARTIAL = "partial.jsonl"  # survives a stopped run


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "score", __doc__ or "")
    section = recipe.score
    candidates = runs.stage_folder(recipe, "candidates", recipe.round)
    evaluator = make_evaluator(
        section.evaluator,
        rubric=section.rubric,
        model=section.evaluator_model,
        base_url=section.base_url,
    )
    inputs = {name: candidates / f"{name}.jsonl" for name in ("prompts", "candidates")}
    inputs |= {"rubric": Path(section.rubric)} if section.rubric else {}
    settings = recipe.settings("score") | {"rubric": evaluator.rubric, "evaluator": evaluator.name}
    opened = runs.open_stage(
        recipe, "scores", config=settings, inputs=inputs, round=recipe.round, keep=[PARTIAL]
    )
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused or not stage.is_main:
            return
        rows = read_rows(inputs["candidates"], Candidate)
        prompts = read_rows(inputs["prompts"], Prompt)
        with runs.Progress(len(rows), "scores", unit="candidates") as bar:
            assessments = score(evaluator, prompts, rows, bar.advance, partial=stage.path(PARTIAL))
        write_rows(stage.path("assessments.jsonl"), assessments)
        counts = summary(rows, assessments)
        stage.log(counts)
        stage.say(
            f"{counts['candidates']:.0f} candidates judged by {evaluator.name} "
            f"({evaluator.rubric}): quality {counts['quality']:.2f}, "
            f"unsafe {counts['unsafe_share']:.1%}, unscored {counts['unscored']:.0f}; beside them "
            f"{counts['borrowed']:.0f} borrowed, {counts['borrowed_unsafe']:.0f} unsafe here"
        )
        check_unscored(assessments, section.max_unscored)
        some = [[a.candidate_id, a.critique] for a in assessments[:100]]
        track.table("assessments", ["candidate_id", "critique"], some)
        track.artifact(stage.path("assessments.jsonl"), "dataset", uses=[inputs["candidates"]])
        stage.finish(["assessments.jsonl"], **counts)
        stage.path(PARTIAL).unlink()


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
