"""Which process of a launch this is; its launcher (torchrun, accelerate) says so by variables.

And what a process of ours sets before libraries are loaded.
"""

from __future__ import annotations

import logging
import os
import warnings


def rank() -> int:
    """Number of this process in its launch (torchrun, accelerate), 0 where there is no launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes the launch has."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the process of a launch that writes and speaks: number 0."""
    return rank() == 0


def quiet_libraries() -> None:
    """Keep what libraries say about themselves out of a stage's own lines; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    for module in ("transformers", "trl", "peft", "torch"):
        warnings.filterwarnings("ignore", module=rf"{module}\b.*")
