"""Tokenizer, precision, 4-bit and adapters: the only place that calls `from_pretrained`.

The lineage rule: the base is never changed and never merged while training; what learns is one LoRA
adapter named "default", in float32 whatever the base's precision, and a frozen copy of where it
started is the reference.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sft import chat, hub
from sft.config import ModelSection
from sft.files import CheckFailed, UserError
from sft.precision import DTYPES, Precision, choose_precision
from sft.sharding import sharding

__all__ = [
    "DTYPES", "Precision", "Speakers", "adapter_weights", "add_adapter", "choose_precision",
    "downloaded", "keep_float32", "load_adapter", "load_base", "load_speakers", "load_streamed",
    "load_tokenizer", "new_adapter", "save_adapter",
]  # fmt: skip

GPU_SHARE = 0.8  # of the free memory, for weights; the rest is for what they compute


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """Tokenizer with its chat template set and a pad token that is not the end of text, if it can.

    pad = eos hides the end of a reply from the loss wherever labels are masked by id, and Llama-3
    reward models then do not converge, so a reserved token of the vocabulary is taken where the
    tokenizer brings no pad token.
    """
    tokenizer: PreTrainedTokenizerBase = _load(AutoTokenizer.from_pretrained, section)
    chat.set_template(tokenizer, section.chat_template)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        known = tokenizer.get_vocab()
        spare = ["<|finetune_right_pad_id|>", "<|reserved_special_token_0|>"]
        spare += ["<pad>", "[PAD]", "<unk>"]
        tokenizer.pad_token = next((each for each in spare if each in known), tokenizer.eos_token)
    return tokenizer


def load_base(section: ModelSection, precision: Precision) -> PreTrainedModel:
    """The frozen base in its compute precision, or in 4-bit NF4 with double quantisation.

    Raises:
        UserError: no such model, no access to a gated one, no causal language model, one with
            fewer positions than `max_length`, or an attention kernel that cannot train here; with
            the next step.
    """
    # Before the weights, which may take long: a recipe knows only models that are here already.
    config = _load(AutoConfig.from_pretrained, section)
    if text := hub.too_long(section.max_length, section.name_or_path, config.to_dict()):
        raise UserError(f"model.max_length: {text}")
    if section.attn_implementation == "flex_attention" and precision.device == "cpu":
        raise UserError(
            "flex_attention has no gradient on a CPU: set model.attn_implementation sdpa"
        )
    options: dict[str, object] = {
        "dtype": precision.dtype,
        "attn_implementation": plain_attention(section),
        "use_safetensors": True,  # the other format is a pickle
    }
    # Before anything is put on a device: each process of a launch has a card of its own.
    state = PartialState(cpu=precision.device == "cpu")
    if section.load_in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=precision.dtype,
        )
        # A quantised model cannot be moved afterwards, and each process holds a whole copy on its
        # own card.
        options["device_map"] = {"": state.device}
    model: PreTrainedModel = _load(AutoModelForCausalLM.from_pretrained, section, **options)
    model.requires_grad_(False)
    # What a model ships (a repetition penalty, a top-k) would sample from another policy than the
    # one that is scored and trained; who samples says how.
    model.generation_config = GenerationConfig()
    # What is shared out among processes does not fit a card before.
    return model if section.load_in_4bit or sharding() else model.to(state.device)


def plain_attention(section: ModelSection) -> str:
    """Kernel for plain rows; trees may have one of their own (`reward.tree_attention`)."""
    return "sdpa" if section.attn_implementation == "auto" else section.attn_implementation


def _load(loader, section: ModelSection, **options):  # type: ignore[no-untyped-def]  # two loaders, one set of errors
    where = hub.model_source(section.name_or_path)
    try:
        return loader(where, revision=section.revision, **options)
    except (OSError, ValueError) as error:
        raise UserError(hub.next_step(section.name_or_path, error)) from error


def downloaded(section: ModelSection) -> Path:
    """Folder of a Hub model's files on this machine, fetched where they are not there yet."""
    wanted, unwanted = list(hub.MODEL_FILES), list(hub.NOT_NEEDED)
    files = _load(snapshot_download, section, allow_patterns=wanted, ignore_patterns=unwanted)
    return Path(files)


def new_adapter(base: PreTrainedModel, section: ModelSection) -> PeftModel:
    """Put a fresh LoRA adapter on the base: B is zero, so the model says what the base says."""
    targets = section.lora_target_modules
    # GPT-2 keeps its weights transposed (Conv1D).
    transposed = base.config.model_type == "gpt2"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        fan_in_fan_out=transposed,
        target_modules=targets
        if targets == "all-linear"
        else [name.strip() for name in targets.split(",")],
    )
    model = get_peft_model(base, config)
    _to_float32(model)
    return model


