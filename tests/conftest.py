"""Tiny models that the tests make themselves: nothing is downloaded, nothing needs a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sft import base
from sft.data import Demonstration, Message

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

TALKS: list[list[Message]] = [
    [
        {"role": "user", "content": "I cannot sleep and I am tired all day."},
        {"role": "assistant", "content": "That sounds exhausting. What keeps you awake at night?"},
    ],
    [
        {"role": "user", "content": "My exams are near and I panic when I open a book."},
        {
            "role": "assistant",
            "content": "It makes sense that you are tense. Could you start with ten minutes?",
        },
    ],
    [
        {"role": "user", "content": "I feel alone since I moved."},
        {"role": "assistant", "content": "Moving is hard. Who do you miss most?"},
        {"role": "user", "content": "My sister."},
        {"role": "assistant", "content": "You could call her tonight and tell her that."},
    ],
]
FAMILIES = ("llama", "qwen2", "mistral", "gpt2")


@pytest.fixture(scope="session")
def talks() -> list[list[Message]]:
    """Three conversations, the last one with two turns of the person."""
    return TALKS


@pytest.fixture(scope="session")
def demonstrations() -> list[Demonstration]:
    """Twelve demonstrations."""
    return [Demonstration(f"p-{i}", talk[:-1], talk[-1:]) for i in range(4) for talk in TALKS]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with Llama-3's special tokens and chat layout."""
    return base.train_tokenizer(TALKS, base.Shape(vocabulary=400))


def tiny(family: str, vocabulary: int) -> PreTrainedModel:
    """A causal model of a family with two layers of 64, random weights."""
    torch.manual_seed(0)
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=vocabulary, n_embd=64, n_layer=2, n_head=4, n_positions=256)
        )
    kinds = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
        "gemma": (GemmaConfig, GemmaForCausalLM),
    }
    make_config, make_model = kinds[family]
    config = make_config(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
    )
    return make_model(config)


@pytest.fixture(scope="session")
def model_folders(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A folder per family, as a user would have it on disk; GPT-2's tokenizer has no chat template
    and no pad token."""
    folders = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        tiny(family, len(tokenizer)).save_pretrained(folder)
        if family == "gpt2":
            core = tokenizer.backend_tokenizer
            PreTrainedTokenizerFast(
                tokenizer_object=core, eos_token=base.EOS, bos_token=base.EOS
            ).save_pretrained(folder)
        else:
            tokenizer.save_pretrained(folder)
        folders[family] = folder
    return folders
