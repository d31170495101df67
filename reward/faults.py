"""What went wrong with a call, and what that means: wait, try again, give up, or stop the run.

Pure functions of what came back. Not here: waiting and trying again (`reward.client`).
"""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Literal

import httpx2
import openai

from reward.expected import digits_of
from reward.ledger import Answer

QUOTED = 300  # characters of a service's own message
HIDDEN_KEY = "[key]"
LEAST_SECRET = 12  # characters; a key that has to be kept secret is longer
ECHO = 24  # characters in a row by which a message is known to repeat what was asked
LONGEST_WAIT_S = 24 * 3600.0
NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
OVERLOADED = frozenset({429, 503, 529})
TRY_AGAIN = frozenset({408, 409, 425, 429}) | frozenset(range(500, 600))
FILTERED = "content_filter"
REFUSALS = frozenset({"refusal", FILTERED})

Kind = Literal["rate limit", "transient", "rejected", "fatal"]


@dataclass(frozen=True)
class Failure:
    """A call without an answer.

    Attributes:
        kind: "rate limit" = wait and try again; "transient" = try again; "rejected" = this request
            will not be answered, others may be; "fatal" = no request will be.
        outcome: the reason in two or three words, as counted and stored.
        detail: what the service said, shortened.
        wait_s: seconds that the service told us to wait, None where it did not.
        overload: whether fewer calls at once would help.
        maybe_paid: whether the service may have worked for it.
    """

    kind: Kind
    outcome: str
    detail: str = ""
    wait_s: float | None = None
    overload: bool = False
    maybe_paid: bool = False


def refusal(key: str, outcome: Answer | Failure, asked: str) -> Answer | Failure:
    """What a content filter turned down, as an answer: asking again would bring the same.

    Such an error tells no tokens, so that its cost counts as the most that it can be.
    """
    if isinstance(outcome, Answer) or outcome.outcome != "refused":
        return outcome
    return Answer(key, "", FILTERED, asked, tokens_in=0, tokens_out=0, cost=0.0)


