"""Weights & Biases for those who want it; the same calls do less for those who do not.

Metrics always go to the stage's `metrics.jsonl`. Of conversations nothing leaves the machine unless
`log_text` says so: no tables, no files that hold text, no console output, no code. Without an
account or a network W&B works offline, and no stage waits for it or fails because of it.
"""

from __future__ import annotations

import netrc
import os
import socket
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from sft.files import sha256_of, to_json
from sft.recipe import Recipe
from sft.reuse import run_folder
from sft.runs import Stage

PROJECT = "counsel-rlaif"
CONNECT_S = 5.0
INIT_S = 30.0
FINISH_S = 120.0
# Files that cannot hold a conversation: weights, and what describes a model or a tokenizer.
WITHOUT_TEXT = frozenset(
    {
        "adapter_config.json",
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
)
# What the stages' outputs are called; later rounds add theirs.
NAMES = {
    "finetune/demonstrations.jsonl": "demonstrations",
    "finetune/adapter": "adapter-sft",
    "candidates/candidates.jsonl": "candidates",
    "scores/assessments.jsonl": "assessments",
    "refine/pairs.jsonl": "refined-pairs",
    "pairs/pairs.jsonl": "pairs",
    "reward/adapter": "adapter-reward",
    "dpo/adapter": "adapter-dpo",
    "ppo/adapter": "adapter-ppo",
    "evaluation/report.json": "report",
    "evaluation-ppo/report.json": "report-ppo",
    "export/adapter": "export",
    "export-ppo/adapter": "export-ppo",
}


class Tracker:
    """Does nothing: metrics are the stage's own; what reused stages and other ranks get, too."""

    def __init__(self, stage: Stage) -> None:
        """Track one stage."""
        self.stage = stage

    def __enter__(self) -> Tracker:
        """Use as a context: the end tells the service whether the stage failed."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish; a stage that raised is marked as failed."""
        self.finish(failed=kind is not None)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log samples of text, only with `log_text: true`."""

    def artifact(self, path: Path, type: str, uses: Sequence[Path] = ()) -> None:
        """Log an output of a stage as an artifact, and what it was made from.

        Args:
            path: what was written, one of `NAMES`. Files that can hold conversations go along only
                with `log_text: true`; without it their hashes do.
            type: "model", "dataset" or "report".
            uses: the files or folders that it was made from. What an earlier stage wrote is linked
                to that artifact, of its own round; of anything else the hash is noted.
        """

    def finish(self, *, failed: bool = False) -> None:
        """Say that nothing more will come."""


def tracker(kind: Literal["none", "wandb"], recipe: Recipe, stage: Stage) -> Tracker:
    """A tracker for a stage. Only the main process of an unfinished stage talks to W&B."""
    if kind == "none" or stage.reused or not stage.is_main:
        return Tracker(stage)
    return WandbTracker(recipe, stage)


class WandbTracker(Tracker):
    """One W&B run per stage, grouped by the experiment."""

    def __init__(self, recipe: Recipe, stage: Stage) -> None:
        """Start the W&B run, online where there is an account and a network, else offline."""
        super().__init__(stage)
        self.recipe = recipe
        self.run = _init(recipe, stage)
        self.run.define_metric("*", step_metric="step")
        stage.follow(self._follow)

    def _follow(self, metrics: Mapping[str, Any], step: int | None) -> None:
        numbers = {name: value for name, value in metrics.items() if value is not None}
        self.run.log(numbers if step is None else {"step": step, **numbers})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See `Tracker.table`."""
        import wandb

        if self.recipe.log_text:
            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            self.run.log({name: table})

    def artifact(self, path: Path, type: str, uses: Sequence[Path] = ()) -> None:
        """See `Tracker.artifact`; a version is found by the alias that its contents give."""
        import wandb

        name = artifact_name(self.recipe, path)
        if name is None:
            raise ValueError(f"{path} is no output that has a name in tracking")
        used = {}
        for source in uses:
            earlier, digest = artifact_name(self.recipe, source), sha256_of(source)
            used[earlier or f"not of this run: {_alias(digest)}"] = digest
            if earlier is not None and not self.run.offline:
                self._use(f"{earlier}:{_alias(digest)}")
        digest = sha256_of(path)
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        metadata = {
            "sha256": digest,
            "uses": used,
            "files": {_inside(path, file): sha256_of(file) for file in files},
        }
        artifact = wandb.Artifact(name, type=type, metadata=metadata)
        # W&B tells versions apart by their files: without one, all whose text stays are the same.
        with artifact.new_file("hashes.json", encoding="utf-8") as listed:
            listed.write(to_json(metadata))
        for file in files:
            if self.recipe.log_text or file.suffix == ".safetensors" or file.name in WITHOUT_TEXT:
                artifact.add_file(str(file), name=_inside(path, file))
        self.run.log_artifact(artifact, aliases=["latest", _alias(digest)])

    def _use(self, version: str) -> None:
        """Note the use of an earlier artifact; one that was logged offline is not there yet."""
        import wandb

        try:
            self.run.use_artifact(version)
        except (wandb.errors.CommError, ValueError):
            self.stage.say(f"W&B does not have {version}: its link is only in the metadata")

    def finish(self, *, failed: bool = False) -> None:
        """End the W&B run; what is not uploaded in two minutes stays on disk."""
        self.run.finish(exit_code=1 if failed else 0)
        if self.run.offline:
            folder = Path(self.run.dir).parent
            self.stage.say(f"W&B offline run kept; to upload it: wandb sync {folder}")


def artifact_name(recipe: Recipe, path: Path) -> str | None:
    """The name of what a stage of this run wrote, with its round; None for any other file.

    Example: `runs/x/round-2/dpo/adapter` is "x-adapter-dpo-round-2".
    """
    home = run_folder(recipe)
    if not path.is_relative_to(home):
        return None
    parts = path.relative_to(home).parts
    name = NAMES.get("/".join(parts[-2:]))
    return None if name is None else "-".join([recipe.run, name, *parts[:-2]])


def _alias(digest: str) -> str:
    return f"sha-{digest[:12]}"


def _inside(root: Path, file: Path) -> str:
    return file.name if root == file else file.relative_to(root).as_posix()


def _init(recipe: Recipe, stage: Stage) -> Any:
    """Start a W&B run and fall back to an offline one."""
    # W&B would report its own errors and timings to its server, in offline mode too.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    reason = _why_offline(wandb.setup().settings.base_url)
    if reason is not None:
        stage.say(f"W&B offline: {reason}")
    try:
        return _start(recipe, stage, None if reason is None else "offline")
    except wandb.errors.Error as error:
        stage.say(f"W&B offline: {type(error).__name__}, the service did not take the run")
        return _start(recipe, stage, "offline")


def _start(recipe: Recipe, stage: Stage, mode: Literal["offline"] | None) -> Any:
    import wandb

    name = stage.folder.relative_to(run_folder(recipe)).as_posix()
    folder = Path(os.environ.get("WANDB_DIR", run_folder(recipe)))
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        group=recipe.run,
        job_type=stage.folder.name,
        name=f"{recipe.run}/{name}",
        dir=str(folder),
        mode=mode,
        config={
            **stage.manifest["config"],
            "seed": recipe.seed,
            "inputs": {key: each["sha256"] for key, each in stage.manifest["inputs"].items()},
        },
        # Printed samples must not travel as console output, nor the code of a private fork.
        settings=wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            quiet=True,
            init_timeout=INIT_S,
            finish_timeout=FINISH_S,
        ),
    )


def _why_offline(base_url: str) -> str | None:
    """Why W&B cannot be asked now, or None. Without a key it would wait for one to be typed."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return None  # The user decided.
    address = urlsplit(base_url)
    host = address.hostname or ""
    if not (os.environ.get("WANDB_API_KEY") or _netrc_has(host)):
        return f"no WANDB_API_KEY in the environment and no login for {host}"
    if urllib.request.getproxies():
        return None  # Whether a proxy reaches it only wandb can find out.
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError:
        return f"{host} cannot be reached"
    return None


def _netrc_has(host: str) -> bool:
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return path.is_file() and netrc.netrc(path).authenticators(host) is not None
    except (netrc.NetrcParseError, PermissionError):
        return False
