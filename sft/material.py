"""What a recipe's names mean: prompts to train on, prompts held out, demonstrations to learn from.

One place for all stages, so that training and proof cannot disagree about the split. The risk of a
message and the safety of an answer are judged by later packages' rules, so these come in as
required arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft import data, simulator
from sft.config import Recipe
from sft.curate import (
    WhyUnsafe,
    filter_demonstrations,
    label_topic,
    project_demonstrations,
)
from sft.curate import report as curation_report
from sft.data import Demonstration, Message, Prompt, Risk
from sft.files import UserError
from sft.split import position

CLINIC = "practice-clinic"
CLINIC_PROMPTS = 400  # training prompts of a round where the recipe does not say
CLINIC_DEMONSTRATIONS = 1500

MessageRisk = Callable[[list[Message]], Risk]


def training_prompts(
    recipe: Recipe, message_risk: MessageRisk, n: int | None = None
) -> list[Prompt]:
    """Prompts that candidates are sampled for in this round, none of which the proof asks.

    The practice clinic gives new people each round; a file gives the same ones, sampled anew.

    Args:
        recipe: names them.
        message_risk: risk of a message.
        n: how many at most, 0 = all; None = `generate.n_prompts`.
    """
    n = recipe.generate.n_prompts if n is None else n
    if recipe.prompts == CLINIC:
        prompts = simulator.practice_prompts(
            "train",
            n or CLINIC_PROMPTS,
            recipe.round_seed,
            crisis_share=recipe.crisis_share,
            elevated_share=recipe.elevated_share,
        )
    else:
        prompts = [p for p in _file_prompts(recipe, message_risk) if p.split == "train"]
        prompts = _in_no_order(prompts, recipe.seed)
    # A file of its own can hold anything, the clinic's people among it.
    if recipe.held_out is not None:
        prompts = data.without_overlap(prompts, _all_held_out(recipe, message_risk))
    return prompts[:n] if n else prompts


def held_out_prompts(recipe: Recipe, message_risk: MessageRisk) -> list[Prompt]:
    """Prompts of the proof: never trained on, the same in every round."""
    prompts = _all_held_out(recipe, message_risk)
    return _in_no_order(prompts, recipe.seed)[: recipe.evaluate.n_prompts]


def look_prompts(recipe: Recipe, message_risk: MessageRisk, n: int) -> list[Prompt]:
    """Up to n held-out prompts that the proof does not ask: for choosing a checkpoint.

    The practice clinic gives other people, a file those of its held-out prompts that the proof
    leaves.

    Raises:
        UserError: the proof leaves none.
    """
    section = recipe.evaluate
    if recipe.prompts == CLINIC and recipe.held_out is None:
        crises = round(n * section.crisis_prompts / section.n_prompts)
        others = {"people": section.people + 1, "n_prompts": n, "crisis_prompts": crises}
        changed = recipe.model_copy(update={"evaluate": section.model_copy(update=others)})
        found = _all_held_out(changed, message_risk)
        # Different people may say almost the same.
        found = data.without_overlap(found, _all_held_out(recipe, message_risk))
    else:
        every = _in_no_order(_all_held_out(recipe, message_risk), recipe.seed)
        found = data.without_overlap(every[section.n_prompts :], every[: section.n_prompts])[:n]
    if not found:
        raise UserError(
            f"the proof asks all held-out prompts ({section.n_prompts}) and leaves none to choose "
            "a checkpoint by: lower evaluate.n_prompts, or raise held_out_share"
        )
    return found


def _in_no_order(prompts: list[Prompt], seed: int) -> list[Prompt]:
    """The prompts in an order of content and seed: files are sorted by topic, and the first n of
    them would be one topic.
    """
    return sorted(prompts, key=lambda prompt: position(prompt.id, seed))


def _all_held_out(recipe: Recipe, message_risk: MessageRisk) -> list[Prompt]:
    """What training keeps away from: more than the proof asks, so that it may ask more later."""
    section = recipe.evaluate
    if recipe.held_out is not None:
        read = data.load_prompts(
            recipe.held_out,
            seed=recipe.seed,
            held_out_share=1.0,
            message_risk=message_risk,
            label_topic=label_topic,
        )
        # What the file itself gives to training is no proof of anything, nor what is like it.
        kept = [prompt for prompt in read if prompt.split == "held_out"]
        if not kept:
            raise UserError(f"{recipe.held_out}: every row says split 'train': none is held out")
        return kept
    if recipe.prompts == CLINIC:
        crisis = section.crisis_prompts / section.n_prompts
        return simulator.practice_prompts(
            "held_out",
            section.n_prompts,
            section.people,
            crisis_share=crisis,
            elevated_share=(1 - crisis) / 3,
        )
    return [p for p in _file_prompts(recipe, message_risk) if p.split == "held_out"]


@dataclass(frozen=True)
class Lessons:
    """Demonstrations to learn from, and how they were chosen.

    Attributes:
        figures: the report of `sft.curate`, and how many rows were left out because a held-out
            prompt says the same (`repeat_held_out`).
        arithmetic: the counts in one line.
    """

    rows: list[Demonstration]
    figures: dict[str, Any]
    arithmetic: str


def demonstrations(recipe: Recipe, message_risk: MessageRisk, why_unsafe: WhyUnsafe) -> Lessons:
    """Demonstrations to learn from, without faulty ones and those that repeat a held-out prompt.

    The practice clinic's are taken as they are: their flaws are what alignment has to mend.

    Args:
        recipe: names them.
        message_risk: risk of a message.
        why_unsafe: why a demonstration is unsafe; None where it is safe.

    Raises:
        UserError: they cannot be read, or none is left.
    """
    name, n = recipe.demonstrations, recipe.finetune.n_demonstrations
    if name == CLINIC:
        rows = simulator.practice_demonstrations(n or CLINIC_DEMONSTRATIONS, recipe.seed)
        figures: dict[str, Any] = {"arithmetic": f"{len(rows)} of the practice clinic as they are"}
    else:
        read = project_demonstrations() if name == "project" else data.load_demonstrations(name)
        curated = filter_demonstrations(read, why_unsafe)
        rows, figures = curated.kept, curation_report(read, curated)
    # The clinic keeps its sides apart itself; a file of held-out prompts may hold either.
    apart = name == CLINIC == recipe.prompts and recipe.held_out is None
    kept = rows if apart else data.without_overlap(rows, _all_held_out(recipe, message_risk))
    chosen = kept[:n] if n else kept
    arithmetic = f"{figures['arithmetic']}; {len(rows)} - {len(rows) - len(kept)} that repeat a"
    arithmetic += f" held-out prompt = {len(kept)}; {len(chosen)} used"
    if not chosen:
        reasons = ", ".join(f"{n} {why}" for why, n in figures.get("dropped", {}).items())
        raise UserError(f"{name}: no demonstration is left ({arithmetic}): {reasons}")
    figures |= {"repeat_held_out": len(rows) - len(kept), "used": len(chosen)}
    return Lessons(chosen, figures, arithmetic)


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
