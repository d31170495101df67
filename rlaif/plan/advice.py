"""Which setting to change where a stage does not fit, with what each change saves.

First come changes that leave the result what it was (a checkpointed layer, a smaller part of the
same update), then those that do not. Each is planned anew, so that its saving is a difference of
two plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlaif.plan.memory import GIB, Model, stage_memory
from sft.config import Recipe

SMALLEST_LENGTH, SMALLEST_TREE = 512, 1024  # tokens that are worth training on; assumed
LEARNING = ("finetune", "reward", "dpo", "ppo")


@dataclass(frozen=True)
class Change:
    """A setting, its values before and after, what it saves and leads to (bytes)."""

    setting: str
    before: object
    after: object
    saves: int
    total: int

    def line(self) -> str:
        """The change in words."""
        return (
            f"{self.setting} {self.before} -> {self.after} saves {self.saves / GIB:.1f} GiB: "
            f"{self.total / GIB:.1f} GiB"
        )


def changes(model: Model, stage: str, room: int) -> list[Change]:
    """Changes that lead below `room` bytes, each on top of those before it.

    Where all of them are not enough, the last one's total says what is still too much.
    """
    found: list[Change] = []
    total = stage_memory(model, stage).total
    tried = True
    while total > room and tried:
        tried = False
        for setting, before, after, recipe in _smaller(model.recipe, stage):
            other = replace(model, recipe=recipe)
            less = stage_memory(other, stage).total
            if less < total:
                found.append(Change(setting, before, after, total - less, less))
                model, total, tried = other, less, True
                break
    return found


def _smaller(recipe: Recipe, stage: str) -> Iterator[tuple[str, object, object, Recipe]]:
    """Smaller recipes, the least harmful first: setting, its values and the recipe."""
    section = recipe.model_dump()[stage]

    def one(name: str, after: object, **others: object) -> tuple[str, object, object, Recipe]:
        return f"{stage}.{name}", section[name], after, _with(recipe, stage, {name: after} | others)

    if stage in LEARNING:
        if not section["gradient_checkpointing"]:
            yield one("gradient_checkpointing", True)
        if (rows := section["per_device_train_batch_size"]) > 1:
            more = "gradient_accumulation_steps"
            rest = {more: section[more] * rows // (rows // 2)} if more in section else {}
            yield one("per_device_train_batch_size", rows // 2, **rest)
        if (tokens := section.get("tree_tokens", 0)) > SMALLEST_TREE:
            yield one("tree_tokens", max(SMALLEST_TREE, tokens // 2))
        if section["optim"] == "adamw_torch":
            yield one("optim", "adamw_8bit")
    if (rows := section.get("batch_size", 1)) > 1:
        yield one("batch_size", rows // 2)
    if stage == "ppo" and section["value"] == "adapter":
        yield one("value", "head")
    inner = recipe.model
    if not inner.load_in_4bit:
        yield _of_model(recipe, "load_in_4bit", True)
    replies = [recipe.generate.max_new_tokens, recipe.evaluate.max_new_tokens]
    if "ppo" in recipe.model_fields_set:
        replies.append(recipe.ppo.max_new_tokens)
    if (tokens := inner.max_length // 2) >= max(SMALLEST_LENGTH, *(n + 64 for n in replies)):
        yield _of_model(recipe, "max_length", tokens)


def _of_model(recipe: Recipe, name: str, after: object) -> tuple[str, object, object, Recipe]:
    before = recipe.model.model_dump()[name]
    return f"model.{name}", before, after, _with(recipe, "model", {name: after})


def _with(recipe: Recipe, section: str, values: dict[str, object]) -> Recipe:
    """A copy with other settings of a section."""
    given = dict(recipe)
    return recipe.model_copy(update={section: given[section].model_copy(update=values)})
