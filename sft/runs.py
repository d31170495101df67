"""The run folder: one folder per stage with a manifest, metrics, and a rule for doing things once.

A finished stage with the same settings and input contents is reused; a finished, different one is
an error; an unfinished one goes on from its newest checkpoint, or starts afresh without one. Not
here: what a stage does, and W&B (`sft.tracking`).
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from sft import checkpoints, reuse
from sft.files import (
    StorageError,
    UserError,
    is_disk_full,
    sha256_of,
    storage_errors,
    to_json,
    write_json,
    write_text,
)
from sft.launch import is_main, quiet_libraries, rank
from sft.progress import Progress
from sft.recipe import Recipe
from sft.reuse import (
    MANIFEST,
    finished_result,
    new_manifest,
    read_manifest,
    run_folder,
    stage_folder,
)
from sft.waiting import Agreement, await_end, locked

__all__ = [
    "Progress",
    "Stage",
    "is_main",
    "open_stage",
    "read_manifest",
    "run_folder",
    "run_script",
    "stage_folder",
]

METRICS = "metrics.jsonl"
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Stage:
    """One stage at work in its folder. Only the main process writes; the others may read.

    Attributes:
        folder: where the stage's outputs go.
        reused: the folder holds the finished result already: there is nothing to do.
        is_main: whether this process writes.
        manifest: what `manifest.json` says.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], *, reused: bool, is_main: bool):
        """Made by `open_stage`."""
        self.folder, self.manifest = folder, manifest
        self.reused, self.is_main = reused, is_main
        self._started = time.monotonic()
        self._listeners: list[Callable[[Mapping[str, Any], int | None], None]] = []

    def path(self, name: str) -> Path:
        """The path of an output of this stage."""
        return self.folder / name

    def say(self, text: str) -> None:
        """Print a line, from the main process only."""
        if self.is_main:
            print(text, flush=True)

    def follow(self, listener: Callable[[Mapping[str, Any], int | None], None]) -> None:
        """Call `listener(metrics, step)` for everything that is logged from now on."""
        self._listeners.append(listener)

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append numbers to `metrics.jsonl`, with `step` and `time` (seconds since the start).

        NaN and infinity are written as null.

        Raises:
            StorageError: the disk is full.
        """
        if not self.is_main:
            return
        row = {name: _finite(value) for name, value in metrics.items()}
        line = to_json({"step": step, "time": self.elapsed(), **row})
        path = self.path(METRICS)
        with storage_errors(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        for listener in self._listeners:
            listener(row, step)

    def facts(self) -> dict[str, Any]:
        """What must be the same for a checkpoint of this stage to be of use; main process only."""
        return reuse.facts(self.manifest)

    def rewind(self, metrics: str, seconds: float) -> None:
        """Stand where a checkpoint was written: its `metrics.jsonl`, and seconds since the start.

        Raises:
            StorageError: the disk is full.
        """
        self._started = time.monotonic() - seconds
        if self.is_main:
            write_text(self.path(METRICS), metrics)

    def finish(self, outputs: Sequence[str], **summary: Any) -> None:
        """Declare the stage done: hash its outputs (files or folders) and keep the summary.

        Raises:
            StorageError: the disk is full; the stage is then unfinished.
        """
        if not self.is_main:
            return
        lost = [name for name in outputs if not self.path(name).exists()]
        if lost:
            raise FileNotFoundError(f"{self.folder} finishes without its outputs {lost}")
        self.manifest |= {
            "status": "finished",
            "seconds": self.elapsed(),
            "outputs": {name: sha256_of(self.path(name)) for name in outputs},
            "summary": summary,
        }
        write_json(self.path(MANIFEST), self.manifest)
        shutil.rmtree(self.path(checkpoints.FOLDER), ignore_errors=True)  # of no use from now on

    def elapsed(self) -> float:
        """Seconds since the start, those of earlier starts that it goes on from included."""
        return round(time.monotonic() - self._started, 2)

    def _fail(self, error: BaseException) -> None:
        """Note why the stage ended early; a finished one stays finished."""
        if not self.is_main:
            return
        # A signal can come between the writing of the manifest and the next line: the file decides.
        recorded = read_manifest(self.folder)
        if recorded and recorded["status"] == "finished":
            return
        stopped = isinstance(error, KeyboardInterrupt) or (
            isinstance(error, SystemExit) and error.code in INTERRUPTED
        )
        self.manifest |= {
            "status": "interrupted" if stopped else "failed",
            "seconds": self.elapsed(),
            # Only a user's mistake is quoted: other messages can hold pieces of conversations.
            "reason": str(error) if isinstance(error, UserError) else type(error).__name__,
        }
        # On a full disk the manifest keeps saying "running", which is read as unfinished too.
        with contextlib.suppress(StorageError):
            write_json(self.path(MANIFEST), self.manifest)
        print(
            f"{self.manifest['status']}: {self.folder} is unfinished; earlier stages are kept. "
            f"To go on: {self.manifest['command']}",
            file=sys.stderr,
            flush=True,
        )


@contextlib.contextmanager
def open_stage(
    recipe: Recipe,
    name: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path],
    round: int = 1,
    keep: Sequence[str] = (),
) -> Iterator[Stage]:
    """Open a stage's folder, or find that its result is there already (`stage.reused`).

    All processes of a launch call this; number 0 decides and is the only one that writes.

    Args:
        recipe: names the run; `overwrite` replaces a finished, different result.
        name: the stage's folder.
        config: the settings that shape the result (`recipe.settings(...)`). One that has the name
            of an input is compared by that input's contents, not by its text.
        inputs: files or folders that shape the result, by name.
        round: the round of the loop.
        keep: patterns of files that survive a fresh start, for ledgers that are keyed by content.

    Raises:
        ResultExists: another result is there, or files that no stage wrote.
        UserError: an input is missing or its stage unfinished; another process works here.
        StorageError: the disk is full or may not be written.
    """
    folder = stage_folder(recipe, name, round)
    agreement = Agreement(folder)
    if rank() != 0:
        decision = agreement.await_decision()
        if decision["exit_code"] is not None:
            raise SystemExit(decision["exit_code"])  # Process 0 says why.
        with _watch(Stage(folder, {}, reused=decision["reused"], is_main=False)) as stage:
            yield stage
        await_end(folder)
        return
    with locked(folder):
        try:
            now = new_manifest(recipe, config, inputs)
            resume = recipe.resume == "auto"
            found = finished_result(folder, now, overwrite=recipe.overwrite, resume=resume)
            reused = found.manifest is not None
            stage = Stage(folder, found.manifest or now, reused=reused, is_main=True)
            if not reused:
                _start(stage, [*keep, checkpoints.FOLDER] if found.goes_on else keep)
        except UserError as error:
            agreement.announce({"reused": False, "exit_code": error.exit_code})
            raise
        agreement.announce({"reused": stage.reused, "exit_code": None})
        with _watch(stage):
            yield stage


@contextlib.contextmanager
def _watch(stage: Stage) -> Iterator[Stage]:
    """Note in the manifest whatever ends a stage early."""
    try:
        yield stage
        if stage.is_main and stage.manifest["status"] != "finished":
            raise RuntimeError(f"{stage.folder} was left without Stage.finish")
    except BaseException as error:
        stage._fail(error)
        raise


def _start(stage: Stage, keep: Sequence[str]) -> None:
    """Claim the folder with a fresh manifest, then clear what an earlier attempt left."""
    with storage_errors(stage.folder):
        write_json(stage.path(MANIFEST), stage.manifest)
        for each in stage.folder.iterdir():
            if any(fnmatch(each.name, pattern) for pattern in (MANIFEST, *keep)):
                continue
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()


def _finite(value: float) -> float | None:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else None


# --- the process -------------------------------------------------------------------------------


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's `main` and end the process with the code that says how it went.

    0 done or reused; 1 a defect, with its traceback; 2 the user's mistake; 3 the evaluator refused
    service; 4 another result exists; 5 a check failed; 6 disk full or no permission; 130 Ctrl-C;
    143 SIGTERM. A user's mistake shows no traceback.
    """
    signal.signal(signal.SIGTERM, _on_sigterm)
    # A shell that starts a job in the background lets it ignore Ctrl-C; a stage must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    quiet_libraries()
    # Read when torch first takes memory: large tensors in huge pages (Linux) spare page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    who = f"error (process {rank()})" if rank() else "error"
    try:
        main()
    except UserError as error:
        print(f"{who}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if not is_disk_full(error):
            raise
        print(
            f"{who}: the disk is full ({error}). Free some space and run it again.", file=sys.stderr
        )
        sys.exit(StorageError.exit_code)
    sys.exit(0)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    """End through the `finally` blocks; a second signal does not cut them short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + number)
