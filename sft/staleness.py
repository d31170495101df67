"""Whether a round's policy still comes from what lies in the run.

A stage that is done again leaves the later ones as they were, and a policy of a later round would
go on counting as the newest. The manifests' hashes of inputs tell. Not here: whether a stage's own
result is the one asked for (`sft.reuse`), and whether the base is still the same: it is an input
of each stage that loads it.
"""

from __future__ import annotations

from pathlib import Path

from sft.files import sha256_of
from sft.recipe import Recipe
from sft.reuse import SCRIPTS, read_manifest, stage_folder

# Stages of a round in order: the name of an input, and the stage and file that it is, or None for
# the adapter that the round starts from.
OPTIONAL = "refined"  # input that a stage may do without
LINKS: dict[str, dict[str, tuple[str, str] | None]] = {
    "candidates": {"adapter": None},
    "scores": {
        "prompts": ("candidates", "prompts.jsonl"),
        "candidates": ("candidates", "candidates.jsonl"),
    },
    "refine": {
        "adapter": None,
        "candidates": ("candidates", "candidates.jsonl"),
        "assessments": ("scores", "assessments.jsonl"),
    },
    "pairs": {
        "prompts": ("candidates", "prompts.jsonl"),
        "candidates": ("candidates", "candidates.jsonl"),
        "assessments": ("scores", "assessments.jsonl"),
        "refined": ("refine", "pairs.jsonl"),
    },
    "dpo": {"adapter": None, "pairs": ("pairs", "pairs.jsonl")},
}


def why_stale(recipe: Recipe, last: int, start: Path | None) -> str | None:
    """What of the rounds 1 to `last` was made from something else than what is there now.

    Args:
        recipe: names the run.
        last: the round of the policy in question.
        start: the adapter that round 1 starts from; None = the base itself.

    Returns:
        The first such stage and what to run; None where all is in order.
    """
    for number in range(1, last + 1):
        for stage, inputs in LINKS.items():
            folder = stage_folder(recipe, stage, number)
            for name, link in inputs.items():
                source = start
                if link is not None:
                    source = stage_folder(recipe, link[0], number) / link[1]
                if made_from_another(folder, name, source):
                    return (
                        f"{folder} was made from another {name} than {source or 'the base itself'} "
                        f"as it is now. {_again(recipe, stage, number, last)}"
                    )
        start = stage_folder(recipe, "dpo", number) / "adapter"
    return None


def made_from_another(folder: Path, name: str, source: Path | None) -> bool:
    """Whether a stage's input was another file than `source` is now; None = there was none."""
    manifest = read_manifest(folder)
    if manifest is None:
        return False  # cleared away, or never made here: nothing is known of it
    known = manifest["inputs"].get(name)
    if name == OPTIONAL and known is None:
        return False
    if source is None or known is None:
        return (source is None) != (known is None)
    if not source.exists():
        return read_manifest(source.parent) is not None  # it is being made anew
    return bool(known["sha256"] != sha256_of(source))


def _again(recipe: Recipe, stage: str, number: int, last: int) -> str:
    refines = recipe.pair.refined or stage == "refine"
    stages = [each for each in LINKS if refines or each != "refine"]
    steps = [(number, each) for each in stages[stages.index(stage) :]]
    steps += [(later, each) for later in range(number + 1, last + 1) for each in stages]
    said = ", ".join(f"scripts/{SCRIPTS[each]}.py --round {n}" for n, each in steps)
    earlier = f", or keep to what is in order: --rounds {number - 1}" if number > 1 else ""
    return f"Run again, each with --overwrite true: {said}{earlier}"
