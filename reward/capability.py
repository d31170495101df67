"""What form of answer a service understands: found out once, and noted in the ledger.

The first real request is the first try, so that a service which takes JSON schemas is asked nothing
more. Only where it does not come back as asked for are the forms tried one after the other, with a
question about nothing. An answer in another form is another request, under another key: the
instructions and the form are in its hash. Not here: what a form looks like (`reward.request`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable
from functools import partial

from pydantic import BaseModel, ConfigDict, Field

from reward.asking import STRUCTURES, Asking, Way
from reward.client import Client, Unread
from reward.ledger import Answer, Attempt, Ledger
from reward.questions import Question
from reward.request import KEY_DIGITS, Sheet
from reward.service import Pace, Request, Service
from reward.verdict import Grade, read_verdict
from sft.files import EvaluatorStopped

PROBE_TOKENS = 100
FORM_ONLY = (
    "This is about the form of an answer alone: `critique` is any short sentence, `number` is a "
    "number from 1 to 5, `fits` is true."
)


class Trial(BaseModel):
    """What a service is asked for where nothing but the form matters."""

    model_config = ConfigDict(extra="forbid", strict=True)

    critique: str = Field(description="a short sentence")
    number: Grade = Field(description="a number")
    fits: bool = Field(description="whether it fits")


def noted_way(ledger: Ledger, service: Service, asking: Asking) -> Way | None:
    """The form to ask for: the one that is given, or noted; None = to be found out."""
    ways = asking.ways()
    if len(ways) == 1:
        return ways[0]
    said = ledger.form(_note_key(service, asking))
    if said is None:
        return None
    structure, _, logprobs = said.partition(" ")
    known = next((each for each in STRUCTURES if each == structure), None)
    way = None if known is None else Way(known, bool(logprobs))
    return way if way in ways else None  # a note of "auto" may be of another form than is asked for


def find_way(
    service: Service,
    ledger: Ledger,
    asking: Asking,
    pace: Pace,
    first: Question,
    hint: str,
    tick: Callable[[], None],
) -> Way:
    """Find out which form a service understands, and note it.

    Args:
        service: who is asked.
        ledger: where answers and the note go.
        asking: what is wanted.
        pace: how patient to be.
        first: a question of the run in the first of `asking.ways()`; its answer counts.
        hint: what a user should change where none is understood.
        tick: called several times a second.

    Raises:
        EvaluatorStopped: the service answers in no form, or refuses to go on.
    """

    def ask(request: Request, fits: Callable[[Answer], bool]) -> bool | Unread:
        # Whatever comes is a finding: nothing is asked twice for its content.
        client = Client(service, ledger, fits, hint=hint, pace=pace, whole=False)
        found: list[bool | Unread] = []
        asyncio.run(client.ask_all([request], lambda _, value: found.append(value), tick))
        return found[0]

    def first_fits(answer: Answer) -> bool:
        return not isinstance(first.read(answer), str) and _has(answer, best)

    best, *_ = ways = asking.ways()
    if ask(first.request, first_fits) is True:
        return _note(ledger, service, asking, best)
    reasons = []
    for way in ways:
        found = ask(_trial(service, way), partial(_fits, way))
        if found is True:
            return _note(ledger, service, asking, way)
        why = found.reason if isinstance(found, Unread) else "not in that form"
        reasons.append(f"{_said(way)}: {why}")
    raise EvaluatorStopped(
        f"{service.name} answers in no form that can be read ({'; '.join(reasons)}). {hint}"
    )


def _note(ledger: Ledger, service: Service, asking: Asking, way: Way) -> Way:
    """Keep what was found, and say what is not as one would expect it."""
    ledger.append([Attempt(_note_key(service, asking), "form", _said(way))])
    parts = []
    if way.structure != "json_schema":
        parts.append(f"takes no JSON schema: it is asked for {way.structure}")
    if asking.expected_grades and not way.logprobs:
        parts.append("gives no log-probabilities: grades are the plain ones, not expected ones")
    if parts:
        print(f"note: {service.url} {', and '.join(parts)}", file=sys.stderr, flush=True)
    return way


def _said(way: Way) -> str:
    return way.structure + (" logprobs" if way.logprobs else "")


def _note_key(service: Service, asking: Asking) -> str:
    """Under which the finding is noted: a service's address counts here."""
    about = ["form", service.url, service.model, asking.expected_grades]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:KEY_DIGITS]


def _trial(service: Service, way: Way) -> Request:
    sheet = Sheet(service.model, "trial", FORM_ONLY, Trial, way)
    example = json.dumps({"critique": "A short sentence.", "number": 3, "fits": True})
    # The address is in the texts, and so in the key: another server is another question.
    material = json.dumps({"form": _said(way), "service": service.url})
    return sheet.ask(lambda: material, example=example, max_tokens=PROBE_TOKENS)


def _fits(way: Way, answer: Answer) -> bool:
    return not isinstance(read_verdict(answer.text, Trial), str) and _has(answer, way)


def _has(answer: Answer, way: Way) -> bool:
    """Whether the probabilities are there where they were asked for."""
    return bool(answer.digits.strip("[]")) or not way.logprobs
