"""Candidate stage: prompts in, K sampled replies per prompt from the newest adapter out.

    python scripts/generate.py --config configs/quickstart.yaml --num_return_sequences 8
    python scripts/generate.py --config configs/quickstart.yaml --prompts questions.jsonl --round 2
    python scripts/generate.py --config configs/llama3-8b-t4.yaml --backend openai \
        --base_url http://localhost:8000/v1 --served_model policy --shard 3/16

Not here: judging the replies (`score.py`).
"""

import sys

from reward import backend
from reward.shards import KEPT, stage_name
from sft import config, lineage, material, runs
from sft.candidates import Sampling, borrow
from sft.files import write_rows
from sft.tracking import tracker

# What shapes the candidates; the prompts' file and the adapter are inputs.
SETTINGS = (
    *("seed", "use_cpu", "round", "prompts", "held_out", "held_out_share"),
    *("crisis_share", "elevated_share", "model", "generate"),
)


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "generate", __doc__ or "")
    adapter = lineage.start_adapter(recipe)
    start = {"adapter": adapter} if adapter else {}
    inputs = material.files(recipe) | lineage.base_input(recipe) | start
    settings, number, section = recipe.settings(*SETTINGS), recipe.round, recipe.generate
    name = stage_name("candidates", section.shard)
    k, seed = section.num_return_sequences, recipe.round_seed
    sampling = Sampling.of(section, k=k, seed=seed)
    folder = runs.stage_folder(recipe, name, number)
    if section.dry_run:
        print(backend.plan_line(recipe, adapter, sampling, folder), flush=True)
        return
    opened = runs.open_stage(recipe, name, config=settings, inputs=inputs, round=number, keep=KEPT)
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused:
            return
        if section.backend == "openai" and not stage.is_main:
            return
        prompts = backend.training_prompts(recipe)
        made = backend.sample(recipe, adapter, prompts, sampling, folder)
        borrowed = borrow(prompts, made.candidates, section.n_borrowed, seed)
        stage.say(f"{made.line(k)}; {len(borrowed)} borrowed from messages of another risk")
        counts = made.counts() | {"borrowed": len(borrowed)}
        stage.log(counts)
        if stage.is_main:
            write_rows(stage.path("prompts.jsonl"), prompts)
            write_rows(stage.path("candidates.jsonl"), [*made.candidates, *borrowed])
            some = [[c.prompt_id, c.text] for c in made.candidates[:100]]
            track.table("candidates", ["prompt_id", "reply"], some)
            made_by = [*start.values()]
            track.artifact(stage.path("candidates.jsonl"), "dataset", uses=made_by)
        stage.finish(["prompts.jsonl", "candidates.jsonl"], **counts)


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
