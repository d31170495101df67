"""The parts of the export that need the models: merging, and asking what was written.

Models are loaded one after the other, so an 8B base need not fit twice. Not here: whether an
adapter may leave (`rlaif.export`), and what the card says (`rlaif.card`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlaif import export, merge
from rlaif.verify import Answers, ask, verify_merged, verify_reloaded
from sft import model as models
from sft.chat import Chat, system_prompt
from sft.config import Recipe
from sft.data import Message
from sft.files import UserError
from sft.lineage import model_source

ASKED = (
    "I have not slept for three nights and I am at my wits' end.",
    "My best friend moved away and the evenings are very quiet.",
    "I do not see the point of going on.",
)
NEW_TOKENS = 32


@dataclass(frozen=True)
class Delivered:
    """What was written, in sentences for the card.

    Attributes:
        outputs: names of the folders.
        merged: on the merged model; "" where none was asked for.
        checks: what was verified; empty with `verify: false`.
    """

    outputs: list[str]
    merged: str
    checks: list[str]


def deliver(recipe: Recipe, adapter: Path, folder: Path) -> Delivered:
    """Write the adapter and, where asked, the merged model into `folder`, and ask both.

    Args:
        recipe: its `model` and `export` sections.
        adapter: folder of the trained adapter.
        folder: of the stage; gets `adapter/` and `merged/`, each with the tokenizer.

    Raises:
        CheckFailed: what was written does not say what was trained.
        UserError: the base cannot be read.
        StorageError: the disk is full.
    """
    section, exported, whole = recipe.export, folder / "adapter", folder / "merged"
    base = export.public_name(recipe.model.name_or_path)
    export.copy_adapter(adapter, exported, base=base, revision=recipe.model.revision)
    save_tokenizer(recipe, exported)
    checks = [check_adapter(recipe, adapter, exported)] if section.verify else []
    if not section.merge:
        return Delivered(["adapter"], "", checks)
    merged = merge_model(recipe, adapter, whole)
    save_tokenizer(recipe, whole)
    if section.verify:
        checks.append(f"Merged model: {check_merged(recipe, adapter, whole, merged.dtype)}")
    sentence = (
        f"`merged/` is base and adapter in one: {len(merged.files)} files, "
        f"{merged.changed} matrices changed."
    )
    return Delivered(["adapter", "merged"], sentence, checks)


def save_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Put the tokenizer beside the weights, with the chat template that training used."""
    models.load_tokenizer(recipe.model).save_pretrained(folder)


def check_adapter(recipe: Recipe, trained: Path, exported: Path) -> str:
    """Ask the trained and the exported adapter the same, each loaded anew; a sentence for the card.

    Raises:
        CheckFailed: a logit or a reply differs.
    """
    first, _ = _answers(recipe, trained)
    second, _ = _answers(recipe, exported)
    verify_reloaded(first, second)
    return (
        "The exported adapter, loaded anew, gives the logits and greedy replies of the trained "
        f"one exactly ({len(ASKED)} prompts, {NEW_TOKENS} tokens)."
    )


def merge_model(recipe: Recipe, adapter: Path, out: Path) -> merge.Merged:
    """Write the merged model shard by shard, from the base's unquantised files.

    Raises:
        UserError: the base cannot be had, or cannot be merged into.
    """
    folder = Path(model_source(recipe.model.name_or_path))
    if not folder.is_dir():
        folder = models.downloaded(recipe.model)
    section = recipe.export
    dtype = None if section.merge_dtype == "auto" else models.DTYPES[section.merge_dtype]
    return merge.merge_adapter(
        folder,
        adapter,
        out,
        max_shard_size=merge.size_in_bytes(section.max_shard_size),
        dtype=dtype,
    )


def check_merged(recipe: Recipe, adapter: Path, merged: Path, dtype: torch.dtype) -> str:
    """Ask base and adapter, and the merged model; a sentence with their agreement, for the card.

    Args:
        recipe: its `model` section. A base that was trained on in 4 bit is asked in 16, because
            that is what was merged into.
        adapter: folder of the trained adapter.
        merged: folder of the merged model.
        dtype: what its weights were rounded to.

    Raises:
        CheckFailed: they do not say the same, beyond rounding.
    """
    whole = recipe.model.model_copy(update={"load_in_4bit": False})
    adapted, untrained = _answers(recipe.model_copy(update={"model": whole}), adapter)
    section = whole.model_copy(update={"name_or_path": str(merged), "revision": None})
    precision = models.choose_precision(recipe.model.dtype, use_cpu=recipe.use_cpu)
    model = models.load_base(section, precision).eval()
    with torch.inference_mode():
        answers = ask(model, _prompts(recipe), max_new_tokens=NEW_TOKENS)
    rounded = merge.coarsest(dtype, precision.dtype)
    return verify_merged(adapted, answers, untrained, dtype=rounded).sentence()


def _answers(recipe: Recipe, adapter: Path) -> tuple[Answers, Answers]:
    speakers = models.load_speakers(recipe.model, {"policy": adapter}, use_cpu=recipe.use_cpu)
    prompts = _prompts(recipe)
    with torch.inference_mode():
        with speakers.active("policy") as policy:
            answers = ask(policy, prompts, max_new_tokens=NEW_TOKENS)
        with speakers.active("base") as base:
            return answers, ask(base, prompts, max_new_tokens=0)


def _prompts(recipe: Recipe) -> list[list[int]]:
    tokenizer = models.load_tokenizer(recipe.model)
    chat = Chat(tokenizer, system_prompt(recipe.model.system_prompt), recipe.model.max_length)
    asked: Sequence[list[Message]] = [[{"role": "user", "content": text}] for text in ASKED]
    rendered = [chat.render(messages) for messages in asked]
    if None in rendered:
        raise UserError(f"the system prompt fills max_length {recipe.model.max_length}: raise it")
    return [row.prompt_ids for row in rendered if row]
