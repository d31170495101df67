"""Training that can be stopped at any update and goes on from there, bit for bit.

transformers' own checkpoints are pickles, written straight into their final folder, and their last
file is no proof of the others. Here its Trainer keeps its loop, and what it saves and loads is
`sft.checkpoints`: weights that learn, optimiser, scheduler, scaler, each process's random numbers,
and what was added up since the last logged line, so that metrics go on as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from sft import checkpoints
from sft.checkpoints import Checkpoint, Search
from sft.files import CheckFailed, EvaluatorStopped, to_json, write_text
from sft.resumable import Resumable
from sft.runs import METRICS
from sft.stopping import StopRequest, stop_requests
from sft.trainer_rules import Guard, Reporter
from sft.training_state import (
    load_state,
    packed_state,
    put_weights,
    random_state,
    save_state,
    set_random_state,
    trained_weights,
)

WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
TRAINER = "trainer_state.json"  # the name that Trainer reads
ORDERS = frozenset(
    {"random", "sequential", "group_by_length"}
)  # of rows, that follow from the seed


def train(trainer: Resumable, reporter: Reporter, save_every: int) -> None:
    """Train to the end, from the newest checkpoint of the stage where there is one.

    Args:
        trainer: any of this project's; its `train` is not called where `begin` says it is over.
        reporter: of its stage.
        save_every: updates between two checkpoints; 0 = only where something stops the run: a
            signal, or with one process an evaluator or a check (`Keeper.kept`).

    Raises:
        ResultExists: the checkpoint is of other settings or other rows.
        CheckFailed: a loss or gradient is NaN or infinite.
        EvaluatorStopped: who rewards does not go on.
        StorageError: the disk is full; earlier checkpoints are kept.
        KeyboardInterrupt, SystemExit: a signal came, and all is saved.
    """
    trainer.add_callback(reporter)
    trainer.remove_callback(PrinterCallback)  # the stage has its own progress line
    trainer.add_callback(Guard(trainer))
    if reason := why_none(trainer):
        reporter.stage.say(f"no checkpoints: {reason}")
        if not trainer.begin(0):
            trainer.train()
        return
    with stop_requests() as stop:
        keeper = Keeper(trainer, reporter, save_every, stop)
        found = keeper.find()
        if found:
            keeper.take_over()
        over = keeper.done or trainer.begin(found.step if found else 0)
        stop.leave(keeper.agreed())
        if not over:
            trainer.add_callback(keeper)
            with keeper.kept():
                trainer.train(resume_from_checkpoint=str(found.folder) if found else None)
        stop.leave()


def why_none(trainer: Trainer) -> str | None:
    """Why a training cannot go on from a checkpoint; None = it can."""
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return "FSDP and DeepSpeed divide the optimiser among processes"
    if trainer.args.train_sampling_strategy not in ORDERS:
        return f"train_sampling_strategy {trainer.args.train_sampling_strategy} keeps a state"
    return None


def rows_hash(rows: Any) -> str:
    """SHA-256 of a trainer's rows in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(to_json(row).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Held:
    """What a checkpoint of an earlier moment would hold and the trainer no longer has."""

    own: bytes
    course: Mapping[str, Any]
    tokens: int


