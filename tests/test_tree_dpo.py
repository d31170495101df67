"""DPO on trees against TRL's own loss on rows of pairs, same model, same pairs."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from conftest import FAMILIES, tiny
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import DPOConfig

from reward.tree import add_tree_forward
from rlaif import dpo, tree_dpo
from rlaif.groups import Collator, to_groups, to_packs
from rlaif.preference import LOSSES
from rlaif.reference import Scoring, score_candidates
from sft import model as models
from sft.config import DpoSection, ModelSection
from sft.files import CheckFailed
from sft.sections import TREE_LOSSES

PRECISION = models.choose_precision("float32", use_cpu=True)


def pair_rows(seed=0):
    """Pairs of three prompts: all of three candidates, one pair, best against two."""
    draw = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(6, 300, (n,), generator=draw).tolist()

    rows = []
    for name, chosen_rejected in {
        "p0": [(0, 1), (0, 2), (1, 2)],
        "p1": [(0, 1)],
        "p2": [(0, 1), (0, 2)],
    }.items():
        prompt, replies = ids(9), [ids(4), ids(11), ids(6)]
        for a, b in chosen_rejected:
            rows.append(
                {
                    "prompt_id": name,
                    "prompt_ids": prompt,
                    "chosen_ids": replies[a],
                    "rejected_ids": replies[b],
                    "length": 9 + max(len(replies[a]), len(replies[b])),
                    "margin": 0.1 + 0.2 * b,
                    "confidence": 0.6 + 0.1 * b,
                }
            )
    return rows


def policy(folder):
    """An adapter that is not the base, as after SFT."""
    section = ModelSection(name_or_path=str(folder), dtype="float32", lora_r=4, max_length=256)
    torch.manual_seed(3)
    model = models.new_adapter(models.load_base(section, PRECISION), section)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model, models.load_tokenizer(section)


def move(model):
    """Make the policy another one than its reference, the same way each time."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".default." in name:
                weight += 0.05 * torch.randn_like(weight)


def options(folder, **more):
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "per_device_train_batch_size": 8,
        "max_length": None,
        "seed": 0,
        **more,
    }


def on_trees(folder, tmp_path, rows, section=None, **more):
    section = section or DpoSection()
    model, tokenizer = policy(folder)
    pad_id, groups = tokenizer.pad_token_id, to_groups(rows)
    packs = to_packs(groups, section.tree_tokens, 0, whole="listwise" in section.loss_type)
    add_tree_forward(model.get_base_model())
    scored = score_candidates(Scoring(model, pad_id, 1, 60), groups)
    trainer = tree_dpo.TreeTrainer(
        model=model,
        args=DPOConfig(**options(tmp_path, remove_unused_columns=False, **more)),
        train_dataset=Dataset.from_list(packs.rows),
        processing_class=tokenizer,
        data_collator=Collator(pad_id, 1, scored),
    )
    trainer.section = section
    models.keep_float32(model, dpo.snapshot(model))
    move(model)
    return trainer


def loss_and_gradient(trainer, rows):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    named = trainer.model.named_parameters()
    gradient = torch.cat([w.grad.flatten() for n, w in named if ".default." in n])
    return float(loss), gradient


