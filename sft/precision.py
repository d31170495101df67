"""In what numbers a device computes, and why: told by what the device can do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """In what numbers a device computes: `dtype` of the base, Trainer's two flags, and why."""

    dtype: torch.dtype
    bf16: bool
    fp16: bool
    device: str
    reason: str


def choose_precision(dtype: str, *, use_cpu: bool) -> Precision:
    """Pick the fast and safe precision of the device, or take the one that was asked for.

    `torch.cuda.is_bf16_supported()` says True on a T4, which emulates it about four times slower;
    the compute capability tells the truth (8.0 and newer have bf16).
    """
    if torch.cuda.is_available() and not use_cpu:
        device = "cuda"
        capability = torch.cuda.get_device_capability()
        best, reason = (
            ("bfloat16", "bf16 units") if capability >= (8, 0) else ("float16", "no bf16 units")
        )
        level = ".".join(map(str, capability))
        reason = f"{torch.cuda.get_device_name()}, compute capability {level}: {reason}"
    else:
        device = "cpu"
        fast = torch.cpu._is_avx512_bf16_supported()
        best, reason = (
            ("bfloat16", "CPU with avx512_bf16") if fast else ("float32", "CPU without bf16 units")
        )
    if dtype != "auto":
        best, reason = dtype, f"asked for ({reason})"
    return Precision(DTYPES[best], best == "bfloat16", best == "float16", device, reason)
