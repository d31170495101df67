"""What both sides of the PPO benchmark do alike in their own process: wait, count bytes.

Imports nothing that depends on TRL's version: TRL 1.12.0 is on the path of one side.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import torch

from rlaif.bench.ppo_work import GO, PARTS, PEAKS

STATUS = Path("/proc/self/status")


class Seat:
    """A contestant's place: it hears when its turn is, and says what it took.

    Whatever libraries print goes to the error stream, so that only messages are on the other.
    """

    def __init__(self) -> None:
        """Take the standard output for messages; remember what is resident by now."""
        self._out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.libraries = resident("VmRSS")

    def say(self, **message: Any) -> None:
        """Send one message."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def ready(self) -> None:
        """Loaded: the peak is counted from here on."""
        PEAKS.write_text("5", encoding="ascii")  # man 5 proc: the peak starts anew
        self.say(ready=True)

    def wait(self) -> None:
        """Compute nothing until the run says whose turn it is.

        Raises:
            EOFError: the run is gone.
        """
        line = sys.stdin.readline().strip()
        if line != GO:
            raise EOFError(f"told {line!r}")

    def took(self, *marks: float) -> None:
        """Say the seconds of each part from the times at which they began, and the last's end."""
        pairs = zip(PARTS, marks, marks[1:], strict=False)
        self.say(seconds={part: end - begin for part, begin, end in pairs})

    def leave(self, parameters: Iterable[torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Say what was held, as the last message."""
        states = [
            value
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        ]
        self.say(
            held={
                "weights": size_of(parameters),
                "optimizer": size_of(states),
                "libraries": self.libraries,
                "peak": resident("VmHWM"),
            }
        )


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors; what several share counts once."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def resident(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kib) * 1024