CASES = [
    *({"loss_type": [name]} for name in LOSSES if name not in TREE_LOSSES),
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 4.0]},
    {"loss_type": ["sigmoid"], "ld_alpha": 0.3},
    {"loss_type": ["robust"], "label_smoothing": 0.2},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_gradient_and_metrics_are_those_of_trl(model_folders, tmp_path, case):
    rows = pair_rows()
    model, tokenizer = policy(model_folders["llama"])
    plain = dpo.PairTrainer(
        model=model,
        args=DPOConfig(**options(tmp_path, **case)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    move(model)
    expected, gradient = loss_and_gradient(plain, rows)
    trees = on_trees(model_folders["llama"], tmp_path, rows, **case)
    found, mine = loss_and_gradient(trees, list(trees.train_dataset))
    assert found == pytest.approx(expected, rel=1e-5)
    assert torch.nn.functional.cosine_similarity(mine, gradient, dim=0) >= 0.99999
    assert (mine - gradient).norm() <= 1e-4 * gradient.norm()
    theirs = {name: values[-1] for name, values in plain._metrics["train"].items()}
    ours = {name: values[-1] for name, values in trees._metrics["train"].items()}
    # Of a candidate in several pairs, the tree counts tokens once: other means over tokens. And
    # with ld_alpha, TRL's logps are those of the loss, not of the reply.
    same = "rewards/" if "ld_alpha" in case else ("rewards/", "logps/")
    over_pairs = [name for name in ours if name.startswith(same)]
    assert len(over_pairs) >= 4
    for name in over_pairs:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("k", [2, 3, 4, 8])
@pytest.mark.parametrize("family", [*FAMILIES, "qwen3", "gemma"])
def test_every_family_trains_as_trl_trains_it(family_folder, tmp_path, family, k):
    """All pairs of k replies to two prompts; with four, layers are computed again in backward."""
    rows, folder = all_pairs(k), family_folder(family)
    more = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    model, tokenizer = policy(folder)
    plain = dpo.PairTrainer(
        model=model,
        args=DPOConfig(**options(tmp_path, **more)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    move(model)
    trees = on_trees(folder, tmp_path, rows, **more)
    if k == 4:
        for trainer in (plain, trees):
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    expected, gradient = loss_and_gradient(plain, rows)
    found, mine = loss_and_gradient(trees, list(trees.train_dataset))
    assert found == pytest.approx(expected, rel=1e-5)
    assert torch.nn.functional.cosine_similarity(mine, gradient, dim=0) >= 0.99999


@pytest.fixture
def family_folder(model_folders, tmp_path):
    """The folder of a family; those that no other test reads are made here."""

    def folder(family):
        if family in model_folders:
            return model_folders[family]
        tokenizer = models.load_tokenizer(ModelSection(name_or_path=str(model_folders["llama"])))
        tiny(family, len(tokenizer)).save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
        return tmp_path / family

    return folder


def all_pairs(k):
    """All pairs of k ragged replies to two prompts of different length."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for name, length in (("p0", 7), ("p1", 12)):
        prompt, *replies = (
            torch.randint(6, 300, (n,), generator=draw).tolist()
            for n in (length, *(3 + 2 * place for place in range(k)))
        )
        for a, b in combinations(range(k), 2):
            rows.append(
                {
                    "prompt_id": name,
                    "prompt_ids": prompt,
                    "chosen_ids": replies[a],
                    "rejected_ids": replies[b],
                    "length": length + 3 + 2 * b,
                    "margin": 0.2,
                    "confidence": 0.6,
                }
            )
    return rows


@pytest.mark.parametrize("sizes", [[1, 1, 1], [2, 1]])
@pytest.mark.parametrize("loss", ["sigmoid", "listwise"])
def test_micro_batches_add_up_to_the_whole(model_folders, tmp_path, sizes, loss):
    case = {"loss_type": [loss, "sft"], "loss_weights": [1.0, 0.5]}
    trainer = on_trees(model_folders["llama"], tmp_path, pair_rows(), **case)
    groups = list(trainer.train_dataset)
    whole, gradient = loss_and_gradient(trainer, groups)
    loss, summed, first = 0.0, torch.zeros_like(gradient), 0
    for size in sizes:
        part, grad = loss_and_gradient(trainer, groups[first : first + size])
        # A micro-batch's loss is a mean over its rows.
        loss, summed = loss + part * size / 3, summed + grad * size / 3
        first += size
    assert loss == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(summed, gradient, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def ready(model_folders, tmp_path_factory):
    """A trainer of each loss over the same pairs, with the loss and gradient of their order."""
    found = {}
    for loss in ("sigmoid", "listwise"):
        case = {"loss_type": [loss, "sft"], "loss_weights": [1.0, 0.5]}
        section, folder = DpoSection(**case), tmp_path_factory.mktemp(loss)
        trainer = on_trees(model_folders["llama"], folder, pair_rows(), section, **case)
        found[loss] = trainer, loss_and_gradient(trainer, list(trainer.train_dataset))
    return found


@pytest.mark.parametrize("loss", ["sigmoid", "listwise"])
@settings(max_examples=10, deadline=None)
@given(random=st.randoms(use_true_random=False))
def test_the_order_of_candidates_pairs_and_prompts_changes_nothing(ready, loss, random):
    trainer, (expected, gradient) = ready[loss]
    packs = list(trainer.train_dataset)
    random.shuffle(packs)
    found, mine = loss_and_gradient(
        trainer,
        [row | {"groups": [shuffled(each, random) for each in row["groups"]]} for row in packs],
    )
    assert found == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-6)


def shuffled(group, random):
    """The same prompt with its candidates and its pairs in another order."""
    order, at = list(range(len(group["sequences"]))), list(range(len(group["pairs"])))
    random.shuffle(order)
    random.shuffle(at)
    made = {key: [group[key][old] for old in order] for key in ("sequences", "starts", "numbers")}
    made |= {key: [group[key][i] for i in at] for key in ("margins", "confidences")}
    made["pairs"] = [[order.index(place) for place in group["pairs"][i]] for i in at]
    return made


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"tree": False}, "dpo.tree is off"),
        ({"loss_type": ["sigmoid", "bco_pair"]}, "loss bco_pair is TRL's own"),
        ({"trainer": {"use_weighting": True}}, "dpo.trainer sets use_weighting"),
        ({"trainer": {"disable_dropout": False}}, "dpo.trainer sets disable_dropout"),
    ],
)
def test_what_runs_on_rows_of_pairs_says_why(model_folders, changes, reason):
    model, _ = policy(model_folders["llama"])
    section = DpoSection(**changes)
    found = tree_dpo.reason_for_pairs(section, model.get_base_model(), pair_rows())
    assert found == reason


def test_sixteen_bits_start_at_the_reference_too(model_folders, tmp_path):
    """Reference and check are scored in other batches, which 16-bit products round otherwise."""
    precision = models.choose_precision("bfloat16", use_cpu=True)
    section = ModelSection(
        name_or_path=str(model_folders["llama"]), dtype="bfloat16", lora_r=4, max_length=256
    )
    torch.manual_seed(3)
    model = models.new_adapter(models.load_base(section, precision), section)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    before, groups = dpo.snapshot(model), to_groups(pair_rows())
    add_tree_forward(model.get_base_model())
    with dpo.autocast(precision):
        scored = score_candidates(Scoring(model, 0, 1, 60), groups)
    trainer = tree_dpo.TreeTrainer(
        model=model,
        args=DPOConfig(**options(tmp_path, remove_unused_columns=False, bf16=True)),
        train_dataset=Dataset.from_list(to_packs(groups, 0, 0, whole=False).rows),
        processing_class=models.load_tokenizer(section),
        data_collator=Collator(0, 1, scored),
    )
    models.keep_float32(model, before)
    assert dpo.check_start(trainer, before, precision).loss == pytest.approx(0.693, abs=0.02)
    move(model)
    with pytest.raises(CheckFailed, match="not the same model"):
        dpo.check_start(trainer, before, precision)


@pytest.mark.parametrize("loss", ["sigmoid", "conservative", "odpo"])
@pytest.mark.parametrize("tree_tokens", [24, 40, 60, 1000])
def test_a_budget_of_tokens_changes_the_packs_and_not_the_update(
    model_folders, tmp_path, tree_tokens, loss
):
    """24 splits prompts of three candidates (30 nodes) by pair; 1000 holds everything."""
    case = {"loss_type": [loss, "sft"], "loss_weights": [1.0, 0.5]}
    sections = [
        DpoSection(**case, tree_tokens=n, per_device_train_batch_size=1, pair_confidence=True)
        for n in (0, tree_tokens)
    ]
    found = []
    for section in sections:
        trainer = on_trees(model_folders["llama"], tmp_path, pair_rows(), section, **case)
        packs = list(trainer.train_dataset)
        loss_sum, gradient = 0.0, 0.0
        for row in packs:
            part, grad = loss_and_gradient(trainer, [row])
            loss_sum, gradient = loss_sum + part / len(packs), gradient + grad / len(packs)
        found.append((loss_sum, gradient))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_the_pairs_own_confidence_and_margin_reach_the_loss(model_folders, tmp_path):
    rows = pair_rows()
    for name, setting in (
        ("conservative", {"pair_confidence": True}),
        ("robust", {"pair_confidence": True}),
        ("odpo", {"offset": 2.0}),
    ):
        section = DpoSection(loss_type=[name], **setting)
        trainer = on_trees(model_folders["llama"], tmp_path, rows, section, loss_type=[name])
        groups = list(trainer.train_dataset)
        mine, _ = loss_and_gradient(trainer, groups)
        plain = on_trees(model_folders["llama"], tmp_path, rows)
        plain.compute_loss(plain.model, plain.data_collator(groups))
        margins = torch.tensor(
            [_margin_of(plain, rows, i) for i in range(len(rows))], dtype=torch.float32
        )
        conf = torch.tensor([row["confidence"] for row in rows])
        offset = 2.0 * torch.tensor([row["margin"] for row in rows])
        log = torch.nn.functional.logsigmoid
        expected = {
            "conservative": -conf * log(margins) - (1 - conf) * log(-margins),
            "robust": (-conf * log(margins) + (1 - conf) * log(-margins)) / (2 * conf - 1),
            "odpo": -log(margins - offset),
        }[name]
        assert mine == pytest.approx(float(expected.mean()), rel=1e-4)


def _margin_of(trainer, rows, number):
    """Reward of chosen minus rejected of one pair, alone in its batch."""
    (pack,) = to_packs(to_groups([rows[number]]), 0, 0, whole=False).rows
    alone = on_trees_like(trainer, [rows[number]])
    trainer.model.eval()
    with torch.no_grad():
        trainer.compute_loss(trainer.model, alone([pack]))
    return trainer._metrics["eval"]["rewards/margins"][-1]


def on_trees_like(trainer, rows):
    """A collator whose reference is that of the same candidates in another trainer's."""
    known = {}
    for pack in trainer.train_dataset:
        for group in pack["groups"]:
            for number, ids in zip(group["numbers"], group["sequences"], strict=True):
                known[tuple(ids)] = trainer.data_collator.reference[number]
    (group,) = to_groups(rows)
    reference = {
        number: known[tuple(ids)]
        for number, ids in zip(group["numbers"], group["sequences"], strict=True)
    }
    return Collator(trainer.data_collator.pad_id, 1, reference)
