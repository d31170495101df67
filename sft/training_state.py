"""What a training needs to go on: weights, optimiser, scheduler, scaler and random numbers.

Any nesting of mappings, lists, tensors and plain values is one safetensors file: the tensors under
their places, the rest as JSON in its header. So nothing is unpickled, and every value comes back
exactly: tensors by their bytes, floats by Python's shortest form that reads as the same number.
(torch.save, which transformers' checkpoints use, pickles.)
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

HEADER = "tree"


def save_state(path: Path, state: Any) -> None:
    """Write nested mappings, lists and tuples of tensors, numbers, strings, booleans and None.

    Raises:
        TypeError: the state holds something else.
    """
    tensors, header = _parts(state)
    save_file(tensors, path, metadata=header)


def packed_state(state: Any) -> bytes:
    """What `save_state` would write, to hand it to the process that writes."""
    tensors, header = _parts(state)
    packed: bytes = save(tensors, metadata=header)
    return packed


def _parts(state: Any) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    tensors: dict[str, torch.Tensor] = {}
    tree = _plain(state, "", tensors)
    return tensors, {HEADER: json.dumps(tree, allow_nan=False)}


def load_state(path: Path) -> Any:
    """What `save_state` wrote; tensors are on the CPU, tuples are lists."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        return _nested(json.loads((file.metadata() or {})[HEADER]), tensors)


def _plain(value: Any, place: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A value's JSON form; its tensors go into `tensors`. A one-key mapping names what it was."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, torch.Tensor):
        # Cloned: tensors that share memory are refused, as 8-bit optimisers' tables do.
        tensors[place] = value.detach().cpu().clone().contiguous()
        return {"tensor": place}
    if isinstance(value, Mapping):
        # Pairs, not an object: an optimiser's keys are numbers, which JSON would make strings.
        pairs = [[key, _plain(each, f"{place}/{key}", tensors)] for key, each in value.items()]
        return {"pairs": pairs}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{place}/{i}", tensors) for i, each in enumerate(value)]
    raise TypeError(f"{place}: {type(value).__name__} has no place in a checkpoint")


def _nested(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_nested(each, tensors) for each in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "float":
        return float(value)
    if kind == "tensor":
        return tensors[value]
    return {key: _nested(each, tensors) for key, each in value}


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All parameters that learn, by name: adapters and heads, not the frozen base."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


@torch.no_grad()
def put_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy weights of `trained_weights` into a model.

    Raises:
        ValueError: the model learns other parameters, or in other shapes or types.
    """
    own = trained_weights(model)
    odd = sorted(own.keys() ^ weights.keys())
    odd += [
        name
        for name in own.keys() & weights.keys()
        if (own[name].shape, own[name].dtype) != (weights[name].shape, weights[name].dtype)
    ]
    if odd:
        raise ValueError(f"{len(odd)} weights do not match the model's, {odd[0]} among them")
    for name, parameter in own.items():
        parameter.copy_(weights[name])


def random_state() -> dict[str, Any]:
    """The state of this process's generators: Python, NumPy, torch, and CUDA where it is in use."""
    version, words, gauss = random.getstate()
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)  # it is a tuple only with legacy=True
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {**numpy, "state": {"key": key, "pos": numpy["state"]["pos"]}},
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put this process's generators where `random_state` found them."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**numpy, "state": {"key": key, "pos": numpy["state"]["pos"]}})
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
