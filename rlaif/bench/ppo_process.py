"""Processes of the PPO benchmark, each fresh, and TRL 1.12.0 in a folder of its own.

The other benchmark forks its processes from one that has loaded the project's TRL; here one side
needs another TRL, so that each is started anew. Light to import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rlaif.bench.ppo_work import GO, OPPONENT, PpoJob
from sft.files import UserError

ROOT = Path(__file__).resolve().parents[2]
LAST_LINES = 12  # of what a process said before it failed


def install_trl(folder: Path) -> Path:
    """Put TRL 1.12.0 into a folder, and no library that it needs: those are here already.

    Args:
        folder: of it alone, never on the path of anything but TRL's side. Found again, it is taken
            as it is.

    Raises:
        UserError: no package index could be reached, or there is no pip.
    """
    if (folder / "trl-1.12.0.dist-info").is_dir():
        return folder.resolve()
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    line += ["--no-deps", "--target", str(folder), "trl==1.12.0"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(
            f"TRL 1.12.0 could not be installed to {folder}, which needs pip and a package index: "
            f"{done.stderr.strip().splitlines()[-1:]}. Or put it there: pip install --no-deps "
            f"--target {folder} trl==1.12.0"
        )
    return folder.resolve()


class Process:
    """A contestant in a fresh process; it ends with the `with` block at the latest."""

    def __init__(self, job: Path, who: str, trl: Path, threads: int) -> None:
        """Start it; what its libraries say goes to a file beside the job."""
        theirs = who.startswith(OPPONENT)
        module = "rlaif.bench.ppo_trl" if theirs else "rlaif.bench.ppo_ours"
        path = [str(trl), str(ROOT)] if theirs else [str(ROOT)]
        self.who, self._log = who, job.parent / f"{who}.log"
        # Threads that spin without end slow whose turn it is; see rlaif.bench.processes.
        environment = {
            "PYTHONPATH": os.pathsep.join(path),
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",
            "GOMP_SPINCOUNT": "30000",
            "HF_HUB_OFFLINE": "1",
        }
        with self._log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(job), who],
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.terminate()
        self._process.communicate()

    def go(self) -> None:
        """Give it its turn."""
        if self._process.stdin is None:
            raise ValueError("the process has no input")
        self._process.stdin.write(GO + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Wait for its next message.

        Raises:
            RuntimeError: it ended by a defect.
        """
        if self._process.stdout is None:
            raise ValueError("the process has no output")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            said = self._log.read_text(encoding="utf-8").splitlines()[-LAST_LINES:]
            raise RuntimeError("\n".join([f"'{self.who}' ended with code {code}:", *said]))
        message: dict[str, Any] = json.loads(line)
        return message


def prepare(job: PpoJob, path: Path) -> None:
    """Write what all contestants read, in a process of its own.

    Raises:
        RuntimeError: it ended by a defect.
    """
    done = subprocess.run(
        [sys.executable, "-m", "rlaif.bench.ppo_ours", str(job.write(path)), "prepare"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-LAST_LINES:]))
