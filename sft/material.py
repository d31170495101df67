"""What a recipe's names mean: which prompts are trained on, which are held out, which
demonstrations are learned from.

One place for all stages, so that training and proof cannot disagree about the split. The risk of a
message is judged by a later package's rule, so it comes in as a required argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sft import data, simulator
from sft.config import Recipe
from sft.curate import label_topic, project_demonstrations
from sft.data import Demonstration, Message, Prompt, Risk

CLINIC = "practice-clinic"
CLINIC_PROMPTS = 400  # training prompts of a round where the recipe does not say
CLINIC_DEMONSTRATIONS = 1500
# The held-out prompts are the same for every seed, round and experiment, so that their results can
# be compared.
HELD_OUT_SEED = 20_261_120

MessageRisk = Callable[[list[Message]], Risk]


def training_prompts(recipe: Recipe, message_risk: MessageRisk) -> list[Prompt]:
    """Prompts that candidates are sampled for in this round.

    The practice clinic gives new people each round; a file gives the same ones, sampled anew.
    """
    n = recipe.generate.n_prompts
    if recipe.prompts == CLINIC:
        people = simulator.practice_prompts(
            "train",
            n or CLINIC_PROMPTS,
            recipe.seed + recipe.round,
            crisis_share=recipe.crisis_share,
            elevated_share=recipe.elevated_share,
        )
        # Training must do with what a reader of the message can tell: the clinic's own knowledge of
        # the risk is for the proof alone.
        return [replace(person, risk=message_risk(person.messages)) for person in people]
    prompts = [p for p in _file_prompts(recipe, message_risk) if p.split == "train"]
    if recipe.held_out is not None:
        prompts = data.without_overlap(prompts, held_out_prompts(recipe, message_risk))
    return prompts[:n] if n else prompts


def held_out_prompts(recipe: Recipe, message_risk: MessageRisk) -> list[Prompt]:
    """Prompts of the proof: never trained on, the same in every round."""
    section = recipe.evaluate
    if recipe.held_out is not None:
        prompts = data.load_prompts(
            recipe.held_out,
            seed=recipe.seed,
            held_out_share=1.0,
            message_risk=message_risk,
            label_topic=label_topic,
        )
    elif recipe.prompts == CLINIC:
        crisis = section.crisis_prompts / section.n_prompts
        return simulator.practice_prompts(
            "held_out",
            section.n_prompts,
            HELD_OUT_SEED,
            crisis_share=crisis,
            elevated_share=(1 - crisis) / 3,
        )
    else:
        prompts = [p for p in _file_prompts(recipe, message_risk) if p.split == "held_out"]
    return prompts[: section.n_prompts]


def demonstrations(recipe: Recipe, message_risk: MessageRisk) -> tuple[list[Demonstration], int]:
    """Demonstrations to learn from, and how many were left out because a held-out prompt says the
    same.
    """
    name, n = recipe.demonstrations, recipe.finetune.n_demonstrations
    if name == CLINIC:
        rows = simulator.practice_demonstrations(n or CLINIC_DEMONSTRATIONS, recipe.seed)
    elif name == "project":
        rows = project_demonstrations()
    else:
        rows = data.load_demonstrations(name)
    if name == CLINIC and recipe.prompts == CLINIC:
        return rows, 0  # the clinic keeps its sides apart itself
    kept = data.without_overlap(rows, held_out_prompts(recipe, message_risk))
    return kept[:n] if n else kept, len(rows) - len(kept)


def files(recipe: Recipe) -> dict[str, Path]:
    """The files behind the names, as inputs of a stage: a changed file is a changed stage."""
    named = {
        "prompts": recipe.prompts,
        "held_out": recipe.held_out,
        "demonstrations": recipe.demonstrations,
    }
    return {
        name: Path(value)
        for name, value in named.items()
        if value is not None and Path(value).is_file()
    }


def _file_prompts(recipe: Recipe, message_risk: MessageRisk) -> list[Prompt]:
    return data.load_prompts(
        recipe.prompts,
        seed=recipe.seed,
        held_out_share=0.0 if recipe.held_out else recipe.held_out_share,
        message_risk=message_risk,
        label_topic=label_topic,
    )
