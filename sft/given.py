"""What a user said: settings by place, with the file's line or the flag, and what was wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic.fields import FieldInfo

from sft.files import UserError, read_bytes
from sft.settings_text import sections, shared_fields

Place = tuple[str, ...]
SECRET_NAME = re.compile(
    r"api_?key|(hub|hf|access|auth|bearer)_token|secret|password|wandb_key", re.IGNORECASE
)
SECRET_VALUE = re.compile(r"^(sk-|hf_)[A-Za-z0-9_-]{16,}$")
SECRET_TEXT = (
    "a key may not stand in a recipe or on the command line, where shell history, manifests and "
    "tracking would keep it: put it into the environment (OPENAI_API_KEY, WANDB_API_KEY, HF_TOKEN)"
)


class Loader(yaml.SafeLoader):
    """YAML in which 5e-6 is a number and 2026-11-20 a text, as their writers mean them."""


Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if not each[0].endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass
class Given:
    """What file and flags say: values by place, where each was said, and what was wrong."""

    stage: str | None
    values: dict[Place, Any] = field(default_factory=dict)
    origins: dict[Place, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, place: Place, value: Any, origin: str) -> None:
        """Keep a value, or the problem that its name is unknown or that it is a key."""
        if SECRET_NAME.search(place[-1]) or _holds_secret(value):
            self.problems.append(f"{origin}: {SECRET_TEXT}")
        elif setting_at(place) is None:
            self.problems.append(f"{origin}: {_unknown('.'.join(place), self.stage)}")
        else:
            self.values[place] = value
            self.origins[place] = origin

    def nested(self) -> dict[str, Any]:
        """The values as pydantic takes them; deeper places win over shallower ones."""
        tree: dict[str, Any] = {}
        for place, value in sorted(self.values.items(), key=lambda item: len(item[0])):
            branch = tree
            for part in place[:-1]:
                branch = branch.setdefault(part, {})
            branch[place[-1]] = dict(value) if isinstance(value, dict) else value
        return tree


def read_file(path: Path, given: Given) -> None:
    """Put the settings of a recipe file into `given`, each with its line."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
        _put_tree(yaml.compose(text, Loader=Loader), Loader(text), path, given)
    except UserError as error:
        given.problems.append(str(error))
    except UnicodeDecodeError:
        given.problems.append(f"{path}: not UTF-8 text")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        given.problems.append(f"{path}:{line}: not YAML: {error.problem}")
    except yaml.YAMLError as error:
        given.problems.append(f"{path}: not YAML: {error}")


def _put_tree(tree: yaml.Node | None, loader: Loader, path: Path, given: Given) -> None:
    """Put top-level values and those of sections into `given`; an empty file holds none."""
    if tree is None:
        return
    if not isinstance(tree, yaml.MappingNode):
        given.problems.append(f"{path}:1: a recipe is a list of `name: value` lines")
        return
    inner = sections()
    for name, node, line in _entries(tree, path, given):
        if name not in inner:
            given.put((name,), loader.construct_object(node, deep=True), f"{path}:{line}")
        elif isinstance(node, yaml.MappingNode):
            for key, leaf, at in _entries(node, path, given):
                value = loader.construct_object(leaf, deep=True)
                given.put((name, key), value, f"{path}:{at}")
        elif loader.construct_object(node) is not None:
            given.problems.append(f"{path}:{line}: {name} is a section: put its settings below it")


def _entries(
    mapping: yaml.MappingNode, path: Path, given: Given
) -> list[tuple[str, yaml.Node, int]]:
    """Name, value and line of each entry; a name said twice is a problem, not a silent winner."""
    found: dict[str, tuple[str, yaml.Node, int]] = {}
    for key, node in mapping.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in found:
            given.problems.append(f"{path}:{line}: '{name}' was set in line {found[name][2]} too")
        found[name] = (name, node, line)
    return list(found.values())


def setting_at(place: Place) -> FieldInfo | None:
    """The setting at a place, or None; below `trainer` everything is TRL's and free."""
    if len(place) == 1:
        return shared_fields().get(place[0])
    section = sections().get(place[0])
    if section is None or (len(place) > 2 and place[1] != "trainer"):
        return None
    return section.model_fields.get(place[1])


def _unknown(name: str, stage: str | None) -> str:
    """What to say of a name that is no setting: the nearest one that is."""
    full = [*shared_fields()]
    full += [f"{part}.{key}" for part, kind in sections().items() for key in kind.model_fields]
    # A section's own name first: a bare flag means the stage's setting where it has one.
    full.sort(key=lambda each: not each.startswith(f"{stage}."))
    last = name.rpartition(".")[2]
    by_last = {each.rpartition(".")[2]: each for each in reversed(full)}
    near = get_close_matches(name, full, n=1, cutoff=0.75) if "." in name else []
    near = near or [by_last[each] for each in get_close_matches(last, by_last, n=1)]
    hint = f": did you mean '{near[0]}'?" if near else ": --help lists the settings"
    return f"unknown setting '{name}'{hint}"


def _holds_secret(value: Any) -> bool:
    """Whether a value looks like a key, or is an address with one inside."""
    if isinstance(value, dict):
        return any(SECRET_NAME.search(str(k)) or _holds_secret(v) for k, v in value.items())
    if not isinstance(value, str):
        return False
    if "://" not in value:
        return SECRET_VALUE.match(value) is not None
    address = urlsplit(value)
    return "@" in address.netloc or "key=" in address.query or "token=" in address.query
