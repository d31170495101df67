"""What a trainer gives a checkpoint and takes from it, first among its bases.

transformers' Trainer calls these at its own places. Not here: the checkpoint (`sft.resume`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from sft.files import CheckFailed

if TYPE_CHECKING:
    from sft.resume import Keeper


class Resumable(Trainer):
    """A trainer whose checkpoints are the keeper's; without one it has none.

    A loss that is no number ends the run before the update and says where.

    Attributes:
        files: names of files of the stage that a checkpoint holds a copy of.
    """

    keeper: Keeper | None = None
    files: Sequence[str] = ()

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, forward and backward.

        Raises:
            CheckFailed: the loss is NaN or infinite.
        """
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not math.isfinite(loss.item()):
            raise CheckFailed(
                f"the loss became {loss.item()} in step {self.state.global_step + 1}: stopped "
                f"before the update. {self.where()}. Lower the learning rate, or set --dtype "
                "float32"
            )
        return loss

    def where(self, *, update: bool = False) -> str:
        """What the micro-batch at work, or the whole update, is of; no text."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What has to be the same to go on, beside the stage's facts and the rows."""
        return {}

    def begin(self, step: int) -> bool:
        """Do what comes before a training that goes on from `step`; say whether it is over."""
        return False

    def sums(self) -> dict[str, Any]:
        """What this process added up and is not Trainer's own."""
        return {}

    def set_sums(self, sums: Mapping[str, Any]) -> None:
        """Put that back."""

    def course(self) -> dict[str, Any]:
        """What is the same in all processes and is not Trainer's own."""
        return {}

    def set_course(self, course: Mapping[str, Any]) -> None:
        """Put that back."""

    def _finalize_training(self, trial: Any, rows: Any, start_time: float) -> Any:
        seconds = self.keeper.seconds if self.keeper else 0.0
        return super()._finalize_training(trial, rows, start_time - seconds)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.keeper:
            self.keeper.save()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.keeper:
            self.keeper.load_weights()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.keeper and checkpoint:
            self.keeper.load_optimizer()

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.keeper and checkpoint:
            self.keeper.load_scaler()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self.keeper and checkpoint:
            self.keeper.load_random()


class TrlSums(Resumable):
    """The same for TRL's trainers, which add up metrics of their own."""

    _metrics: dict[str, defaultdict[str, list[float]]]
    _total_train_tokens: int

    def sums(self) -> dict[str, Any]:
        """TRL's metrics since the last logged line, and the tokens so far."""
        return {"metrics": dict(self._metrics["train"]), "tokens": self._total_train_tokens}

    def set_sums(self, sums: Mapping[str, Any]) -> None:
        """Put them back."""
        self._metrics["train"].clear()
        self._metrics["train"].update(sums["metrics"])
        self._total_train_tokens = sums["tokens"]
