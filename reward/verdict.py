"""Reads a judge's answer: exactly what stands there, or why it is no verdict; no guesses."""

from __future__ import annotations

import json
import re
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
    fields: dict[str, Any] = {"critique": (str, Field(description="one or two sentences"))}
    for name, criterion in rubric.criteria.items():
        fields[name] = (Grade, Field(description=criterion.question))
    for name, item in rubric.items(risk).items():
        fields[name] = (bool, Field(description=item.question))
    made: Verdict = create_model(
        "Verdict", __config__=ConfigDict(extra="forbid", strict=True), **fields
    )
    return made


def read_verdict(text: str, schema: Verdict) -> dict[str, Any] | str:
    """The verdict exactly as it stands in the text, or the reason why it is none.

    JSON alone, or in one fence; each name once, no other name, whole grades from 1 to 5, true or
    false. "4", 4.5, "4/5", NaN and `true` are no grades; 4.0 is.
    """
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
        verdict = schema.model_validate(found).model_dump()
    except ValidationError as error:
        return f"invalid verdict: {error.errors()[0]['type']}"
    return verdict | {"critique": storable(verdict["critique"])}


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
