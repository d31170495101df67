"""What holds for every trainer of this project: order of rows, guard against NaN, progress.

Not here: what a trainer learns (`sft.train`, `reward.train`, `rlaif.dpo`), and checkpoints
(`sft.resumable`, `sft.resume`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from sft.files import CheckFailed
from sft.progress import Progress
from sft.resumable import Resumable, TrlSums
from sft.runs import Stage

ROW = "row"  # column: number of a row in the training data
IDS = "ids"  # column: ids of what a row was made from
SHOWN_IDS = 10


class RowOrder(Sampler[int]):
    """The order of rows by seed and epoch alone; the orders are transformers' and accelerate's.

    Theirs lose their epoch where several processes skip the first batches of a resumed one, and
    those by length go on from where the epoch before left a generator.
    """

    def __init__(
        self, seed: int, rows: int, lengths: Sequence[int] | None, per_update: int
    ) -> None:
        """Order `rows` at random, or with like lengths in each `per_update` rows."""
        self.seed, self.rows, self.lengths, self.per_update = seed, rows, lengths, per_update
        self.epoch = 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        yield from self.of(self.epoch)
        self.epoch += 1

    def of(self, epoch: int) -> list[int]:
        """All row numbers in the order of an epoch, counted from 0."""
        if self.lengths is None:
            draw = torch.Generator().manual_seed(self.seed + epoch)
            order: list[int] = torch.randperm(self.rows, generator=draw).tolist()
            return order
        draw = torch.Generator().manual_seed(self.seed)
        grouped = LengthGroupedSampler(self.per_update, lengths=self.lengths, generator=draw)
        return [list(grouped) for _ in range(epoch + 1)][-1]


class Numbered:
    """A collator whose batches also say which rows they are of."""

    def __init__(self, collate: Callable[[Any], dict[str, Any]]) -> None:
        """Wrap a collator."""
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch, with `row` (B), the numbers of its rows."""
        numbers = torch.tensor([row[ROW] for row in rows])
        plain = [{name: value for name, value in row.items() if name != ROW} for row in rows]
        return {**self.collate(plain), ROW: numbers}


class TrainerRules(Resumable):
    """First among a trainer's bases: what holds for every training of this project.

    A loss or gradient that is no number ends the run with the rows' names. The column `length`
    stays, which `train_sampling_strategy: group_by_length` reads and the trainers would drop as no
    input of the model; the rows' order then depends on the seed and the rows of an update alone, so
    that two processes train in the order of one.
    """

    data_collator: Callable[[Any], dict[str, Any]]
    train_dataset: Dataset
    _signature_columns: list[str] | None
    order: RowOrder | None = None
    batch_rows: Sequence[int] = ()  # of the micro-batch at work
    update_rows: tuple[int, Sequence[int]] = (-1, ())  # steps done, and rows of the update at work

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        # TRL would render the conversations by its own rules, which neither drop old turns nor
        # count what is too long; `sft.chat` has rendered the rows.
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        names: list[str] = self._signature_columns or []
        self._signature_columns = [*{*names, "length", ROW}]

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's own, of rows that carry their number."""
        collate, rows = self.data_collator, self.train_dataset
        self.data_collator = Numbered(collate)
        self.train_dataset = rows.add_column(ROW, range(len(rows)))
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator, self.train_dataset = collate, rows

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        args: TrainingArguments = self.args
        if args.train_sampling_strategy not in ("random", "group_by_length"):
            return super()._get_train_sampler(train_dataset)
        by_length = args.train_sampling_strategy == "group_by_length"
        seed = args.seed if by_length or args.data_seed is None else args.data_seed
        per_update = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        lengths = list(rows["length"]) if by_length else None
        self.order = RowOrder(seed, len(rows), lengths, per_update)
        return self.order

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Trainer's own; the numbers of the rows, which are no input of a model, are kept here."""
        if ROW in inputs:
            step, before = self.state.global_step, self.update_rows
            self.batch_rows = inputs.pop(ROW).tolist()
            so_far = before[1] if before[0] == step else ()
            self.update_rows = (step, [*so_far, *self.batch_rows])
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def where(self, *, update: bool = False) -> str:
        """Rows by their numbers and the ids of what they were made from; no text."""
        numbers = self.update_rows[1] if update else self.batch_rows
        line = f"Rows {', '.join(map(str, numbers[:SHOWN_IDS]))}"
        if IDS in self.train_dataset.column_names:
            ids = [each for number in numbers for each in self.train_dataset[number][IDS]]
            line += f" ({', '.join(ids[:SHOWN_IDS])}"
            line += f" and {len(ids) - SHOWN_IDS} more)" if len(ids) > SHOWN_IDS else ")"
        return line

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        epochs, steps = super()._init_training_state(*args, **kwargs)
        if self.order is not None:
            self.order.epoch = epochs
        return epochs, steps


class TrlRules(TrlSums, TrainerRules):
    """The same for TRL's trainers."""


class Guard(TrainerCallback):
    """Ends a run whose gradient is no number, before the update."""

    def __init__(self, trainer: Any) -> None:
        """Watch a trainer."""
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the gradients.

        Raises:
            CheckFailed: one is NaN or infinite.
        """
        scaler = self.trainer.accelerator.scaler
        if scaler is not None and scaler.get_scale() > 1:
            return  # fp16's scaler leaves this update out by itself and tries a smaller scale
        learning = (each.grad for each in self.trainer.model.parameters())
        norm = torch.nn.utils.get_total_norm([each for each in learning if each is not None])
        if not torch.isfinite(norm):
            raise CheckFailed(
                f"a gradient became {float(norm)} in step {state.global_step + 1}: stopped before "
                f"the update. {self.trainer.where(update=True)}. Lower the "
                "learning rate, or set --dtype float32"
            )


class Reporter(TrainerCallback):
    """Trainer's log lines into the stage's metrics, and a progress line with the remaining time."""

    def __init__(self, stage: Stage, label: str) -> None:
        self.stage = stage
        self.label = label
        self.progress: Progress | None = None
        self.history: list[dict[str, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the progress line, of the steps that are left."""
        self.progress = Progress(state.max_steps - state.global_step, self.label, unit="steps")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the progress line."""
        if self.progress:
            self.progress.advance(1)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep what Trainer logs."""
        row = {k: float(v) for k, v in (logs or {}).items() if isinstance(v, int | float)}
        self.history.append(row)
        self.stage.log(row, step=state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the progress line."""
        if self.progress:
            self.progress.close()
