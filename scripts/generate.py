"""Candidate stage: prompts in, K sampled replies per prompt from the newest adapter out.

    python scripts/generate.py --config configs/quickstart.yaml --num_return_sequences 8
    python scripts/generate.py --config configs/quickstart.yaml --prompts questions.jsonl --round 2

Not here: judging the replies (`score.py`).
"""

import sys

from reward.risk import message_risk
from sft import config, lineage, material, runs
from sft.candidates import Sampling
from sft.files import UserError, write_rows
from sft.tracking import tracker


def main(argv: list[str]) -> None:
    """Run the stage with these command-line arguments."""
    recipe = config.load(argv, "generate", __doc__ or "")
    adapter = lineage.start_adapter(recipe)
    settings = recipe.settings(
        "seed",
        "use_cpu",
        "round",
        "prompts",
        "held_out",
        "held_out_share",
        "crisis_share",
        "elevated_share",
        "model",
        "generate",
    )
    inputs = (
        material.files(recipe)
        | lineage.base_input(recipe)
        | ({"adapter": adapter} if adapter else {})
    )
    opened = runs.open_stage(
        recipe, "candidates", config=settings, inputs=inputs, round=recipe.round
    )
    with opened as stage, tracker(recipe.tracking, recipe, stage) as track:
        if stage.reused:
            return
        prompts = material.training_prompts(recipe, lambda messages: message_risk(messages).risk)
        if not prompts:
            raise UserError(
                f"{recipe.prompts}: no training prompts are left after holding some out"
            )
        from sft import generate, model  # torch takes seconds to import; mistakes are told before
        from sft.chat import Chat, system_prompt

        speakers = model.load_speakers(recipe.model, {"policy": adapter}, use_cpu=recipe.use_cpu)
        chat = Chat(
            speakers.tokenizer, system_prompt(recipe.model.system_prompt), recipe.model.max_length
        )
        sampling = Sampling.of(
            recipe.generate, k=recipe.generate.num_return_sequences, seed=recipe.seed + recipe.round
        )
        writer = lineage.name_of(adapter)
        with (
            runs.Progress(len(prompts), "candidates", unit="prompts") as bar,
            speakers.active("policy") as policy,
        ):
            made = generate.generate(
                policy, chat, prompts, sampling, model_name=writer, advance=bar.advance
            )
        if not made.candidates:
            raise UserError(
                f"no prompt fits max_length {recipe.model.max_length} with room for a reply"
            )
        counts = {
            "prompts": len(prompts),
            "candidates": len(made.candidates),
            "too_long": len(made.too_long),
            "shortened": made.shortened,
            "cut_off": sum(c.stop == "length" for c in made.candidates),
        }
        stage.say(
            f"{len(prompts) - len(made.too_long)} prompts x {sampling.k} = {len(made.candidates)} candidates; "
            f"{counts['too_long']} prompts too long, {made.shortened} lost old turns, {counts['cut_off']} replies cut off"
        )
        stage.log(counts)
        if stage.is_main:
            write_rows(stage.path("prompts.jsonl"), prompts)
            write_rows(stage.path("candidates.jsonl"), made.candidates)
            track.table(
                "candidates",
                ["prompt_id", "reply"],
                [[c.prompt_id, c.text] for c in made.candidates[:100]],
            )
            track.artifact(
                stage.path("candidates.jsonl"),
                "candidates",
                "dataset",
                uses={"adapter": adapter} if adapter else {},
            )
        stage.finish(["prompts.jsonl", "candidates.jsonl"], **counts)


if __name__ == "__main__":
    runs.run_script(lambda: main(sys.argv[1:]))
