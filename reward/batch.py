"""The same questions through OpenAI's Batch API: half the price, within 24 hours.

A batch's hash is in the ledger before it is sent and its id before anything waits for it, so that a
run that was killed goes on with the batch that it paid for, also where the id never came back: the
server keeps the hash beside it. Not here: single calls (`reward.client`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import openai
from openai.types import Batch

from reward.budget import most_tokens
from reward.client import Unread, settle
from reward.faults import Failure, by_status, failure_of, read_body, refusal, short, without_echo
from reward.ledger import Answer, Attempt, BatchNote, Entry, Ledger
from reward.service import Request, Service
from reward.transport import WITHOUT_PROXY
from sft.files import EvaluatorStopped

MOST_REQUESTS, MOST_BYTES = 50_000, 200_000_000  # the service's own limits for a file
ROUNDS = 4  # batches that a request may be in before it stays without an answer
RETRIES = 5  # of a call that sends a file or asks how a batch is
MOST_SAID, MOST_CODE = 160, 40  # characters of a service's own words, of its code, in a reason
TICK_S = 0.2
POLL_S = 30.0
ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
MARK = "ledger"  # our field in a batch's metadata
Found = TypeVar("Found")


def ask_in_batches(
    service: Service,
    ledger: Ledger,
    requests: Sequence[Request],
    read: Callable[[Answer], Found | Unread],
    done: Callable[[str, Found | Unread], None],
    tick: Callable[[], None],
    *,
    poll_s: float = POLL_S,
) -> None:
    """Ask whatever the ledger does not answer, in as few batches as the service allows.

    Args:
        service: who is asked, with the prices of a batch.
        ledger: what was answered before, which batches are under way, and where answers go.
        requests: each key once.
        read: the value in an answer, or why it has none.
        done: called with a key and what came of it.
        tick: called several times a second, for a live line.
        poll_s: seconds between two looks at a batch.

    Raises:
        EvaluatorStopped: the service refuses the batch, or the cap is reached.
        StorageError: the ledger cannot be written.
    """
    left = {request.key: request for request in requests}
    reasons: dict[str, str] = {}

    def finish(*, final: bool) -> None:
        for key in list(left):
            found = settle(ledger.answers(key), read, final=final)
            if found is not None:
                if isinstance(found, Unread) and found.reason == "not asked":
                    found = Unread(reasons.get(key, "batch: no answer"))
                done(key, found)
                del left[key]

    finish(final=False)
    if not left:
        return
    with _connected(service) as api:
        desk = _Desk(service, ledger, api, dict(left))
        reasons |= desk.collect(tick, poll_s)
        finish(final=False)
        for _ in range(ROUNDS):
            if not left:
                break
            whole = desk.send(list(left.values()))
            reasons |= desk.collect(tick, poll_s)
            finish(final=False)
            if not whole:
                raise EvaluatorStopped(
                    f"max_cost is reached: ${ledger.spent():.4f} of ${service.max_cost:g} are "
                    "spent. What was answered is kept: raise --max_cost to go on"
                )
    finish(final=True)


@contextlib.contextmanager
def _connected(service: Service) -> Iterator[openai.OpenAI]:
    """The service; what it refuses ends the run and says how to go on."""
    # As with single calls: conversations go to no host that the user has not named.
    http = openai.DefaultHttpxClient(follow_redirects=False, mounts=WITHOUT_PROXY)
    try:
        with openai.OpenAI(
            api_key=service.key(), base_url=service.url, max_retries=RETRIES, http_client=http
        ) as api:
            yield api
    except openai.APIError as error:
        failure = failure_of(error, service.url)
        raise EvaluatorStopped(
            f"{service.name}, Batch API: {failure.outcome}: {failure.detail}. Batches under way "
            "are in the ledger: the same command goes on with them"
        ) from error


class _Desk:
    """Sends batches and fetches what came of them; `asked` are the run's requests by key."""

    def __init__(
        self, service: Service, ledger: Ledger, api: openai.OpenAI, asked: Mapping[str, Request]
    ) -> None:
        self.service, self.ledger, self.api, self._asked = service, ledger, api, asked

    def send(self, requests: Sequence[Request]) -> bool:
        """Send what the cap allows; returns whether that was everything."""
        allowed, whole = self._allowed(requests)
        for lines, keys in _files(self._lines(allowed)):
            content = b"".join(lines)
            name = hashlib.sha256(content).hexdigest()
            sent = [Attempt(key, "sent", name, cost) for key, cost in keys if cost]
            self.ledger.append([*sent, BatchNote(name, "made")])
            file = self.api.files.create(file=(f"{name}.jsonl", content), purpose="batch")
            # Not tried again: where only the answer was lost, a second batch would be paid too.
            batch = self.api.with_options(max_retries=0).batches.create(
                input_file_id=file.id,
                endpoint=ENDPOINT,
                completion_window="24h",
                metadata={MARK: name},
            )
            self.ledger.append([BatchNote(name, "sent", batch.id)])
        return whole

    def collect(self, tick: Callable[[], None], poll_s: float) -> dict[str, str]:
        """Wait for every batch of this ledger; returns why requests of theirs have no answer."""
        reasons: dict[str, str] = {}
        for note in self._adopt(self.ledger.open_batches()):
            while (batch := self.api.batches.retrieve(note.batch)).status not in ENDED:
                until = time.monotonic() + poll_s
                while (rest := until - time.monotonic()) > 0:
                    tick()
                    time.sleep(min(TICK_S, rest))
            reasons |= self._keep(note, batch)
        return reasons

    def _adopt(self, notes: Sequence[BatchNote]) -> list[BatchNote]:
        """Batches with their ids; one whose id never arrived is looked for on the server."""
        known = [note for note in notes if note.batch]
        lost = {note.input_hash: note for note in notes if not note.batch}
        if lost:
            for batch in self.api.batches.list(limit=100):
                if note := lost.pop((batch.metadata or {}).get(MARK, ""), None):
                    note = replace(note, state="sent", batch=batch.id, at=time.time())
                    self.ledger.append([note])
                    known.append(note)
                if not lost:
                    break
        for name in lost:  # The run ended before the batch was made: nothing was paid.
            self.ledger.append([*self._settled(name), BatchNote(name, "done")])
        return known

    def _keep(self, note: BatchNote, batch: Batch) -> dict[str, str]:
        """Save all that a batch brought in one transaction. It may have no output at all."""
        entries: list[Entry] = []
        reasons: dict[str, str] = {}
        most = {each.key: each.cost for each in self.ledger.sent_with(note.input_hash)}
        for file in (batch.output_file_id, batch.error_file_id):
            if not file:
                continue
            for line in self.api.files.content(file).content.splitlines():
                if not line.strip():
                    continue
                outcome, key = _outcome(line, self.service.model)
                if isinstance(outcome, Answer):
                    cost = self._cost(outcome, most.get(key, 0.0))
                    entries.append(replace(outcome, cost=cost))
                else:
                    outcome = self._without_echo(outcome, key)
                    reasons[key] = _reason(outcome)
                    cost = most.get(key, 0.0) if outcome.maybe_paid else 0.0
                    entries.append(Attempt(key, outcome.outcome, outcome.detail, cost))
        entries += self._settled(note.input_hash)
        self.ledger.append([*entries, BatchNote(note.input_hash, "done", batch.id)])
        if batch.status == "failed":
            told = (batch.errors.data or []) if batch.errors else []
            said = [short(str(error.message)) for error in told]
            raise EvaluatorStopped(
                f"{self.service.name} refuses the batch {batch.id}: {'; '.join(said[:3])}"
            )
        return reasons

    def _without_echo(self, failure: Failure, key: str) -> Failure:
        """As for a single call; what an earlier run asked is not known here, nor then quoted."""
        request = self._asked.get(key)
        if request is None:
            return replace(failure, detail="")
        return without_echo(failure, request.body(request.max_tokens))

    def _settled(self, name: str) -> list[Attempt]:
        """What takes back the reserve of a batch's requests."""
        return [
            Attempt(attempt.key, "settled", name, -attempt.cost)
            for attempt in self.ledger.sent_with(name)
        ]

    def _cost(self, answer: Answer, most: float) -> float:
        """What an answer has cost; one that tells no tokens counts as the most that it can."""
        prices = self.service.prices
        if prices is None:
            return 0.0
        told = answer.tokens_in + answer.tokens_out > 0
        return prices.cost(answer.tokens_in, answer.tokens_out) if told else most

    def _allowed(self, requests: Sequence[Request]) -> tuple[list[tuple[Request, float]], bool]:
        """Requests with the most that each can cost, as far as the cap goes; 0 without prices."""
        prices, cap = self.service.prices, self.service.max_cost
        if prices is None:
            return [(request, 0.0) for request in requests], True
        total = self.ledger.spent()
        allowed: list[tuple[Request, float]] = []
        for request in requests:
            text = json.dumps(request.body(request.max_tokens), ensure_ascii=False)
            total += (most := prices.cost(most_tokens(text), self._limit(request)))
            if cap is not None and total > cap:
                return allowed, False
            allowed.append((request, most))
        return allowed, True

    def _limit(self, request: Request) -> int:
        cut = any(answer.finish == "length" for answer in self.ledger.answers(request.key))
        return request.max_tokens * (2 if cut else 1)

    def _lines(
        self, requests: Iterable[tuple[Request, float]]
    ) -> Iterator[tuple[bytes, str, float]]:
        for request, cost in requests:
            body = {"model": self.service.model, **request.body(self._limit(request))}
            line = {"custom_id": request.key, "method": "POST", "url": ENDPOINT, "body": body}
            yield json.dumps(line, ensure_ascii=False).encode() + b"\n", request.key, cost


