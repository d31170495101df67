"""The rubric: criteria with anchored grades and a yes/no safety flow, in a file clinicians edit.

`load_rubric` reads `configs/rubric.yaml` or another file of that form and reports every mistake at
once with its line and field. A rubric is known by `Rubric.id`, its name and a hash of what it says.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sft.data import Risk
from sft.files import UserError

HERE = Path(__file__).resolve().parent
# An installed wheel has the file inside this package, a checkout beside it.
IN_WHEEL, IN_CHECKOUT = (folder / "configs" / "rubric.yaml" for folder in (HERE, HERE.parent))
DEFAULT_RUBRIC = IN_WHEEL if IN_WHEEL.is_file() else IN_CHECKOUT
Text = Annotated[str, Field(min_length=3)]
GRADES = (1, 2, 3, 4, 5)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Criterion(_Part):
    """One graded question."""

    question: Text
    weight: float = Field(ge=0, le=1, description="share in quality, 0..1; 0 = graded, not counted")
    anchors: dict[int, Text] = Field(description="what each grade 1..5 looks like")

    @model_validator(mode="after")
    def _every_grade(self) -> "Criterion":
        if sorted(self.anchors) != list(GRADES):
            raise ValueError(
                f"anchors are needed for the grades 1 to 5, found {list(self.anchors)}"
            )
        return self


class SafetyItem(_Part):
    """One yes/no question, asked where the message's risk is among `risks`."""

    question: Text
    risks: tuple[Risk, ...] = Field(min_length=1)
    safe_answer: bool = Field(description="the answer of a safe reply: yes or no")
    verdict: Literal["unsafe", "note"] = Field(description="what the other answer means")


class Rubric(_Part):
    """What an evaluator judges by."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    criteria: dict[str, Criterion] = Field(min_length=1)
    safety: dict[str, SafetyItem] = Field(min_length=1)

    @model_validator(mode="after")
    def _some_weight(self) -> "Rubric":
        if not sum(c.weight for c in self.criteria.values()) > 0:
            raise ValueError("at least one criterion needs a weight above 0")
        return self

    @property
    def id(self) -> str:
        """Name and hash of the content, as stored with every assessment."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{self.name}@{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def items(self, risk: Risk) -> dict[str, SafetyItem]:
        """Return the safety items that a message of this risk calls for, in file order."""
        return {name: item for name, item in self.safety.items() if risk in item.risks}

    def quality(self, grades: dict[str, float]) -> float:
        """Return the weighted mean of grades (1..5) on 0..1; criteria without a grade are left out.

        Raises:
            ValueError: No graded criterion has a weight.
        """
        weights = {name: self.criteria[name].weight for name in grades}
        total = sum(weights.values())
        if total <= 0:
            raise ValueError(f"no graded criterion has a weight: {sorted(grades)}")
        return sum(weights[name] * (grade - 1) / 4 for name, grade in grades.items()) / total


def load_rubric(path: Path = DEFAULT_RUBRIC) -> Rubric:
    """Read a rubric file.

    Raises:
        UserError: The file is missing, is not YAML, or says something a rubric cannot say; every
            mistake is listed with its line and field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"rubric {path} does not exist; the default is configs/rubric.yaml"
        ) from None
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"rubric {path} is not valid YAML: {error}") from None
    if twice := _said_twice(tree):
        raise UserError("\n".join(f"{path}:{line}: {key} is there twice" for line, key in twice))
    try:
        return Rubric.model_validate(content)
    except ValidationError as error:
        mistakes = []
        for problem in error.errors():
            field = ".".join(map(str, problem["loc"])) or "file"
            mistakes.append(f"{path}:{_line(tree, problem['loc'])}: {field}: {problem['msg']}")
        raise UserError(
            "\n".join([f"{len(mistakes)} mistakes in the rubric:", *mistakes])
        ) from None


def _said_twice(node: yaml.Node | None) -> list[tuple[int, str]]:
    """Return line and name of every key that a mapping has already; YAML would keep the last."""
    found: list[tuple[int, str]] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                found.append((key.start_mark.line + 1, key.value))
            seen.add(key.value)
            found += _said_twice(value)
    return found


def _line(node: yaml.Node | None, field: tuple[int | str, ...]) -> int:
    """Return the line of the innermost part of a field that is in the file, counted from 1."""
    line = 1
    for part in field:
        found = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    found, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = node.value[part]
            line = found.start_mark.line + 1
        if found is None:
            break
        node = found
    return line
