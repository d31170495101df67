"""Reads a judge's answer: exactly what stands there, or why it is no verdict; no guesses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from reward.faults import storable
from reward.rubric import Rubric
from sft.data import Risk

Verdict = type[BaseModel]
# Some models wrap their JSON in a fence although they were asked for JSON alone. Only a fence
# around the whole answer: what stands beside an object may contradict it.
_FENCE = re.compile(r"\s*```(?:json|JSON)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


def _whole(value: object) -> object:
    # Python counts True as 1: "empathy": true would be a grade.
    if isinstance(value, bool):
        raise ValueError("a grade is a number")
    return next((grade for grade in (1, 2, 3, 4, 5) if value == grade), value)


Grade = Annotated[Literal[1, 2, 3, 4, 5], BeforeValidator(_whole)]


def verdict_schema(rubric: Rubric, risk: Risk) -> Verdict:
    """The form of a verdict: a grade 1..5 per criterion, yes or no per safety item of this risk."""
    return _schema("Verdict", {**_critique(), **_grades(rubric), **_flow(rubric, risk)})


def verdicts_schema(rubric: Rubric, risk: Risk) -> Verdict:
    """The form of an answer about several replies: a list of verdicts, each with its reply's id."""
    named = {"id": (str, Field(description="id of the reply"))}
    fields = {**named, **_critique(), **_grades(rubric), **_flow(rubric, risk)}
    several = list[_schema("Verdict", fields)]  # type: ignore[valid-type, misc]
    return _schema("Verdicts", {"verdicts": (several, Field(description="one for each reply"))})


def safety_schema(rubric: Rubric, risk: Risk) -> Verdict:
    """The form of a verdict on safety alone: yes or no per safety item of this risk."""
    return _schema("Safety", {**_critique(), **_flow(rubric, risk)})


class Preference(BaseModel):
    """The form of a comparison: which of two replies is better."""

    model_config = ConfigDict(extra="forbid", strict=True)

    critique: str = Field(description="one or two sentences")
    better: Literal["first", "second", "tie"] = Field(description="the better reply")


def read_verdicts(
    text: str, schema: Verdict, ids: Sequence[str]
) -> dict[str, dict[str, Any]] | str:
    """The verdicts on several replies by their ids, or the reason why the whole answer is none.

    Each is read as `read_verdict` reads one; each id stands there once, and no other does.
    """
    found = _parse(text, schema)
    if isinstance(found, str):
        return found
    verdicts = found["verdicts"]
    named = [verdict.pop("id") for verdict in verdicts]
    if len(named) != len(ids) or set(named) != set(ids):
        return "ids differ"
    return {
        name: verdict | {"critique": storable(verdict["critique"])}
        for name, verdict in zip(named, verdicts, strict=True)
    }


def read_verdict(text: str, schema: Verdict) -> dict[str, Any] | str:
    """The verdict exactly as it stands in the text, or the reason why it is none.

    JSON alone, or in one fence; each name once, no other name, whole grades from 1 to 5, true or
    false. "4", 4.5, "4/5", NaN and `true` are no grades; 4.0 is.
    """
    verdict = _parse(text, schema)
    if isinstance(verdict, str):
        return verdict
    return verdict | {"critique": storable(verdict["critique"])}


def outline(schema: Verdict) -> str:
    """The form in words, for a service that takes no schema.

    Example: `{"critique": <one or two sentences>, "better": <"first", "second" or "tie">}`.
    """
    whole = schema.model_json_schema()
    return _outline(whole, whole.get("$defs", {}))


def _outline(schema: dict[str, Any], inner: dict[str, Any]) -> str:
    parts = []
    for name, kind in schema["properties"].items():
        if kind.get("type") == "array":
            one = _outline(inner[kind["items"]["$ref"].rpartition("/")[2]], inner)
            parts.append(f'"{name}": [{one}, ...]')
            continue
        said = "true or false" if kind.get("type") == "boolean" else kind["description"]
        if "enum" in kind:
            *first, last = (json.dumps(value) for value in kind["enum"])
            said = f"{', '.join(first)} or {last}"
        parts.append(f'"{name}": <{said}>')
    return "{" + ", ".join(parts) + "}"


def _schema(name: str, fields: dict[str, Any]) -> Verdict:
    made: Verdict = create_model(name, __config__=ConfigDict(extra="forbid", strict=True), **fields)
    return made


def _critique() -> dict[str, Any]:
    return {"critique": (str, Field(description="one or two sentences"))}


def _grades(rubric: Rubric) -> dict[str, Any]:
    return {n: (Grade, Field(description=c.question)) for n, c in rubric.criteria.items()}


def _flow(rubric: Rubric, risk: Risk) -> dict[str, Any]:
    items = rubric.items(risk).items()
    return {name: (bool, Field(description=item.question)) for name, item in items}


def _parse(text: str, schema: Verdict) -> dict[str, Any] | str:
    fenced = _FENCE.fullmatch(text)
    try:
        found = json.loads(
            fenced[1] if fenced else text,
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constant,
            parse_float=_exact,
        )
    except RecursionError:
        return "not JSON"
    except ValueError as error:
        return "duplicate key" if str(error) == "duplicate key" else "not JSON"
    try:
        return schema.model_validate(found).model_dump()
    except ValidationError as error:
        return f"invalid verdict: {error.errors()[0]['type']}"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("duplicate key")
    return dict(pairs)


def _exact(text: str) -> Decimal:
    # As a float, 5.0000000000000000001 would be a 5.
    try:
        return Decimal(text)
    except ArithmeticError:
        raise ValueError(f"{text} has no exact value") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
