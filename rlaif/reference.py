"""The reference's log-probabilities: once per candidate, kept in the run, never stale in silence.

A candidate's tokens stand for its text, its prompt, the chat template and the tokenizer; the key
stands for the model. A run that is started again with another rate, loss or margin reads what it
finds and scores what is new. Not here: what is learned against them (`rlaif.tree_dpo`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel
from trl.trainer.utils import disable_dropout_in_model

from reward.tree import TreeBatch, score_tree
from rlaif.groups import Group, trees_of
from sft import model as models
from sft.config import Recipe
from sft.files import sha256_of, short_hash, storage_errors
from sft.lineage import base_marks

FILE = "reference.safetensors"
TENSORS = ("names", "lengths", "log_probs")
Known = dict[bytes, torch.Tensor]  # log-probabilities of a candidate's tokens by `digest`


def digest(ids: Sequence[int], start: int) -> bytes:
    """A candidate's name: 16 bytes of SHA-256 of its tokens and of where its reply starts."""
    return hashlib.sha256(f"{start}:{' '.join(map(str, ids))}".encode()).digest()[:16]


def reference_key(
    recipe: Recipe, start: Path | None, precision: models.Precision, commit: str | None = None
) -> str:
    """What the reference's scores depend on beside the tokens: model, adapter and precision.

    `commit` is that of a model of the Hub.
    """
    return short_hash(
        {
            "model": recipe.model.name_or_path,
            "revision": commit or recipe.model.revision,
            "base": base_marks(recipe),
            "load_in_4bit": recipe.model.load_in_4bit,
            "adapter": sha256_of(start) if start else None,
            "dtype": str(precision.dtype),
        }
    )


@dataclass(frozen=True)
class Stored:
    """What a file held, and why what it held is of no use; None = it is, or there was no file."""

    known: Known
    stale: str | None


def load(path: Path, key: str) -> Stored:
    """Scores from an earlier start of the stage, where the same reference gave them."""
    if not path.is_file():
        return Stored({}, None)
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return Stored({}, "they are of another model, adapter or precision")
            tensors = {name: file.get_tensor(name) for name in TENSORS}
            if (file.metadata() or {}).get("sha256") != _sum_of(tensors):
                return Stored({}, "the file is damaged: its SHA-256 is another")
            names, lengths = tensors["names"], tensors["lengths"].tolist()
            values = tensors["log_probs"].split(lengths)
    except SafetensorError as error:
        return Stored({}, f"the file cannot be read ({error})")
    return Stored({bytes(n.tolist()): v for n, v in zip(names, values, strict=True)}, None)


def save(path: Path, key: str, known: Known) -> None:
    """Write scores beside the old file, then put them in its place.

    Raises:
        StorageError: the disk is full; the old file is as it was.
    """
    names = torch.tensor([list(name) for name in known], dtype=torch.uint8)
    lengths = torch.tensor([len(values) for values in known.values()])
    tensors = {"names": names, "lengths": lengths, "log_probs": torch.cat([*known.values()])}
    beside = path.with_suffix(".partial")
    with storage_errors(path):
        save_file(tensors, beside, metadata={"key": key, "sha256": _sum_of(tensors)})
        beside.replace(path)


def _sum_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of the tensors: a bit that flipped on a disk would teach another preference."""
    digest = hashlib.sha256()
    for name in TENSORS:
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Scoring:
    """How candidates are scored.

    Attributes:
        model: the reference, prepared by `reward.tree.add_tree_forward`, in training's precision.
        pad_id: token of the padding.
        multiple: a row's length is rounded up to a multiple of this.
        room: nodes at once; a larger group is scored alone.
    """

    model: PreTrainedModel
    pad_id: int
    multiple: int
    room: int


def score_candidates(how: Scoring, groups: Sequence[Group]) -> dict[int, torch.Tensor]:
    """Log-probabilities of each candidate's tokens by the reference, by its number.

    Each process takes its share of the groups, and all have all results.
    """
    model = how.model
    state = PartialState()
    batches: list[list[Group]] = []
    held = 0
    # Longest first: the batch that may not fit in memory fails at once, not at the end.
    for group in sorted(groups, key=lambda group: -group["length"]):
        if not batches or held + group["length"] > how.room:
            batches.append([])
            held = 0
        batches[-1].append(group)
        held += group["length"]
    found: list[tuple[int, torch.Tensor]] = []
    # As in training, with dropout off: in eval mode bitsandbytes would pack 4-bit weights anew on a
    # CPU, for good, and for a kernel that rounds otherwise.
    disable_dropout_in_model(model)
    model.train()
    with torch.no_grad():
        for some in batches[state.process_index :: state.num_processes]:
            batch = trees_of(some, how.pad_id, how.multiple)
            said = score_tree(model, TreeBatch(*(each.to(model.device) for each in batch)))
            numbers = [number for group in some for number in group["numbers"]]
            found += zip(numbers, said.log_probs.cpu().split(batch.lengths.tolist()), strict=True)
    return dict(gather_object(found) if state.num_processes > 1 else found)


def reference_of(
    how: Scoring, groups: Sequence[Group], path: Path, key: str
) -> tuple[dict[int, torch.Tensor], str]:
    """The reference's scores of all candidates by number, and a line on where they come from.

    Args:
        how: to score what is new.
        groups: all groups of the stage.
        path: file of scores; written where something was scored.
        key: what the scores depend on beside a candidate's tokens.
    """
    names = {
        number: digest(ids, start)
        for group in groups
        for number, ids, start in zip(
            group["numbers"], group["sequences"], group["starts"], strict=True
        )
    }
    found = [load(path, key)]
    if PartialState().num_processes > 1:  # on other machines the file may not be
        broadcast_object_list(found)
    stored = found[0]
    new = [g for g in groups if any(names[number] not in stored.known for number in g["numbers"])]
    scored = score_candidates(how, new)
    known = {names[number]: values for number, values in scored.items()} | stored.known
    known = {name: known[name] for name in names.values()}  # others are of earlier candidates
    if new and PartialState().is_main_process:
        save(path, key, known)
    read = sum(name in stored.known for name in names.values())
    line = f"reference: {len(names)} candidates = {read} read + {len(names) - read} scored"
    if stored.stale:
        line += f"; scores in {path.name} were not used: {stored.stale}"
    return {number: known[name] for number, name in names.items()}, line
