"""SFT and DPO on a tiny model: the laws of training, not mocks of trainers."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch

from reward.pairs import Pair
from rlaif import dpo
from rlaif.pair_rows import encode_pairs
from sft import model as models
from sft import runs
from sft.chat import Chat
from sft.config import Recipe
from sft.files import CheckFailed, UserError
from sft.train import (
    check_moved,
    encode,
    finetune,
    steps_line,
    trainer_options,
)
from sft.trainer_rules import TrainerRules


def recipe_for(folder, tmp_path, **sections) -> Recipe:
    """Settings for a tiny model on the CPU."""
    training = {
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
    }
    training |= {"gradient_accumulation_steps": 1, "max_steps": 3}
    model = {
        "name_or_path": str(folder),
        "system_prompt": "none",
        "max_length": 256,
        "lora_r": 4,
        "dtype": "float32",
    }
    return Recipe(
        run="t",
        runs_dir=str(tmp_path),
        use_cpu=True,
        model=model | sections.pop("model", {}),
        finetune=training | sections.pop("finetune", {}),
        dpo=training | sections.pop("dpo", {}),
        generate={"max_new_tokens": 8},
        evaluate={"max_new_tokens": 8},
    )


def pairs_of(talks) -> list[Pair]:
    """Four pairs: the reply that was given against a cold one."""
    made = []
    for i, talk in enumerate([*talks, talks[0]]):
        cold = [{"role": "assistant", "content": f"You are fine. {i}"}]
        made.append(
            Pair(f"p{i}", talk[:-1], talk[-1:], cold, 0.5, 0.75, f"a{i}", f"b{i}", "quality")
        )
    return made


def run_finetune(recipe, rows) -> dict:
    """Train the SFT adapter in its stage folder."""
    with runs.open_stage(
        recipe, "finetune", config=recipe.settings("model", "finetune"), inputs={}
    ) as stage:
        summary = finetune(recipe, rows, stage)
        stage.finish(["adapter"], **summary)
    return summary


def run_dpo(recipe, pairs, start, round=1) -> dict:
    """Train the policy in its stage folder."""
    config = recipe.settings("model", "dpo")
    with runs.open_stage(recipe, "dpo", config=config, inputs={}, round=round) as stage:
        summary = dpo.train_dpo(recipe, pairs, start, stage)
        stage.finish(["adapter"], **summary)
    return summary


@pytest.mark.parametrize(
    ("family", "load_in_4bit"), [("llama", False), ("llama", True), ("gpt2", False)]
)
def test_sft_then_dpo_by_the_lineage_rule(
    model_folders, tmp_path, demonstrations, talks, family, load_in_4bit
):
    settings = {"load_in_4bit": load_in_4bit}
    recipe = recipe_for(
        model_folders[family], tmp_path, model=settings, dpo={"learning_rate": 1e-3}
    )
    learned = run_finetune(recipe, demonstrations)
    assert learned["last_loss"] < learned["first_loss"]
    start = tmp_path / "t" / "finetune" / "adapter"
    before = models.adapter_weights(start)
    summary = run_dpo(recipe, pairs_of(talks), start)
    # Exactly, on a quantised base too: TRL rounds the policy there, and not its reference.
    assert summary["loss_before"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["last_loss"] < summary["loss_before"]
    policy = models.adapter_weights(tmp_path / "t" / "dpo" / "adapter")
    assert set(policy) == set(before)
    assert all(not torch.equal(policy[name], before[name]) for name in before)
    # The SFT adapter, which is the reference, is where it was.
    again = models.adapter_weights(start)
    assert all(torch.equal(again[name], before[name]) for name in before)
    assert {tensor.dtype for tensor in policy.values()} == {torch.float32}


@pytest.mark.parametrize("stage", ["finetune", "dpo"])
def test_updates_of_like_length_are_the_same_for_each_split_into_micro_batches(
    model_folders, tmp_path, demonstrations, talks, stage, monkeypatch
):
    """Rows of an update follow from seed and lengths, not from how processes share them."""
    orders = []
    for micro, accumulate in ((4, 1), (2, 2)):
        sampler = {"train_sampling_strategy": "group_by_length"}
        section = {"trainer": sampler, "per_device_train_batch_size": micro}
        section |= {"gradient_accumulation_steps": accumulate, "max_steps": 2}
        recipe = recipe_for(model_folders["llama"], tmp_path / str(micro), **{stage: section})
        seen = []

        def kept(self, dataset=None, seen=seen, old=TrainerRules._get_train_sampler):
            sampler = old(self, dataset)
            seen.append((list(self.train_dataset["length"]), list(sampler)))
            return sampler

        monkeypatch.setattr(TrainerRules, "_get_train_sampler", kept)
        if stage == "finetune":
            run_finetune(recipe, demonstrations * 6)
        else:
            run_dpo(recipe, pairs_of(talks * 6), None)
        monkeypatch.undo()
        orders.append(seen[0])
    assert orders[0] == orders[1]
    lengths, order = orders[0]
    assert sorted(order) == list(range(len(lengths)))
    whole = [order[i : i + 4] for i in range(0, len(order) - 3, 4)]
    spread = [max(lengths[i] for i in part) - min(lengths[i] for i in part) for part in whole]
    assert sum(spread) / len(spread) < max(lengths) - min(lengths)


def test_dpo_from_the_base_itself_has_the_base_as_reference(model_folders, tmp_path, talks):
    summary = run_dpo(recipe_for(model_folders["llama"], tmp_path), pairs_of(talks), None)
    assert summary["loss_before"] == pytest.approx(math.log(2), abs=1e-4)


def test_policy_that_is_not_its_reference_is_refused(
    model_folders, tmp_path, demonstrations, talks, monkeypatch
):
    recipe = recipe_for(model_folders["llama"], tmp_path)
    run_finetune(recipe, demonstrations)
    shift = models.keep_float32

    def break_lineage(model, weights):
        shift(model, weights)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".default." in name and "lora_B" in name:
                    parameter.add_(0.3)

    monkeypatch.setattr(dpo.models, "keep_float32", break_lineage)
    with pytest.raises(CheckFailed, match="ln 2"):
        run_dpo(recipe, pairs_of(talks), tmp_path / "t" / "finetune" / "adapter")


def test_sft_term_and_length_settings_reach_the_trainer(model_folders, tmp_path, talks):
    settings = {"loss_type": ["sigmoid_norm", "sft"], "loss_weights": [1.0, 0.5], "ld_alpha": 0.5}
    recipe = recipe_for(model_folders["llama"], tmp_path, dpo=settings)
    plain = recipe_for(model_folders["llama"], tmp_path / "plain")
    with_terms = run_dpo(recipe, pairs_of(talks), None)
    without = run_dpo(plain, pairs_of(talks), None)
    assert with_terms["last_loss"] > without["last_loss"]  # the SFT term adds nats per token


def test_training_that_changes_nothing_fails():
    weights = {"a": torch.zeros(2), "b": torch.ones(2)}
    with pytest.raises(CheckFailed, match="1 of 2"):
        check_moved(weights, {"a": torch.zeros(2), "b": torch.zeros(2)})
    assert check_moved(weights, {"a": torch.ones(2), "b": torch.zeros(2)}) == 1


def test_nan_loss_stops_before_the_update(model_folders, tmp_path, demonstrations, monkeypatch):
    recipe = recipe_for(model_folders["llama"], tmp_path)
    make = models.new_adapter

    def poisoned(base, section):
        model = make(base, section)
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if "lora_A" in n).fill_(float("nan"))
        return model

    monkeypatch.setattr(models, "new_adapter", poisoned)
    with pytest.raises(CheckFailed, match="stopped before the update"):
        run_finetune(recipe, demonstrations)


def test_metrics_are_written_with_trl_names(model_folders, tmp_path, demonstrations, talks):
    recipe = recipe_for(model_folders["llama"], tmp_path)
    run_finetune(recipe, demonstrations)
    run_dpo(recipe, pairs_of(talks), tmp_path / "t" / "finetune" / "adapter")
    lines = (tmp_path / "t" / "dpo" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {
        "loss",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "rewards/accuracies",
    } <= set(rows[0])


def test_labels_are_on_the_reply_only_and_long_rows_are_counted(tokenizer, demonstrations):
    encoded = encode(Chat(tokenizer, "", 256), demonstrations)
    row = encoded.rows[0]
    reply = [
        token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100
    ]
    assert tokenizer.decode(reply[:-1]) == demonstrations[0].completion[0]["content"]
    short = encode(Chat(tokenizer, "", len(row["input_ids"])), demonstrations)
    assert short.too_long + len(short.rows) == len(demonstrations)
    assert short.too_long > 0


def test_pair_keeps_one_history_for_both_replies(tokenizer, talks):
    talk = [*talks[2][:-1]]
    long = [{"role": "assistant", "content": "word " * 40}]
    pair = Pair("p", talk, talks[2][-1:], long, 0.5, 0.75, "a", "b", "quality")
    chat = Chat(tokenizer, "", 4096)
    whole = chat.render(talk, long)
    encoded = encode_pairs(
        Chat(tokenizer, "", len(whole.prompt_ids) + len(whole.completion_ids) - 1), [pair]
    )
    assert encoded.shortened == 1
    assert len(encoded.rows) == 1
    assert tokenizer.decode(encoded.rows[0]["prompt_ids"]).count("user") == 1


def test_a_reply_that_merges_with_the_prompt_leaves_one_prompt_for_both(tokenizer):
    merging = copy.deepcopy(tokenizer)
    merging.chat_template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    chat = Chat(merging, "", 64)
    asked = [{"role": "user", "content": "I feel alone. What keeps yo"}]
    merges, stays = ([{"role": "assistant", "content": text}] for text in ("u awake", "! Fine."))
    alone = [chat.render(asked, reply).prompt_ids for reply in (merges, stays)]
    assert alone[0] != alone[1]  # else this test shows nothing
    for chosen, rejected in ((merges, stays), (stays, merges)):
        pair = Pair("p", asked, chosen, rejected, 0.5, 0.75, "a", "b", "quality")
        (row,) = encode_pairs(chat, [pair]).rows
        assert row["prompt_ids"] == min(alone, key=len)
        for side, reply in (("chosen_ids", chosen), ("rejected_ids", rejected)):
            whole = merging.decode([*row["prompt_ids"], *row[side]])
            assert whole == asked[0]["content"] + reply[0]["content"] + merging.eos_token


def test_batch_arithmetic_is_printed():
    section = Recipe(
        run="t", finetune={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    ).finetune
    assert steps_line(section, 80, 2).startswith(
        "2 rows x 4 accumulated x 2 processes = 16 per update; about 5"
    )


def test_one_process_with_several_gpus_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    on_gpu = models.Precision(torch.float16, False, True, "cuda", "asked for")
    recipe = Recipe(run="x")
    with pytest.raises(UserError, match="2 GPUs and one process: use accelerate launch"):
        trainer_options(recipe.dpo, recipe, on_gpu, tmp_path)
