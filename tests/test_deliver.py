"""The export's checks on tiny models: what leaves says what was trained, in 16 and in 4 bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlaif import deliver as delivery
from rlaif.deliver import deliver
from rlaif.merge import coarsest
from sft import model as models
from sft.config import Recipe
from sft.files import CheckFailed


def recipe_for(folder: Path, *, load_in_4bit: bool = False, **export: object) -> Recipe:
    model = {"name_or_path": str(folder), "system_prompt": "none", "max_length": 200}
    model |= {"dtype": "float32", "lora_r": 4, "load_in_4bit": load_in_4bit}
    return Recipe(run="t", use_cpu=True, model=model, export=export, generate={"max_new_tokens": 8})


def trained(recipe: Recipe, folder: Path) -> Path:
    """An adapter that changes what the model says."""
    precision = models.choose_precision("float32", use_cpu=True)
    model = models.new_adapter(models.load_base(recipe.model, precision), recipe.model)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    models.save_adapter(model, folder, recipe.model.name_or_path)
    return folder


@pytest.mark.parametrize(
    ("family", "load_in_4bit", "dtype"),
    [
        ("llama", False, "auto"),
        ("llama", False, "bfloat16"),
        # Trained on the 4-bit base and merged into the 16-bit one: asked on the latter.
        ("llama", True, "auto"),
        ("gpt2", False, "auto"),
    ],
)
def test_adapter_and_merged_model_agree_with_what_was_trained(
    model_folders, tmp_path, family, load_in_4bit, dtype
):
    recipe = recipe_for(
        model_folders[family], load_in_4bit=load_in_4bit, merge=True, merge_dtype=dtype
    )
    adapter = trained(recipe, tmp_path / "adapter")
    done = deliver(recipe, adapter, tmp_path / "export")
    assert done.outputs == ["adapter", "merged"]
    assert "1 files" in done.merged
    same, merged = done.checks
    assert "exactly (3 prompts" in same
    allowed = "0.25" if dtype == "bfloat16" else "0.001"
    assert f"(allowed: {allowed})" in merged
    for folder in ("adapter", "merged"):
        assert (tmp_path / "export" / folder / "tokenizer_config.json").is_file()


def test_without_merge_or_verify_only_the_adapter_is_written(model_folders, tmp_path):
    recipe = recipe_for(model_folders["llama"], verify=False)
    done = deliver(recipe, trained(recipe, tmp_path / "adapter"), tmp_path / "export")
    assert (done.outputs, done.merged, done.checks) == (["adapter"], "", [])
    assert not (tmp_path / "export" / "merged").exists()


def test_a_copy_that_says_something_else_is_refused(model_folders, tmp_path, monkeypatch):
    recipe = recipe_for(model_folders["llama"])
    adapter = trained(recipe, tmp_path / "adapter")

    def spoiled(source: Path, out: Path, **_: object) -> None:
        shutil.copytree(source, out)
        weights = load_file(out / "adapter_model.safetensors")
        save_file(
            {name: tensor * 1.01 for name, tensor in weights.items()},
            out / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )

    monkeypatch.setattr(delivery.export, "copy_adapter", spoiled)
    with pytest.raises(CheckFailed, match="does not say what the trained one said"):
        deliver(recipe, adapter, tmp_path / "export")


def test_the_coarsest_type_sets_the_tolerance():
    assert coarsest(torch.float32, torch.bfloat16, torch.float16) == torch.bfloat16
    assert coarsest(torch.float32, torch.float16) == torch.float16
    assert coarsest(torch.float32) == torch.float32
