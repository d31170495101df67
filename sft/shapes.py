"""A model's shape without its weights: what `config.json` says, and parameters by part.

The configurations of gated models are not on every machine, so the shapes of the recipes' models
are known here; any other is read from its folder, the Hub's cache or the Hub. Not here: what
training them needs (`rlaif.plan`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.pytorch_utils import Conv1D

from sft import hub
from sft import model as models
from sft.config import ModelSection
from sft.files import UserError, read_json

LLAMA3_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
# "The Llama 3 Herd of Models" (arXiv:2407.21783), table 3, with the vocabulary and positions of its
# model card; DialoGPT-medium is GPT-2-medium (Zhang et al. 2020, arXiv:1911.00536, table 1).
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": LLAMA3_8B,
    "meta-llama/Meta-Llama-3-8B": LLAMA3_8B,
    "microsoft/DialoGPT-medium": {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 1024,
        "n_layer": 24,
        "n_head": 16,
    },
}


@dataclass(frozen=True)
class Shape:
    """A configuration and, in words, where it is from."""

    config: PretrainedConfig
    source: str

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return int(self.config.num_hidden_layers)

    def with_layers(self, n: int) -> PretrainedConfig:
        """A copy of the configuration with so many layers."""
        given = self.config.to_dict()
        name = self.config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        if kinds := given.get("layer_types"):
            given["layer_types"] = kinds[:n]
        return type(self.config).from_dict(given | {name: n})


def read_shape(section: ModelSection, given: Mapping[str, Any]) -> Shape:
    """The shape of a recipe's model.

    Args:
        section: names the model.
        given: fields of a `config.json`, which win over everything; {} = none.

    Raises:
        UserError: nobody knows the model, or the fields are of no model.
    """
    if given:
        return Shape(_config(dict(given)), "given by plan.shape")
    if found := hub.known_config(section.name_or_path, section.revision):
        return Shape(_config(found), "its config.json on this machine")
    if section.name_or_path in KNOWN:
        return Shape(_config(dict(KNOWN[section.name_or_path])), "the table of sft/shapes.py")
    try:
        path = hf_hub_download(section.name_or_path, "config.json", revision=section.revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        text = hub.next_step(section.name_or_path, error)
        raise UserError(f"{text}. Or give its shape: --plan.shape '{{model_type: ...}}'") from error
    return Shape(_config(read_json(Path(path))), "config.json of the Hub")


def _config(fields: dict[str, Any]) -> PretrainedConfig:
    """A configuration; the language model's part of one that sees images, too."""
    fields = dict(fields.get("text_config") or fields)
    kind = fields.pop("model_type", None)
    try:
        return AutoConfig.for_model(kind, **fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"a shape of model_type {kind} cannot be read: {error}") from error


def without_weights(
    config: PretrainedConfig, section: ModelSection, dtype: torch.dtype
) -> PeftModel:
    """The model with a fresh adapter, all on the device "meta": it has shapes and no memory."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=models.plain_attention(section)
        )
    base.requires_grad_(False)
    return models.new_adapter(base, section)


@dataclass(frozen=True)
class Counts:
    """Parameters by part.

    Attributes:
        layers: weights of linear layers of the backbone, which 4-bit loading quantises.
        other: norms, biases and positions.
        embedding: of tokens.
        head: to the vocabulary; 0 where it is the embedding.
        adapter: what is trained.
        largest: of the largest matrix among `layers`.
    """

    layers: int
    other: int
    embedding: int
    head: int
    adapter: int
    largest: int

    @property
    def total(self) -> int:
        """All of the base."""
        return self.layers + self.other + self.embedding + self.head


def count(model: PeftModel) -> Counts:
    """Count the parameters of a model, which may be on "meta"."""
    base = model.get_base_model()
    embedding, head = base.get_input_embeddings().weight, base.get_output_embeddings().weight
    apart = {id(embedding), id(head)}
    kinds = (torch.nn.Linear, Conv1D)
    inner = {
        id(layer.weight): layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, kinds) and "lora_" not in name and id(layer.weight) not in apart
    }
    weights = {id(w): w.numel() for n, w in model.named_parameters() if "lora_" not in n}
    known = sum(inner.values()) + sum(weights[name] for name in apart)
    return Counts(
        layers=sum(inner.values()),
        other=sum(weights.values()) - known,
        embedding=embedding.numel(),
        head=0 if embedding is head else head.numel(),
        adapter=sum(w.numel() for w in model.parameters() if w.requires_grad),
        largest=max(inner.values()),
    )
