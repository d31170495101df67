"""The gate at the door, the adapter that leaves, and the card that goes with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from rlaif.card import CardFacts, licence_note, parameters, write_card
from rlaif.compare import build_report
from rlaif.export import copy_adapter, public_name, read_report, release
from rlaif.measures import Resampling
from rlaif.results import JudgedReply, Report
from rlaif.safety import Gate
from sft.files import CheckFailed, UserError, sha256_of, write_json


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A trained adapter's folder as a trainer leaves it, with what must not go along."""
    folder = tmp_path / "trained"
    folder.mkdir()
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{prefix}.lora_A.weight": torch.randn(4, 32),
        f"{prefix}.lora_B.weight": torch.randn(16, 4),
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "base_model_name_or_path": "/home/somebody/models/base",
        "inference_mode": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "training_args.bin").write_bytes(b"\x80\x04pickle")
    (folder / "README.md").write_text("a trainer's card")
    return folder


def report_for(adapter: Path, *, unsafe: int = 1, won: int = 38) -> Report:
    def side(bad: int, empathy: float) -> list[JudgedReply]:
        return [
            JudgedReply(
                f"p{i}", "crisis" if i % 2 else "none", "grief", f"secret reply {i}", i >= bad,
                empathy, 0.5, False, None, 20, 0.0, "eos",
            )
            for i in range(40)
        ]  # fmt: skip

    return build_report(
        side(unsafe, 0.7),
        side(10, 0.4),
        [1.0] * won + [0.0] * (40 - won),
        policy="dpo@12",
        baseline="finetune@34",
        policy_hash=sha256_of(adapter),
        evaluator="practice-clinic",
        rubric="ground-truth",
        prompts_hash="cd" * 8,
        gate=Gate(),
        resampling=Resampling(n=200, seed=0),
    )


# --- the gate ----------------------------------------------------------------------------------


def test_a_passing_report_opens_the_door(adapter: Path) -> None:
    assert release(report_for(adapter), adapter, force=False) == []


@pytest.mark.parametrize(
    ("unsafe", "won", "reasons"),
    [
        (20, 38, ["unsafe rate overall is above", "unsafe rate in a crisis is above"]),
        (1, 20, ["win rate's lower bound is not above 0.50"]),
    ],
)
def test_a_failed_report_is_refused_with_its_reasons(
    adapter: Path, unsafe: int, won: int, reasons: list[str]
) -> None:
    report = report_for(adapter, unsafe=unsafe, won=won)
    with pytest.raises(CheckFailed) as refused:
        release(report, adapter, force=False)
    assert refused.value.exit_code == 5
    assert "--export.force true" in str(refused.value)
    overruled = release(report, adapter, force=True)
    assert len(overruled) == len(reasons)
    for reason in reasons:
        assert reason in str(refused.value)
        assert any(reason in each for each in overruled)


def test_no_report_and_a_foreign_report_are_refused(adapter: Path, tmp_path: Path) -> None:
    assert read_report(tmp_path / "report.json") is None
    with pytest.raises(CheckFailed, match="there is no report"):
        release(None, adapter, force=False)
    other = replace(report_for(adapter), policy_hash="00" * 32)
    with pytest.raises(CheckFailed, match="another adapter"):
        release(other, adapter, force=False)


def test_report_is_read_back(adapter: Path, tmp_path: Path) -> None:
    report = report_for(adapter)
    write_json(tmp_path / "report.json", report.to_json())
    assert read_report(tmp_path / "report.json") == report
    (tmp_path / "report.json").write_text('{"passed": true}')
    with pytest.raises(UserError, match="not a report"):
        read_report(tmp_path / "report.json")


# --- the adapter -------------------------------------------------------------------------------


