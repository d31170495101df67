"""Grades as means over the probabilities of the digits, where a service tells them.

The mean of a judge's distribution says more than its mode (G-Eval, Liu et al. 2023,
arXiv:2303.16634, section 2). A digit counts only where it is certain that it is the grade: the
tokens joined are the text, and one token is that digit alone. Everything else is the plain grade.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

GRADES = ("1", "2", "3", "4", "5")
DIGITS = 6  # decimal places of a stored probability


def digits_of(text: str, logprobs: object) -> str:
    """The probabilities of the grades' digits at each token that is one of them, as JSON.

    A list of [place in the UTF-8 text, {digit: probability}]; "" where the tokens are not there, or
    do not give the text. Kept instead of all probabilities, which are a hundred times as long.

    Args:
        text: the answer.
        logprobs: of its tokens, as `chat/completions` gives them.
    """
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return ""
    place, whole, found = 0, [], []
    for each in content:
        if not isinstance(each, dict):
            return ""
        token = _bytes(each)
        digit = token.strip().decode("utf-8", "replace")
        if digit in GRADES and (weights := _weights(each)):
            found.append([place + len(token) - len(token.lstrip()), weights])
        whole.append(token)
        place += len(token)
    # What marks the end may stand behind the text.
    return json.dumps(found) if b"".join(whole).startswith(text.encode()) else ""


def expected_grades(
    text: str, digits: str, names: Sequence[str], verdicts: Sequence[Mapping[str, Any]]
) -> list[dict[str, float]]:
    """The expected grade, sum of g p(g) over sum of p(g), of each name in each verdict.

    Args:
        text: an answer that was read as these verdicts: strict JSON, each name once in each.
        digits: what `digits_of` gave for it.
        names: of the grades.
        verdicts: in the order of the text.

    Returns:
        For each verdict the names whose digit was found; the others keep the plain grade.
    """
    known = dict(json.loads(digits or "[]"))
    made: list[dict[str, float]] = [{} for _ in verdicts]
    for name in names:
        # Inside a string a quote has a backslash before it, so that this is the name itself.
        places = [
            (len(text[: hit.start(1)].encode()), hit[1])
            for hit in re.finditer(rf'"{re.escape(name)}"\s*:\s*([1-5])(?=[\s,}}])', text)
        ]
        if len(places) != len(verdicts):
            continue
        for (place, digit), verdict, grades in zip(places, verdicts, made, strict=True):
            weights = known.get(place)
            if weights is not None and str(verdict[name]) == digit and weights.get(digit):
                total = sum(weights.values())
                mean = sum(int(g) * p for g, p in weights.items()) / total
                grades[name] = min(5.0, max(1.0, mean))
    return made


def _weights(token: Mapping[str, Any]) -> dict[str, float]:
    """Probabilities of the digits at a token's place; {} where a number is none.

    " 4" and "4" are both a 4, so that their probabilities add up.
    """
    others = token.get("top_logprobs")
    others = [each for each in others if isinstance(each, dict)] if isinstance(others, list) else []
    # The token itself may be beside the likeliest ones.
    every = {_bytes(each): each.get("logprob") for each in (token, *others)}
    weights = dict.fromkeys(GRADES, 0.0)
    for said, value in every.items():
        digit = said.strip().decode("utf-8", "replace")
        if digit not in GRADES:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 1e-6:
            return {}
        weights[digit] += math.exp(value)
    if sum(weights.values()) > 1.001:
        return {}
    return {digit: round(p, DIGITS) for digit, p in weights.items() if round(p, DIGITS) > 0}


def _bytes(token: Mapping[str, Any]) -> bytes:
    """A token's bytes: half characters have no text of their own."""
    given = token.get("bytes")
    if isinstance(given, list) and all(isinstance(b, int) and 0 <= b < 256 for b in given):
        return bytes(given)
    return str(token.get("token", "")).encode("utf-8", "replace")
