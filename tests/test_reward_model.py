"""The reward model: loss and gradient against TRL's, trees against plain rows, saving, laws."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from itertools import combinations

import pytest
import torch
from conftest import FAMILIES
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForSequenceClassification, TrainingArguments
from trl import RewardConfig
from trl import RewardTrainer as TrlRewardTrainer

from reward.lessons import to_packs
from reward.model import HEAD, RewardModel
from reward.train import RewardTrainer, bradley_terry
from reward.tree import build_tree
from sft import model as models
from sft.chat import Chat
from sft.config import ModelSection, RewardSection
from sft.files import UserError

PRECISION = models.choose_precision("float32", use_cpu=True)


def section(folder, **settings):
    return ModelSection(
        name_or_path=str(folder),
        system_prompt="none",
        max_length=256,
        lora_r=4,
        **{"dtype": "float32"} | settings,
    )


def shake(model):
    """Make adapter and heads say something, the same way each time."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "heads" in name:
                weight.normal_(std=0.05)
    return model


def reward_model(folder, *, tree=True, precision=PRECISION, **settings):
    made = section(folder, **settings)
    torch.manual_seed(2)
    language = models.new_adapter(models.load_base(made, precision), made)
    chat = Chat(models.load_tokenizer(made), "", made.max_length)
    return shake(RewardModel(language, chat, precision, tree=tree))


def rows(seed=0):
    """Three prompts: every two of three replies, one comparison, and verdicts alone."""
    draw = torch.Generator().manual_seed(seed)

    def ids(n):
        return torch.randint(6, 300, (n,), generator=draw).tolist()

    made = []
    for pairs in ([[0, 1], [2, 0], [2, 1]], [[1, 0]], []):
        prompt, opening = ids(9), ids(2)
        replies = [opening + ids(4), opening + ids(11), ids(6)]
        made.append(
            {
                "sequences": [prompt + reply for reply in replies],
                "pairs": pairs,
                "confidence": [0.6 + 0.1 * i for i in range(len(pairs))],
                "margin": [0.2 + 0.2 * i for i in range(len(pairs))],
                "safe": [1.0, 0.0, 1.0],
                "judged": [1.0, 1.0, 1.0],
                "length": 40,
            }
        )
    return made


def trainer_of(model, some, tmp_path, **settings):
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "seed": 0}
    return RewardTrainer(
        RewardSection(**settings),
        model,
        args=TrainingArguments(**options, remove_unused_columns=False),
        train_dataset=Dataset.from_list(some),
    )


def gradient_of(model):
    named = sorted(model.named_parameters())
    return torch.cat([w.grad.flatten() for _, w in named if w.requires_grad])


def loss_and_gradient(trainer, some):
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer._collate(some))
    loss.backward()
    return float(loss), gradient_of(trainer.model)


def alike(found, expected):
    """The exactness rule: gradients of one direction and one length."""
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) >= 0.99999
    assert (found - expected).norm() <= 1e-4 * expected.norm()


# --- the loss ----------------------------------------------------------------------------------


def test_with_full_confidence_the_loss_is_that_of_trls_formula():
    torch.manual_seed(0)
    better, worse, margin = torch.randn(50), torch.randn(50), torch.rand(50)
    found = bradley_terry(better, worse, torch.ones(50), margin)
    expected = -torch.nn.functional.logsigmoid(better - worse - margin)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("confidence", [0.55, 0.7, 0.95])
def test_the_loss_is_least_where_the_odds_are_those_of_the_confidence(confidence):
    least, c = math.log(confidence / (1 - confidence)), torch.tensor([confidence])
    at = torch.tensor([least], requires_grad=True)
    loss = bradley_terry(at, torch.zeros(1), c, torch.zeros(1))[0]
    loss.backward()
    assert abs(float(at.grad)) < 1e-6
    for other in (least - 0.3, least + 0.3):
        beside = bradley_terry(torch.tensor([other]), torch.zeros(1), c, torch.zeros(1))
        assert float(beside) > loss.item()