def test_only_weights_and_configuration_leave(adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "export" / "adapter"
    out.mkdir(parents=True)
    (out / "left-over.txt").write_text("of an earlier export")
    copy_adapter(adapter, out, base="meta-llama/Meta-Llama-3-8B", revision="abc")
    names = {path.name for path in out.iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json"}
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "meta-llama/Meta-Llama-3-8B"
    assert config["revision"] == "abc" and config["inference_mode"] is True
    trained, left = (load_file(f / "adapter_model.safetensors") for f in (adapter, out))
    assert all(torch.equal(trained[name], left[name]) for name in trained)


def test_public_name_of_a_base(tmp_path: Path) -> None:
    assert public_name("embedded") == "embedded"
    assert public_name("meta-llama/Meta-Llama-3-8B") == "meta-llama/Meta-Llama-3-8B"
    folder = tmp_path / "my-llama"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert public_name(str(folder)) == "my-llama"
    (folder / "config.json").write_text('{"_name_or_path": "/data/x"}')
    assert public_name(str(folder)) == "my-llama"
    (folder / "config.json").write_text('{"_name_or_path": "microsoft/DialoGPT-medium"}')
    assert public_name(str(folder)) == "microsoft/DialoGPT-medium"


# --- the card ----------------------------------------------------------------------------------


def manifest(**config: Any) -> dict[str, Any]:
    return {
        "config": {"model": {"name_or_path": "/home/somebody/models/llama", "lora_r": 4}, **config},
        "seed": 3407,
        "commit": None,
        "versions": {"torch": "2.13.0", "peft": "0.21.2"},
        "inputs": {"pairs": {"path": "/home/somebody/runs/pairs.jsonl", "sha256": "ab" * 32}},
        "outputs": {"adapter": "cd" * 32},
        "summary": {"pairs": 812, "note": "free text"},
    }


def facts(report: Report | None, **more: Any) -> CardFacts:
    return replace(
        CardFacts(
            name="quickstart",
            base="meta-llama/Meta-Llama-3-8B",
            revision=None,
            against=[],
            report=report,
            manifests={
                "finetune": manifest(finetune={"learning_rate": 2e-4}),
                "dpo, round 1": manifest(dpo={"beta": 0.1}),
            },
            system_prompt="You listen.",
            merged="",
            checks=["Loaded anew, the adapter says the same."],
        ),
        **more,
    )


def card(adapter: Path, tmp_path: Path, facts: CardFacts) -> str:
    paths = [tmp_path / "README.md", tmp_path / "adapter" / "README.md"]
    write_card(facts, adapter, paths)
    texts = {path.read_text(encoding="utf-8") for path in paths}
    assert len(texts) == 1
    return texts.pop()


def test_card_opens_with_what_it_is_not(adapter: Path, tmp_path: Path) -> None:
    text = card(adapter, tmp_path, facts(report_for(adapter)))
    _, front, body = text.split("---\n", 2)
    assert body.startswith("**Not therapy. Not a medical device. There is no safety layer inside")
    assert "Not therapy, not a medical device" in text.splitlines()[1]
    meta = yaml.safe_load(front)
    assert meta["base_model"] == "meta-llama/Meta-Llama-3-8B" and meta["license"] == "llama3"
    assert "although" not in text


def test_card_holds_figures_recipe_and_lineage(adapter: Path, tmp_path: Path) -> None:
    text = card(adapter, tmp_path, facts(report_for(adapter)))
    assert "**Passed** the release gate" in text
    assert (
        "| Unsafe replies | 25.0 % (14.2 to 40.2; 10 of 40) | 2.5 % (0.4 to 12.9; 1 of 40) |"
        in text
    )
    assert "### Messages of risk: crisis" in text
    assert "still unsafe" not in text and "Unsafe crisis replies fell" in text
    assert "rank 4, alpha 8, 192 parameters" in text
    assert "beta: 0.1" in text and "learning_rate: 0.0002" in text
    assert f"pairs `{'ab' * 6}`" in text and f"adapter `{'cd' * 6}`" in text
    assert "pairs 812" in text and "torch 2.13.0" in text
    assert "You listen." in text
    assert "Loaded anew, the adapter says the same." in text
    assert "Built with Meta Llama 3" in text
    assert text.count("lora_r: 4") == 1  # a shared part of the recipe is written once


def test_card_tells_nothing_of_the_machine_or_of_people(adapter: Path, tmp_path: Path) -> None:
    text = card(adapter, tmp_path, facts(report_for(adapter)))
    assert "/home/somebody" not in text
    assert "secret reply" not in text and "free text" not in text


def test_card_says_what_was_overruled_before_anything_else(adapter: Path, tmp_path: Path) -> None:
    report = report_for(adapter, unsafe=20)
    against = release(report, adapter, force=True)
    text = card(adapter, tmp_path, facts(report, against=against, checks=[]))
    assert text.index("Released with `--force` although") < text.index("# quickstart")
    for reason in against:
        assert f"> - {reason}" in text
    assert "**Not passed** the release gate" in text
    assert "**not verified**" in text


def test_card_without_a_report_or_a_hub_name(adapter: Path, tmp_path: Path) -> None:
    text = card(
        adapter,
        tmp_path,
        facts(None, base="embedded", system_prompt="", merged="Merged.", against=["No report."]),
    )
    assert "nothing is known of its quality or its safety" in text
    assert "base_model" not in text and 'files("sft")' in text
    assert "There was no system message" in text and "Merged." in text
    compile(text.split("```python\n")[1].split("```")[0], "snippet", "exec")


@pytest.mark.parametrize(
    ("base", "identifier", "credit"),
    [
        ("meta-llama/Meta-Llama-3-8B", "llama3", "Built with Meta Llama 3"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1", "Built with Llama"),
        ("unsloth/llama-3-8b", "llama3", "Built with Meta Llama 3"),
        ("Qwen/Qwen2.5-7B", "other", "licence applies"),
        ("embedded", "apache-2.0", "Apache-2.0"),
    ],
)
def test_licence_notes(base: str, identifier: str, credit: str) -> None:
    found, note = licence_note(base)
    assert found == identifier and credit in note


def test_parameters_are_counted_without_loading(adapter: Path) -> None:
    assert parameters(adapter) == 4 * 32 + 16 * 4
