"""A LoRA adapter into the weights of its base, file by file, in memory far below the model's size.

Tensors stream from safetensors to safetensors a few rows at a time: peak memory is that of one
block, the adapter, and the pages of one mapped tensor, whatever the model and the shard size are.
The base must be the 16- or 32-bit one: merging into dequantised 4-bit weights gives a worse model.
Not here: whether the result speaks as the adapter does (`rlaif.verify`).
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open

from rlaif.lora import LoraDelta, read_lora
from sft.files import UserError, read_json, storage_errors, write_atomically, write_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
BLOCK = 2_000_000  # elements handled at once: 8 MB in float32
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
# What goes with the weights: never code, never pickles.
COMPANIONS = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "chat_template.*", "LICENSE*", "NOTICE*",
    "USE_POLICY*",
)  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """Where a tensor of the base is, and what it will be: `dtype` is safetensors' name for it."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    new_dtype: str

    @property
    def size(self) -> int:
        """Bytes of the written tensor."""
        return math.prod(self.shape) * SIZES[self.new_dtype]


@dataclass(frozen=True)
class Merged:
    """What was written.

    Attributes:
        files: the weights' files in order.
        changed: how many tensors the adapter changed; dtype: the coarsest that one was rounded to.
        size: bytes of all weights.
    """

    files: list[str]
    changed: int
    size: int
    dtype: torch.dtype


def merge_adapter(
    base_folder: Path,
    adapter_folder: Path,
    out: Path,
    *,
    max_shard_size: int,
    dtype: torch.dtype | None,
) -> Merged:
    """Write base + adapter as a model folder: W' = W + (alpha / r) B A, in float32, rounded once.

    The update is equation 3 of Hu et al. 2021 (arXiv:2106.09685); rank-stabilised adapters scale
    by alpha / sqrt(r) (arXiv:2312.03732).

    Args:
        base_folder: the unquantised base, as safetensors.
        adapter_folder: a LoRA adapter of it, as PEFT saves it.
        out: the new model's folder.
        max_shard_size: bytes of the largest weights file; a larger tensor has a file of its own.
        dtype: of the written weights; None keeps each as it is.

    Raises:
        UserError: the adapter or the base is of a kind that cannot be merged, or they do not fit.
        StorageError: the disk is full.
    """
    config = _read_config(base_folder)
    tensors = _list_tensors(base_folder, dtype)
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    deltas = read_lora(adapter_folder, shapes, config)
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, max_shard_size)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        file = SINGLE if len(shards) == 1 else several
        _write_shard(out / file, shard, deltas)
        places |= {tensor.name: file for tensor in shard}
    size = sum(tensor.size for tensor in tensors)
    if len(shards) > 1:
        write_json(out / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    _write_companions(base_folder, out, config, dtype)
    written = {DTYPES[tensor.new_dtype] for tensor in tensors if tensor.name in deltas}
    files = list(dict.fromkeys(places.values()))
    return Merged(files, len(deltas), size, coarsest(*written))


def stored_size(folder: Path) -> int:
    """Bytes of a model's weights as they are stored.

    Raises:
        UserError: the folder has no safetensors.
    """
    tensors = _list_tensors(folder, None)
    return sum(tensor.size for tensor in tensors)


def half_precision(folder: Path) -> torch.dtype:
    """The 16-bit type that fits a base: float16 where most of it is stored so, else bfloat16.

    float32 weights have bfloat16's range, which float16 could overflow.

    Raises:
        UserError: the folder has no safetensors.
    """
    sizes: Counter[str] = Counter()
    for tensor in _list_tensors(folder, None):
        sizes[tensor.dtype] += tensor.size
    return torch.float16 if sizes.most_common(1)[0][0] == "F16" else torch.bfloat16


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """Return the floating-point type with the largest rounding step."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def size_in_bytes(text: str) -> int:
    """Read "500MB" or "2GiB" as bytes.

    Raises:
        ValueError: another unit or no number.
    """
    units = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}
    unit = next((u for u in units if text.endswith(u)), None)
    if unit is None:
        raise ValueError(f"'{text}' is no size: write it as 500MB, 2GB or 2GiB")
    return int(float(text.removesuffix(unit)) * units[unit])


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise UserError(
            f"the base in {folder} is quantised: merging into it would give a worse model. Name "
            "the 16-bit base with --model.name_or_path, or export the adapter alone: "
            "--export.merge false"
        )
    return config


def _list_tensors(folder: Path, dtype: torch.dtype | None) -> list[Tensor]:
    """List a model's tensors in the order of its files, from the files' headers alone."""
    if (folder / INDEX).is_file():
        weight_map: Mapping[str, str] = read_json(folder / INDEX)["weight_map"]
        files = [folder / name for name in dict.fromkeys(weight_map.values())]
    elif (folder / SINGLE).is_file():
        files = [folder / SINGLE]
    else:
        raise UserError(
            f"{folder} has no {SINGLE}: only safetensors are read, nothing is unpickled. Convert "
            "the base once with transformers: AutoModelForCausalLM.from_pretrained(...)"
            ".save_pretrained(<folder>)"
        )
    tensors = []
    for file in files:
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  (a safe_open is no mapping)
                part = weights.get_slice(name)
                old = part.get_dtype()
                new = NAMES[dtype] if dtype is not None and old in DTYPES else old
                tensors.append(Tensor(name, file, tuple(part.get_shape()), old, new))
    return tensors


def _shards(tensors: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size
    return shards


def _write_shard(path: Path, shard: Sequence[Tensor], deltas: Mapping[str, LoraDelta]) -> None:
    """Write a safetensors file in blocks; the library's writer wants all its tensors in memory.

    Layout: 8 bytes little-endian length of the header, the header (JSON, padded with spaces to a
    multiple of 8 bytes), the tensors' bytes one after the other, row-major and little-endian.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for t in shard:
        start, end = end, end + t.size
        header[t.name] = {"dtype": t.new_dtype, "shape": t.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def fill(file: IO[bytes]) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in shard:
            for block in _blocks(tensor, deltas.get(tensor.name)):
                file.write(block.contiguous().view(torch.uint8).numpy().tobytes())

    write_atomically(path, fill)


def _blocks(tensor: Tensor, delta: LoraDelta | None) -> Iterator[torch.Tensor]:
    """Give the written tensor a few rows at a time."""
    # Opened anew for each tensor: the pages of a mapped file count as memory until it is closed.
    with safe_open(tensor.file, framework="pt") as weights:
        if not tensor.shape or tensor.dtype not in DTYPES:
            yield weights.get_tensor(tensor.name).reshape(-1)
            return
        part = weights.get_slice(tensor.name)
        rows = tensor.shape[0]
        step = max(1, BLOCK * rows // max(1, math.prod(tensor.shape)))
        for start in range(0, rows, step):
            block = part[start : start + step]
            if delta is not None:
                block = block.float() + delta.rows(start, start + step)
            yield block.to(DTYPES[tensor.new_dtype])


def _write_companions(
    base: Path, out: Path, config: dict[str, Any], dtype: torch.dtype | None
) -> None:
    with storage_errors(out):
        for file in sorted({file for pattern in COMPANIONS for file in base.glob(pattern)}):
            if file.is_file() and file.name != "config.json":
                shutil.copyfile(file, out / file.name)
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = str(dtype).removeprefix("torch.")
    write_json(out / "config.json", config)
