"""The parts of the export that need the models: merging, and asking what was written.

Models are loaded one after the other, so an 8B base need not fit twice. One that is merged and
larger than `export.max_memory` need not fit at all: it is read from disk layer by layer. Not here:
whether an adapter may leave (`rlaif.export`), and what the card says (`rlaif.card`).
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from rlaif import export, merge
from rlaif.verify import Answers, ask, follow, greedy, verify_merged, verify_reloaded
from sft import model as models
from sft.chat import Chat, system_prompt
from sft.config import ModelSection, Recipe
from sft.data import Message
from sft.files import UserError
from sft.hub import model_source
from sft.model import Speakers

ASKED = (
    "I have not slept for three nights and I am at my wits' end.",
    "My best friend moved away and the evenings are very quiet.",
    "I do not see the point of going on.",
)
NEW_TOKENS = 32
STREAMED_TOKENS = 8  # each costs a reading of the whole model
SAME = (
    "The exported adapter, loaded anew, gives the logits and greedy replies of the trained one "
    "exactly"
)
NAMES = {dtype: name for name, dtype in models.DTYPES.items()}


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
    if not section.merge:
        checks = [check_adapter(recipe, adapter, exported)] if section.verify else []
        return Delivered(["adapter"], "", checks)
    merged = merge_model(recipe, adapter, whole)
    save_tokenizer(recipe, whole)
    checks = []
    if section.verify and merge.stored_size(base_folder(recipe)) > _max_memory(recipe):
        checks = check_streamed(recipe, {"trained": adapter, "exported": exported}, whole, merged)
    elif section.verify:
        agreement = check_merged(recipe, adapter, whole, merged.dtype)
        checks = [check_adapter(recipe, adapter, exported), f"Merged model: {agreement}"]
    sentence = (
        f"`merged/` is base and adapter in one: {len(merged.files)} files, "
        f"{merged.changed} matrices changed, {NAMES[merged.dtype]}."
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
    return f"{SAME} ({len(ASKED)} prompts, {NEW_TOKENS} tokens)."


def base_folder(recipe: Recipe) -> Path:
    """The folder of the base's files, fetched from the Hub where they are not on this machine."""
    folder = Path(model_source(recipe.model.name_or_path))
    return folder if folder.is_dir() else models.downloaded(recipe.model)


def merge_model(recipe: Recipe, adapter: Path, out: Path) -> merge.Merged:
    """Write the merged model shard by shard, from the base's unquantised files.

    Raises:
        UserError: the base cannot be had, or cannot be merged into.
    """
    folder, section = base_folder(recipe), recipe.export
    half = section.merge_dtype == "auto"
    dtype = merge.half_precision(folder) if half else models.DTYPES[section.merge_dtype]
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


def check_streamed(
    recipe: Recipe, adapters: Mapping[str, Path], whole: Path, merged: merge.Merged
) -> list[str]:
    """Both checks for a model that does not fit: most of it comes from its files at each use.

    The adapters are asked on the 16-bit base, whatever they were trained on: it is what was merged
    into, and it is loaded once for all three.

    Args:
        recipe: its `model` and `export` sections.
        adapters: folders of "trained" and "exported".
        whole: folder of the merged model.
        merged: what was written there.

    Returns:
        A sentence for the adapter and one for the merged model, for the card.

    Raises:
        CheckFailed: they do not say the same, the merged model beyond rounding.
    """
    with TemporaryDirectory(dir=whole.parent) as scratch:
        replies, trained, untrained = _ask_streamed(recipe, adapters, merged.dtype, scratch)
    gc.collect()  # PEFT's models hold themselves; the next one wants their room
    with TemporaryDirectory(dir=whole.parent) as scratch:
        section = recipe.model.model_copy(update={"name_or_path": str(whole), "revision": None})
        model = _load_streamed(recipe, section, {}, merged.dtype, scratch)
        answers = follow(model, _prompts(recipe), replies)
        del model
    agreement = verify_merged(trained, answers, untrained, dtype=merged.dtype)
    how = f"({len(ASKED)} prompts, {STREAMED_TOKENS} tokens, read from disk layer by layer)"
    return [f"{SAME} {how}.", f"Merged model {how}: {agreement.sentence()}"]


def _ask_streamed(
    recipe: Recipe, adapters: Mapping[str, Path], dtype: torch.dtype, scratch: str
) -> tuple[list[list[int]], Answers, Answers]:
    """Replies and answers of the trained adapter, which the exported must give, and the base's."""
    prompts = _prompts(recipe)
    model = _load_streamed(recipe, recipe.model, adapters, dtype, scratch)
    speakers = Speakers(model, models.load_tokenizer(recipe.model))
    with speakers.active("trained") as policy:
        replies = greedy(policy, prompts, max_new_tokens=STREAMED_TOKENS)
        trained = follow(policy, prompts, replies)
    with speakers.active("exported") as policy:
        verify_reloaded(trained, follow(policy, prompts, replies))
    with speakers.active("base") as base:
        return replies, trained, follow(base, prompts, replies)


def _load_streamed(
    recipe: Recipe,
    section: ModelSection,
    adapters: Mapping[str, Path],
    dtype: torch.dtype,
    scratch: str,
) -> PreTrainedModel:
    return models.load_streamed(
        section,
        adapters,
        dtype=dtype,
        max_memory=_max_memory(recipe),
        scratch=Path(scratch),
        use_cpu=recipe.use_cpu,
    )


def _max_memory(recipe: Recipe) -> int:
    return merge.size_in_bytes(recipe.export.max_memory)


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
