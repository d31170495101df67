"""The plan: its arithmetic on cases worked out by hand, what it refuses, and how far it is off.

The slow test measures every stage on a CPU and holds the plan to 10 % of that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from rlaif.plan import advice, live, memory, report, seconds, work
from rlaif.plan.cards import CARDS, card_called
from rlaif.plan.live import Forest, Rows, Work
from rlaif.plan.memory import GIB, Memory, Model, model_for
from sft import config, shapes
from sft.config import ModelSection, Recipe
from sft.files import UserError
from sft.plan_settings import Card

ROOT = Path(__file__).resolve().parents[1]
T4 = ROOT / "configs" / "llama3-8b-t4.yaml"
TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "tie_word_embeddings": False,
}  # fmt: skip


def llama(*flags: str) -> Model:
    return model_for(config.load(["--config", str(T4), *flags], "finetune", ""), card="T4")


def tiny(**sections: object) -> Recipe:
    reply = {"max_new_tokens": 16}
    given = {
        "plan": {"shape": TINY, "card": "CPU"},
        "model": {"name_or_path": "x/unknown", "max_length": 64},
        "generate": reply,
        "evaluate": reply,
    }
    return Recipe.model_validate({"run": "t", **given, **sections})


@pytest.fixture(scope="module")
def model() -> Model:
    return llama()


# --- parameters -----------------------------------------------------------------------------------


def test_llama_3_8b_has_the_parameters_of_its_paper(model: Model) -> None:
    n = model.counts
    # A layer: q and o of 4096 x 4096, k and v of 4096 x 1024, three of 4096 x 14336.
    assert n.layers == 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) == 6_979_321_856
    assert n.embedding == n.head == 128256 * 4096 == 525_336_576
    assert n.other == (2 * 32 + 1) * 4096  # norms
    assert n.total == 8_030_261_248
    # A and B of rank 16 on each of the seven.
    sides = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert n.adapter == 32 * 16 * sides == 41_943_040


def test_dialogpt_is_gpt_2_medium_with_a_tied_head() -> None:
    section = ModelSection(name_or_path="microsoft/DialoGPT-medium")
    shape = shapes.read_shape(section, {})
    n = shapes.count(shapes.without_weights(shape.config, section, torch.float16))
    assert n.head == 0
    assert n.total == 354_823_168


def test_a_shape_comes_from_the_recipe_the_disk_or_the_table_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert shapes.read_shape(ModelSection(), {}).source == "its config.json on this machine"
    unknown = ModelSection(name_or_path="nobody/nothing")
    found = shapes.read_shape(unknown, TINY)
    assert (found.layers, found.source) == (4, "given by plan.shape")
    with pytest.raises(UserError, match=r"plan\.shape"):
        shapes.read_shape(unknown, {})
    with pytest.raises(UserError, match="model_type strange"):
        shapes.read_shape(unknown, {"model_type": "strange"})


# --- memory ---------------------------------------------------------------------------------------


def test_a_4_bit_llama_weighs_what_is_computed_by_hand(model: Model) -> None:
    parts = model.base()
    assert parts["base, 4-bit"] / GIB == pytest.approx(3.354, abs=0.002)
    assert (parts["embedding"] + parts["head"]) / 1e9 == pytest.approx(2.10, abs=0.002)
    sixteen = llama("--load_in_4bit", "false").base()
    assert sum(sixteen.values()) == 2 * 8_030_261_248


def test_ppo_on_one_base_is_half_of_three_copies(model: Model) -> None:
    base, n = sum(model.base().values()), model.counts.adapter
    # Policy and value learn (16 bytes with Adam in float32), the reward is frozen in 16 bit.
    held = model.adapters(0, 2, "adamw_torch")
    assert sum(held.values()) == 2 * 16 * n
    assert (base + sum(held.values()) + 2 * n) / GIB == pytest.approx(6.64, abs=0.01)
    # Three copies: the policy's keeps its head, the two others have none that counts.
    trunk = base - model.base()["head"]
    assert (base + 2 * trunk) / GIB == pytest.approx(13.97, abs=0.01)
    # This project keeps frozen adapters in float32.
    assert sum(model.adapters(1, 0, None).values()) == 4 * n


def test_the_optimiser_is_counted_by_its_name() -> None:
    assert memory.optimiser_bytes("adamw_torch") == 8
    assert memory.optimiser_bytes("paged_adamw_8bit") == memory.optimiser_bytes("adamw_8bit") < 2.1
    assert memory.optimiser_bytes("sgd") == 0


def test_a_cached_token_takes_keys_and_values_of_all_layers(model: Model) -> None:
    assert model.cache_bytes == 2 * 32 * 8 * 128 * 2 == 131_072
    texts = work.Longest(1748, 300)
    assert memory.sampling(model, 16, 4, texts)["KV cache"] == 16 * 2048 * 131_072


def test_a_checkpoint_is_one_state_a_layer_and_token(model: Model) -> None:
    rows = Work(Rows(1, 512), head=False, learn=True, checkpointing=True)
    assert model.alive(rows).per_layer == 512 * 4096 * 2
    plain = model.alive(replace(rows, checkpointing=False))
    # Of one layer some 200 to 400 KiB a token are kept, or made again.
    assert 200 < plain.per_layer / 512 / 1024 < 400
    assert 200 < model.alive(rows).fixed / 512 / 1024 < 450
    # Without a gradient nothing but autocast's 16-bit copies of the adapters.
    found = model.alive(replace(rows, learn=False)).per_layer
    assert found == 2 * model.counts.adapter // 32


def test_what_is_alive_is_counted_once_and_forgotten() -> None:
    with live.FakeTensorMode():
        known = torch.empty(100)
        living = live.Living([known])
        with living:
            first = torch.empty(1000)
            view = first[:10]
            second = known + 1
            del first
            assert living.now == 4000 + 400  # the view holds all of the first
            del view, second
            assert living.now == 0
    assert living.peak == 4400


def test_a_tree_holds_a_prompt_once() -> None:
    tree = Forest((50, 30), 10, 3, 32)
    assert tree.batch.nodes == 50 + 30 + 2 * 3 * 10
    assert tree.batch.input_ids.shape == (1, 160)
    assert Work(tree, True, True, False, copies=2).positions == 320


def test_a_pack_is_filled_to_its_budget() -> None:
    recipe = config.load(["--config", str(T4)], "dpo", "")
    step, scoring = work.dpo_work(recipe, work.Longest(200, 50))
    assert isinstance(step.texts, Forest) and isinstance(scoring.texts, Forest)
    assert step.texts.prompts == (200,) * 7 + (3072 - 7 * 400 - 4 * 50,)
    assert step.positions == 3072
    assert scoring.texts.prompts == step.texts.prompts * 4


# --- time -----------------------------------------------------------------------------------------


def test_flop_of_a_token_are_those_of_its_weights(model: Model) -> None:
    def giga(**how: object) -> float:
        return seconds.flop_per_token(model, head=1, **how) / 1e9  # type: ignore[arg-type]

    assert giga(learn=False, checkpointing=False) == pytest.approx(15.1, abs=0.1)
    assert giga(learn=True, checkpointing=True) == pytest.approx(45.3, abs=0.3)


def test_a_card_twice_as_fast_trains_in_half_the_time(model: Model) -> None:
    slow = CARDS["A10"]
    fast = replace(slow, flops=2 * slow.flops)
    a, b = (seconds.stage_times(model, "dpo", card) for card in (slow, fast))
    assert a.seconds == pytest.approx(2 * b.seconds)
    assert (a.steps, a.tokens) == (b.steps, b.tokens)
    assert card_called("CPU").memory > 0


def test_an_a100_of_no_size_is_the_smaller_one_and_every_card_is_known() -> None:
    for given, wanted in (("A100", "A100-40"), ("A100-80", "A100-80")):
        recipe = config.load(["--config", str(T4), "--card", given], "plan", "")
        assert recipe.plan.card == wanted
    assert set(get_args(Card)) == {*CARDS, "A100", "CPU"}


# --- what does not fit ----------------------------------------------------------------------------


def test_changes_are_differences_of_plans_and_lead_to_what_fits() -> None:
    recipe = tiny(finetune={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3})
    made = model_for(recipe, card="CPU")
    total = memory.stage_memory(made, "finetune").total
    found = advice.changes(made, "finetune", total // 3)
    assert [each.setting for each in found][:2] == [
        "finetune.gradient_checkpointing",
        "finetune.per_device_train_batch_size",
    ]
    assert total - sum(each.saves for each in found) == found[-1].total <= total // 3
    assert all(each.saves > 0 for each in found)
    assert "per_device_train_batch_size 4 -> 2 saves" in found[1].line()
    beyond = advice.changes(made, "finetune", 1)
    assert beyond[-1].total > 1


def test_the_plan_says_what_it_used_and_that_it_is_computed() -> None:
    plan = report.make_plan(tiny())
    text = report.text(plan)
    assert [each.stage for each in plan.stages] == [
        "finetune", "generate", "reward", "dpo", "evaluate",
    ]  # fmt: skip
    assert text.startswith("Computed; nothing was loaded")
    assert "given by plan.shape" in text and "Every stage fits" in text
    for each in plan.stages:
        assert isinstance(each.memory, Memory)
        assert sum(each.memory.parts.values()) == each.memory.total
    assert "with gradient checkpointing" in text


def run_plan(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "plan.py"), *flags],
        env={"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_that_cannot_fit_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    given = ["--run", "t", "--shape", json.dumps(TINY), "--stages", "finetune"]
    given += ["--memory", "0.001", "--max_length", "300"]
    refused = run_plan(tmp_path, *given)
    assert refused.returncode == 2
    assert "finetune would not fit a T4" in refused.stderr
    assert "TOO MUCH" in refused.stdout and "saves" in refused.stdout
    assert run_plan(tmp_path, *given, "--force").returncode == 0
    assert list(tmp_path.iterdir()) == []


# --- against what is measured ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["finetune", "reward", "dpo", "ppo"])
def test_the_memory_is_within_a_tenth_of_what_is_measured(tmp_path: Path, stage: str) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "bench_memory.py"), "--stages", stage]
    out = tmp_path / "memory.json"
    subprocess.run(
        [*script, "--out", str(out)],
        env={"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        check=True,
    )
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert row["work"] == stage
    assert abs(row["error"]) <= 0.1
