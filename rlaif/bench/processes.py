"""Processes of the training benchmark, and what they and the run say to each other.

Light to import: the libraries that take seconds are loaded once, by the server that a CPU's
processes are forked from; a GPU's cannot be forked and load them anew.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import traceback
import warnings
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any

from sft.files import UserError

GO = "go"
WORKER = "rlaif.bench.worker"


def context_for(device: str) -> BaseContext:
    """How processes start where the work is on "cpu" or "cuda"."""
    if device != "cpu":
        return multiprocessing.get_context("spawn")
    # OpenMP's threads spin before they sleep: without end, who waits for a turn slows whose turn it
    # is; not at all, each small operation waits for its threads to wake (two threads, our DPO with
    # K = 4: 33 pairs per second, 64 with this). Children read it when they load torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WORKER])
    return context


class Process:
    """A fresh process at one task; it ends with the `with` block at the latest."""

    def __init__(self, context: BaseContext, task: str, *args: Any) -> None:
        self.task = task
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, task, *args), daemon=True)  # type: ignore[attr-defined]
        self._process.start()
        theirs.close()

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
        self._process.join()
        self.connection.close()

    def say(self, message: object) -> None:
        """Send a message."""
        self.connection.send(message)

    def hear(self) -> Any:
        """Wait for the next message, or for the task's result.

        Raises:
            UserError: the task found a mistake of the user.
            RuntimeError: it ended by a defect.
        """
        try:
            kind, content = self.connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise RuntimeError(f"'{self.task}' ended without a word, code {code}") from None
        if kind == "mistake":
            raise UserError(content)
        if kind == "defect":
            raise RuntimeError(f"'{self.task}' failed:\n{content}")
        return content


def tell(connection: Connection, content: object) -> None:
    """Say something to the run before the task is done."""
    connection.send(("message", content))


def serve(connection: Connection, task: str, *args: Any) -> None:
    """Do a task of `rlaif.bench.worker` in this process, quietly, and send its result."""
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            from rlaif.bench.worker import TASKS

            result = TASKS[task](connection, *args)
        except UserError as error:
            connection.send(("mistake", str(error)))
        except Exception:
            connection.send(("defect", traceback.format_exc()))
        else:
            connection.send(("done", result))
