"""Where names of people stand in a text: by plain rules, or by Presidio where that is installed.

The rules find whom a text introduces ("my name is ...", "my sister ..."), addresses ("Dear ...,")
or titles ("Dr ..."); a name that merely stands in a sentence is beyond them.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from functools import cache
from typing import Literal

from reward.fluency import is_common
from reward.lexicon import load_asset
from sft.files import UserError

Span = tuple[int, int]  # first character, and the one after the last
FindNamesBy = Literal["rules", "presidio"]
FindNames = Callable[[str], list[Span]]
MODEL = "en_core_web_lg"  # what Presidio reads English with unless told otherwise
LEAST_SCORE = 0.5  # of Presidio, 0 to 1; its own model gives names 0.85

_NAME = r"(?-i:[^\W\d_a-z][\w'\u2019-]+)"
_FULL = rf"(?P<name>{_NAME}(?:\s{_NAME}){{0,2}})"
_PEOPLE = (
    r"husband|wife|spouse|partner|fianc\u00e9e?|fiancee?|boyfriend|girlfriend|ex|son|daughter|child"
    r"|baby|brother|sister|twin|mother|mum|mom|father|dad|stepmother|stepfather|grand(?:mother"
    r"|father|ma|pa|son|daughter)|aunt|uncle|cousin|niece|nephew|friend|flatmate|room-?mate|neighbou?r"
    r"|boss|manager|colleague|co-?worker|teacher|tutor|therapist|counsell?or|psychologist|dog|cat"
)
# (pattern, whether a word of common English counts as a name there)
_RULES: tuple[tuple[re.Pattern[str], bool], ...] = (
    # Said so plainly that small letters and plain words count: "my name is grace".
    (re.compile(r"\b(?:my|his|her|their)\s+name(?:\s+is|'s|\u2019s|\s+was)\s+"
                r"(?P<name>[^\W\d_][\w'\u2019-]+(?:\s" + _NAME + r"){0,2})", re.I), True),
    (re.compile(rf"\b(?:name\s*:|(?:am|was|'m|\u2019m|is|are)\s+(?:called|named)|named)\s+{_FULL}",
                re.I), True),
    (re.compile(rf"\b(?-i:Mr|Mrs|Ms|Mx|Miss|Dr|Prof|Professor|Doctor|Nurse|Pastor|Father|Sister)"
                rf"\.?\s{_FULL}", re.I), True),
    (re.compile(rf"\b(?:dear|hi|hello|hey|thank you,|thanks,|goodbye,?|bye,?)\s{_FULL}"
                r"(?=\s*[,.!?:\n]|\s*$)", re.I), True),
    (re.compile(rf"\b(?:regards|wishes|love|sincerely|yours|thanks|hugs)\s*,?\s*\n+\s*{_FULL}"
                r"\s*(?:$|\n)", re.I), True),
    (re.compile(rf"\b(?:i\s?['\u2019]?m|i\s+am|this\s+is|it\s?['\u2019]?s|call\s+me)\s{_FULL}",
                re.I), False),
    (re.compile(rf"\b(?:my|our|his|her|their)\s+(?:\w+\s+)?(?:{_PEOPLE})(?:\s+is)?,?\s{_FULL}",
                re.I), False),
)  # fmt: skip


@cache
def _nobody() -> frozenset[str]:
    return frozenset(load_asset("redaction")["nobody"]["words"].split())


def by_rules(text: str) -> list[Span]:
    """The names that a text introduces, addresses or titles.

    Example:
        >>> text = "I'm Marit Holm and my sister Ida left."
        >>> [text[start:end] for start, end in by_rules(text)]
        ['Marit Holm', 'Ida']
    """
    found = set()
    for pattern, plain_words in _RULES:
        for match in pattern.finditer(text):
            start = match.start("name")
            end = start
            for word in re.finditer(r"\S+", match["name"]):
                written = re.sub("['\u2019]s$", "", word[0], flags=re.IGNORECASE)
                small = written.casefold()
                first = re.split("['\u2019]", small)[0]  # "Hi, I'd ..." is nobody's either
                if {small, first} & _nobody() or (
                    end == start and not plain_words and is_common(small)
                ):
                    break
                end = start + word.start() + len(written)  # `small` may be longer: ss for ß
            if end > start:
                found.add((start, end))
    return sorted(found)


def name_finder(kind: FindNamesBy) -> FindNames:
    """The finder that a recipe asks for.

    Raises:
        UserError: Presidio or its language model is not installed.
    """
    return by_rules if kind == "rules" else _with_presidio()


def missing_for_presidio() -> str | None:
    """What has to be installed before Presidio can be used; None = nothing."""
    if importlib.util.find_spec("presidio_analyzer") is None:
        return "pip install '.[presidio]'"
    # Presidio would download it by itself, in the middle of a run.
    if importlib.util.find_spec(MODEL) is None:
        return f"python -m spacy download {MODEL}"
    return None


@cache
def _with_presidio() -> FindNames:
    missing = missing_for_presidio()
    if missing is not None:
        raise UserError(f"redact_names presidio needs something more: {missing}")
    from presidio_analyzer import AnalyzerEngine

    engine = AnalyzerEngine()

    def find(text: str) -> list[Span]:
        people = engine.analyze(
            text=text, entities=["PERSON"], language="en", score_threshold=LEAST_SCORE
        )
        return sorted({*by_rules(text), *((each.start, each.end) for each in people)})

    return find
