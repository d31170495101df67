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
    outputs, merged, checks = ["adapter"], "", []
    if section.merge:
        merged = merge_model(recipe, adapter, whole)
        outputs.append("merged")
    if section.verify:
        sentence, adapted, untrained = check_adapter(recipe, adapter, exported)
        checks.append(sentence)
        if section.merge:
            agreement = check_merged(recipe, whole, adapted, untrained)
            checks.append(f"Merged model: {agreement}")
    if section.merge:
        save_tokenizer(recipe, whole)
    return Delivered(outputs, merged, checks)


def save_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Put the tokenizer beside the weights, with the chat template that training used."""
    models.load_tokenizer(recipe.model).save_pretrained(folder)


def check_adapter(recipe: Recipe, trained: Path, exported: Path) -> tuple[str, Answers, Answers]:
    """Ask the trained and the exported adapter the same, each loaded anew.

    Returns:
        A sentence for the card, the answers of the adapter and those of the base alone.

    Raises:
        CheckFailed: a logit or a reply differs.
    """
    first, untrained = _answers(recipe, trained)
    second, _ = _answers(recipe, exported)
    verify_reloaded(first, second)
    return (
        "The exported adapter, loaded anew, gives the logits and greedy replies of the trained "
        f"one exactly ({len(ASKED)} prompts, {NEW_TOKENS} tokens).",
        first,
        untrained,
    )


def merge_model(recipe: Recipe, adapter: Path, out: Path) -> str:
    """Write the merged model shard by shard; a sentence for the card.

    Raises:
        UserError: the base is not a folder on this machine: merging reads its 16-bit files.
    """
    folder = Path(model_source(recipe.model.name_or_path))
    if not folder.is_dir():
        folder = models.downloaded(recipe.model)
    section = recipe.export
    dtype = None if section.merge_dtype == "auto" else models.DTYPES[section.merge_dtype]
    merged = merge.merge_adapter(
        folder,
        adapter,
        out,
        max_shard_size=merge.size_in_bytes(section.max_shard_size),
        dtype=dtype,
    )
    return (
        f"`merged/` is base and adapter in one: {len(merged.files)} files, "
        f"{merged.changed} matrices changed."
    )


def check_merged(recipe: Recipe, merged: Path, adapted: Answers, untrained: Answers) -> str:
    """Ask the merged model the same; a sentence with the agreement, for the card.

    Raises:
        CheckFailed: it does not say what base and adapter say, beyond rounding.
    """
    section = recipe.model.model_copy(
        update={"name_or_path": str(merged), "load_in_4bit": False, "revision": None}
    )
    precision = models.choose_precision(recipe.model.dtype, use_cpu=recipe.use_cpu)
    model = models.load_base(section, precision).eval()
    with torch.inference_mode():
        answers = ask(model, _prompts(recipe), max_new_tokens=NEW_TOKENS)
    return verify_merged(adapted, answers, untrained, dtype=model.dtype).sentence()


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