def _files(
    lines: Iterable[tuple[bytes, str, float]],
) -> Iterator[tuple[list[bytes], list[tuple[str, float]]]]:
    """Lines in files of the size that the service takes."""
    file: list[bytes] = []
    keys: list[tuple[str, float]] = []
    size = 0
    for line, key, cost in lines:
        if file and (len(file) == MOST_REQUESTS or size + len(line) > MOST_BYTES):
            yield file, keys
            file, keys, size = [], [], 0
        file.append(line)
        keys.append((key, cost))
        size += len(line)
    if file:
        yield file, keys


def _outcome(line: bytes, asked: str) -> tuple[Answer | Failure, str]:
    """What a line of an output or error file says, and the key of its request."""
    try:
        row: dict[str, Any] = json.loads(line)
        key = str(row["custom_id"])
    except (ValueError, KeyError, TypeError):
        return Failure("transient", "no key"), ""
    response, error = row.get("response"), row.get("error")
    if isinstance(response, dict) and response.get("status_code") == 200:
        return refusal(key, read_body(key, response.get("body"), asked), asked), key
    if isinstance(error, dict):
        # A code is a word; what else stands there may be what a person wrote.
        code = str(error.get("code") or "")
        outcome = code if code.isidentifier() and len(code) <= MOST_CODE else "failed"
        return Failure("transient", outcome, short(str(error.get("message") or ""))), key
    response = response if isinstance(response, dict) else {}
    body = response.get("body")
    told = body.get("error") if isinstance(body, dict) else None
    told = told if isinstance(told, dict) else {}
    status = response.get("status_code")
    status = status if isinstance(status, int) else 500
    words = [str(told[name]) for name in ("type", "message") if told.get(name)]
    failure = by_status(status, told, ": ".join(words), {})
    return refusal(key, failure, asked), key


def _reason(failure: Failure) -> str:
    """Why a row of a batch has no answer, with the service's own words where it has some."""
    said = textwrap.shorten(failure.detail, MOST_SAID)
    return f"batch: {failure.outcome} ({said})" if said else f"batch: {failure.outcome}"
