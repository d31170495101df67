"""How far a stage is: done of total, rate and remaining time, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from sft.launch import is_main

TTY_INTERVAL_S = 0.2
LOG_INTERVAL_S = 10.0


class Progress:
    """One line that is rewritten on a terminal, and a line every ten seconds elsewhere.

    Only process 0 of a launch shows it. `total` 0 = unknown: no share and no remaining time.

    Example: `bar = Progress(3, "scores", unit="replies"); bar.advance(1); bar.close()`.
    """

    def __init__(
        self,
        total: int,
        label: str,
        unit: str = "items",
        stream: TextIO | None = None,
        note: Callable[[], str] | None = None,
    ) -> None:
        """Start the clock; nothing is shown before the first `advance`.

        `note` gives what else the line should say, now; `advance(0)` shows it when it is time to.
        """
        self.total, self.label, self.unit = total, label, unit
        self.done = 0
        self.stream = stream or sys.stderr
        self.note = note
        self.tty = self.stream.isatty()
        self.started = self.shown = time.monotonic()
        self.silent = not is_main()
        self.closed = False

    def __enter__(self) -> Progress:
        """Use as a context: `close` is called at its end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the line."""
        self.close()

    def advance(self, count: int = 1) -> None:
        """Note `count` more items as done, and show it where it is time to."""
        self.done += count
        now = time.monotonic()
        if now - self.shown >= (TTY_INTERVAL_S if self.tty else LOG_INTERVAL_S):
            self.shown = now
            self._write(self.line(now - self.started), end="" if self.tty else "\n")

    def close(self) -> None:
        """Show the final line once."""
        if not self.closed:
            self.closed = True
            self._write(self.line(time.monotonic() - self.started), end="\n")

    def line(self, seconds: float) -> str:
        """The text after so many seconds.

        Example: `scores: 120/480 replies (25%), 12.0/s, 30 s left`.
        """
        note = self.note() if self.note else ""
        return f"{self._counts(seconds)}, {note}" if note else self._counts(seconds)

    def _counts(self, seconds: float) -> str:
        rate = self.done / max(seconds, 1e-9)
        if self.closed:
            return f"{self.label}: {self.done} {self.unit} in {duration(seconds)}, {rate:.3g}/s"
        if not self.total:
            return f"{self.label}: {self.done} {self.unit}, {rate:.3g}/s"
        left = duration((self.total - self.done) / rate) if rate else "?"
        share = self.done / self.total
        return (
            f"{self.label}: {self.done}/{self.total} {self.unit} ({share:.0%}), "
            f"{rate:.3g}/s, {left} left"
        )

    def _write(self, text: str, *, end: str) -> None:
        if self.silent:
            return
        self.stream.write(f"\r{text}\x1b[K{end}" if self.tty else f"{text}{end}")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Seconds as people say them: `9 s`, `2 min 5 s`, `1 h 3 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
