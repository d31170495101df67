"""SIGTERM and Ctrl-C as requests that a training reads at its next step boundary.

What is saved there is `sft.checkpoints`; outside `stop_requests` a signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from sft.launch import is_main

ECHO_S = 1.0  # a launcher passes a terminal's Ctrl-C on to processes that have had it already


class StopRequest:
    """SIGTERM and Ctrl-C as a flag that a loop reads at its next step boundary.

    A second Ctrl-C does not wait: it raises at once, wherever the loop is. `with
    stop_requests() as stop:` installs the handlers and gives the earlier ones back.

    Attributes:
        number: the signal that came first, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._came = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; the handler of both.

        Raises:
            KeyboardInterrupt: Ctrl-C while a stop is under way.
        """
        now = time.monotonic()
        if self.number is None:
            self.number, self._came = number, now
            if is_main():
                # A handler may interrupt a print: it writes past Python's buffers.
                os.write(2, b"stopping after this step; Ctrl-C again does not wait\n")
        elif number == signal.SIGINT and now - self._came > ECHO_S:
            raise KeyboardInterrupt

    def leave(self, number: int | None = None) -> None:
        """End as the signal asks for, if one came, once all is saved.

        Args:
            number: the signal that another process of the launch had, where this one had none.

        Raises:
            KeyboardInterrupt: it was Ctrl-C.
            SystemExit: it was SIGTERM; the code is 143.
        """
        number = self.number or number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number is not None:
            raise SystemExit(128 + number)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take SIGTERM and Ctrl-C as requests to stop, in the main thread, while the context lasts."""
    stop = StopRequest()
    before = {n: signal.signal(n, stop.handle) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
