"""How processes wait for each other around a stage.

Those of one launch agree before one of them writes, and wait until it has; another launch is kept
out of the folder. Only environment variables and files: it happens before torch is imported.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.files import UserError, read_json, storage_errors, write_json
from sft.launch import rank, world_size
from sft.reuse import read_manifest

PATIENCE_S = 600.0
POLL_S = 0.05
SHARED = "all machines of a launch need the same runs folder on one disk; see the log above"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_opened: Counter[Path] = Counter()


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


def await_end(folder: Path) -> None:
    """Wait until process 0 has closed the stage: what comes next reads what it writes.

    Raises:
        SystemExit: process 0 did not finish; it says why.
    """
    while (read_manifest(folder) or {"status": "running"})["status"] == "running":
        time.sleep(POLL_S)
    if (read_manifest(folder) or {})["status"] != "finished":
        raise SystemExit(1)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder or file; the lock ends with this process, however.

    Raises:
        UserError: another process works there; it is named, with how to unlock.
        StorageError: the disk is full or may not be written.
    """
    path = folder.with_name(f".{folder.name}.lock")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            who = file.read().strip() or "its number is unknown"
            raise UserError(
                f"another process is working on {folder} ({who}): wait until it ends, or stop it "
                f"(kill <pid>), which frees the lock. Where no such process is left, as after a "
                f"crash of another machine, delete {path}"
            ) from None
        except OSError as error:
            # A mounted Drive on Colab knows no locks; there is one user then.
            if error.errno not in NO_LOCKS:
                raise
        with storage_errors(path):
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {platform.node()}")
            file.flush()
        yield
