"""Which process of a launch this is; its launcher (torchrun, accelerate) says so by variables."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process in its launch (torchrun, accelerate), 0 where there is no launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process of a launch that writes and speaks: number 0."""
    return rank() == 0