def without_echo(failure: Failure, body: Mapping[str, Any]) -> Failure:
    """The failure without a detail that repeats `ECHO` characters of the messages in `body`.

    Some services send the request back, and what a person wrote belongs on no screen and in no log.
    """
    contents = [str(message["content"]) for message in body["messages"]]
    asked = [" ".join(text.split()) for said in contents for text in (said, json.dumps(said))]
    said = failure.detail
    pieces = (said[at : at + ECHO] for at in range(len(said) - ECHO + 1))
    if any(piece in text for piece in pieces for text in asked):
        return replace(failure, detail="its message repeats the request and is left out")
    return failure


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms`, or `Retry-After` in seconds or as an HTTP date.

    At least 0 and at most a day; None where neither header is readable (RFC 9110, 10.2.3).

    Example: `retry_after({"retry-after": "30"}) == 30.0`.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) * unit
        except ValueError:
            seconds = math.nan
        if math.isnan(seconds) and name == "retry-after":
            try:
                seconds = parsedate_to_datetime(text).timestamp() - (now or time.time())
            except ValueError:
                continue
        if not math.isnan(seconds):
            return min(max(0.0, seconds), LONGEST_WAIT_S)
    return None


def failure_of(error: openai.APIError, url: str) -> Failure:
    """What an error of the SDK means; `url` is named where it cannot be reached."""
    if isinstance(error, openai.APITimeoutError):
        return Failure("transient", "timeout", f"no answer from {url}", None, True, True)
    if isinstance(error, openai.APIConnectionError):
        return _unreached(error, url)
    if isinstance(error, openai.APIStatusError):
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        return by_status(error.status_code, _shape(error.body), error.message, headers)
    return Failure("transient", "service: not JSON", short(error.message), maybe_paid=True)


def by_status(
    status: int, error: Mapping[str, Any], message: str, headers: Mapping[str, str]
) -> Failure:
    """What an error status with an error object means."""
    said, codes = short(message), {str(error.get("code")), str(error.get("type"))}
    if FILTERED in codes:
        return Failure("rejected", "refused", said, maybe_paid=True)
    if 300 <= status < 400:
        text = (
            f"the service sends callers on to {short(headers.get('location', 'another address'))}: "
            "conversations follow no redirect; give base_url the address that answers"
        )
        return Failure("fatal", "redirect", text)
    if codes & NO_CREDIT or status == 402:
        text = f"no credit left: {said}. Add credit or raise the limit, then run it again"
        return Failure("fatal", "no credit", text)
    if status in (401, 403):
        return Failure("fatal", "key refused", f"{said}. Check OPENAI_API_KEY")
    if status == 404:
        return Failure("fatal", "unknown model", said)
    if status in TRY_AGAIN:
        limited = status == 429
        return Failure(
            "rate limit" if limited else "transient",
            "rate limit" if limited else f"service: {status}",
            said,
            retry_after(headers),
            status in OVERLOADED,
        )
    return Failure("rejected", f"service: {status}", said)


def read_response(key: str, response: httpx2.Response, asked: str) -> Answer | Failure:
    """The answer in a response of status 200, or why it holds none.

    Args:
        key: of the request.
        response: with its body read.
        asked: name of the model that was asked, stored where the service names none.
    """
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        return Failure("transient", "service: not JSON", maybe_paid=True)
    return read_body(key, body, asked)


def read_body(key: str, body: object, asked: str) -> Answer | Failure:
    """The same for a body that is read already: lines of a batch's output are such bodies."""
    if not isinstance(body, dict):
        return Failure("transient", "service: no object", maybe_paid=True)
    if error := body.get("error"):
        error = _shape(error)
        code = error.get("code")
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
        if str(error.get("type")).startswith("rate_limit"):
            status = 429
        return by_status(status, error, str(error.get("message", "")), {})
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return Failure("transient", "service: no choices", maybe_paid=True)
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    finish = str(choice.get("finish_reason") or "stop")
    text = message.get("content")
    if message.get("refusal"):
        finish, text = "refusal", message["refusal"]
    text = text if isinstance(text, str) else ""
    if not text.strip() and finish not in REFUSALS and finish != "length":
        return Failure("transient", "empty answer", maybe_paid=True)
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        key=key,
        text=storable(text),
        finish=storable(finish),
        model=storable(str(body.get("model") or asked)),
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
        cost=0.0,
        digits=digits_of(storable(text), choice.get("logprobs")),
    )


def storable(text: str) -> str:
    """Text as it may be kept: as UTF-8 can hold it, and without the key that the service was given.

    Half characters (lone surrogates) become question marks. A word of fewer than `LEAST_SECRET`
    characters is what local servers take for a key, and may stand in any text.
    """
    key = os.environ.get("OPENAI_API_KEY", "")
    if len(key) >= LEAST_SECRET and (key in text or "\\u" in text):
        text = _written(key).sub(HIDDEN_KEY, text)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


@cache
def _written(key: str) -> re.Pattern[str]:
    """The key as it is, or with characters written as JSON may write them."""
    return re.compile("".join(rf"(?:{re.escape(c)}|(?i:\\u{ord(c):04x}))" for c in key))


def _unreached(error: openai.APIConnectionError, url: str) -> Failure:
    cause = str(error.__cause__ or error)
    if isinstance(error.__cause__, httpx2.ConnectError):
        if "CERTIFICATE" in cause.upper() or "SSL" in cause.upper():
            text = (
                f"{url}: the certificate is not trusted ({short(cause)}). Where a proxy or your "
                "own server signs its certificates itself, export SSL_CERT_FILE=<its CA file>"
            )
            return Failure("transient", "connection: TLS", text)
        return Failure("transient", "connection", f"{url} cannot be reached: {short(cause)}")
    return Failure("transient", "connection lost", short(cause), maybe_paid=True)


def _shape(error: object) -> Mapping[str, Any]:
    """An error object; some services send text, some wrap it once more."""
    if isinstance(error, dict):
        inner = error.get("error")
        return inner if isinstance(inner, dict) else error
    return {"message": error if isinstance(error, str) else ""}


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def short(text: str) -> str:
    """What a service said, for ledger and screen; some quote the key that they were given."""
    key = os.environ.get("OPENAI_API_KEY")
    said = storable(text.replace(key, HIDDEN_KEY) if key else text)
    return textwrap.shorten(said, QUOTED)
