"""Sampling: what a seed promises, what a batch may not change, and what is counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sft import generate as generation
from sft import model as models
from sft.candidates import Candidate, Sampling, borrow
from sft.chat import Chat
from sft.config import ModelSection, Recipe
from sft.data import Prompt
from sft.files import UserError

SAMPLING = Sampling(k=3, temperature=1.0, top_p=1.0, max_new_tokens=12, batch_size=6, seed=5)
SAID = (
    "I cannot sleep.",
    "My exams are near and I panic when I open a book.",
    "I feel alone.",
    "My sister moved away and I miss her every evening.",
    "Work is too much.",
    "I am tired all day.",
    "Nobody calls.",
)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [
        Prompt(f"p{i}", [{"role": "user", "content": text}], "test", "sleep", "none", "train")
        for i, text in enumerate(SAID)
    ]


@pytest.fixture(scope="module")
def speaker(model_folders):
    """A tiny model and its chat, as the stages load them."""
    return speaker_of(model_folders["llama"])


def speaker_of(folder, max_length: int = 200):
    settings = {"dtype": "float32", "system_prompt": "none", "max_length": max_length}
    section = ModelSection(name_or_path=str(folder), **settings)
    speakers = models.load_speakers(section, {"policy": None}, use_cpu=True)
    return speakers.model, Chat(speakers.tokenizer, "", max_length)


def sample(speaker, prompts, sampling=SAMPLING, **options):
    model, chat = speaker
    options = {"model_name": "base", "advance": lambda n: None} | options
    return generation.generate(model, chat, prompts, sampling, **options)


def test_a_seed_gives_the_same_candidates_and_another_seed_others(speaker, prompts):
    first, again = sample(speaker, prompts), sample(speaker, prompts)
    assert first == again
    other = sample(speaker, prompts, replace(SAMPLING, seed=6))
    changed = sum(a.text != b.text for a, b in zip(first.candidates, other.candidates, strict=True))
    assert changed > len(first.candidates) / 2


def test_k_candidates_a_prompt_in_the_order_of_the_prompts(speaker, prompts):
    made = sample(speaker, prompts).candidates
    assert [c.prompt_id for c in made] == [p.id for p in prompts for _ in range(SAMPLING.k)]
    assert len({c.id for c in made}) == len(made)
    assert {c.seed for c in made} == {5, 6, 7}
    assert {(c.model, c.temperature, c.top_p) for c in made} == {("base", 1.0, 1.0)}
    # More replies than a batch has rows: one prompt after the other.
    one_by_one = sample(speaker, prompts, replace(SAMPLING, batch_size=1)).candidates
    assert Counter(c.prompt_id for c in one_by_one) == Counter(c.prompt_id for c in made)


def test_candidates_do_not_depend_on_the_order_of_the_prompts(speaker, prompts):
    straight, turned = sample(speaker, prompts), sample(speaker, prompts[::-1])
    assert [c.prompt_id for c in turned.candidates] != [c.prompt_id for c in straight.candidates]
    assert set(turned.candidates) == set(straight.candidates)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_greedy_reply_does_not_depend_on_its_batch(model_folders, prompts, family):
    speaker = speaker_of(model_folders[family])
    greedy = replace(SAMPLING, k=1, temperature=0.0, batch_size=1)
    alone = sample(speaker, prompts, greedy).candidates
    together = sample(speaker, prompts, replace(greedy, batch_size=8)).candidates
    assert [c.text for c in alone] == [c.text for c in together]


def at_once(speaker, prompts, tokens: int) -> list[list[int]]:
    """Greedy replies by one plain call of `generate`, the prompts padded on the left."""
    model, chat = speaker
    asked = [chat.render(prompt.messages).prompt_ids for prompt in prompts]
    pad, width = chat.tokenizer.pad_token_id, max(map(len, asked))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in asked])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asked])
    how = {"do_sample": False, "max_new_tokens": tokens, "pad_token_id": pad}
    stops = sorted({chat.stop_id, chat.tokenizer.eos_token_id})
    return model.generate(ids, attention_mask=mask, eos_token_id=stops, **how)[:, width:].tolist()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gpt2"])
def test_a_greedy_reply_is_that_of_one_call_of_generate(model_folders, prompts, family):
    model, chat = speaker_of(model_folders[family])
    tokens = 2 * generation.PIECE + 3
    greedy = replace(SAMPLING, k=1, temperature=0.0, max_new_tokens=tokens, batch_size=8)
    chat.stop_id = at_once((model, chat), prompts, tokens)[0][generation.PIECE + 2]
    plain = at_once((model, chat), prompts, tokens)
    ends = [ids.index(chat.stop_id) if chat.stop_id in ids else None for ids in plain]
    assert None in ends and len(set(ends)) > 1  # some leave the batch, some stay
    ours = sample((model, chat), prompts, greedy).candidates
    for reply, ids, end in zip(ours, plain, ends, strict=True):
        assert reply.text == chat.text(ids[:end])
        assert reply.stop == ("length" if end is None else "eos")


def test_a_prompt_is_read_once_and_an_ended_reply_leaves_the_batch(model_folders, prompts):
    model, chat = speaker_of(model_folders["llama"])
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    pieces = 4
    long = replace(SAMPLING, k=8, max_new_tokens=pieces * generation.PIECE, batch_size=32)
    made = sample((model, chat), prompts[:4], long).candidates
    (prompts_read, _), *steps = seen
    assert prompts_read == 4
    assert {tokens for _, tokens in steps} == {1}
    rows = [rows for rows, _ in steps]
    assert rows[: generation.PIECE] == [32] * generation.PIECE
    assert rows == sorted(rows, reverse=True)
    assert 32 > rows[-1] >= sum(reply.stop == "length" for reply in made) > 0


def speakers_with_adapter(folder, tmp_path, **settings):
    """The base as "baseline", and as "policy" with an adapter that moves its words."""
    section = ModelSection(name_or_path=str(folder), max_length=200, lora_r=4, **settings)
    precision = models.choose_precision(section.dtype, use_cpu=True)
    model = models.new_adapter(models.load_base(section, precision), section)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    models.save_adapter(model, tmp_path / "adapter", "base")
    adapters = {"policy": tmp_path / "adapter", "baseline": None}
    return models.load_speakers(section, adapters, use_cpu=True)


def base_weights(model) -> dict[str, torch.Tensor]:
    """Copies of all weights but the adapter's."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_merged_adapter_says_the_same_and_leaves_the_base_bit_by_bit(
    model_folders, tmp_path, family
):
    speakers = speakers_with_adapter(model_folders[family], tmp_path, dtype="float32")
    ids = torch.tensor([[5, 17, 42, 99, 7, 120]])
    base = base_weights(speakers.model)
    with torch.no_grad(), speakers.active("policy") as policy:
        apart = policy(ids).logits
        with generation.merged(policy):
            together = policy(ids).logits
            inside = base_weights(policy)
        again = policy(ids).logits
    assert any(not torch.equal(inside[name], weight) for name, weight in base.items())
    assert torch.allclose(together, apart, atol=1e-5, rtol=0)
    assert not torch.equal(together, apart)  # else nothing was merged
    assert torch.equal(again, apart)
    assert all(torch.equal(base_weights(policy)[name], weight) for name, weight in base.items())