def test_a_swapped_verdict_is_the_other_confidence():
    better, worse, c = torch.randn(9), torch.randn(9), torch.linspace(0.5, 1, 9)
    none = torch.zeros(9)
    one, other = bradley_terry(better, worse, c, none), bradley_terry(worse, better, 1 - c, none)
    torch.testing.assert_close(one, other)


def test_loss_and_gradient_are_those_of_trls_trainer_on_rows_of_pairs(model_folders, tmp_path):
    """TRL computes a prompt twice per pair, on a model class of its own with these weights."""
    mine, some = reward_model(model_folders["llama"]), rows()
    for row in some:
        row["confidence"] = [1.0] * len(row["pairs"])
    # TRL knows no verdicts: with their loss as good as off only the adapter's gradient is compared.
    trainer = trainer_of(mine, some, tmp_path, margin_scale=1.0, safety_weight=1e-30)
    found, _ = loss_and_gradient(trainer, some)

    base = mine.language.get_base_model()
    base.config.num_labels = 1
    plain = LlamaForSequenceClassification(base.config)
    config = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=16, target_modules="all-linear")
    theirs = get_peft_model(plain, config)
    known = {name: w for name, w in mine.language.state_dict().items() if "lm_head" not in name}
    missing = theirs.load_state_dict(known, strict=False).missing_keys
    assert all("score" in name for name in missing)
    for name, weight in theirs.named_parameters():
        if "score" in name:
            weight.data.copy_(mine.heads.reward.weight.data)
            weight.requires_grad_(True)
    pairs = [
        {"chosen_ids": r["sequences"][a], "rejected_ids": r["sequences"][b], "margin": m}
        for r in some
        for (a, b), m in zip(r["pairs"], r["margin"], strict=True)
    ]
    tokenizer = mine.chat.tokenizer
    plain.config.pad_token_id = tokenizer.pad_token_id
    options = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "bf16": False}
    trl = TrlRewardTrainer(
        model=theirs,
        args=RewardConfig(**options, max_length=None, gradient_checkpointing=False),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    theirs.train()
    expected = trl.compute_loss(theirs, trl.data_collator(pairs))
    expected.backward()
    assert found == pytest.approx(float(expected), rel=1e-5)
    wanted = {name: w.grad for name, w in theirs.named_parameters() if w.grad is not None}
    mine_named = {name: w.grad for name, w in mine.language.named_parameters() if w.requires_grad}
    assert len(mine_named) == sum("lora" in name for name in wanted) > 0
    alike(
        torch.cat([grad.flatten() for _, grad in sorted(mine_named.items())]),
        torch.cat([wanted[name].flatten() for name in sorted(mine_named)]),
    )
    (score,) = [grad for name, grad in wanted.items() if "score" in name]
    alike(mine.heads.reward.weight.grad.flatten(), score.flatten())


# --- trees and rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_gives_loss_gradient_and_scores_of_plain_rows(model_folders, tmp_path, family):
    found, some = [], rows()
    for tree in (True, False):
        model = reward_model(model_folders[family], tree=tree)
        loss, gradient = loss_and_gradient(trainer_of(model, some, tmp_path), some)
        found.append((loss, gradient, model.score_ids([row["sequences"] for row in some], 2)))
    (loss, gradient, scores), (plain_loss, plain_gradient, plain_scores) = found
    assert loss == pytest.approx(plain_loss, rel=1e-5)
    alike(gradient, plain_gradient)
    for one, other in zip(scores, plain_scores, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=1e-5, rtol=0)


def test_a_row_of_one_reply_alone_is_the_plainest_path(model_folders):
    """No padding, no mask of ours, no tree: the state of the last token, straight through."""
    model, some = reward_model(model_folders["llama"]), rows()
    scores = model.score_ids([row["sequences"] for row in some], 3)
    for row, of in zip(some, scores, strict=True):
        for ids, (reward, p_safe) in zip(row["sequences"], of, strict=True):
            out = model.language(input_ids=torch.tensor([ids]), output_hidden_states=True)
            state = out.hidden_states[-1][0, -1]
            expected = state @ model.heads.reward.weight[0]
            assert reward == pytest.approx(float(expected), abs=1e-5)
            safe = torch.sigmoid(model.heads.safety(state))
            assert p_safe == pytest.approx(float(safe), abs=1e-5)


def test_the_order_of_replies_and_of_prompts_changes_nothing(model_folders, tmp_path):
    model, some = reward_model(model_folders["llama"]), rows()
    loss, gradient = loss_and_gradient(trainer_of(model, some, tmp_path), some)
    places = [2, 0, 1]  # the reply at place i moves to places[i]
    turned = []
    for row in reversed(some):
        moved = dict(row)
        for name in ("sequences", "safe", "judged"):
            moved[name] = [row[name][places.index(i)] for i in range(3)]
        moved["pairs"] = [[places[a], places[b]] for a, b in row["pairs"]]
        turned.append(moved)
    again, other = loss_and_gradient(trainer_of(model, turned, tmp_path), turned)
    assert again == pytest.approx(loss, rel=1e-5)
    alike(other, gradient)


def test_another_candidate_changes_nobody_elses_score(model_folders):
    model, row = reward_model(model_folders["llama"]), rows()[0]
    every = model.score_ids([row["sequences"]], 1)[0]
    for n in (1, 2):
        few = model.score_ids([row["sequences"][:n]], 1)[0]
        torch.testing.assert_close(torch.tensor(few), torch.tensor(every[:n]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sizes", [[1, 1, 1], [2, 1]])
def test_micro_batches_add_up_to_the_whole(model_folders, tmp_path, sizes):
    some = rows()
    trainer = trainer_of(reward_model(model_folders["llama"]), some, tmp_path)
    whole, gradient = loss_and_gradient(trainer, some)
    loss, summed, first = 0.0, torch.zeros_like(gradient), 0
    for size in sizes:
        part, grad = loss_and_gradient(trainer, some[first : first + size])
        loss, summed = loss + part * size / 3, summed + grad * size / 3
        first += size
    assert loss == pytest.approx(whole, rel=1e-5)
    alike(summed, gradient)


@pytest.mark.parametrize("tree_tokens", [20, 30, 40, 60, 1000])
def test_a_budget_of_tokens_changes_the_packs_and_not_the_update(
    model_folders, tmp_path, tree_tokens
):
    """20 and 30 split prompts of three replies (33 nodes) by comparison; 1000 holds everything."""
    model, some = reward_model(model_folders["llama"]), rows()
    whole, gradient = loss_and_gradient(trainer_of(model, some, tmp_path), some)
    packs = to_packs(some, tree_tokens, 0)
    assert (packs.split > 0) == (tree_tokens <= 30)
    trainer = trainer_of(model, packs.rows, tmp_path)
    n, loss, summed = len(packs.rows), 0.0, torch.zeros_like(gradient)
    for first in range(0, n, 2):  # micro-batches of two packs, the last of what is left
        part = packs.rows[first : first + 2]
        share, grad = loss_and_gradient(trainer, part)
        loss, summed = loss + share * len(part) / n, summed + grad * len(part) / n
    assert loss == pytest.approx(whole, rel=1e-5)
    alike(summed, gradient)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.sets(st.integers(0, 9))), min_size=1, max_size=5),
    st.integers(4, 40),
    st.integers(0, 3),
)
def test_packs_hold_each_comparison_and_verdict_once(asked, tree_tokens, seed):
    made = []
    for number, (k, chosen) in enumerate(asked):
        every = list(combinations(range(k), 2))
        pairs = [every[i] for i in sorted(chosen) if i < len(every)]
        sequences = [[1, 2, 3 + number, *[20 + j] * (1 + j)] for j in range(k)]
        made.append(
            {
                "sequences": sequences,
                "pairs": [list(pair) for pair in pairs],
                "confidence": [0.6 + 0.01 * (10 * number + i) for i in range(len(pairs))],
                "margin": [0.1 * a + 0.01 * b for a, b in pairs],
                "safe": [float(j % 2) for j in range(k)],
                "judged": [1.0] * k,
                "length": len(build_tree(sequences).tokens),
            }
        )
    packs = to_packs(made, tree_tokens, seed)
    assert held(packs.rows) == held(made)
    assert packs == to_packs(made, tree_tokens, seed)
    over = 0
    for row in packs.rows:
        nodes = len(build_tree(row["sequences"]).tokens)
        assert nodes <= row["length"]
        over += row["length"] > tree_tokens
    assert packs.over == over


