"""What a rehearsed judge says to each kind of question: grades from a hash of the texts.

Not here: the service around it (`reward.rehearsal`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

# As long as what judges write who are asked for one or two sentences.
CRITIQUE = (
    "It was only rehearsed: nobody has read the reply, and these words stand where a judge would "
    "say what is good about it and what it leaves out."
)


def material(body: Mapping[str, Any]) -> str:
    """The texts of a request for a verdict, without the marks around them."""
    return str(body["messages"][-1]["content"].split("\n", 1)[1].rpartition("\n")[0])


def verdict(body: Mapping[str, Any]) -> dict[str, Any]:
    """A verdict in the form that a request asks for; the same texts get the same one.

    A reply gets the same grades alone and among others, and of two the same is always the better
    one: it is a judge whom order and company do not move.
    """
    texts, fields = material(body), _fields(body)
    if "verdicts" not in fields and "better" not in fields:
        return _drawn(texts, fields)
    shown = json.loads(texts)
    if "better" in fields:
        first, second = (_digest(_alone(shown, shown[side])) for side in ("first", "second"))
        better = "first" if first > second else "second" if second > first else "tie"
        return {"critique": CRITIQUE, "better": better}
    return {
        "verdicts": [
            {"id": reply["id"], **_drawn(_alone(shown, reply["reply"]), fields["verdicts"])}
            for reply in shown["replies"]
        ]
    }


def _fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """Names of a verdict and what each holds: bool, str or int; of "verdicts" those of one."""
    form = body.get("response_format", {}).get("json_schema")
    if form is None:  # the form stands in the instructions, at their end
        outline = str(body["messages"][0]["content"]).rpartition("\n")[2]
        found = re.findall(r'"(\w+)": <([^>]*)>', outline)
        fields = {name: _KINDS.get(said, str) for name, said in found}
        return {"verdicts": fields} if '"verdicts"' in outline else fields
    schema = form["schema"]
    if "verdicts" in schema["properties"]:
        return {"verdicts": _kinds(schema["$defs"]["Verdict"]["properties"])}
    return _kinds(schema["properties"])


def _kinds(properties: Mapping[str, Any]) -> dict[str, type]:
    types = {"boolean": bool, "integer": int}
    return {name: types.get(kind.get("type"), str) for name, kind in properties.items()}


_KINDS = {"true or false": bool, "1, 2, 3, 4 or 5": int}


def _alone(shown: Mapping[str, Any], reply: str) -> str:
    """The texts of a request about one reply."""
    texts = {"conversation": shown["conversation"], "reply": reply}
    return json.dumps(texts, ensure_ascii=False)


def _digest(texts: str) -> bytes:
    return hashlib.sha256(texts.encode()).digest()


def _drawn(texts: str, fields: Mapping[str, type]) -> dict[str, Any]:
    digest = _digest(texts)
    made: dict[str, Any] = {}
    for number, (name, kind) in enumerate((n, k) for n, k in fields.items() if n != "id"):
        drawn = digest[number % len(digest)]
        if kind is bool:
            made[name] = drawn % 8 > 0
        else:
            made[name] = CRITIQUE if kind is str else 1 + drawn % 5
    return made


def logprobs(content: str) -> dict[str, Any]:
    """Probabilities of the tokens of an answer: a grade has 0.75, those beside it the rest."""
    tokens = re.findall(r"\d|\s+|\w+|[^\w\s]+", content)
    return {"content": [_token(token) for token in tokens]}


def _token(token: str) -> dict[str, Any]:
    weights = {token: 1.0}
    if token in "12345":
        beside = [str(g) for g in (int(token) - 1, int(token) + 1) if 1 <= g <= 5]
        weights = {token: 0.75} | dict.fromkeys(beside, 0.25 / len(beside))
    others = [{"token": each, "logprob": math.log(p)} for each, p in weights.items()]
    return {"token": token, "logprob": others[0]["logprob"], "top_logprobs": others}
