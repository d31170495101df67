"""What a process of the training benchmark does: prepare, compare, take turns, measure memory.

Each contestant works in a fresh process (`rlaif.bench.processes`). Between its turns it waits for a
message and computes nothing. Not here: who is asked when (`rlaif.bench.run`).
"""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from rlaif.bench.contestants import learned, make_trainer, same_start, write_model
from rlaif.bench.processes import GO, tell
from rlaif.bench.rules import Equality
from rlaif.bench.work import Job, Name, Ready, Size
from sft.files import UserError
from sft.model import choose_precision

M_MMAP_THRESHOLD = -3  # of malloc.h

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def prepare(
    connection: Connection, size: Size, timed: Path, gate: Path, device: str, dtype: str
) -> Ready:
    """Write the model that is timed and that of the gate; say what the device is fast in.

    Raises:
        UserError: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; leave it at cpu")
    write_model(size, timed, size.layers)
    write_model(size, gate, size.gate_layers)
    precision = choose_precision(dtype, use_cpu=device == "cpu")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    chosen = str(precision.dtype).removeprefix("torch.")
    return Ready(name, torch.get_num_threads(), chosen, precision.reason)


def compare(connection: Connection, job: Job, names: Sequence[Name]) -> list[Equality]:
    """How far each contestant's loss and gradient are from the first one's."""
    first, *others = names
    loss, gradient = _loss_and_gradient(make_trainer(job, first))
    found = []
    for who in others:
        other_loss, other = _loss_and_gradient(make_trainer(job, who))
        if [name for name, _ in gradient] != [name for name, _ in other]:
            raise ValueError(f"{first} and {who} train other weights")
        a, b = (torch.cat([value for _, value in each]) for each in (gradient, other))
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
        norm = (b.norm() / a.norm() - 1).abs()
        found.append(Equality(who, abs(other_loss / loss - 1), float(cosine), float(norm)))
    return found


def _loss_and_gradient(trainer: Trainer) -> tuple[float, list[tuple[str, torch.Tensor]]]:
    """Of the first batch, in training; gradients of what learns, by name, in float64."""
    same_start(trainer.model)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    loss.backward()
    gradients = ((n, w.grad) for n, w in learned(trainer.model).items() if w.grad is not None)
    return loss.item(), sorted((name, grad.flatten().double().cpu()) for name, grad in gradients)


def take_turns(connection: Connection, job: Job, who: Name) -> int:
    """Train; each update begins when `GO` is received, and its seconds are sent when it ends.

    Returns:
        Peak memory of this process in bytes: of the GPU, or all that was resident.
    """
    trainer = make_trainer(job, who)
    same_start(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Turns(connection, job.device))
    trainer.train()
    if job.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Turns(TrainerCallback):
    """Times an update from the end of the one before: fetching and collating its rows count."""

    def __init__(self, connection: Connection, device: str) -> None:
        self.connection, self.device = connection, device
        self.started = 0.0

    def _wait(self) -> None:
        message = self.connection.recv()
        if message != GO:
            raise ValueError(f"told {message!r}")
        self.started = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say that all is loaded, and wait for the first turn."""
        tell(self.connection, "ready")
        self._wait()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End a turn, and wait: for the next, or until everybody is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        tell(self.connection, time.perf_counter() - self.started)
        self._wait()


def measure_peak(connection: Connection, job: Job, who: Name) -> int:
    """Bytes that training needs beyond what is resident when it begins: peak less start.

    On a CPU it is read from /proc, which Linux has (man 5 proc: clear_refs, status).
    """
    trainer = make_trainer(job, who)
    same_start(trainer.model)
    trainer.remove_callback(PrinterCallback)
    if job.device == "cuda":
        start = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        return int(torch.cuda.max_memory_allocated()) - int(start)
    # glibc keeps small blocks that were freed; those from 64 KiB on are given back at once.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    start = status("VmRSS")
    trainer.train()
    return status("VmHWM") - start


def status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(kib) * 1024


TASKS: Mapping[str, Callable[..., Any]] = {
    "prepare": prepare,
    "compare": compare,
    "take turns": take_turns,
    "measure peak": measure_peak,
}
