"""Several demonstrations in one row: less padding, the same loss.

TRL packs while it prepares a data set, which this project's trainers leave out
(`sft.trainer_rules`): without this, `packing: true` would only join what a micro-batch has.
"""

from __future__ import annotations

from datasets import Dataset
from trl import pack_dataset

from sft.files import UserError
from sft.trainer_rules import IDS

WHOLE = ("bfd", "bfd_split")  # strategies that keep a demonstration whole where it fits


def pack(dataset: Dataset, room: int | None, strategy: str) -> Dataset:
    """Fill rows of `room` tokens with whole demonstrations; each sees its own tokens only.

    Args:
        dataset: `input_ids`, `labels`, `length` (tokens) and `ids` of each demonstration.
        room: tokens of a packed row; None = as many as the longest demonstration has.
        strategy: TRL's name of it.

    Returns:
        `input_ids`, `labels`, `seq_lengths` (tokens of each demonstration), `ids` of them all and
        `length` of each packed row.

    Raises:
        UserError: a demonstration is longer than a row, or the strategy cuts demonstrations.
    """
    longest = max(dataset["length"])
    if strategy not in WHOLE:
        raise UserError(
            f"finetune.trainer.packing_strategy {strategy} cuts replies: set it to {WHOLE[0]}"
        )
    if room is not None and room < longest:
        raise UserError(
            f"a demonstration has {longest} tokens and a packed row {room}: raise "
            "finetune.trainer.max_length, or leave it out"
        )
    # Every token also says which demonstration it is of, as packing joins token columns only.
    owners = [[number] * length for number, length in enumerate(dataset["length"])]
    rows = dataset.select_columns(["input_ids", "labels"]).add_column("owner", owners)
    packed = pack_dataset(rows, room or longest, strategy)
    ids, members = dataset[IDS], [[*dict.fromkeys(each)] for each in packed["owner"]]
    packed = packed.remove_columns("owner")
    packed = packed.add_column(IDS, [[x for n in each for x in ids[n]] for each in members])
    return packed.add_column("length", [sum(each) for each in packed["seq_lengths"]])
