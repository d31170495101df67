"""Law 7: what is exported gives the logits of what was trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rlaif.merge import INDEX, SINGLE, Merged, merge_adapter, size_in_bytes
from rlaif.verify import Answers, ask, verify_merged, verify_reloaded
from sft.files import CheckFailed, UserError

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("llama", "qwen2", "mistral", "gpt2")
IDS = [[5, 17, 42, 99, 7, 120], [3, 250, 60]]
LARGE = 10**12


def make_adapter(base: Path, out: Path, **options: Any) -> Path:
    """An adapter whose B is not zero, as after training, saved as PEFT does."""
    torch.manual_seed(1)
    targets = options.pop("target_modules", "all-linear")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=16, target_modules=targets, **options
    )
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(out)
    return out


def load(folder: Path, adapter: Path | None = None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def merge(base: Path, adapter: Path, out: Path, **options: Any) -> Merged:
    return merge_adapter(base, adapter, out, **{"max_shard_size": LARGE, "dtype": None} | options)


def logits(model: Any) -> torch.Tensor:
    return torch.cat(ask(model, IDS, max_new_tokens=0).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_merged_equals_adapter(
    model_folders: dict[str, Path], tmp_path: Path, family: str, use_rslora: bool
) -> None:
    base = model_folders[family]
    adapter = make_adapter(base, tmp_path / "adapter", use_rslora=use_rslora)
    merged = merge(base, adapter, tmp_path / "merged")
    ours = logits(load(tmp_path / "merged"))
    adapted = load(base, adapter)
    torch.testing.assert_close(ours, logits(adapted), atol=1e-5, rtol=1e-5)
    assert (ours - logits(load(base))).abs().max() > 0.05
    peft = adapted.merge_and_unload().state_dict()
    written = load_file(tmp_path / "merged" / SINGLE)
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, peft[name], atol=1e-6, rtol=1e-6)
    assert merged.changed == 4 * 2 if family == "gpt2" else 7 * 2
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shards_in_and_out(model_folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    base = tmp_path / "sharded"
    load(model_folders[family]).save_pretrained(base, max_shard_size="60KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    adapter = make_adapter(base, tmp_path / "adapter")
    merged = merge(base, adapter, tmp_path / "merged", max_shard_size=100_000)
    files = sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors"))
    assert merged.files == files and len(files) > 2
    index = json.loads((tmp_path / "merged" / INDEX).read_text())
    assert index["metadata"]["total_size"] == merged.size
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "merged" / file, "pt") as weights:
            assert name in weights.keys()  # noqa: SIM118
    for file in files:
        held = load_file(tmp_path / "merged" / file)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= 100_000
    torch.testing.assert_close(
        logits(load(tmp_path / "merged")), logits(load(base, adapter)), atol=1e-5, rtol=1e-5
    )


def test_blocks_do_not_change_the_result(
    model_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model_folders["qwen2"]
    adapter = make_adapter(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "whole")
    monkeypatch.setattr("rlaif.merge.BLOCK", 1000)
    merge(base, adapter, tmp_path / "blocks")
    whole, blocks = (load_file(tmp_path / name / SINGLE) for name in ("whole", "blocks"))
    for name in whole:
        torch.testing.assert_close(whole[name], blocks[name], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_output(
    model_folders: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    base = model_folders["llama"]
    adapter = make_adapter(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "merged", dtype=dtype)
    written = load_file(tmp_path / "merged" / SINGLE)
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    # One rounding of the float32 sum, not a sum of rounded parts.
    exact = load(base, adapter).merge_and_unload().state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(written[name], exact[name].to(dtype), atol=0, rtol=2**-7)
    answers = [
        ask(m, IDS, max_new_tokens=4) for m in (load(base, adapter), load(tmp_path / "merged"))
    ]
    agreement = verify_merged(*answers, ask(load(base), IDS, max_new_tokens=4), dtype=dtype)
    assert 0 < agreement.difference < 0.05 and agreement.lost < 0.05 and agreement.n == 2


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    base = tmp_path / "base"
    LlamaForCausalLM(config).save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "merged")
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / SINGLE)
    torch.testing.assert_close(
        logits(load(tmp_path / "merged")), logits(load(base, adapter)), atol=1e-5, rtol=1e-5
    )
    head = make_adapter(base, tmp_path / "head", target_modules=["q_proj", "lm_head"])
    with pytest.raises(UserError, match="tied"):
        merge(base, head, tmp_path / "no")


def test_gpt2_files_without_the_models_prefix(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_folders["gpt2"], base)
    held = load_file(base / SINGLE)
    plain = {name.removeprefix("transformer."): tensor for name, tensor in held.items()}
    save_file(plain, base / SINGLE, metadata={"format": "pt"})
    adapter = make_adapter(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "merged")
    torch.testing.assert_close(
        logits(load(tmp_path / "merged")), logits(load(base, adapter)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias all"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_what_is_more_than_lora_is_refused(
    model_folders: dict[str, Path], tmp_path: Path, options: dict[str, Any], named: str
) -> None:
    adapter = make_adapter(model_folders["llama"], tmp_path / "adapter", **options)
    with pytest.raises(UserError, match=named):
        merge(model_folders["llama"], adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_other_ranks_per_layer_are_merged(model_folders: dict[str, Path], tmp_path: Path) -> None:
    base = model_folders["llama"]
    adapter = make_adapter(base, tmp_path / "adapter", rank_pattern={"q_proj": 8})
    merge(base, adapter, tmp_path / "merged")
    torch.testing.assert_close(
        logits(load(tmp_path / "merged")), logits(load(base, adapter)), atol=1e-5, rtol=1e-5
    )


def test_wrong_bases_are_refused(model_folders: dict[str, Path], tmp_path: Path) -> None:
    base = model_folders["llama"]
    adapter = make_adapter(base, tmp_path / "adapter")
    with pytest.raises(UserError, match="another base"):
        merge(model_folders["gpt2"], adapter, tmp_path / "merged")

    small = tmp_path / "small"
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(small)
    with pytest.raises(UserError, match="64 x 128, the base's weight is 32 x 64"):
        merge(small, adapter, tmp_path / "merged")

    quantised = tmp_path / "quantised"
    shutil.copytree(base, quantised)
    settings = json.loads((quantised / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="quantised"):
        merge(quantised, adapter, tmp_path / "merged")

    (quantised / SINGLE).rename(quantised / "pytorch_model.bin")
    settings.pop("quantization_config")
    (quantised / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="nothing is unpickled"):
        merge(quantised, adapter, tmp_path / "merged")


def test_only_known_files_go_along(model_folders: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_folders["llama"], base)
    for name in ("modeling_custom.py", "training_args.bin", "LICENSE", "USE_POLICY.md"):
        (base / name).write_text("x")
    adapter = make_adapter(base, tmp_path / "adapter")
    merge(base, adapter, tmp_path / "merged")
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"LICENSE", "USE_POLICY.md", "config.json", "generation_config.json"} <= names
    assert not {"modeling_custom.py", "training_args.bin"} & names


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("500MB", 5 * 10**8), ("1.5GiB", 3 * 2**29)]
)
def test_sizes(text: str, size: int) -> None:
    assert size_in_bytes(text) == size
    with pytest.raises(ValueError, match="no size"):
        size_in_bytes("2 cups")


MEASURED = """
import resource, sys, threading, time
import torch, safetensors.torch, rlaif.merge
from pathlib import Path
torch.set_num_threads(1)
(torch.ones(1024, 8) @ torch.ones(8, 2048)).to(torch.bfloat16)  # loads kernels, not weights

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

