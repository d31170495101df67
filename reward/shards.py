"""A share of the prompts for each of many machines, and their ledgers brought together.

A prompt's share depends on its words alone, so that every machine cuts alike, whatever else is in
its file. Not here: who starts the machines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from reward.ledger import open_ledger
from sft.candidates import Candidate
from sft.data import Prompt

LEDGER = "ledger.sqlite"
KEPT = (f"{LEDGER}*", f".{LEDGER}.lock")  # what a fresh start of a stage leaves alone


def stage_name(stage: str, shard: str | None) -> str:
    """The folder of a shard's stage.

    Example: `stage_name("scores", "3/16") == "scores-3-of-16"`; without a shard "scores".
    """
    return stage if shard is None else f"{stage}-{shard.replace('/', '-of-')}"


def of_shard(prompts: Sequence[Prompt], shard: str | None) -> list[Prompt]:
    """The prompts of shard "3/16", the third of sixteen; all without a shard.

    Example: the shards 1/n to n/n hold every prompt once.
    """
    if shard is None:
        return list(prompts)
    number, of = map(int, shard.split("/"))
    return [prompt for prompt in prompts if _draw(prompt) % of == number - 1]


def answering(prompts: Sequence[Prompt], candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates of some prompts, in their order."""
    chosen = {prompt.id for prompt in prompts}
    return [candidate for candidate in candidates if candidate.prompt_id in chosen]


def ledgers_of(folder: Path, named: Sequence[str]) -> list[Path]:
    """The ledgers whose answers count in a stage's folder: those named, and its shards' own."""
    beside = folder.parent.glob(f"{folder.name}-*-of-*/{LEDGER}")
    return [*map(Path, named), *sorted(beside)]


def ledger_in(folder: Path) -> list[str]:
    """The ledger of another stage's folder, where it has one, for `gather`."""
    return [str(folder / LEDGER)] if (folder / LEDGER).is_file() else []


def gather(folder: Path, named: Sequence[str]) -> int:
    """Take the answers of shards into the stage's own ledger; returns how many were new.

    Raises:
        UserError: a ledger is missing or at work.
        StorageError: the disk is full.
    """
    others = ledgers_of(folder, named)
    if not others:
        return 0
    with open_ledger(folder / LEDGER) as ledger:
        return ledger.merge(others)


def _draw(prompt: Prompt) -> int:
    text = json.dumps([dict(message) for message in prompt.messages], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
