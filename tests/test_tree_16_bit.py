"""In 16 bits the tree is as near to the truth as plain rows are; on a GPU with its own kernels."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny
from peft import LoraConfig, get_peft_model
from test_tree import gradients, plain_rows, some_groups
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from reward import tree
from reward.tree_flex import FLEX_CAPABILITY


def adapted(model):
    """With an adapter in float32 that says something, the same each time."""
    torch.manual_seed(1)
    made = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    for name, weight in made.named_parameters():
        if "lora" in name:
            weight.data = torch.randn(weight.shape).mul_(0.05).to(weight.device)
    return made.train()


def both_ways(model, dtype, attention="sdpa"):
    """Log-probabilities and gradient of plain rows, then of the tree."""
    device, found = model.device, []
    groups = some_groups(4)
    for on_tree in (False, True):
        if on_tree:
            tree.add_tree_forward(model.get_base_model(), attention)
        model.zero_grad()
        with torch.device(device), torch.autocast(device.type, dtype, dtype != torch.float32):
            said = on_device(model, groups) if on_tree else torch.cat(plain_rows(model, groups))
        said.sum().backward()
        found += [said.detach().cpu(), gradients(model).cpu()]
    return found


def on_device(model, groups):
    trees = [tree.build_tree(sequences) for sequences, _ in groups]
    made = tree.collate(trees, [starts for _, starts in groups], 0)
    return tree.score_tree(
        model,
        made._replace(**{name: value.to(model.device) for name, value in made._asdict().items()}),
    ).log_probs


def near(found, truth, slack):
    """Tree and rows against what float32 says: the tree is as near, but for the slack."""
    rows, of_rows, of_tree, of_tree_gradient = found
    true, gradient, *_ = truth
    assert (of_tree - true).norm() <= 1.5 * (rows - true).norm() + slack * true.norm()
    distance = (of_tree_gradient - gradient).norm()
    assert distance <= 1.5 * (of_rows - gradient).norm() + slack * gradient.norm()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_trees_on_a_cpu_are_as_near_to_float32_as_rows_are(dtype, kernel):
    found = []
    for each in (torch.float32, dtype):
        model = tiny("llama", 100).to(each)
        model.set_attn_implementation(kernel)
        found.append(both_ways(adapted(model), each))
    near(found[1], found[0], 1e-4)


CUDA = pytest.mark.gpu


@CUDA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("attention", ["sdpa", "auto"])
def test_16_bit_trees_on_a_gpu_are_as_near_to_float32_as_rows_are(dtype, attention):
    truth = both_ways(adapted(tiny("llama", 100).cuda()), torch.float32)
    model = adapted(tiny("llama", 100).to(dtype).cuda())
    near(both_ways(model, dtype, attention), truth, 1e-4)
    new = torch.cuda.get_device_capability() >= FLEX_CAPABILITY
    kernel = "tree_flex" if attention == "auto" and new else "tree_sdpa"
    assert model.config._attn_implementation == kernel


@CUDA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_4_bit_base_on_a_gpu_gives_trees_what_it_gives_rows(tmp_path, dtype):
    tiny("llama", 128).save_pretrained(tmp_path)
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=quantised, device_map={"": 0}, dtype=dtype
    )
    rows, of_rows, of_tree, of_tree_gradient = both_ways(adapted(model), dtype)
    assert (of_tree - rows).norm() <= 0.02 * rows.norm()
    assert torch.nn.functional.cosine_similarity(of_tree_gradient, of_rows, dim=0) >= 0.995
