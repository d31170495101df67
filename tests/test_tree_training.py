"""Training on trees ends where TRL's own ends; also in 4 bits, and on whole conversations."""

from __future__ import annotations

import pytest
import torch
from conftest import TALKS
from datasets import Dataset
from test_tree_dpo import options, policy
from trl import DPOConfig

from reward.pairs import Pair
from reward.tree import add_tree_forward
from rlaif import dpo
from rlaif.groups import Collator, to_groups, to_packs
from rlaif.pair_rows import encode_pairs
from rlaif.reference import Scoring, score_candidates
from rlaif.tree_dpo import TreeTrainer
from sft import model as models
from sft.chat import Chat
from sft.config import ModelSection

FLOAT32 = models.choose_precision("float32", use_cpu=True)
REPLIES = (
    "I hear you.",
    "That sounds hard. What helps a little?",
    "Just relax.",
    "You must rest now.",
)


def pair(name, prompt, chosen, rejected):
    sides = ([{"role": "assistant", "content": REPLIES[n]}] for n in (chosen, rejected))
    return Pair(name, prompt, *sides, 0.3, 0.65, f"{name}{chosen}", f"{name}{rejected}", "quality")


def conversations():
    """All pairs of four replies to single and multi-turn prompts, and to a later turn of one."""
    prompts = [talk[:-1] for talk in TALKS] + [TALKS[2][:1]]
    return [
        pair(f"p{n}", prompt, a, b)
        for n, prompt in enumerate(prompts)
        for a in range(4)
        for b in range(a + 1, 4)
    ]


def make(folder, tmp_path, rows, tree, **more):
    model, tokenizer = policy(folder)
    if not tree:
        return dpo.PairTrainer(
            model=model,
            args=DPOConfig(**options(tmp_path, **more)),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    groups = to_groups(rows)
    add_tree_forward(model.get_base_model())
    trainer = TreeTrainer(
        model=model,
        args=DPOConfig(**options(tmp_path, remove_unused_columns=False, **more)),
        train_dataset=Dataset.from_list(to_packs(groups, 0, 0, whole=False).rows),
        processing_class=tokenizer,
        data_collator=Collator(
            tokenizer.pad_token_id, 1, score_candidates(Scoring(model, 0, 1, 500), groups)
        ),
    )
    model.delete_adapter("ref")
    return trainer


def trained(trainer):
    start = torch.cat([w.flatten() for w in dpo.snapshot(trainer.model).values()])
    trainer.train()
    end = torch.cat([w.flatten() for w in dpo.snapshot(trainer.model).values()])
    return end - start


@pytest.mark.parametrize("k", [2, 4])
def test_after_twenty_steps_the_adapter_is_as_near_to_trls_as_another_of_trls_runs(
    model_folders, tmp_path, tokenizer, k
):
    """The other run of TRL's takes two half micro-batches, with the other attention kernel.

    Adam's first step goes by signs, so that rounding decides where a gradient cancels, as those of
    replies that win and lose do: the kernel alone moves TRL's adapter by 8 % of that step. With one
    pair a prompt, batches are drawn; with all pairs of four candidates an update is the whole set,
    as TRL draws pairs and a tree whole prompts.
    """
    pairs = [
        pair(f"p{n}", TALKS[n % 3][:-1] if n % 2 else TALKS[n % 3][:1], n % 4, (n + 1 + n // 4) % 4)
        for n in range(16)
        if n % 4 != (n + 1 + n // 4) % 4
    ][:8]
    if k == 4:
        pairs = conversations()
    rows = encode_pairs(Chat(tokenizer, "Be kind.", 250), pairs).rows
    prompts = len({row["prompt_id"] for row in rows})
    at_once = 4 if k == 2 else len(rows)
    more = {"max_steps": 20, "learning_rate": 1e-3, "logging_steps": 20, "save_strategy": "no"}
    whole = {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": 1}
    halves = {"per_device_train_batch_size": at_once // 2, "gradient_accumulation_steps": 2}
    trees = whole | {"per_device_train_batch_size": min(at_once, prompts)}
    folder = model_folders["llama"]
    theirs = trained(make(folder, tmp_path / "a", rows, tree=False, **more, **whole))
    other = make(folder, tmp_path / "b", rows, tree=False, **more, **halves)
    other.model.get_base_model().set_attn_implementation("eager")
    again = trained(other)
    mine = trained(make(folder, tmp_path / "c", rows, tree=True, **more, **trees))
    moved = theirs.norm()
    assert moved > 0.01
    assert (mine - theirs).norm() <= max(3 * (again - theirs).norm(), 1e-4 * moved)


@pytest.mark.parametrize("load_in_4bit", [False, True])
@pytest.mark.parametrize("system", ["", "You are a kind listener."])
def test_conversations_train_as_trl_trains_their_pairs(
    model_folders, tmp_path, tokenizer, monkeypatch, load_in_4bit, system
):
    rows = encode_pairs(Chat(tokenizer, system, 250), conversations()).rows
    if load_in_4bit:
        plain_load = models.load_base

        def in_4bit(section: ModelSection, precision):
            return plain_load(section.model_copy(update={"load_in_4bit": True}), precision)

        monkeypatch.setattr(models, "load_base", in_4bit)
    found = []
    for tree in (False, True):
        trainer = make(model_folders["llama"], tmp_path, rows, tree)
        models.keep_float32(trainer.model, dpo.snapshot(trainer.model))
        torch.manual_seed(4)
        with torch.no_grad():
            for name, weight in trainer.model.named_parameters():
                if ".default." in name:
                    weight += 0.05 * torch.randn_like(weight)
        trainer.model.train()
        batch = trainer.data_collator(list(trainer.train_dataset))
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        named = trainer.model.named_parameters()
        gradient = torch.cat([w.grad.flatten() for n, w in named if ".default." in n])
        found.append((float(loss.detach()), gradient))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert torch.nn.functional.cosine_similarity(found[0][1], found[1][1], dim=0) >= 0.99999
