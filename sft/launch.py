"""Which process of a launch this is, and how its processes agree before one of them writes.

Only environment variables and files: the stages' decisions are made before torch is imported.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sft.files import UserError, read_json, write_json

PATIENCE_S = 600.0
POLL_S = 0.05
SHARED = "all machines of a launch need the same runs folder on one disk; see the log above"
_opened: Counter[Path] = Counter()


def rank() -> int:
    """Number of this process in its launch (torchrun, accelerate), 0 where there is no launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process of a launch that writes and speaks: number 0."""
    return rank() == 0


def token(folder: Path) -> str:
    """A text that is the same in all processes of a launch and differs between launches.

    On one machine the launcher's process tells launches apart; other machines do not know it, there
    the addresses must do. How often this process opened `folder` counts too.
    """
    _opened[folder] += 1
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    parts = [os.environ.get(name, "") for name in (*names, "SLURM_JOB_ID", "SLURM_STEP_ID")]
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE"):
        parts += [str(os.getppid()), _start_of(os.getppid())]
    return "/".join([*parts, str(_opened[folder])])


def _start_of(pid: int) -> str:
    """When a process started (clock ticks), as process numbers are used again; "" where unknown."""
    stat = Path(f"/proc/{pid}/stat")
    # The second field is a name in parentheses which may hold spaces: count from its end.
    return stat.read_text().rpartition(")")[2].split()[19] if stat.is_file() else ""


class Agreement:
    """One decision of process 0 that all others learn before anything is written.

    Process 0 calls `announce`, the others `await_decision`. Process 0 then waits until all have
    read it and removes the files, so that no later launch takes an old decision for its own.
    """

    def __init__(self, folder: Path) -> None:
        """Prepare for a stage's `folder`; the files lie beside it."""
        self.base = folder.parent / f".{folder.name}.launch"
        self.token = token(folder)

    def announce(self, decision: dict[str, Any]) -> None:
        """Tell the other processes, and return when each has read it.

        Raises:
            UserError: some never came; they do not see this folder, or they died.
        """
        others = [self._answer(number) for number in range(1, world_size())]
        write_json(self.base, {"launch": self.token, **decision})
        limit = time.monotonic() + PATIENCE_S
        while missing := [each for each in others if not self._is_ours(each)]:
            if time.monotonic() > limit:
                raise UserError(
                    f"{len(missing)} of {len(others)} processes did not start: {SHARED}"
                )
            time.sleep(POLL_S)
        for path in (self.base, *others):
            path.unlink(missing_ok=True)

    def await_decision(self) -> dict[str, Any]:
        """What process 0 decided.

        Raises:
            UserError: nothing came; this process does not see the folder, or process 0 died.
        """
        limit = time.monotonic() + PATIENCE_S
        while not self._is_ours(self.base):
            if time.monotonic() > limit:
                raise UserError(f"no word from process 0 of the launch: {SHARED}")
            time.sleep(POLL_S)
        decision: dict[str, Any] = read_json(self.base)
        write_json(self._answer(rank()), {"launch": self.token})
        return decision

    def _answer(self, number: int) -> Path:
        return self.base.with_name(f"{self.base.name}.{number}")

    def _is_ours(self, path: Path) -> bool:
        return path.is_file() and bool(read_json(path)["launch"] == self.token)