before, peak, done = resident(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident()); time.sleep(0.002)
watcher = threading.Thread(target=watch); watcher.start()
base, adapter, out = map(Path, sys.argv[1:])
rlaif.merge.merge_adapter(base, adapter, out, max_shard_size=10**12, dtype=None)
done = True; watcher.join()
print(max(peak, resident()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_stays_far_below_the_models_size(tmp_path: Path) -> None:
    hidden, layers = 2048, 24
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    base.mkdir()
    adapter.mkdir()
    names = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(layers) for p in "qk"]
    weights = {f"{name}.weight": torch.ones(hidden, hidden, dtype=torch.bfloat16) for name in names}
    save_file(weights, base / SINGLE, metadata={"format": "pt"})
    size = (base / SINGLE).stat().st_size
    assert size > 400_000_000
    (base / "config.json").write_text('{"model_type": "llama"}')
    factors = {}
    for name in names:
        factors[f"base_model.model.{name}.lora_A.weight"] = torch.ones(8, hidden)
        factors[f"base_model.model.{name}.lora_B.weight"] = torch.ones(hidden, 8)
    save_file(factors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(base), str(adapter), str(out)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    grown = int(done.stdout)
    assert grown < size / 3, f"{grown / 1e6:.0f} MB for a model of {size / 1e6:.0f} MB"
    assert torch.equal(
        load_file(out / SINGLE)[f"{names[0]}.weight"],
        torch.full((hidden, hidden), 9.0, dtype=torch.bfloat16),
    )


# --- the check itself --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(
    model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Answers]:
    folder = tmp_path_factory.mktemp("check")
    base = model_folders["llama"]
    adapter = make_adapter(base, folder / "adapter")
    merge(base, adapter, folder / "merged")
    models = {
        "base": load(base),
        "adapted": load(base, adapter),
        "again": load(base, adapter),
        "merged": load(folder / "merged"),
    }
    return {name: ask(model, IDS, max_new_tokens=8) for name, model in models.items()}


def test_reloading_gives_the_same_text(answers: dict[str, Answers]) -> None:
    verify_reloaded(answers["adapted"], answers["again"])
    assert [len(reply) for reply in answers["again"].replies] == [8, 8]
    with pytest.raises(CheckFailed, match="does not say"):
        verify_reloaded(answers["adapted"], answers["base"])


def test_merged_is_told_from_base(answers: dict[str, Answers]) -> None:
    good = verify_merged(
        answers["adapted"], answers["merged"], answers["base"], dtype=torch.float32
    )
    assert good.lost < 1e-3 and good.same_replies == good.n == 2
    assert "2 of 2 greedy replies" in good.sentence()
    with pytest.raises(CheckFailed, match="not the trained one"):
        verify_merged(answers["adapted"], answers["base"], answers["base"], dtype=torch.bfloat16)
    broken = Answers(
        [x * float("nan") for x in answers["merged"].logits], answers["merged"].replies
    )
    with pytest.raises(CheckFailed):
        verify_merged(answers["adapted"], broken, answers["base"], dtype=torch.bfloat16)