class Keeper(TrainerCallback):
    """Writes and reads the checkpoints of one training.

    Attributes:
        done: the checkpoint was written after the last update: nothing is left to train.
        seconds: what earlier starts spent training.
    """

    def __init__(
        self, trainer: Resumable, reporter: Reporter, save_every: int, stop: StopRequest
    ) -> None:
        """Make one for a trainer that is about to train."""
        self.trainer, self.reporter, self.stage = trainer, reporter, reporter.stage
        self.save_every, self.stop = save_every, stop
        self.folder = self.stage.path(checkpoints.FOLDER)
        self.facts: dict[str, Any] = {}
        self.stopping: int | None = None
        self.found: Checkpoint | None = None
        self.shared: dict[str, Any] = {}  # what was saved of all processes
        self.own: dict[str, Any] = {}  # and of this one
        self.held: Held | None = None
        self.done, self.seconds, self.started = False, 0.0, time.monotonic()
        trainer.keeper = self

    # --- reading -------------------------------------------------------------------------------

    def find(self) -> Checkpoint | None:
        """Look for the newest checkpoint, say which it is, and read it."""
        args = self.trainer.args
        search = [Search(None)]
        if self.stage.is_main:
            rows = rows_hash(self.trainer.train_dataset)
            own = {"rows": rows, "processes": args.world_size}
            self.facts = self.stage.facts() | self.trainer.facts() | own
            search = [checkpoints.newest(self.folder, self.facts)]
        if args.world_size > 1:
            broadcast_object_list(search)
        self.found = search[0].checkpoint
        if self.found or search[0].passed_over:
            self.stage.say(search[0].line())
        if self.found:
            self.shared = load_state(self.found.path(STATE))
            self.own = load_state(self.found.path(_of_process(args.process_index)))
            self.done, self.seconds = self.shared["done"], self.shared["seconds"]
        return self.found

    def load_weights(self) -> None:
        """Put the checkpoint's weights into the model."""
        if self.found:
            put_weights(self.trainer.model, load_file(self.found.path(WEIGHTS)))

    def load_optimizer(self) -> None:
        """Put optimiser and scheduler where they were."""
        self.trainer.optimizer.load_state_dict(self.shared["optimizer"])
        self.trainer.lr_scheduler.load_state_dict(self.shared["scheduler"])

    def load_scaler(self) -> None:
        """Put the scale of fp16's losses where it was."""
        if self.trainer.accelerator.scaler is not None:
            self.trainer.accelerator.scaler.load_state_dict(self.shared["scaler"])

    def load_random(self) -> None:
        """Put this process's random numbers where they were."""
        set_random_state(self.own["random"])

    def take_over(self) -> None:
        """Stand where the last update had ended; history and metrics are as they were then."""
        assert self.found is not None
        self.load_weights()
        self.load_random()
        self.trainer.set_course(self.shared["course"])
        self.reporter.history[:] = self.shared["history"]
        kept = {
            name: self.found.path(name).read_text(encoding="utf-8")
            for name in self._files()
            if name in self.found.files
        }
        self.stage.rewind(kept.pop(METRICS, ""), self.shared["stage_seconds"])
        if self.stage.is_main:
            for name, text in kept.items():
                write_text(self.stage.path(name), text)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the sums that Trainer starts at zero."""
        self.started = time.monotonic()
        if not self.found:
            return
        trainer = self.trainer
        trainer._tr_loss = self.own["loss"].to(args.device)
        trainer._total_loss_scalar = self.shared["total_loss"]
        trainer._globalstep_last_logged = self.shared["last_logged"]
        trainer._initial_global_step = 0
        trainer.current_flos = self.own["flos"]
        trainer.set_sums(self.own["sums"])

    # --- writing -------------------------------------------------------------------------------

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decide, in all processes alike, whether to save here."""
        self.stopping = self.agreed()
        if state.global_step < state.max_steps:  # the end is saved with its last line of metrics
            due = self.save_every and state.global_step % self.save_every == 0
            control.should_save = bool(due or self.stopping)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End where a signal asked for it."""
        if self.stopping:
            self.stage.say(f"saved step {state.global_step} of {state.max_steps} in {self.folder}")
            self.stop.leave(self.stopping)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the end: what comes after training may be stopped, too."""
        self.stopping = self.stopping or self.agreed()
        if self.save_every or self.stopping:
            self.save(done=True)
        self.stop.leave(self.stopping)

    def hold(self) -> None:
        """Note what would be saved here, for what may go wrong before the next update."""
        if self.trainer.args.world_size == 1:  # of several, the others may be elsewhere
            tokens = self.trainer.state.num_input_tokens_seen
            self.held = Held(self._packed(), self.trainer.course(), tokens)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Save where `hold` was called last, if an evaluator or a check ends the training."""
        try:
            yield
        except (EvaluatorStopped, CheckFailed):
            if self.held:
                self.save(held=self.held)
            raise

    def agreed(self) -> int | None:
        """The signal that any process of the launch had; all must stop at one step."""
        number = self.stop.number or 0
        if self.trainer.args.world_size > 1:
            mine = torch.tensor([number], device=self.trainer.args.device)
            number = int(self.trainer.accelerator.gather(mine).max())
        return number or None

    def save(self, *, done: bool = False, held: Held | None = None) -> None:
        """Write a checkpoint of this step; process 0 writes for all.

        Args:
            done: nothing is left to train.
            held: of an earlier moment since the last update; None = as it is now.

        Raises:
            StorageError: the disk is full.
        """
        trainer = self.trainer
        held = held or Held(self._packed(), trainer.course(), trainer.state.num_input_tokens_seen)
        trainer.state.num_input_tokens_seen = held.tokens
        own, course = held.own, held.course
        every = gather_object([own]) if trainer.args.world_size > 1 else [own]
        if self.stage.is_main:
            step = trainer.state.global_step
            checkpoints.write(
                self.folder, step, lambda to: self._fill(to, every, course, done), self.facts
            )
        trainer.accelerator.wait_for_everyone()

    def _packed(self) -> bytes:
        """What is this process's own."""
        trainer = self.trainer
        return packed_state(
            {
                "random": random_state(),
                "loss": trainer._tr_loss,
                "flos": trainer.current_flos,
                "sums": trainer.sums(),
            }
        )

    def _files(self) -> tuple[str, ...]:
        return METRICS, *self.trainer.files

    def _fill(
        self, folder: Path, every: list[bytes], course: Mapping[str, Any], done: bool
    ) -> None:
        """Write the files of a checkpoint into its folder."""
        trainer, scaler = self.trainer, self.trainer.accelerator.scaler
        weights = trained_weights(trainer.model)
        copies = {name: each.detach().cpu().clone() for name, each in weights.items()}
        save_file(copies, folder / WEIGHTS)
        shared: Mapping[str, Any] = {
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "total_loss": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
            "history": self.reporter.history,
            "course": course,
            "seconds": self.seconds + time.monotonic() - self.started,
            "stage_seconds": self.stage.elapsed(),
            "done": done,
        }
        save_state(folder / STATE, shared)
        for number, content in enumerate(every):
            (folder / _of_process(number)).write_bytes(content)
        trainer.state.save_to_json(str(folder / TRAINER))
        for name in self._files():
            if self.stage.path(name).is_file():
                shutil.copyfile(self.stage.path(name), folder / name)


def _of_process(number: int) -> str:
    return f"process-{number}.safetensors"
