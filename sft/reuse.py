"""Where a stage's result lies, and whether the one that is there is the one asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from sft import provenance
from sft.checkpoints import FOLDER, steps
from sft.files import ResultExists, UserError, read_json, sha256_of, to_json
from sft.progress import duration
from sft.recipe import Recipe
from sft.service_settings import SERVICE_ONLY

MANIFEST = "manifest.json"
# Settings that say where and how loudly, not what: a change of them leaves a result as it is.
NO_EFFECT = frozenset(
    {"run", "runs_dir", "rounds", "round", "tracking", "log_text", "overwrite", "resume"}
)
NO_EFFECT_IN_SECTIONS = SERVICE_ONLY | {"save_every"}
SCRIPTS = {
    "finetune": "finetune",
    "candidates": "generate",
    "scores": "score",
    "refine": "refine",
    "pairs": "pair",
    "reward": "fit_reward",
    "dpo": "dpo",
    "ppo": "ppo",
    "frontier": "frontier",
    "evaluation": "evaluate_policy",
    "evaluation-ppo": "evaluate_policy",
    "export": "export",
    "export-ppo": "export",
}


def run_folder(recipe: Recipe) -> Path:
    """The folder of an experiment: `runs/<run>`."""
    return Path(recipe.runs_dir) / recipe.run


def stage_folder(recipe: Recipe, name: str, round: int = 1) -> Path:
    """The folder of a stage: `runs/<run>/<name>`, later rounds `runs/<run>/round-<n>/<name>`."""
    folder = run_folder(recipe)
    return folder / name if round == 1 else folder / f"round-{round}" / name


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """A stage folder's manifest, or None where there is none."""
    path = folder / MANIFEST
    manifest: dict[str, Any] | None = read_json(path) if path.is_file() else None
    return manifest


def new_manifest(
    recipe: Recipe, config: Mapping[str, Any], inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """The manifest of a stage that starts now.

    Raises:
        UserError: an input is missing, or the stage that writes it is unfinished.
    """
    for path in inputs.values():
        _check_input(recipe, path)
    return {
        "command": provenance.command(),
        "config": json.loads(to_json(config)),
        "seed": recipe.seed,
        "commit": provenance.git_commit(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "inputs": {
            name: {"path": path.as_posix(), "sha256": sha256_of(path)}
            for name, path in inputs.items()
        },
        "outputs": {},
        "status": "running",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds": None,
        "summary": {},
    }


class Found(NamedTuple):
    """What is in a stage's folder.

    Attributes:
        manifest: of the result that was asked for; None = the stage has to work.
        goes_on: it has checkpoints to go on from.
    """

    manifest: dict[str, Any] | None
    goes_on: bool = False


def finished_result(
    folder: Path, now: Mapping[str, Any], *, overwrite: bool, resume: bool
) -> Found:
    """Look whether the result that `now` asks for is there, or a part of it.

    Says on stdout what was found; writes nothing. With `resume` an unfinished stage that has
    checkpoints goes on from them; `overwrite` replaces results and checkpoints of other settings.

    Raises:
        ResultExists: another result is there, checkpoints of one, or files that no stage wrote.
    """
    before = read_manifest(folder)
    if before is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise ResultExists(
                f"{folder} holds files that no stage wrote: move them away, or choose another run"
            )
        return Found(None)
    if before["status"] != "finished":
        goes_on = resume and _goes_on(folder, before, now, overwrite=overwrite)
        how = "going on" if goes_on else "starting afresh"
        print(f"{how}: {folder} is unfinished ({before['status']})", flush=True)
        return Found(None, goes_on)
    if overwrite:
        print(f"overwriting {folder}", flush=True)
        return Found(None)
    if differences := _differences(before, now):
        raise ResultExists(
            f"{folder} holds the finished result of other settings or inputs:\n  "
            + "\n  ".join(differences)
            + "\nTo replace it and keep nothing of it: --overwrite true. To keep it: --run <name>."
        )
    missing = [name for name in before["outputs"] if not (folder / name).exists()]
    if missing:
        print(f"starting afresh: {folder} has lost {', '.join(missing)}", flush=True)
        return Found(None)
    seconds = duration(before["seconds"])
    print(f"reused: {folder} (finished, {before['started']}, {seconds})", flush=True)
    for name, known in before["outputs"].items():
        if sha256_of(folder / name) != known:
            print(f"note: {folder / name} was changed since it was written; used as it is")
    return Found(before)


def _goes_on(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, overwrite: bool
) -> bool:
    """Whether an unfinished stage has checkpoints of the same settings and inputs."""
    differences = _differences(before, now)
    if not steps(folder / FOLDER) or (differences and overwrite):
        return False
    if differences:
        raise ResultExists(
            f"{folder} is unfinished, and has checkpoints of other settings or inputs:\n  "
            + "\n  ".join(differences)
            + "\nTo go on from them, set that back. To start again without them: --resume never. "
            "To keep them: --run <name>."
        )
    return True


def facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The settings and contents of inputs by which two starts of a stage are the same."""
    inputs = {name: each["sha256"] for name, each in manifest["inputs"].items()}
    return {"settings": _relevant(manifest["config"], inputs), "inputs": inputs}


def _check_input(recipe: Recipe, path: Path) -> None:
    """An input must be there, and the stage that wrote it finished."""
    home = run_folder(recipe)
    if not path.is_relative_to(home):
        if not path.exists():
            raise UserError(f"{path} does not exist")
        return
    parts = [part for part in path.relative_to(home).parts if not part.startswith("round-")]
    script = SCRIPTS.get(parts[0]) if parts else None
    hint = f": run scripts/{script}.py of this recipe first" if script else ""
    if not path.exists():
        raise UserError(f"{path} does not exist{hint}")
    for folder in (path, *path.parents):
        if folder == home:
            return
        manifest = read_manifest(folder)
        if manifest is not None and manifest["status"] != "finished":
            raise UserError(f"{path} comes from an unfinished stage ({manifest['status']}){hint}")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two manifests of a stage in settings and in the contents of inputs."""
    names = before["inputs"].keys() | now["inputs"].keys()
    old, new = (_relevant(each["config"], names) for each in (before, now))
    found = [
        f"{key}: {old.get(key, 'not set')} there, {new.get(key, 'not set')} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    for name in sorted(names):
        was, is_now = (each["inputs"].get(name) for each in (before, now))
        if was is None or is_now is None:
            found.append(f"input {name}: {'new' if was is None else 'no longer given'}")
        elif was["sha256"] != is_now["sha256"]:
            found.append(f"input {name}: the contents of {is_now['path']} have changed")
    return found


def _relevant(config: Mapping[str, Any], inputs: Iterable[str], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, without those that change no result or name an input."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and (key in NO_EFFECT or key in inputs):
            continue
        if isinstance(value, Mapping) and value:
            flat |= _relevant(value, (), f"{prefix}{key}.")
        elif not (prefix and key in NO_EFFECT_IN_SECTIONS):
            flat[f"{prefix}{key}"] = value
    return flat