def test_a_sampling_that_breaks_off_leaves_the_base_too(model_folders, tmp_path):
    speakers = speakers_with_adapter(model_folders["llama"], tmp_path, dtype="float32")
    base = base_weights(speakers.model)
    stop = pytest.raises(KeyboardInterrupt)
    with stop, speakers.active("policy") as policy, generation.merged(policy):
        raise KeyboardInterrupt
    after = base_weights(speakers.model)
    assert all(torch.equal(after[name], weight) for name, weight in base.items())


@pytest.mark.parametrize(
    ("name", "family", "settings"),
    [
        ("baseline", "llama", {"dtype": "float32"}),
        ("policy", "llama", {"dtype": "bfloat16"}),
        ("policy", "llama", {"dtype": "float32", "load_in_4bit": True}),
        ("policy", "gpt2", {"dtype": "float32", "lora_target_modules": "c_attn,lm_head"}),
    ],
    ids=["no adapter", "low precision", "4-bit", "tied to the embedding"],
)
def test_what_cannot_be_merged_exactly_is_left_as_it_is(
    model_folders, tmp_path, name, family, settings
):
    speakers = speakers_with_adapter(model_folders[family], tmp_path, **settings)
    ids = torch.tensor([[5, 17, 42, 99, 7, 120]])
    with torch.no_grad(), speakers.active(name) as who:
        before = who(ids).logits
        # Not earlier: on a CPU with bf16 units the first reading packs 4-bit weights anew.
        base = base_weights(speakers.model)
        with generation.merged(who):
            assert torch.equal(who(ids).logits, before)
            inside = base_weights(who)
    assert all(torch.equal(inside[name], weight) for name, weight in base.items())


def test_equal_replies_are_refused():
    with pytest.raises(UserError, match="3 equal replies"):
        replace(SAMPLING, temperature=0.0)