def held(some):
    """Comparisons with what they carry, and verdicts that count, of all rows."""
    found = Counter()
    for row in some:
        said = [tuple(ids) for ids in row["sequences"]]
        carried = zip(row["pairs"], row["confidence"], row["margin"], strict=True)
        found.update((said[a], said[b], c, m) for (a, b), c, m in carried)
        verdicts = zip(said, row["safe"], row["judged"], strict=True)
        found.update((ids, safe) for ids, safe, counts in verdicts if counts)
    return found


def test_checkpointing_changes_neither_loss_nor_gradient(model_folders, tmp_path):
    found, some = [], rows()
    for checkpointing in (False, True):
        model = reward_model(model_folders["llama"])
        if checkpointing:
            model.language.gradient_checkpointing_enable({"use_reentrant": False})
        found.append(loss_and_gradient(trainer_of(model, some, tmp_path), some))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    alike(found[1][1], found[0][1])


def test_before_the_first_step_nothing_is_preferred(model_folders, tmp_path):
    model, some = reward_model(model_folders["llama"]), rows()
    for head in (model.heads.reward, model.heads.safety):
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)
    loss, _ = loss_and_gradient(trainer_of(model, some, tmp_path, safety_weight=0.5), some)
    assert loss == pytest.approx(1.5 * math.log(2), abs=1e-6)
    assert {score for of in model.score_ids([some[0]["sequences"]], 1) for score in of} == {
        (0.0, 0.5)
    }


