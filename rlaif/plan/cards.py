"""What cards can do at most, by their makers' data sheets, and which share of it is planned for.

Dense 16-bit matrix products with sums in float32, without sparsity; memory and its bandwidth:
NVIDIA T4 (DS-T4, 2019), L4 (2023; its 242 TFLOP/s are with sparsity), A10 (2021), A100 40 GB PCIe
and 80 GB SXM (2021), H100 SXM (2023; half of 1,979 with sparsity), H200 SXM (2024), and the Ada
architecture's white paper (2022, appendix A) for the GeForce RTX 4090. What a program can have of
the memory is less than the name says: it is what PyTorch's messages about full cards tell as their
capacity.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A device.

    Attributes:
        flops: 16-bit FLOP a second, at most.
        memory: GiB that a program finds.
        bandwidth: bytes a second, at most.
        compute_share: of `flops` that training is planned with.
        memory_share: of `bandwidth` that generation is planned with.
    """

    flops: float
    memory: float
    bandwidth: float
    compute_share: float = 0.4
    memory_share: float = 0.5


# Assumed shares. 25 of a T4's 65 TFLOP/s are 0.38; 2,413 tokens a second of a Llama-3.1-8B's QLoRA
# on a 4090 (published by torchtune) at 45 GFLOP each are 0.66 of its peak: 0.4 is meant to be kept.
CARDS = {
    "T4": Card(65e12, 14.7, 320e9, compute_share=0.38),
    "L4": Card(121e12, 22.0, 300e9),
    "A10": Card(125e12, 22.1, 600e9),
    "A100-40": Card(312e12, 39.4, 1555e9),
    "A100-80": Card(312e12, 79.2, 2039e9),
    "H100": Card(989e12, 79.1, 3350e9),
    "H200": Card(989e12, 139.8, 4800e9),
    "4090": Card(165e12, 23.5, 1008e9),
}
# Of two cores with bf16 units, 0.8 TFLOP/s were measured in large products; a bandwidth of 20 GB/s
# is assumed.
CPU_FLOPS_PER_CORE, CPU_BANDWIDTH = 0.4e12, 20e9


def card_called(name: str) -> Card:
    """A card by its name in the recipe; "CPU" is this machine with all its cores and memory."""
    if name != "CPU":
        return CARDS[name]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Card((os.cpu_count() or 1) * CPU_FLOPS_PER_CORE, memory, CPU_BANDWIDTH)
