"""One call at a time to a service: its place at the gate, its price, its outcome in the ledger.

A call keeps its place until its outcome is on the disk, so that a kill loses no more answers than
there are places. Not here: trying again (`reward.client`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx2
import openai

from reward.budget import Budget, most_tokens
from reward.faults import Failure, failure_of, read_response, refusal, without_echo
from reward.gate import Closed, Gate
from reward.ledger import Answer, Attempt, Entry, Ledger
from reward.service import Pace, Request, Service
from reward.transport import DirectTransport, needs_proxy
from sft.files import EvaluatorStopped, StorageError
from sft.progress import duration

SILENT = 20  # calls without an answer before a silence means anything


class Recorder:
    """Writes entries of many calls in one transaction, beside the event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._writer = ThreadPoolExecutor(1)
        self._waiting: list[tuple[Sequence[Entry], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def save(self, entries: Sequence[Entry]) -> None:
        """Return when the entries are on the disk.

        Raises:
            StorageError: the disk is full.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entries, written))
        if self._task is None:
            self._task = asyncio.create_task(self._write())
        await written

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting, []
            together = [entry for entries, _ in group for entry in entries]
            work = loop.run_in_executor(self._writer, self._ledger.append, together)
            await asyncio.wait([work])
            # Every call that waits has to learn of it, unless it was given up meanwhile.
            for written in (each for _, each in group if not each.done()):
                if error := work.exception():
                    written.set_exception(error)
                else:
                    written.set_result(None)
        self._task = None

    def close(self) -> None:
        """End the writer's thread; everything has been saved by then."""
        self._writer.shutdown()


class Caller:
    """Makes calls and keeps the figures of a run.

    Args:
        service: who is asked.
        ledger: where outcomes go.
        pace: how long a silence may last.
        hint: what a user should change when the service does not know the model.
    """

    def __init__(self, service: Service, ledger: Ledger, pace: Pace, hint: str) -> None:
        self.service, self._pace, self._hint = service, pace, hint
        self.budget = Budget(service.prices, service.max_cost, ledger.spent())
        self.gate = Gate(service.max_in_flight)
        self.outcomes: Counter[str] = Counter()
        self.answered = 0
        self.stopped: BaseException | None = None
        self._stopping = asyncio.Event()
        self._recorder = Recorder(ledger)
        self._noted: set[str] = set()
        self._silent, self._heard = 0, time.monotonic()
        self._api: openai.AsyncOpenAI

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Meanwhile calls can be made."""
        url = self.service.url
        # Conversations go to the host that the user named and to no other: no redirect is followed.
        if needs_proxy(url):
            http = openai.DefaultAsyncHttpxClient(follow_redirects=False)
        else:
            http = httpx2.AsyncClient(transport=DirectTransport(), follow_redirects=False)
        self._api = openai.AsyncOpenAI(
            api_key=self.service.key(),
            base_url=url,
            max_retries=0,
            timeout=self.service.timeout_s,
            http_client=http,
        )
        try:
            async with self._api:
                yield
        finally:
            self._recorder.close()

    def stop(self, error: BaseException) -> None:
        """Let no further call through; the first reason counts."""
        if self.stopped is None:
            self.stopped = error
            self._stopping.set()
            self.gate.close()

    async def sleep(self, seconds: float) -> None:
        """Wait, but not longer than the run goes on.

        Raises:
            Closed: the run stops.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
            raise Closed

    async def call(self, request: Request, max_tokens: int) -> Answer | Failure:
        """One call, from its place at the gate until its outcome is on the disk.

        Raises:
            Closed: the run stops, for the reason in `stopped`.
        """
        entered = await self.gate.enter()
        overload = False
        try:
            body = {"model": self.service.model, **request.body(max_tokens)}
            bound = self._most(body, max_tokens)
            await self._reserve(request.key, bound)
            outcome = await self._send(request.key, body)
            if isinstance(outcome, Failure):
                outcome = without_echo(outcome, body)
            overload = isinstance(outcome, Failure) and outcome.overload
            # Before the place is given back: whoever gets it would call once more.
            if isinstance(outcome, Failure) and outcome.kind == "fatal":
                self.stop(EvaluatorStopped(self._refusal(outcome)))
            outcome, entries, cost = self._account(outcome, request.key, bound)
            await self._recorder.save(entries)
            self.budget.settle(bound, cost)
            self._observe(outcome)
        except StorageError as error:
            self.stop(error)
            raise Closed from error
        finally:
            self.gate.leave(entered, overload=overload)
        return outcome

    def note(self) -> str:
        """For a live line: money, refused calls and the wait, as far as they are."""
        budget = self.budget
        parts = ["cost unknown" if budget.prices is None else f"${budget.spent:.4g} spent"]
        if budget.cap is not None:
            parts[0] = f"${budget.spent:.4g} of ${budget.cap:g} spent"
        if limited := self.outcomes["rate limit"]:
            parts.append(f"{limited} x 429")
        if (wait := self.gate.waits()) >= 1:
            parts.append(f"the service asks to wait {duration(wait)}")
        if self.stopped is not None:
            parts.append(f"stopping, {self.gate.in_flight} calls on the wire")
        return ", ".join(parts)

    def tell(self, about: str, text: str) -> None:
        """Print a note, once per run and matter."""
        if about not in self._noted:
            self._noted.add(about)
            start = "\n" if sys.stderr.isatty() else ""  # below the live line
            print(f"{start}note: {text}", file=sys.stderr, flush=True)

    # --- one call ------------------------------------------------------------------------------

    async def _send(self, key: str, body: dict[str, Any]) -> Answer | Failure:
        call = self._api.post("/chat/completions", body=body, cast_to=httpx2.Response)
        try:
            response = await asyncio.wait_for(call, self.service.timeout_s)
        except asyncio.TimeoutError:
            text = f"no whole answer within {self.service.timeout_s:g} s"
            return Failure("transient", "timeout", text, overload=True, maybe_paid=True)
        except openai.APIError as error:
            outcome: Answer | Failure = failure_of(error, self.service.url)
        else:
            outcome = read_response(key, response, self.service.model)
        return refusal(key, outcome, self.service.model)

    def _refusal(self, outcome: Failure) -> str:
        name, url = self.service.name, self.service.url
        if outcome.outcome == "unknown model":
            return f"{url} does not know {self.service.model}: {outcome.detail}. {self._hint}"
        return f"{name} refuses: {outcome.detail}"

    def _most(self, body: dict[str, Any], max_tokens: int) -> float:
        """The most that a call can cost, US dollars; 0 where prices are unknown."""
        if self.budget.prices is None:
            return 0.0
        text = json.dumps(body, ensure_ascii=False)
        return self.budget.prices.cost(most_tokens(text), max_tokens)

    async def _reserve(self, key: str, bound: float) -> None:
        """Set the money aside, on the disk too, so that a kill does not forget it.

        Raises:
            Closed: the cap is too near, or the run stops.
        """
        while not self.budget.reserve(bound):
            if not self.budget.calls:
                spent, cap = self.budget.spent, self.budget.cap
                text = (
                    f"max_cost is reached: ${spent:.4f} of ${cap:g} are spent and the next call "
                    f"may cost ${bound:.4f}. What was answered is kept: raise --max_cost to go on"
                )
                self.stop(EvaluatorStopped(text))
            await self.sleep(0.02)
        if self.budget.cap is not None:
            await self._recorder.save([Attempt(key, "sent", cost=bound)])

    def _account(
        self, outcome: Answer | Failure, key: str, bound: float
    ) -> tuple[Answer | Failure, list[Entry], float]:
        """The outcome with its cost, what the ledger gets, and the cost."""
        prices, cost = self.budget.prices, 0.0
        entries: list[Entry] = []
        if isinstance(outcome, Answer):
            if prices is not None:
                told = outcome.tokens_in + outcome.tokens_out > 0
                cost = prices.cost(outcome.tokens_in, outcome.tokens_out) if told else bound
            outcome = replace(outcome, cost=cost)
            entries.append(outcome)
        else:
            # Nobody says what a lost call has cost: the cap must hold in any case.
            cost = bound if outcome.maybe_paid else 0.0
            entries.append(Attempt(key, outcome.outcome, outcome.detail, cost))
        if self.budget.cap is not None:
            entries.append(Attempt(key, "settled", cost=-bound))
        return outcome, entries, cost

    def _observe(self, outcome: Answer | Failure) -> None:
        """Note what came; a service that has been silent for long ends the run."""
        if isinstance(outcome, Answer):
            self.answered += 1
            self._silent, self._heard = 0, time.monotonic()
            asked = self.service.model
            if not outcome.model.startswith(asked):  # dated versions of a model begin with its name
                self.tell(
                    f"model {outcome.model}",
                    f"{self.service.url} answers as '{outcome.model}', asked was '{asked}': the "
                    "answers are stored under both names",
                )
            return
        self.outcomes[outcome.outcome] += 1
        if outcome.kind == "rate limit":
            self._heard = time.monotonic()
        if outcome.wait_s:
            self.gate.pause(outcome.wait_s)
        if outcome.kind != "rate limit" and outcome.detail:
            self.tell(outcome.outcome, f"{outcome.outcome}: {outcome.detail}")
        self._silent += outcome.kind == "transient"
        silence = time.monotonic() - self._heard
        if self._silent >= max(SILENT, 2 * self.gate.limit) and silence > self._pace.silence_s:
            text = (
                f"{self.service.url} has answered nothing for {duration(silence)} "
                f"({self._silent} calls; last: {outcome.outcome} {outcome.detail}). What was "
                "answered is kept: run the same command when it is back"
            )
            self.stop(EvaluatorStopped(text))
