"""One recipe file and the command line in, a checked `Recipe` out.

`python scripts/dpo.py --config configs/x.yaml --beta 0.2`: flags win over the file. A bare name is
the stage's own section, then the top level, then `model`, and for the plan then `finetune`; a
dotted one (`--dpo.beta`) means itself.
All mistakes are told at once, with the line of the file or the flag. Keys of services are refused:
they come from the environment only.
"""

from __future__ import annotations

import textwrap
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from sft.files import UserError
from sft.given import Given, Loader, read_file, setting_at
from sft.launch import is_main
from sft.pair_settings import PairSection
from sft.ppo_settings import PpoSection
from sft.recipe import Problem, Recipe
from sft.reward_settings import RewardSection
from sft.sections import (
    DpoSection,
    EvaluateSection,
    ExportSection,
    FinetuneSection,
    GenerateSection,
    ModelSection,
    ScoreSection,
    TrainingSection,
)
from sft.settings_text import help_text, resolved_groups, sections

__all__ = [
    "DpoSection",
    "EvaluateSection",
    "ExportSection",
    "FinetuneSection",
    "GenerateSection",
    "ModelSection",
    "PairSection",
    "PpoSection",
    "Recipe",
    "RewardSection",
    "ScoreSection",
    "TrainingSection",
    "load",
]

_shown: set[str] = set()


def load(argv: list[str], stage: str | None, description: str) -> Recipe:
    """Read `--config` and flags, print what the stage runs with, return the checked recipe.

    Args:
        argv: the command line without the script's name.
        stage: the section that bare flags mean first; None for commands without one.
        description: what the command does, for `--help` (which ends the program with code 0).

    Raises:
        UserError: every mistake in file and flags at once.
    """
    if "--help" in argv or "-h" in argv:
        print(help_text(stage, description))
        raise SystemExit(0)
    given = Given(stage)
    _read_flags(argv, given)
    recipe = _validate(given)
    if is_main():
        # A script that runs all stages repeats only what has changed since it was shown.
        new = [line for line in resolved_groups(recipe, stage) if line not in _shown]
        _shown.update(new)
        print("\n".join(new), flush=True)
    return recipe


# --- the command line --------------------------------------------------------------------------


def _read_flags(argv: list[str], given: Given) -> None:
    """Put the file's settings and then the flags' into `given`."""
    flags: list[tuple[str, str | None]] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            given.problems.append(f"'{token}': settings are given as --name value")
            continue
        name, equals, text = token[2:].partition("=")
        value: str | None = text if equals else None
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        flags.append((name.replace("-", "_"), value))
    for name, value in flags:
        if name == "config":
            if value is None:
                given.problems.append("--config: name a recipe file")
            else:
                read_file(Path(value), given)
    for name, value in flags:
        if name != "config":
            _put_flag(name, value, given)


def _put_flag(name: str, text: str | None, given: Given) -> None:
    """Find which setting a flag means and parse its text for that setting's type."""
    origin = f"--{name}"
    parts = tuple(name.split("."))
    places = [(given.stage, *parts)] if given.stage else []
    places += [parts, ("model", *parts)]
    if given.stage == "plan":  # which has all stages to plan, and no training of its own
        places.append(("finetune", *parts))
    place = next((each for each in places if setting_at(each) is not None), parts)
    info = setting_at(place)
    if info is None:
        given.put(place, None, origin)
        return
    kinds = _kinds(info.annotation)
    if text is None and (bool in kinds or len(place) > 2):
        given.put(place, True, origin)
    elif text is None:
        given.problems.append(f"{origin}: needs a value ({info.description})")
    else:
        try:
            given.put(place, _parse(text, kinds, free=len(place) > 2), origin)
        except yaml.YAMLError:
            given.problems.append(f"{origin}: not readable as YAML")


def _parse(text: str, kinds: set[Any], *, free: bool) -> Any:
    """A flag's text as a value for a setting of these types; `free` ones are YAML."""
    if type(None) in kinds and text == "null":
        return None
    if free or dict in kinds or (list in kinds and text.startswith("[")):
        return yaml.load(text, Loader=Loader)
    if list in kinds:
        return [part.strip() for part in text.split(",")]
    return text


def _kinds(annotation: Any) -> set[Any]:
    """The plain types an annotation allows: `list[float] | None` gives {list, NoneType}."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*map(_kinds, get_args(annotation)))
    return {origin or annotation}


# --- checking ----------------------------------------------------------------------------------


def _validate(given: Given) -> Recipe:
    """The recipe, or one `UserError` with every problem of its settings."""
    tree = given.nested()
    problems = list(given.problems)
    try:
        recipe = Recipe.model_validate(tree, context={"stage": given.stage})
    except ValidationError as error:
        wrong, impossible = _sort_out(error)
        problems += [_locate(given, (place,), text) for place, text in wrong.items()]
        if wrong:
            # The settings that are fine alone are still checked against each other: defaults stand
            # in for the wrong ones, and what involves those is not told.
            for place in wrong:
                _drop(tree, place)
            impossible = _impossible({"run": "unnamed", **tree}, given.stage)
        for places, text in impossible:
            if not wrong.keys() & set(places):
                problems.append(_locate(given, places, text))
    if not problems:
        return recipe
    noun = "problem" if len(problems) == 1 else "problems"
    raise UserError(f"{len(problems)} {noun} in the settings\n  " + "\n  ".join(problems))


def _sort_out(error: ValidationError) -> tuple[dict[str, str], list[Problem]]:
    """Wrong values by dotted name, and combinations that exclude each other."""
    wrong: dict[str, str] = {}
    for each in error.errors(include_url=False):
        loc = [str(part) for part in each["loc"]]
        if not loc:
            return {}, each["ctx"]["error"].problems
        place = tuple(loc[: 2 if loc[0] in sections() else 1])
        info = setting_at(place)
        means = f" ({info.description})" if info else ""
        if each["type"] == "missing":
            wrong[".".join(place)] = f"is required{means}"
        else:
            given = textwrap.shorten(repr(each["input"]), 60)
            wrong.setdefault(".".join(place), f"{given}: {each['msg']}{means}")
    return wrong, []


def _impossible(tree: dict[str, Any], stage: str | None) -> list[Problem]:
    """The combinations that exclude each other in settings which are fine alone."""
    try:
        Recipe.model_validate(tree, context={"stage": stage})
    except ValidationError as error:
        return _sort_out(error)[1]
    return []


def _drop(tree: dict[str, Any], name: str) -> None:
    """Take a setting out of nested values, where it is there."""
    *parents, last = name.split(".")
    for part in parents:
        tree = tree.get(part, {})
    tree.pop(last, None)


def _locate(given: Given, names: tuple[str, ...], text: str) -> str:
    """A problem's text after the settings it is about and where the first of them was said."""
    places = [tuple(name.split(".")) for name in names]
    origin = next((given.origins[place] for place in places if place in given.origins), None)
    about = " and ".join(names)
    return f"{origin}: {about}: {text}" if origin else f"{about}: {text}"
