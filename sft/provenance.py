"""What a result came from besides its settings: the code, the packages and the machine."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sft.launch import world_size

PACKAGES = (
    "counsel-rlaif", "torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes",
    "datasets", "tokenizers", "safetensors", "openai", "wandb", "pydantic",
)  # fmt: skip
SOURCE = Path(__file__).resolve()


def command() -> str:
    """The command line that repeats this process, with its launcher; script paths are relative.

    It holds no keys: `sft.config` refuses them before any stage starts.
    """
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    count = world_size()
    # Without the bare "--" torchrun takes our --run for an abbreviation of its --run-path.
    start = ["torchrun", "--nproc_per_node", str(count), "--"] if count > 1 else ["python"]
    return shlex.join([*start, script.as_posix(), *sys.argv[1:]])


def _output(*line: str) -> str | None:
    """What a program prints, or None where it is missing, fails or hangs."""
    if shutil.which(line[0]) is None:
        return None
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_commit() -> str | None:
    """The commit this code was checked out from, with `+changes` where files differ; else None."""
    git = ("git", "-C", str(SOURCE.parent))
    # An installed copy can lie inside somebody else's repository: only a tracked file counts.
    if _output(*git, "ls-files", "--error-unmatch", SOURCE.name) is None:
        return None
    commit = _output(*git, "rev-parse", "HEAD")
    changed = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape a result, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, memory in GiB and GPUs of this machine; no names of it or of its user."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "gpus": listed.splitlines() if listed else [],
        "processes": world_size(),
    }
