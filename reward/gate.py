"""How many calls may be on the wire: more while it goes well, half when the service is overloaded.

Slow start, then additive increase and multiplicative decrease, as in TCP (Chiu and Jain, 1989).
A wait that the service asks for holds back every call.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

START = 8
DECREASE = 0.5


class Closed(Exception):
    """No call may start any more: the run stops."""


class Gate:
    """Lets calls through, `limit` at a time; for one event loop.

    Args:
        ceiling: most calls at once, at least 1.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = float(min(START, ceiling))
        self.in_flight = 0
        self.closed = False
        self._climbing = True  # slow start: the limit doubles with each round trip
        self._decreased = 0.0
        self._opens = 0.0
        self._queue: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> float:
        """Wait for a place; returns when it was taken (seconds, monotonic), for `leave`.

        Raises:
            Closed: the run stops.
        """
        if self.closed:
            raise Closed
        if self._queue or not self._free():
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            self._wake()
            await turn
        else:
            self.in_flight += 1
        return time.monotonic()

    def leave(self, entered: float, *, overload: bool) -> None:
        """Give the place back, and say whether the service was overloaded."""
        self.in_flight -= 1
        if not overload:
            self.limit += 1.0 if self._climbing else 1.0 / self.limit
            self.limit = min(self.limit, float(self.ceiling))
        elif entered >= self._decreased:
            # Calls that left before the last decrease tell nothing about the new limit.
            self.limit = max(1.0, self.limit * DECREASE)
            self._climbing, self._decreased = False, time.monotonic()
        self._wake()

    def pause(self, seconds: float) -> None:
        """Let nobody through for so long."""
        self._opens = max(self._opens, time.monotonic() + seconds)
        asyncio.get_running_loop().call_later(seconds + 0.001, self._wake)

    def waits(self) -> float:
        """Seconds until the gate opens again, 0 where it is open."""
        return max(0.0, self._opens - time.monotonic())

    def close(self) -> None:
        """Turn back everybody who waits, and who comes."""
        self.closed = True
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_exception(Closed())

    def _free(self) -> bool:
        return self.in_flight < int(self.limit) and time.monotonic() >= self._opens

    def _wake(self) -> None:
        while self._queue and self._free():
            turn = self._queue.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)
