"""Which adapter a stage starts from and where the run's files lie: the lineage rule in folders.

The base is never changed. SFT trains an adapter on it; each preference stage starts from a copy of
the newest adapter and has that one, frozen, as its reference. Round 1 starts from SFT, round n from
the policy of round n - 1.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sft.config import Recipe
from sft.files import UserError, sha256_of
from sft.hub import model_source
from sft.runs import stage_folder
from sft.staleness import made_from_another, why_stale

BASE_ITSELF = "none"
HASHED_BYTES = 2**30  # a second or two to hash


def start_adapter(recipe: Recipe) -> Path | None:
    """Adapter that this round samples from and trains on; None = the base itself.

    Raises:
        UserError: the stage that writes it has not been run, or what it came from is another now.
    """
    if recipe.round > 1:
        return _policy_of(recipe, recipe.round - 1)
    return baseline_adapter(recipe)


def baseline_adapter(recipe: Recipe) -> Path | None:
    """The SFT adapter, which the result is compared with; None = the base itself.

    Raises:
        UserError: the stage that writes it has not been run.
    """
    adapter = _baseline_folder(recipe)
    return None if adapter is None else _there(adapter, "finetune.py")


def _baseline_folder(recipe: Recipe) -> Path | None:
    if recipe.start_adapter == BASE_ITSELF:
        return None
    if recipe.start_adapter is not None:
        return Path(recipe.start_adapter)
    return stage_folder(recipe, "finetune", 1) / "adapter"


def policy_adapter(recipe: Recipe) -> Path:
    """The policy of the last round: what is evaluated and exported.

    Raises:
        UserError: the stage that writes it has not been run, or what it came from is another now.
    """
    if recipe.adapter is not None:
        return _there(Path(recipe.adapter), "dpo.py")
    if recipe.policy == "ppo":
        return _optimised(recipe)
    return _policy_of(recipe, recipe.rounds)


def proof_stage(recipe: Recipe, name: str) -> str:
    """Folder name of a stage that works on the policy, "evaluation" or "export": one per policy."""
    return name if recipe.policy == "dpo" else f"{name}-{recipe.policy}"


def _optimised(recipe: Recipe) -> Path:
    """The adapter of PPO, which starts where round 1 does."""
    policy = _there(stage_folder(recipe, "ppo") / "adapter", "ppo.py")
    start = _baseline_folder(recipe)
    if made_from_another(policy.parent, "adapter", start):
        raise UserError(
            f"{policy} is out of date: it was made from another adapter than "
            f"{start or 'the base itself'} as it is now. Run again: scripts/ppo.py --overwrite true"
        )
    return policy


def _policy_of(recipe: Recipe, last: int) -> Path:
    policy = _there(stage_folder(recipe, "dpo", last) / "adapter", f"dpo.py --round {last}")
    why = why_stale(recipe, last, _baseline_folder(recipe))
    if why is not None:
        raise UserError(f"{policy} is out of date: {why}")
    return policy


def name_of(adapter: Path | None) -> str:
    """How a candidate names the model that wrote it: the adapter's stage and its content's hash."""
    return "base" if adapter is None else f"{adapter.parent.name}@{sha256_of(adapter)[:12]}"


def _there(adapter: Path, script: str) -> Path:
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"no adapter in {adapter}. Run first: python scripts/{script}")
    return adapter


def base_marks(recipe: Recipe) -> dict[str, str]:
    """A mark of each file of the base, where that is a folder, that changes when the file does.

    Of weights the size and a hash of the first and the last MiB: reading an 8B model whole would
    take longer than some stages.
    """
    folder = Path(model_source(recipe.model.name_or_path))
    marks = {}
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
        marks[path.name] = f"{size} {digest.hexdigest()}"
    return marks


def base_input(recipe: Recipe) -> dict[str, Path]:
    """The base model as an input of a stage, where it is a folder.

    Of a large model its configuration and weight index stand for it: hashing the weights of an 8B
    model would take longer than some stages.
    """
    folder = Path(model_source(recipe.model.name_or_path))
    names = ("config.json", "model.safetensors.index.json", "model.safetensors")
    files = [folder / name for name in names if (folder / name).is_file()]
    return {f"base {path.name}": path for path in files if path.stat().st_size <= HASHED_BYTES}
