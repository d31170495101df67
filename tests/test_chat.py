"""Rendering: one begin-of-text, one end of turn, nothing cut inside a message."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from sft import base, chat
from sft.chat import Chat
from sft.data import Message
from sft.files import UserError

LONG_TALK: list[Message] = [
    {"role": "user", "content": "first " * 30},
    {"role": "assistant", "content": "second " * 30},
    {"role": "user", "content": "third"},
]


def plain(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer without a chat template of its own."""
    core = tokenizer.backend_tokenizer
    bare = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=base.EOS, bos_token=base.BOS)
    chat.set_template(bare, "auto")
    return bare


def test_one_begin_of_text_and_one_end_of_turn(tokenizer, talks):
    rendered = Chat(tokenizer, "", 512).render(talks[0][:-1], talks[0][-1:])
    ids = rendered.prompt_ids + rendered.completion_ids
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[-1] == tokenizer.convert_tokens_to_ids(base.EOT)
    assert rendered.completion_ids.count(ids[-1]) == 1


def test_prompt_for_generation_is_the_prompt_of_training(tokenizer, talks):
    room = Chat(tokenizer, "Be kind.", 512)
    trained = room.render(talks[2][:-1], talks[2][-1:])
    assert room.render(talks[2][:-1]).prompt_ids == trained.prompt_ids


def test_multi_turn_stays_multi_turn(tokenizer, talks):
    text = tokenizer.decode(Chat(tokenizer, "", 512).render(talks[2][:-1]).prompt_ids)
    assert [m["content"] in text for m in talks[2][:-1]] == [True, True, True]


def test_system_prompt_comes_first_unless_the_conversation_brings_one(tokenizer, talks):
    room = Chat(tokenizer, "Be kind.", 512)
    assert "Be kind." in tokenizer.decode(room.render(talks[0][:-1]).prompt_ids)
    own = [{"role": "system", "content": "Be short."}, *talks[0][:-1]]
    text = tokenizer.decode(room.render(own).prompt_ids)
    assert "Be short." in text
    assert "Be kind." not in text


def test_oldest_turns_go_first_and_are_counted(tokenizer):
    whole = Chat(tokenizer, "", 4096).render(LONG_TALK)
    shortened = Chat(tokenizer, "", len(whole.prompt_ids) - 1).render(LONG_TALK)
    assert (whole.dropped_turns, shortened.dropped_turns) == (0, 2)
    assert "third" in tokenizer.decode(shortened.prompt_ids)


def test_what_cannot_fit_is_none_and_never_cut(tokenizer, talks):
    fits = Chat(tokenizer, "", 512).render(talks[0][:-1], talks[0][-1:])
    length = len(fits.prompt_ids) + len(fits.completion_ids)
    assert Chat(tokenizer, "", length).render(talks[0][:-1], talks[0][-1:]) is not None
    assert Chat(tokenizer, "", length - 1).render(talks[0][:-1], talks[0][-1:]) is None
    assert Chat(tokenizer, "", length).render(talks[0][:-1], reserve=length) is None


def test_model_without_a_template_gets_words_it_knows_and_its_own_end_token(tokenizer, talks):
    bare = plain(tokenizer)
    room = Chat(bare, "Be kind.", 512)
    rendered = room.render(talks[2][:-1], talks[2][-1:])
    assert room.stop_id == bare.eos_token_id == rendered.completion_ids[-1]
    text = bare.decode(rendered.prompt_ids)
    assert "Person: My sister." in text
    assert text.rstrip().endswith("Counsellor:")
    assert room.text(rendered.completion_ids) == talks[2][-1]["content"]


def test_template_that_refuses_a_system_message_gets_it_in_the_first_turn(tokenizer, talks):
    strict = plain(tokenizer)
    strict.chat_template = (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    text = strict.decode(Chat(strict, "Be kind.", 512).render(talks[0][:-1]).prompt_ids)
    assert "[user]Be kind.\n\nI cannot sleep" in text


def test_completion_ends_at_the_end_of_turn_where_the_template_adds_a_line_break(tokenizer, talks):
    chatml = plain(tokenizer)
    chatml.chat_template = (
        "{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '\\n' + m['content'] + '<|eot_id|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant\\n' }}{% endif %}"
    )
    chatml.add_special_tokens({"additional_special_tokens": [base.EOT, "<|start_header_id|>"]})
    rendered = Chat(chatml, "", 512).render(talks[0][:-1], talks[0][-1:])
    assert rendered.completion_ids[-1] == chatml.convert_tokens_to_ids(base.EOT)


def test_system_prompt_by_name_by_path_and_missing(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# mine v1\nListen first.\n")
    assert chat.system_prompt(str(path)) == "Listen first."
    assert chat.system_prompt("none") == ""
    with pytest.raises(UserError, match="support"):
        chat.system_prompt("suport")
