"""Bases of which each process holds a share: accelerate's FSDP2 and DeepSpeed's ZeRO-3.

The launch says so in the environment (`configs/accelerate/`). The base then stays in main memory
until the trainer shares it out, and an adapter is put together again before it is compared or
saved. Only supervised fine-tuning does that; the other stages work on the base outside a trainer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch.distributed.tensor import DTensor

from sft.files import UserError


def sharding() -> str | None:
    """What shares the base out among processes; None = each has all of it."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return "FSDP"
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    return "ZeRO-3" if deepspeed and os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3" else None


def refuse_shares(stage: str, why: str) -> None:
    """Say at once that a stage cannot work on shares of the base.

    Raises:
        UserError: the launch shares it out.
    """
    if kind := sharding():
        raise UserError(
            f"{stage} needs the whole base in each process ({why}), and {kind} shares it out: "
            "launch with configs/accelerate/multi-gpu.yaml, with --load_in_4bit true where the "
            "base does not fit a card otherwise"
        )


@contextmanager
def gathered(model: PeftModel) -> Iterator[None]:
    """Meanwhile ZeRO-3's shares of the adapters are whole in each process; all must enter."""
    if sharding() != "ZeRO-3":
        yield
        return
    from deepspeed.zero import GatheredParameters

    with GatheredParameters([p for name, p in model.named_parameters() if "lora_" in name]):
        yield


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, put together where FSDP2 shares it out; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
