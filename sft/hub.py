"""What a model's name means before anything is loaded: its folder, its limits, why it is not there.

Nothing here imports torch, so that mistakes are told at once. Not here: loading (`sft.model`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.files import UserError, read_json

EMBEDDED = Path(__file__).parent / "assets" / "base"
# What merging and a released model need: weights, tokenizers of every kind, licences. No code, no
# pickles, and nothing of subfolders, where some models keep the same weights in other formats.
MODEL_FILES = (
    "*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt", "vocab.txt",
    "LICENSE*", "LICENCE*", "NOTICE*", "README*", "USE_POLICY*",
)  # fmt: skip
NOT_NEEDED = ("*/*", "consolidated*")
POSITIONS = ("max_position_embeddings", "n_positions")  # GPT-2's name is the second


def model_source(name_or_path: str) -> str:
    """Where a model's files are: the shipped folder for "embedded", else the name as given.

    Raises:
        UserError: the embedded model has not been made.
    """
    if name_or_path != "embedded":
        return name_or_path
    if not (EMBEDDED / "model.safetensors").is_file():
        raise UserError(
            f"the embedded base model is missing from {EMBEDDED}; make it: "
            "python scripts/build_base.py"
        )
    return str(EMBEDDED)


def known_config(name_or_path: str, revision: str | None) -> dict[str, Any] | None:
    """A model's `config.json` where it is on this machine: in its folder or in the Hub's cache."""
    folder = EMBEDDED if name_or_path == "embedded" else Path(name_or_path)
    path = folder / "config.json"
    if not folder.is_dir() and name_or_path.count("/") == 1:
        # Here, because it takes a tenth of a second.
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(name_or_path, "config.json", revision=revision)
        except HFValidationError:
            return None
        path = Path(found) if isinstance(found, str) else path
    config: dict[str, Any] | None = read_json(path) if path.is_file() else None
    return config


def too_long(max_length: int, name: str, config: Mapping[str, Any]) -> str | None:
    """What is wrong with `max_length` tokens for a model; None where it has room or does not say.

    Args:
        max_length: of prompt and reply.
        name: of the model.
        config: its `config.json`; the language model's part of one that sees images, too.
    """
    config = config.get("text_config") or config
    positions = next((config[key] for key in POSITIONS if config.get(key)), None)
    if positions is None or max_length <= positions:
        return None
    return f"{max_length} tokens, but '{name}' has {positions} positions: lower it to {positions}"


def next_step(name: str, error: BaseException) -> str:
    """Why a model could not be had, and what to do about it."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    text = str(error)
    page = f"https://huggingface.co/{name}"
    # The first is a kind of the second.
    if any(isinstance(each, GatedRepoError) for each in chain) or "gated repo" in text:
        return (
            f"'{name}' is a gated model and this machine has no access to it. Accept its licence "
            f"on {page}, make a read token on "
            "https://huggingface.co/settings/tokens, then: export HF_TOKEN=<token>"
        )
    if any(isinstance(each, RepositoryNotFoundError) for each in chain):
        return (
            f"the Hub has no model '{name}', or it is private: check the spelling on {page}. For a "
            "private one: export HF_TOKEN=<a token that may read it>"
        )
    if any(isinstance(each, RevisionNotFoundError) for each in chain):
        return f"'{name}' has no such revision: see {page}/commits and set --model.revision"
    if "safetensors" in text:
        return (
            f"'{name}' has no safetensors, and pickled weights are not loaded. Convert it once on "
            "a machine you can lose: https://huggingface.co/docs/safetensors/convert-weights"
        )
    first = text.strip().partition("\n")[0]
    if Path(name).is_dir():
        return (
            f"'{name}' is a folder, but not of a causal language model that can be loaded: {first}"
        )
    return (
        f"model '{name}' could not be loaded: no such folder, and the Hub did not give it "
        f"({first}). Give the path of a downloaded model with --model.name_or_path"
    )
