"""Settings as text: a stage's `--help`, and the resolved values that each command prints."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from sft.recipe import Recipe
from sft.service_settings import Section

WIDTH = 100


def sections() -> dict[str, type[Section]]:
    """The recipe's sections by name."""
    fields = Recipe.model_fields.items()
    found = {name: info.annotation for name, info in fields}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Section)
    }


def shared_fields() -> dict[str, FieldInfo]:
    """The recipe's top-level settings that are no sections."""
    inner = sections()
    return {name: info for name, info in Recipe.model_fields.items() if name not in inner}


def help_text(stage: str | None, description: str) -> str:
    """What `--help` prints: the stage's own settings first, then those it shares."""
    lines = [inspect.cleandoc(description), ""]
    lines += ["Settings: --config <recipe>.yaml, then --setting value ..."]
    lines += [
        "Flags win over the file. `--use_cpu` alone means true; lists are a,b; null = not set."
    ]
    inner = sections()
    if stage is not None:
        lines += ["", f"{stage}:", *_group(inner[stage].model_fields, "")]
    lines += ["", "shared by all stages:", *_group(shared_fields(), "")]
    lines += ["", "model:", *_group(inner["model"].model_fields, "model.")]
    others = ", ".join(name for name in inner if name not in (stage, "model"))
    lines += ["", f"Settings of other stages by their full name (--dpo.beta 0.2): {others}."]
    lines += ["Keys come from the environment only: OPENAI_API_KEY, WANDB_API_KEY, HF_TOKEN."]
    return "\n".join(lines)


def _group(fields: dict[str, FieldInfo], prefix: str) -> list[str]:
    lines = []
    for name, info in fields.items():
        default = "required" if info.is_required() else f"default {show(info.default)}"
        lines.append(f"  --{prefix}{name}  [{default}]")
        indent = " " * 8
        lines += textwrap.wrap(
            str(info.description), WIDTH, initial_indent=indent, subsequent_indent=indent
        )
    return lines


def show(value: Any) -> str:
    """A setting's value as one would write it in the file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(show, value))
    return str(value)


def resolved_groups(recipe: Recipe, stage: str | None) -> list[str]:
    """The values a stage runs with, in three texts: shared ones, the model's and its own."""
    values = recipe.model_dump()
    groups: dict[str, dict[str, Any]] = {"shared": {name: values[name] for name in shared_fields()}}
    groups |= {name: values[name] for name in ("model", stage) if name is not None}
    return [
        textwrap.fill(
            f"{title}: " + "  ".join(f"{name}={show(value)}" for name, value in group.items()),
            WIDTH,
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for title, group in groups.items()
    ]
