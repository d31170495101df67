"""The export's checks on tiny models: what leaves says what was trained, in 16 and in 4 bit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from rlaif import deliver as delivery
from rlaif import verify
from rlaif.deliver import deliver
from rlaif.merge import SINGLE, coarsest
from rlaif.verify import ask, follow, greedy
from sft import model as models
from sft.config import Recipe
from sft.files import CheckFailed

ROOT = Path(__file__).resolve().parents[1]


def recipe_for(folder: Path, *, load_in_4bit: bool = False, **export: object) -> Recipe:
    model = {"name_or_path": str(folder), "system_prompt": "none", "max_length": 200}
    model |= {"dtype": "float32", "lora_r": 4, "load_in_4bit": load_in_4bit}
    short = {"generate": {"max_new_tokens": 8}, "evaluate": {"max_new_tokens": 8}}
    return Recipe(run="t", use_cpu=True, model=model, export=export, **short)


def dtypes_of(folder: Path) -> set[torch.dtype]:
    files = folder.glob("*.safetensors")
    return {tensor.dtype for file in files for tensor in load_file(file).values()}


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
    ("family", "load_in_4bit", "dtype", "written", "allowed"),
    [
        # Stored in float32: "merged" means 16 bit all the same.
        ("llama", False, "auto", torch.bfloat16, "0.25"),
        ("llama", False, "float32", torch.float32, "0.001"),
        # Trained on the 4-bit base and merged into the 16-bit one: asked on the latter.
        ("llama", True, "float16", torch.float16, "0.05"),
        ("gpt2", False, "float32", torch.float32, "0.001"),
    ],
)
def test_adapter_and_merged_model_agree_with_what_was_trained(
    model_folders, tmp_path, family, load_in_4bit, dtype, written, allowed
):
    recipe = recipe_for(
        model_folders[family], load_in_4bit=load_in_4bit, merge=True, merge_dtype=dtype
    )
    adapter = trained(recipe, tmp_path / "adapter")
    done = deliver(recipe, adapter, tmp_path / "export")
    assert done.outputs == ["adapter", "merged"]
    assert "1 files" in done.merged
    assert str(written).removeprefix("torch.") in done.merged
    same, merged = done.checks
    assert "exactly (3 prompts, 32 tokens)" in same
    assert f"(allowed: {allowed})" in merged
    assert dtypes_of(tmp_path / "export" / "merged") == {written}
    for folder in ("adapter", "merged"):
        assert (tmp_path / "export" / folder / "tokenizer_config.json").is_file()


def test_a_base_stored_in_float16_stays_so(model_folders, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(model_folders["llama"], base)
    weights = load_file(base / SINGLE)
    weights = {name: tensor.half() for name, tensor in weights.items()}
    save_file(weights, base / SINGLE, metadata={"format": "pt"})
    recipe = recipe_for(base, merge=True)
    done = deliver(recipe, trained(recipe, tmp_path / "adapter"), tmp_path / "export")
    assert dtypes_of(tmp_path / "export" / "merged") == {torch.float16}
    assert "(allowed: 0.05)" in done.checks[1]


# --- larger than memory ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_large_model_is_checked_from_disk(model_folders, tmp_path, family):
    limits = {"max_memory": "0.2MB", "max_shard_size": "0.1MB"}
    recipe = recipe_for(model_folders[family], merge=True, merge_dtype="float32", **limits)
    done = deliver(recipe, trained(recipe, tmp_path / "adapter"), tmp_path / "export")
    same, merged = done.checks
    assert "exactly (3 prompts, 8 tokens, read from disk layer by layer)" in same
    assert "layer by layer): Largest difference" in merged
    assert "3 of 3 greedy replies are the same" in merged
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"adapter", "merged"}


def test_a_streamed_model_says_what_a_loaded_one_says(model_folders, tmp_path, monkeypatch):
    recipe = recipe_for(model_folders["llama"])
    adapter = trained(recipe, tmp_path / "adapter")
    prompts = [[5, 17, 42, 99, 7, 120], [3, 250, 60]]
    model = models.load_streamed(
        recipe.model,
        {"policy": adapter},
        dtype=torch.float32,
        max_memory=200_000,
        scratch=tmp_path,
        use_cpu=True,
    )
    assert any(weight.is_meta for weight in model.parameters())  # not in memory
    replies = greedy(model, prompts, max_new_tokens=6)
    answers = follow(model, prompts, replies)
    assert answers.replies == replies
    speakers = models.load_speakers(recipe.model, {"policy": adapter}, use_cpu=True)
    with speakers.active("policy") as policy:
        loaded = ask(policy, prompts, max_new_tokens=6)
        rows = [[*p, *r] for p, r in zip(prompts, replies, strict=True)]
        whole = ask(policy, rows, max_new_tokens=0)
        monkeypatch.setattr(verify, "FOLLOWED", 2)
        end = follow(policy, prompts, replies)
    assert loaded.replies == replies
    for ours, theirs, last in zip(answers.logits, whole.logits, end.logits, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert torch.allclose(last, theirs[-8:], atol=1e-5)
    assert end.replies == replies
    with speakers.active("base") as base:
        assert follow(base, prompts, replies).replies != replies


@pytest.mark.parametrize("spoiled", ["adapter", "merged"])
def test_a_spoiled_export_of_a_large_model_is_refused(
    model_folders, tmp_path, monkeypatch, spoiled
):
    recipe = recipe_for(model_folders["llama"], merge=True, max_memory="0.2MB")
    adapter, out = trained(recipe, tmp_path / "adapter"), tmp_path / "export"
    check = delivery.check_streamed

    def spoil_first(*args):
        file = out / spoiled / ("adapter_model.safetensors" if spoiled == "adapter" else SINGLE)
        weights = {name: tensor * 1.2 for name, tensor in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
        return check(*args)

    monkeypatch.setattr(delivery, "check_streamed", spoil_first)
    told = "does not say what" if spoiled == "adapter" else "is not the trained one"
    with pytest.raises(CheckFailed, match=told):
        deliver(recipe, adapter, out)


MEASURED = """
import sys, threading, time
from pathlib import Path
import torch
from rlaif import deliver
from sft.config import Recipe

torch.set_num_threads(1)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

(torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)).float()
before, peak, done = resident(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident()); time.sleep(0.002)
watcher = threading.Thread(target=watch); watcher.start()
base, adapter, out = map(Path, sys.argv[1:])
model = {"name_or_path": str(base), "system_prompt": "none", "max_length": 256}
export = {"merge": True, "max_memory": "100MB", "max_shard_size": "50MB"}
found = deliver.deliver(
    Recipe(
        run="t", use_cpu=True, model=model, export=export,
        generate={"max_new_tokens": 8}, evaluate={"max_new_tokens": 8},
    ),
    adapter, out,
)
done = True; watcher.join()
print(*found.checks, file=sys.stderr)
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_merging_and_checking_stay_far_below_the_models_size(tokenizer, tmp_path):
    base = tmp_path / "base"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=30,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(base, max_shard_size="100MB")
    tokenizer.save_pretrained(base)
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    assert size > 700_000_000
    recipe = recipe_for(base)
    adapter = trained(recipe, tmp_path / "adapter")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(base), str(adapter), str(tmp_path / "export")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown = int(done.stdout)
    assert grown < size / 2, f"{grown / 1e6:.0f} MB for a model of {size / 1e6:.0f} MB"


# --- refused -----------------------------------------------------------------------------------


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
