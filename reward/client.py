"""Asks a service many things at once and pays for each once: the ledger first, then the wire.

A failure is tried again with full jitter (Brooker, "Exponential backoff and jitter", 2015), a wait
that the service asks for is kept, and what no call would survive stops the run after the calls on
the wire have been answered and saved. Not here: what is asked (`reward.request`), what an answer
means (the caller's `read`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from reward.call import Caller
from reward.faults import REFUSALS, Failure
from reward.gate import Closed
from reward.ledger import Answer, Ledger
from reward.service import Pace, Request, Service
from sft.files import EvaluatorStopped

MOST_UNREAD = 4  # unreadable answers to one request; models err, but not all the time
HOPELESS = 20  # unreadable answers before the first readable one: a matter of the settings
REJECTED = 3  # malformed requests before the first answer: one may be due to its reply
TICK_S = 0.2
Found = TypeVar("Found")


@dataclass(frozen=True)
class Unread:
    """Why a request has no usable answer."""

    reason: str


def settle(
    answers: Sequence[Answer],
    read: Callable[[Answer], Found | Unread],
    *,
    final: bool = False,
    whole: bool = True,
) -> Found | Unread | None:
    """What the answers to one request come to; None = ask once more.

    The first readable answer counts. A refusal is final; so are two answers that were cut off, and
    `MOST_UNREAD` unreadable ones.

    Args:
        answers: oldest first.
        read: the value in an answer, or why it has none.
        final: nothing more can be asked.
        whole: an answer that was cut off is none; False = it is read like the others.
    """
    cut = unread = 0
    reason = "not asked"
    for answer in answers:
        if answer.finish in REFUSALS:
            return Unread("refused")
        if whole and answer.finish == "length":
            cut, reason = cut + 1, "truncated"
            continue
        found = read(answer)
        if not isinstance(found, Unread):
            return found
        unread, reason = unread + 1, found.reason
    if final or cut > 1 or unread >= MOST_UNREAD:
        return Unread("truncated" if cut > 1 else reason)
    return None


class Client(Generic[Found]):
    """One run of questions; `ask_all` is called once.

    Args:
        service: who is asked, how many calls at once, at which prices.
        ledger: what was answered before, and where answers go.
        read: the value in an answer, or why it has none.
        hint: what a user should change when the service understands no request.
        pace: how patient to be.
        whole: an answer that was cut off is asked again with twice the tokens; False = it counts.
    """

    def __init__(
        self,
        service: Service,
        ledger: Ledger,
        read: Callable[[Answer], Found | Unread],
        *,
        hint: str,
        pace: Pace,
        whole: bool = True,
    ) -> None:
        self.service, self.ledger, self.pace = service, ledger, pace
        self.caller = Caller(service, ledger, pace, hint)
        self._settle = partial(settle, read=read, whole=whole)
        self._hint = hint
        self._readable = self._unreadable = self._rejected = 0

    async def ask_all(
        self,
        requests: Iterable[Request],
        done: Callable[[str, Found | Unread], None],
        tick: Callable[[], None],
    ) -> None:
        """Ask whatever the ledger does not answer; each request's key is there once.

        Args:
            requests: what to ask.
            done: called with the key and what came of it.
            tick: called several times a second, for a live line.

        Raises:
            EvaluatorStopped: the service refuses to go on, or the cap is reached.
            StorageError: the ledger cannot be written.
            KeyboardInterrupt, SystemExit: the user or the system stopped it; what was on the wire
                has been answered and saved.
        """
        todo = self._unsettled(requests, done)
        if not todo:
            return
        with self._signals():
            ticking = asyncio.create_task(_every(TICK_S, tick))
            try:
                async with self.caller.connected():
                    await self._dispatch(todo, done)
            finally:
                ticking.cancel()
        if self.caller.stopped is not None:
            raise self.caller.stopped

    def _unsettled(
        self, requests: Iterable[Request], done: Callable[[str, Found | Unread], None]
    ) -> list[tuple[Request, list[Answer]]]:
        """What is left to ask, with the answers so far; before the first write, as reads block."""
        known = self.ledger.answered()
        todo = []
        for request in requests:
            before = self.ledger.answers(request.key) if request.key in known else []
            found = self._settle(before)
            if found is None:
                todo.append((request, before))
            else:
                self._readable += not isinstance(found, Unread)
                done(request.key, found)
        return todo

    async def _dispatch(
        self,
        todo: Sequence[tuple[Request, list[Answer]]],
        done: Callable[[str, Found | Unread], None],
    ) -> None:
        # Rows that wait for another try hold no place at the gate, so more may live than may call.
        room = asyncio.Semaphore(2 * self.service.max_in_flight + 16)
        alive: set[asyncio.Task[None]] = set()

        async def one(request: Request, before: list[Answer]) -> None:
            with contextlib.suppress(Closed):
                done(request.key, await self._ask(request, before))

        def ended(task: asyncio.Task[None]) -> None:
            alive.discard(task)
            room.release()
            # Whatever it is ends the run, and is raised at its end.
            if not task.cancelled() and (error := task.exception()) is not None:
                self.caller.stop(error)

        for request, before in todo:
            await room.acquire()
            if self.caller.stopped is not None:
                break
            task = asyncio.create_task(one(request, before))
            alive.add(task)
            task.add_done_callback(ended)
        while alive:
            await asyncio.wait(alive)

    async def _ask(self, request: Request, answers: list[Answer]) -> Found | Unread:
        tries = limited = 0
        found = self._settle(answers)
        while found is None:
            cut = any(answer.finish == "length" for answer in answers)
            outcome = await self.caller.call(request, request.max_tokens * (2 if cut else 1))
            if isinstance(outcome, Answer):
                answers.append(outcome)
                found = self._settle(answers)
                self._stop_if_hopeless(found or self._settle(answers, final=True))
                continue
            if outcome.kind == "fatal":
                raise Closed
            if outcome.kind == "rejected":
                return self._reject(outcome)
            limited += outcome.kind == "rate limit"
            tries += outcome.kind == "transient"
            if tries >= self.pace.tries or limited >= self.pace.limited:
                return Unread(outcome.outcome)
            if not outcome.wait_s:  # a wait that was told is the gate's to keep
                most = self.pace.base_s * 2.0 ** min(tries + limited, 20)
                await self.caller.sleep(random.uniform(0.0, min(self.pace.longest_s, most)))
        return found

    def _reject(self, outcome: Failure) -> Unread:
        """A request that is not understood; where none ever was, the settings are wrong."""
        self._rejected += 1
        if not self.caller.answered and not self._readable and self._rejected >= REJECTED:
            raise EvaluatorStopped(
                f"{self.service.name} understood none of the first {REJECTED} requests: "
                f"{outcome.detail}. {self._hint}"
            )
        return Unread(outcome.outcome)

    def _stop_if_hopeless(self, found: Found | Unread | None) -> None:
        """Stop paying for answers of which none can be read."""
        if not isinstance(found, Unread):
            self._readable += 1
            return
        self._unreadable += found.reason != "refused"
        if not self._readable and self._unreadable >= HOPELESS:
            raise EvaluatorStopped(
                f"{self.service.name} gave no readable answer in its first {HOPELESS} "
                f"({found.reason}). {self._hint}"
            )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Drain on Ctrl-C and SIGTERM; a second Ctrl-C ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def interrupted() -> None:
            self.caller.stop(KeyboardInterrupt())
            loop.remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        loop.add_signal_handler(signal.SIGINT, interrupted)
        ending = SystemExit(128 + signal.SIGTERM)
        loop.add_signal_handler(signal.SIGTERM, self.caller.stop, ending)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


async def _every(seconds: float, tick: Callable[[], None]) -> None:
    while True:
        tick()
        await asyncio.sleep(seconds)