def test_the_two_channels_have_no_weight_in_common_but_the_adapter(model_folders, tmp_path):
    """Verdicts teach the reward head nothing, comparisons teach the safety head nothing."""
    model, some = reward_model(model_folders["llama"]), rows()
    only_verdicts = [row | {"pairs": [], "confidence": [], "margin": []} for row in some]
    trainer = trainer_of(model, some, tmp_path)
    loss_and_gradient(trainer, only_verdicts)
    assert float(model.heads.reward.weight.grad.abs().max()) == 0
    assert float(model.heads.safety.weight.grad.abs().max()) > 0
    trainer.section = RewardSection(safety_weight=1e-30)
    loss_and_gradient(trainer, some)
    assert float(model.heads.safety.weight.grad.abs().max()) < 1e-25
    assert float(model.heads.reward.weight.grad.abs().max()) > 0


def test_the_lead_that_is_asked_scales_with_the_margin(model_folders, tmp_path):
    model, some = reward_model(model_folders["llama"]), rows()
    trainer = trainer_of(model, some, tmp_path, margin_scale=2.0)
    model.eval()
    inputs = trainer._collate(some)
    with torch.no_grad():
        loss = float(trainer.compute_loss(model, dict(inputs)))
    scores = [score for of in model.score_ids([r["sequences"] for r in some], 3) for score in of]
    reward = torch.tensor([score.reward for score in scores])
    p_safe = torch.tensor([score.p_safe for score in scores], dtype=torch.float64)
    pairs, c, m = inputs["pairs"], inputs["confidence"], inputs["margin"]
    d = reward[pairs[:, 0]] - reward[pairs[:, 1]] - 2 * m
    by_hand = -(c * torch.sigmoid(d).log() + (1 - c) * torch.sigmoid(-d).log()).mean()
    safe = inputs["safe"]
    judged = -(safe * p_safe.log() + (1 - safe) * (1 - p_safe).log()).mean()
    assert loss == pytest.approx(float(by_hand + 0.3 * judged), rel=1e-5)


# --- conversations -----------------------------------------------------------------------------