def load_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool) -> PeftModel:
    """Put a saved adapter on the base as "default".

    Raises:
        UserError: the folder holds no adapter.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"no adapter in {folder}: run the stage that writes it first.")
    model = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
    _to_float32(model)
    return model


def add_adapter(model: PeftModel, folder: Path | None, name: str) -> str:
    """Put a further adapter beside "default"; None = a fresh one of its kind. Returns its name.

    Raises:
        UserError: the folder holds no adapter.
    """
    if folder is None:
        model.add_adapter(name, model.peft_config["default"])
    elif (folder / "adapter_config.json").is_file():
        model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
    else:
        raise UserError(f"no adapter in {folder}: run the stage that writes it first.")
    _to_float32(model)
    return name


@dataclass(frozen=True)
class Speakers:
    """Several assistants on one base, of which one is active at a time."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @contextmanager
    def active(self, name: str) -> Iterator[PreTrainedModel]:
        """The model speaking as `name`; names without an adapter mean the base itself."""
        if not isinstance(self.model, PeftModel) or name in self.model.peft_config:
            if isinstance(self.model, PeftModel):
                self.model.set_adapter(name)
            yield self.model
        else:
            with self.model.disable_adapter():
                yield self.model


def load_speakers(
    section: ModelSection, adapters: Mapping[str, Path | None], *, use_cpu: bool
) -> Speakers:
    """Load the base once and every adapter by name (None = the base itself), to generate only."""
    tokenizer = load_tokenizer(section)
    model: PreTrainedModel = load_base(section, choose_precision(section.dtype, use_cpu=use_cpu))
    for name, folder in adapters.items():
        if folder and isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
        elif folder:
            model = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    if isinstance(model, PeftModel):
        _to_float32(model)
    return Speakers(model.eval(), tokenizer)


def load_streamed(
    section: ModelSection,
    adapters: Mapping[str, Path],
    *,
    dtype: torch.dtype,
    max_memory: int,
    scratch: Path,
    use_cpu: bool,
) -> PreTrainedModel:
    """A model of which only a part is in memory: the rest comes from its files at each use.

    For checks of models that do not fit; never for training. A GPU holds what it has room for.

    Args:
        section: an unquantised model.
        adapters: folders by name.
        dtype: of the weights; that of the files, or they are converted at each use.
        max_memory: bytes of main memory for weights, the layer at work included.
        scratch: an empty folder for weights that the files hold otherwise.
        use_cpu: leave the GPU alone.
    """
    on_gpu = torch.cuda.is_available() and not use_cpu
    device = "cuda:0" if on_gpu else "cpu"
    limits: dict[int | str, int] = {"cpu": max_memory}
    if on_gpu:
        limits[0] = int(GPU_SHARE * torch.cuda.mem_get_info(0)[0])
    model: PreTrainedModel = _load(
        AutoModelForCausalLM.from_pretrained,
        section,
        dtype=dtype,
        attn_implementation=plain_attention(section),
        use_safetensors=True,
        device_map="auto",
        max_memory=limits,
        offload_folder=str(scratch),
    )
    for name, folder in adapters.items():
        config = LoraConfig.from_pretrained(str(folder))
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
        # PEFT's own loading writes the base's files anew, and moves an adapter to where its layer
        # is: off the memory. Assigned, its weights stay where they are read to.
        weights = {
            f"{key.removesuffix('.weight')}.{name}.weight": tensor.float().to(device)
            for key, tensor in adapter_weights(folder).items()
        }
        strangers = model.load_state_dict(weights, strict=False, assign=True).unexpected_keys
        if strangers:
            raise CheckFailed(f"{folder} has weights that the model does not: {strangers[0]}")
    return model.eval()


def _to_float32(model: PeftModel) -> None:
    # TRL and PEFT move adapters of quantised models to bfloat16; fp16's GradScaler then fails, and
    # policy and reference differ before the first step.
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def keep_float32(model: PeftModel, weights: Mapping[str, torch.Tensor]) -> None:
    """Undo what a trainer does to adapters when it is made; call it before the first step.

    TRL rounds the trained adapter of a quantised model to bfloat16, and only that one: its frozen
    copy, the reference, would be another adapter.

    Args:
        model: with the adapter "default" and perhaps its reference.
        weights: of "default" before the trainer was made, by their names in a saved adapter.
    """
    _to_float32(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name and ".default" in name:
            parameter.data.copy_(weights[name.replace(".default", "")])


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of a saved adapter by name."""
    return load_file(str(folder / "adapter_model.safetensors"))


def save_adapter(
    model: PeftModel,
    folder: Path,
    base_name: str,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapter "default" as safetensors, naming the base that a stranger can get.

    Args:
        model: with the adapter.
        folder: where to; what is there goes.
        base_name: of the base.
        weights: by their names in a saved adapter, where the model has only a share of them; None =
            as they are in the model.
    """
    if folder.exists():
        shutil.rmtree(folder)
    model.peft_config["default"].base_model_name_or_path = base_name
    options: dict[str, object] = {"safe_serialization": True, "save_embedding_layers": False}
    if weights is not None:
        options["state_dict"] = {
            f"{name.removesuffix('.weight')}.default.weight": value
            for name, value in weights.items()
        }
    model.save_pretrained(str(folder), selected_adapters=["default"], **options)
