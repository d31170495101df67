"""Checkpoints inside a stage: written beside, verified by a manifest, renamed.

A checkpoint is a folder `step-<n>` with any files and a `manifest.json` that has the SHA-256 and
size of each, the step, the facts that must not change (settings, data) and the versions. A folder
that does not match its manifest is passed over, so a half-written or damaged one is never loaded.
Not here: what a checkpoint holds (`sft.training_state`), and signals (`sft.stopping`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft import provenance
from sft.files import (
    ResultExists,
    StorageError,
    is_disk_full,
    sha256_of,
    storage_errors,
    sync_folder,
    to_json,
    write_json,
)

FOLDER = "checkpoints"  # of a stage's folder
MANIFEST = "manifest.json"
FORMAT = "counsel-rlaif checkpoint 2"
KEEP = 2
NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """One that matches its manifest.

    Attributes:
        folder: where its files lie.
        step: how many updates it has behind it.
        facts: settings and data that made it.
        versions: of Python and libraries when it was written.
        files: their names, relative to the folder.
    """

    folder: Path
    step: int
    facts: dict[str, Any]
    versions: dict[str, str]
    files: frozenset[str]

    def path(self, name: str) -> Path:
        """A file that was verified.

        Raises:
            KeyError: the manifest has no such file.
        """
        if name not in self.files:
            raise KeyError(f"{self.folder} has no {name}")
        return self.folder / name


@dataclass(frozen=True)
class Search:
    """The newest checkpoint that verifies, and what was found on the way.

    Attributes:
        checkpoint: None = there is none to go on from.
        passed_over: newer ones, each with why it was not used.
        notes: versions that have changed since, with which the numbers may round otherwise.
    """

    checkpoint: Checkpoint | None
    passed_over: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """What is done now and why, for people."""
        found = self.checkpoint
        start = (
            f"resumed: {found.folder}, step {found.step}" if found else "no checkpoint to resume"
        )
        return "\n  ".join([start, *self.passed_over, *self.notes])


# --- writing -----------------------------------------------------------------------------------


def write(
    folder: Path, step: int, fill: Callable[[Path], None], facts: Mapping[str, Any]
) -> Checkpoint:
    """Write the checkpoint of a step beside the others, put it in place, and drop old ones.

    A kill at any moment leaves the earlier checkpoints as they were. Those of later steps, which
    belong to a course that was left, are dropped too.

    Args:
        folder: of all checkpoints of a stage.
        step: updates that are done.
        fill: writes the files into the empty folder that it is given.
        facts: what must be the same to go on from here; nested mappings of plain values.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    final = folder / f"step-{step:08d}"
    there = verify(final, step)
    if isinstance(there, Checkpoint) and there.facts == json.loads(to_json(facts)):
        return there  # the same place of the same run
    beside = folder / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with storage_errors(final):
            _clear_remains(folder)
            beside.mkdir(parents=True)
            fill(beside)
            made = _seal(beside, step, facts)
            if final.exists():
                _drop(final)
            os.rename(beside, final)
            sync_folder(folder)
            _prune(folder, step)
    except BaseException as error:
        shutil.rmtree(beside, ignore_errors=True)
        # Libraries that write from native code have errors of their own.
        if isinstance(error, Exception) and is_disk_full(error):
            raise StorageError(
                f"the disk is full: the checkpoint of step {step} was not written, earlier ones "
                f"are kept. Free some space and run the same command again."
            ) from error
        raise
    return Checkpoint(final, step, made["facts"], made["versions"], frozenset(made["files"]))


def _seal(folder: Path, step: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Make the files durable and write the manifest that vouches for them."""
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        files[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    manifest = {
        "format": FORMAT,
        "step": step,
        "facts": json.loads(to_json(facts)),
        "versions": provenance.versions(),
        "files": files,
    }
    write_json(folder / MANIFEST, {**manifest, "sha256": _digest(manifest)})
    for each in (path for path in folder.rglob("*") if path.is_dir()):
        sync_folder(each)
    sync_folder(folder)
    return manifest


def _files(folder: Path) -> list[Path]:
    """All files but the manifest, sorted."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(manifest, sort_keys=True).encode()).hexdigest()


def steps(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by step, newest first; none is verified here."""
    if not folder.is_dir():
        return {}
    named = ((NAME.fullmatch(path.name), path) for path in folder.iterdir())
    found = {int(match[1]): path for match, path in named if match}
    return dict(sorted(found.items(), reverse=True))


def _prune(folder: Path, step: int) -> None:
    """Leave the last `KEEP` checkpoints up to `step`."""
    found = steps(folder)
    kept = [number for number in found if number <= step][:KEEP]
    for number, path in found.items():
        if number not in kept:
            _drop(path)


def _drop(path: Path) -> None:
    """Delete a checkpoint; a kill amid this leaves no half of one under its name."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    os.rename(path, aside)
    shutil.rmtree(aside)


def _clear_remains(folder: Path) -> None:
    """Delete what a kill left of an unfinished checkpoint."""
    if folder.is_dir():
        for path in folder.glob(".step-*.tmp"):
            shutil.rmtree(path)


# --- reading -----------------------------------------------------------------------------------


def newest(folder: Path, facts: Mapping[str, Any]) -> Search:
    """The newest checkpoint that matches its manifest.

    Args:
        folder: of all checkpoints of a stage; it may be missing.
        facts: as for `write`, of what is asked for now.

    Raises:
        ResultExists: that checkpoint was made by other settings or from other data; each field
            that differs is named.
    """
    passed_over: list[str] = []
    for step, path in steps(folder).items():
        found = verify(path, step)
        if isinstance(found, str):
            passed_over.append(f"passed over: {path.name}: {found}")
            continue
        _check_facts(found, json.loads(to_json(facts)))
        now = provenance.versions()
        changed = [
            f"note: {name} {found.versions.get(name)} then, {now.get(name)} now: numbers may round "
            "otherwise"
            for name in sorted(found.versions.keys() | now.keys())
            if found.versions.get(name) != now.get(name)
        ]
        return Search(found, tuple(passed_over), tuple(changed))
    return Search(None, tuple(passed_over))


def verify(folder: Path, step: int) -> Checkpoint | str:
    """The checkpoint in a folder, or why what is there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return "it has no manifest"
    try:
        manifest = json.loads(path.read_bytes().decode())
    except ValueError:  # broken JSON, or no UTF-8
        return "its manifest cannot be read"
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        return f"its manifest is not of the form '{FORMAT}'"
    if manifest.pop("sha256", None) != _digest(manifest):
        return "its manifest was changed"
    if manifest["step"] != step:
        return f"its manifest is of step {manifest['step']}"
    files = manifest["files"]
    for name, known in files.items():
        each = folder / name
        if not each.is_file():
            return f"{name} is missing"
        if each.stat().st_size != known["bytes"]:
            return f"{name} has {each.stat().st_size} bytes instead of {known['bytes']}"
        if sha256_of(each) != known["sha256"]:
            return f"{name} is damaged: its SHA-256 is another"
    return Checkpoint(folder, step, manifest["facts"], manifest["versions"], frozenset(files))


def _check_facts(found: Checkpoint, now: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings or data."""
    old, new = _flat(found.facts), _flat(now)
    differences = [
        f"{name}: {old.get(name, 'not set')} there, {new.get(name, 'not set')} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if differences:
        raise ResultExists(
            f"{found.folder} (step {found.step}) was made by other settings or from other data:\n  "
            + "\n  ".join(differences)
            + "\nTo go on from it, set them back. To start again without it: --resume never. To "
            "keep it: --run <name>."
        )


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Plain values by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
