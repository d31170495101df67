"""The plan in words: parameters, memory by part, tokens and time of each stage, and what to change.

Nothing here is measured, and the text says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlaif.plan.advice import LEARNING, Change, changes
from rlaif.plan.cards import Card, card_called
from rlaif.plan.memory import GIB, Memory, Model, model_for, stage_memory
from rlaif.plan.seconds import STAGES, Texts, Times, mean_texts, stage_times
from rlaif.plan.work import Longest, longest, positions
from sft.config import Recipe
from sft.settings_text import show


@dataclass(frozen=True)
class Planned:
    """A stage: its memory and times, what it would take with checkpointing the other way round
    (None = it has none), and what makes it fit (empty where it does).
    """

    stage: str
    memory: Memory
    times: Times
    positions: int
    texts: Longest
    otherwise: int | None
    changes: Sequence[Change]


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a recipe on a card before it runs; `room` in bytes."""

    model: Model
    card: Card
    name: str
    room: int
    stages: Sequence[Planned]

    @property
    def too_large(self) -> list[str]:
        """Stages that do not fit."""
        return [each.stage for each in self.stages if each.memory.total > self.room]


def make_plan(recipe: Recipe) -> Plan:
    """Plan the stages of a recipe that `plan.stages` names.

    Raises:
        UserError: nobody knows the shape of the model.
    """
    name = recipe.plan.card
    model, card = model_for(recipe, card=name), card_called(name)
    room = round((recipe.plan.memory or card.memory) * GIB)
    wanted: list[str] = [*recipe.plan.stages] or [
        each for each in STAGES if each != "ppo" or "ppo" in recipe.model_fields_set
    ]
    stages = [_planned(model, card, stage, room) for stage in wanted]
    return Plan(model, card, name, room, stages)


def _planned(model: Model, card: Card, stage: str, room: int) -> Planned:
    memory = stage_memory(model, stage)
    return Planned(
        stage,
        memory,
        stage_times(model, stage, card),
        positions(model.recipe, stage),
        longest(model.recipe, stage),
        _otherwise(model, stage) if stage in LEARNING else None,
        changes(model, stage, room) if memory.total > room else [],
    )


def _otherwise(model: Model, stage: str) -> int:
    """Bytes of a stage with gradient checkpointing the other way round."""
    section = dict(model.recipe)[stage]
    other = section.model_copy(
        update={"gradient_checkpointing": not section.gradient_checkpointing}
    )
    recipe = model.recipe.model_copy(update={stage: other})
    return stage_memory(replace(model, recipe=recipe), stage).total


# --- words ----------------------------------------------------------------------------------------


def text(plan: Plan) -> str:
    """The whole plan."""
    lines = [*_head(plan), "", *_table(plan), "", *_parts(plan), "", *_ends(plan)]
    return "\n".join(lines)


def _head(plan: Plan) -> list[str]:
    model, card, n = plan.model, plan.card, plan.model.counts
    section, shape = model.recipe.model, model.shape
    means = mean_texts(model.recipe)
    dtype = str(model.dtype).removeprefix("torch.")
    bits = "4-bit NF4 base, " if section.load_in_4bit else ""
    head = f"head {_count(n.head)}" if n.head else "head = embedding"
    return [
        "Computed; nothing was loaded and nothing is measured.",
        f"card: {plan.name}, {plan.room / GIB:.1f} GiB, {card.flops / 1e12:.3g} TFLOP/s at most "
        f"(planned with {card.compute_share:.0%}), {card.bandwidth / 1e9:.0f} GB/s at most "
        f"({card.memory_share:.0%})",
        f"model: {section.name_or_path} by {shape.source}: {shape.layers} layers of "
        f"{shape.config.hidden_size}; {bits}{dtype}",
        f"parameters: {_count(n.total)} = layers {_count(n.layers)} + embedding "
        f"{_count(n.embedding)} + {head} + other {_count(n.other)}; one adapter "
        f"{_count(n.adapter)} ({n.adapter / n.total:.2%})",
        f"times assume {means.prompts} prompts of {means.prompt} tokens and replies of "
        f"{means.reply}; memory is of the longest texts",
    ]


def _table(plan: Plan) -> list[str]:
    rows = [("stage", "at the peak", "GiB", "tokens at once", "steps", "tokens per step", "time")]
    for each in plan.stages:
        total, times = each.memory.total / GIB, each.times
        per_step = f"{times.tokens // times.steps:,}" if times.steps else "-"
        steps = str(times.steps) if times.steps else "-"
        fits = f"{total:.2f}" if each.memory.total <= plan.room else f"{total:.2f} TOO MUCH"
        rows.append(
            (each.stage, each.memory.phase, fits, f"{each.positions:,}", steps, per_step,
             duration(times.seconds))
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _parts(plan: Plan) -> list[str]:
    lines = []
    for each in plan.stages:
        parts = sorted(each.memory.parts.items(), key=lambda item: -item[1])
        listed = " + ".join(f"{name} {size / GIB:.2f}" for name, size in parts)
        lines.append(
            f"{each.stage} (prompt {each.texts.prompt}, reply {each.texts.reply}): {listed} = "
            f"{each.memory.total / GIB:.2f} GiB"
        )
        if each.otherwise is not None:
            section = dict(plan.model.recipe)[each.stage]
            word = "without" if section.gradient_checkpointing else "with"
            lines.append(f"    {word} gradient checkpointing: {each.otherwise / GIB:.2f} GiB")
    return lines


def _ends(plan: Plan) -> list[str]:
    if not plan.too_large:
        return [f"Every stage fits {plan.room / GIB:.1f} GiB."]
    lines = []
    for each in plan.stages:
        if each.stage not in plan.too_large:
            continue
        lines.append(
            f"{each.stage} needs {each.memory.total / GIB:.1f} GiB and there are "
            f"{plan.room / GIB:.1f}:"
        )
        lines += [f"    --{change.setting} {show(change.after)}   # {change.line()}"
                  for change in each.changes]  # fmt: skip
        if not each.changes or each.changes[-1].total > plan.room:
            lines.append("    no setting makes it fit: take a larger card or a smaller model")
    return lines


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would say."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _count(n: int) -> str:
    """A number of parameters."""
    return f"{n / 1e9:.3g} G" if n >= 1e9 else f"{n / 1e6:.1f} M"


__all__ = ["Plan", "Planned", "Texts", "duration", "make_plan", "text"]
