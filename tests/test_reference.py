"""The reference is scored once per candidate, kept, and never used where it is of another model."""

from __future__ import annotations

import shutil

import pytest
import torch
from test_tree_dpo import pair_rows, policy

from reward.tree import add_tree_forward
from rlaif import reference
from rlaif.groups import to_groups
from rlaif.reference import Scoring, reference_key, reference_of
from sft import model as models
from sft.config import Recipe

SHORT = {"generate": {"max_new_tokens": 16}, "evaluate": {"max_new_tokens": 16}}


@pytest.fixture
def how(model_folders):
    model, tokenizer = policy(model_folders["llama"])
    add_tree_forward(model.get_base_model())
    return Scoring(model, tokenizer.pad_token_id, 1, 60)


def test_each_candidate_once_and_as_plain_rows_say(how, tmp_path):
    groups = to_groups(pair_rows())
    found, line = reference_of(how, groups, tmp_path / "r.safetensors", "key")
    assert line == "reference: 8 candidates = 0 read + 8 scored"
    for group in groups:
        for number, ids, start in zip(
            group["numbers"], group["sequences"], group["starts"], strict=True
        ):
            with torch.no_grad():
                logits = how.model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
            said = logits.log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None])[:, 0]
            torch.testing.assert_close(found[number], said, atol=1e-4, rtol=0)


def test_a_second_start_reads_what_the_first_scored(how, tmp_path, monkeypatch):
    path, groups = tmp_path / "r.safetensors", to_groups(pair_rows())
    first, _ = reference_of(how, groups[:2], path, "key")
    scored = []
    real = reference.score_candidates
    monkeypatch.setattr(
        reference, "score_candidates", lambda how, new: scored.extend(new) or real(how, new)
    )
    second, line = reference_of(how, groups, path, "key")
    assert line == "reference: 8 candidates = 5 read + 3 scored"
    assert scored == groups[2:]
    assert all(torch.equal(second[number], first[number]) for number in first)
    third, line = reference_of(how, groups, path, "key")
    assert line == "reference: 8 candidates = 8 read + 0 scored"
    assert all(torch.equal(third[number], second[number]) for number in second)


@pytest.mark.parametrize("damage", ["other key", "cut off"])
def test_scores_of_another_model_or_a_broken_file_are_told_and_made_anew(how, tmp_path, damage):
    path, groups = tmp_path / "r.safetensors", to_groups(pair_rows())
    right, _ = reference_of(how, groups, path, "key")
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-5])
    key = "another key" if damage == "other key" else "key"
    found, line = reference_of(how, groups, path, key)
    assert "8 candidates = 0 read + 8 scored; scores in r.safetensors were not used" in line
    assert all(torch.equal(found[number], right[number]) for number in right)
    assert reference_of(how, groups, path, key)[1].endswith("8 read + 0 scored")


def test_the_key_is_another_one_for_another_base_adapter_or_precision(model_folders, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(model_folders["llama"], base)
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"one")
    recipe = Recipe(run="x", model={"name_or_path": str(base), "max_length": 256}, **SHORT)
    in_4bit = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"load_in_4bit": True})}
    )
    float32, bfloat16 = (
        models.choose_precision(name, use_cpu=True) for name in ("float32", "bfloat16")
    )
    keys = [
        reference_key(recipe, adapter, float32),
        reference_key(recipe, adapter, bfloat16),
        reference_key(in_4bit, adapter, float32),
        reference_key(recipe, None, float32),
        reference_key(recipe, adapter, float32, "a commit of the Hub"),
    ]
    (adapter / "adapter_model.safetensors").write_bytes(b"two")
    keys.append(reference_key(recipe, adapter, float32))
    weights = base / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    keys.append(reference_key(recipe, adapter, float32))
    assert len(set(keys)) == len(keys)
    assert reference_key(recipe, adapter, float32) == keys[-1]
