"""Which fields the trainers' configurations have, read from their source.

Importing them takes seconds, as torch comes along; a misspelt field is told before that, by every
stage. Not here: the values of those fields, which the trainers check.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# transformers' package hands its classes on from files that its imports do not name.
TRAINING_ARGUMENTS = ("transformers.training_args", "TrainingArguments")
CONFIGS = {
    "finetune": ("trl.trainer.sft_config", "SFTConfig"),
    "dpo": ("trl.trainer.dpo_config", "DPOConfig"),
    "reward": TRAINING_ARGUMENTS,
}


@cache
def trainer_fields(stage: str) -> frozenset[str]:
    """Fields of the configuration class that trains a stage ("finetune", "reward" or "dpo")."""
    return _fields(*CONFIGS[stage])


def _fields(module: str, name: str) -> frozenset[str]:
    """Annotated names of a class and of those that it is made from."""
    tree = ast.parse(_source(module).read_text(encoding="utf-8"))
    made = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {
        node.target.id
        for node in made.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    bases = {base.id for base in made.bases if isinstance(base, ast.Name)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for base in bases & {alias.name for alias in node.names}:
                found |= _fields(*_home(module, node, base))
    return frozenset(found)


def _home(module: str, said: ast.ImportFrom, name: str) -> tuple[str, str]:
    """Module and name of a class by the line that imports it."""
    if name == TRAINING_ARGUMENTS[1]:
        return TRAINING_ARGUMENTS
    package = module.rsplit(".", said.level)[0] + "." if said.level else ""
    return f"{package}{said.module}", name


def _source(module: str) -> Path:
    """A module's file; only the outermost package is looked for, as that imports nothing."""
    package, *rest = module.split(".")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed", name=package)
    return Path(spec.submodule_search_locations[0], *rest).with_suffix(".py")