def test_conversations_score_the_same_alone_together_and_on_either_path(model_folders, talks):
    asked = [(talk[:-1], talk[-1]["content"]) for talk in talks]
    asked += [(talks[0][:-1], "You are fine."), (talks[2][:-1], "You are fine.")]
    model = reward_model(model_folders["llama"])
    together = model.score(asked)
    alone = [model.score([each])[0] for each in asked]
    plain = reward_model(model_folders["llama"], tree=False).score(asked, at_once=2)
    for other in (alone, plain):
        torch.testing.assert_close(torch.tensor(together), torch.tensor(other), atol=1e-5, rtol=0)
    assert len({score.reward for score in together}) == len(asked)
    too_long = ([{"role": "user", "content": "no " * 300}], "Yes.")
    assert model.score([too_long, asked[0]])[0] is None
    assert model.score([]) == []


def test_16_bits_keep_heads_and_adapter_in_float32(model_folders, talks):
    asked = [(talk[:-1], talk[-1]["content"]) for talk in talks]
    rough = models.choose_precision("bfloat16", use_cpu=True)
    model = reward_model(model_folders["llama"], precision=rough, dtype="bfloat16")
    trained = {w.dtype for n, w in model.named_parameters() if "lora" in n or "heads" in n}
    assert trained == {torch.float32}
    exact = reward_model(model_folders["llama"]).score(asked)
    for score, wanted in zip(model.score(asked), exact, strict=True):
        assert score.reward == pytest.approx(wanted.reward, abs=0.05)
        assert score.reward != wanted.reward


# --- saving ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "load_in_4bit"), [("llama", False), ("llama", True), ("gpt2", False)]
)
def test_a_saved_model_reloads_to_the_same_scores(
    model_folders, tmp_path, talks, family, load_in_4bit
):
    model = reward_model(model_folders[family], load_in_4bit=load_in_4bit)
    model.heads.offset.fill_(0.321)
    asked = [(talk[:-1], talk[-1]["content"]) for talk in talks]
    before = model.score(asked)
    model.save(tmp_path / "adapter", "a-base")
    made = section(model_folders[family], load_in_4bit=load_in_4bit)
    again = RewardModel.load(tmp_path / "adapter", made, PRECISION)
    assert all(module.training for module in again.modules())  # see `RewardModel`: 4 bits on a CPU
    assert again.score(asked) == before
    assert not any(w.requires_grad for w in again.language.parameters())
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", HEAD} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)


def test_heads_of_something_else_are_refused(model_folders, tmp_path):
    model, made = reward_model(model_folders["llama"]), section(model_folders["llama"])
    folder, others = tmp_path / "one", tmp_path / "other"
    with pytest.raises(UserError, match=r"no reward model in .*scripts/fit_reward\.py"):
        RewardModel.load(folder, made, PRECISION)
    model.save(folder, "a-base")
    (tmp_path / "prompt.txt").write_text("Be kind.")
    told = made.model_copy(update={"system_prompt": str(tmp_path / "prompt.txt")})
    with pytest.raises(UserError, match="fitted with another\n  system prompt and chat template"):
        RewardModel.load(folder, told, PRECISION)
    with torch.no_grad():
        next(w for n, w in model.language.named_parameters() if "lora_B" in n).add_(1)
    model.save(others, "a-base")
    shutil.copy(folder / HEAD, others / HEAD)
    with pytest.raises(UserError, match="fitted with another\n  adapter"):
        RewardModel.load(others, made, PRECISION)
    save_file(load_file(folder / HEAD), folder / HEAD)
    with pytest.raises(UserError, match="no reward head of this project"):
        RewardModel.load(folder, made, PRECISION)
    (folder / HEAD).write_bytes(b"nothing")
    with pytest.raises(UserError, match="no safetensors file"):
        RewardModel.load(folder, made, PRECISION)


def test_a_family_without_a_test_of_its_tree_goes_by_rows(model_folders):
    model = reward_model(model_folders["llama"])
    assert model.why_rows(10) is None
    model.language.get_base_model().config.model_type = "gemma2"
    assert "gemma2" in model.why_rows(10)
    assert model.batch([[[1, 2], [1, 3, 4]]])["attention_mask"].sum(dim=1).tolist() == [2, 3]
