"""A saved LoRA adapter as updates of its base's weights, or the reason why it is not one.

Only what adds (alpha / r) B A to a weight is taken. Variants that do more (DoRA, trained biases or
embeddings, whole modules) are refused by name: leaving their part out would give another model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sft.files import UserError, read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Settings of PEFT's LoraConfig that change more than W + (alpha / r) B A where they are on.
BEYOND_LORA = (
    "use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "layer_replication",
    "target_parameters", "use_qalora", "alora_invocation_tokens", "arrow_config", "use_bdlora",
    "kasa_config", "monteclora_config", "velora_config", "alpha_pattern",
)  # fmt: skip
# These initialisations leave the base as it is; others (pissa, olora, loftq, ...) change it.
PLAIN_INIT = (True, False, "gaussian", "orthogonal", "eva")
# Their layers are transformers' Conv1D, which stores a weight as (in, out).
CONV1D_MODELS = ("gpt2", "openai-gpt", "ctrl")
PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraDelta:
    """The update of one weight as a product: `left` (rows, r) times `right` (r, columns)."""

    left: torch.Tensor
    right: torch.Tensor

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of the update, float32."""
        return self.left[start:stop] @ self.right


def read_lora(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], base_config: Mapping[str, Any]
) -> dict[str, LoraDelta]:
    """Read the updates of an adapter by the name of the base's tensor.

    Args:
        folder: of the adapter.
        shapes: of the base's tensors by name.
        base_config: the base's `config.json`.

    Raises:
        UserError: no LoRA adapter, one that does more than LoRA, or one of another base.
    """
    config = read_adapter_config(folder)
    factors = load_file(str(folder / WEIGHTS))
    modules = _modules(folder, factors)
    strange = [module for module in modules if _tensor_name(module, shapes) is None]
    if strange:
        raise UserError(
            f"the adapter in {folder} changes {len(strange)} weights that the base does not have "
            f"({', '.join(strange[:3])}): it belongs to another base, or to a head that is tied to "
            "the embedding and cannot be merged alone"
        )
    deltas = {}
    for module in modules:
        name = _tensor_name(module, shapes) or ""
        if name.endswith(("lm_head.weight", "embed_tokens.weight", "wte.weight")) and (
            base_config.get("tie_word_embeddings")
        ):
            raise UserError(f"{name} is tied to another weight of the base: it cannot be merged.")
        a = factors[f"{PREFIX}{module}.lora_A.weight"].float()
        b = factors[f"{PREFIX}{module}.lora_B.weight"].float()
        r = a.shape[0]
        scale = config["lora_alpha"] / (math.sqrt(r) if config.get("use_rslora") else r)
        conv1d = base_config.get("model_type") in CONV1D_MODELS and not module.endswith("lm_head")
        left, right = (a.T * scale, b.T) if conv1d else (b * scale, a)
        if (left.shape[0], right.shape[1]) != shapes[name]:
            update, weight = (left.shape[0], right.shape[1]), shapes[name]
            raise UserError(
                f"the adapter's update of {name} is {update[0]} x {update[1]}, the base's weight "
                f"is {' x '.join(map(str, weight))}: the adapter belongs to another base"
            )
        deltas[name] = LoraDelta(left.contiguous(), right.contiguous())
    return deltas


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a plain LoRA adapter.

    Raises:
        UserError: there is none, or it is of a kind that cannot be merged.
    """
    config: dict[str, Any] = read_json(folder / CONFIG)
    found = [name for name in BEYOND_LORA if config.get(name)]
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type {config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        found.append(f"bias {config['bias']}")
    if config.get("init_lora_weights", True) not in PLAIN_INIT:
        found.append(f"init_lora_weights {config['init_lora_weights']}")
    if found:
        raise UserError(
            f"the adapter in {folder} is more than plain LoRA ({', '.join(found)}) and cannot be "
            "merged here: export it alone with --export.merge false"
        )
    return config


def _modules(folder: Path, factors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the layers that the adapter changes, each with an A and a B."""
    ends = (".lora_A.weight", ".lora_B.weight")
    other = [key for key in factors if not (key.startswith(PREFIX) and key.endswith(ends))]
    if other:
        raise UserError(
            f"the adapter in {folder} holds more than the factors of linear layers "
            f"({', '.join(sorted(other)[:3])}) and cannot be merged: --export.merge false"
        )
    return sorted(
        key.removeprefix(PREFIX).removesuffix(ends[0]) for key in factors if key.endswith(ends[0])
    )


def _tensor_name(module: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The base's tensor of a layer; files of GPT-2's kind leave out the model's prefix."""
    names = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
    return next((name for name in names if name in shapes), None)