def test_stop_says_whether_the_reply_ended_by_itself(speaker, prompts, monkeypatch):
    model, chat = speaker
    words = chat.tokenizer("You could rest.", add_special_tokens=False)["input_ids"]
    pad = chat.tokenizer.pad_token_id
    ended = [*words, chat.stop_id, *words, pad]  # what follows the end of the turn is not said
    cut = [*words, *words, words[0], words[0]]

    def scripted(ids, max_new_tokens, **_):
        replies = torch.tensor([ended, cut])[: len(ids), :max_new_tokens]
        return torch.cat([ids, replies], dim=1)

    monkeypatch.setattr(model, "generate", scripted)
    made = sample(speaker, prompts[:1], replace(SAMPLING, k=2))
    assert [c.stop for c in made.candidates] == ["eos", "length"]
    assert made.candidates[0].text == "You could rest."
    assert made.candidates[1].text.startswith("You could rest.You could")
    assert made.counts() == {
        "prompts": 1, "candidates": 2, "too_long": 0, "shortened": 0, "cut_off": 1,
    }  # fmt: skip


def test_prompts_without_room_for_a_reply_are_reported_and_old_turns_are_counted(
    model_folders, prompts
):
    speaker = speaker_of(model_folders["llama"], max_length=100)
    long = replace(prompts[0], id="long", messages=[{"role": "user", "content": "I worry. " * 40}])
    turns = [
        {"role": "user", "content": "I worry. " * 8},
        {"role": "assistant", "content": "What about? " * 6},
        {"role": "user", "content": "Work."},
    ]
    talk = replace(prompts[0], id="talk", messages=turns)
    made = sample(speaker, [long, prompts[0], talk])
    assert made.too_long == ["long"]
    assert made.shortened == 1
    assert {c.prompt_id for c in made.candidates} == {"p0", "talk"}
    assert made.line(3).startswith("2 prompts x 3 = 6 candidates; 1 prompts too long, 1 lost")


def test_no_room_for_any_reply_is_told_with_the_next_step(model_folders, prompts):
    recipe = Recipe(
        run="t",
        use_cpu=True,
        model={
            "name_or_path": str(model_folders["llama"]),
            "max_length": 16,
            "system_prompt": "none",
        },
        generate={"max_new_tokens": 8},
        evaluate={"max_new_tokens": 8},
    )
    sampling = replace(SAMPLING, max_new_tokens=8)
    with pytest.raises(UserError, match=r"model\.max_length \(16\)"):
        generation.replies_of(recipe, {"policy": None}, prompts, sampling)


def test_processes_share_the_batches_and_miss_none(speaker, prompts, monkeypatch):
    whole = sample(speaker, prompts)
    parts = []
    for index in range(2):
        state = SimpleNamespace(process_index=index, num_processes=2)
        monkeypatch.setattr(generation, "PartialState", lambda state=state: state)
        monkeypatch.setattr(generation, "gather_object", lambda made: made)
        parts.append(sample(speaker, prompts).candidates)
    assert not set(parts[0]) & set(parts[1])
    # Batches are seeded by their content, so it does not matter who samples which.
    assert {*parts[0], *parts[1]} == set(whole.candidates)


def test_progress_counts_the_prompts_and_the_model_is_left_as_it_was(speaker, prompts):
    seen: list[int] = []
    model, _ = speaker
    model.train()
    sample(speaker, prompts, advance=seen.append)
    assert sum(seen) == len(prompts)
    assert model.training
    model.eval()


def test_borrowed_replies_come_from_another_risk_and_the_same_topic_where_there_is_one():
    about = (("p0", "sleep", "none"), ("p1", "sleep", "crisis"), ("p2", "work", "crisis"))
    about += (("p3", "grief", "none"),)
    talk = [{"role": "user", "content": "Hello."}]
    asked = [Prompt(name, talk, "test", topic, risk, "train") for name, topic, risk in about]
    made = [
        Candidate(f"c{i}{k}", p.id, f"reply {i}{k}", "m", 1.0, 1.0, k, "eos" if k else "length")
        for i, p in enumerate(asked)
        for k in range(3)
    ]
    found = borrow(asked, made, 2, seed=1)
    assert found == borrow(asked, made, 2, seed=1) != borrow(asked, made, 2, seed=2)
    source = {c.text: c for c in made}
    assert all(c.borrowed and source[c.text].stop == "eos" for c in found)
    assert len({c.id for c in [*made, *found]}) == len(made) + len(found)
    of = {p.id: {source[c.text].prompt_id for c in found if c.prompt_id == p.id} for p in asked}
    assert of["p0"] == {"p1"}  # the same topic
    assert of["p1"] == {"p0"}
    assert of["p2"] <= {"p0", "p3"}  # no other risk in this topic
    assert of["p3"] <= {"p1", "p2"}
    assert not borrow(asked[2:3], made[6:9], 2, seed=1)
