"""Candidate stage: prompts in, K sampled replies per prompt from the newest adapter out.

    python scripts/generate.py --config configs/quickstart.yaml --num_return_sequences 8
    python scripts/generate.py --config configs/quickstart.yaml --prompts questions.jsonl --round 2

Not here: judging the replies (`score.py`).
"""

import sys

from reward.risk import message_risk
from sft import config, lineage, material, runs
from sft.candidates import Sampling, borrow
from sft.files import UserError, write_rows
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
    settings, number = recipe.settings(*SETTINGS), recipe.round
    opened = runs.open_stage(recipe, "candidates", config=settings, inputs=inputs, round=number)
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused:
            return
        prompts = material.training_prompts(recipe, lambda messages: message_risk(messages).risk)
        if not prompts:
            raise UserError(
                f"{recipe.prompts}: no training prompts are left after holding some out"
            )
        # torch takes seconds to import: mistakes are told before.
        from sft.generate import replies_of

        section = recipe.generate
        k, seed = section.num_return_sequences, recipe.round_seed
        sampling = Sampling.of(section, k=k, seed=seed)
        made = replies_of(recipe, {"policy": adapter}, prompts, sampling)["policy"]
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
