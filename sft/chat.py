"""Messages in, token ids out: the only place that touches a chat template.

Everything that is trained on, sampled from or scored is rendered here, so that what the model
learns is what it later sees. Not here: choosing a tokenizer (`sft.model`) or reading data
(`sft.data`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from sft.data import Message
from sft.files import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = Path(__file__).parent / "assets" / "prompts"

# Llama-3's published layout: begin-of-text once, a header per turn, <|eot_id|> after each turn.
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
# For models that never saw a chat format: words they know, and their own end-of-text token after
# each reply.
PLAIN = (
    "{{ bos_token if bos_token and bos_token != eos_token else '' }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] | trim + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'Person: ' + message['content'] | trim + '\\n' }}"
    "{% else %}{{ 'Counsellor: ' + message['content'] | trim + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Counsellor:' }}{% endif %}"
)
TEMPLATES = {"llama3": LLAMA3, "plain": PLAIN}


@dataclass(frozen=True)
class Rendered:
    """Token ids of one prompt and, where there is one, its reply.

    Attributes:
        prompt_ids: up to and including what opens the assistant's turn.
        completion_ids: the reply and the token that ends the turn; empty where only a prompt was
            rendered.
        dropped_turns: how many of the oldest messages were left out to fit.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    dropped_turns: int = 0


def system_prompt(name: str) -> str:
    """Text of a system prompt: a name under `sft/assets/prompts`, a path, or "none" = no prompt.

    Lines that start with `#` carry the version and are not part of the text.

    Raises:
        UserError: no such prompt; the message lists those that exist.
    """
    if name == "none":
        return ""
    path = PROMPTS / f"{name}.txt" if (PROMPTS / f"{name}.txt").is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PROMPTS.glob("*.txt")))
        raise UserError(
            f"system prompt '{name}' not found. Give one of: {known}, none; or the path of a text "
            "file."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#")).strip()


def set_template(tokenizer: PreTrainedTokenizerBase, choice: str) -> None:
    """Give the tokenizer its template: llama3, plain, or "auto" = its own, else plain."""
    if choice in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[choice]
    elif not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN


class Chat:
    """One tokenizer with one template, one system prompt and one length limit.

    Args:
        tokenizer: with its template set by `set_template`.
        system: put first unless a conversation brings a system message of its own; "" for none.
        max_length: tokens of prompt and reply together.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.max_length = max_length
        # Control tokens typed by a person must not become control tokens of the conversation.
        special = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._takes_system = self._asks_for_system()
        self.stop_id = self._end_of_turn_id()

    def render(
        self, prompt: Sequence[Message], completion: Sequence[Message] = (), *, reserve: int = 0
    ) -> Rendered | None:
        """Token ids of a conversation that fit `max_length`; None where its last turn does not fit.

        Multi-turn conversations stay multi-turn; where they are too long the oldest user-assistant
        exchanges go first. No message is ever cut inside, so a disclosure is not lost unseen and
        the end-of-turn token stays.

        Args:
            prompt: messages, the last one from the user.
            completion: one assistant message, or nothing when a reply is to be generated.
            reserve: tokens kept free for a reply that is still to be generated.
        """
        messages = list(prompt)
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        first = 1 if messages[0]["role"] == "system" else 0
        dropped = 0
        while True:
            rendered = self._render(messages, completion, dropped)
            if len(rendered.prompt_ids) + len(rendered.completion_ids) + reserve <= self.max_length:
                return rendered
            if len(messages) - first <= 2:
                return None
            del messages[first : first + 2]
            dropped += 2

    def text(self, ids: Sequence[int]) -> str:
        """The words of a generated reply: ids up to the end of the turn, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _render(
        self, messages: list[Message], completion: Sequence[Message], dropped: int
    ) -> Rendered:
        prompt_ids = self._encode(messages, opens_reply=True)
        if not completion:
            return Rendered(prompt_ids, [], dropped)
        whole = self._encode([*messages, *completion], opens_reply=False)
        # Tokens can merge across the border ("Counsellor:" + " I"): the prompt ends where both
        # still agree.
        pairs = enumerate(zip(prompt_ids, whole, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), len(prompt_ids))
        ids = whole[same:]
        # Some templates write a line break after the end of the turn. Generation stops before it,
        # so training does.
        ids = (
            ids[: len(ids) - ids[::-1].index(self.stop_id)]
            if self.stop_id in ids
            else [*ids, self.stop_id]
        )
        return Rendered(whole[:same], ids, dropped)

    def _encode(self, messages: list[Message], *, opens_reply: bool) -> list[int]:
        """Ids by the template; one without a system role gets it before the first user turn."""
        messages = [m | {"content": self._control.sub(" ", m["content"])} for m in messages]
        if messages[0]["role"] == "system" and not self._takes_system:
            first = {
                "role": "user",
                "content": f"{messages[0]['content']}\n\n{messages[1]['content']}",
            }
            messages = [first, *messages[2:]]
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opens_reply
        )
        # The template has written begin-of-text already: adding special tokens here is the
        # well-known double BOS.
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        bos = self.tokenizer.bos_token_id
        return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids

    def _asks_for_system(self) -> bool:
        probe = [{"role": "system", "content": "qzxj"}, {"role": "user", "content": "u"}]
        try:
            return "qzxj" in self.tokenizer.apply_chat_template(probe, tokenize=False)
        except TemplateError:
            return False

    def _end_of_turn_id(self) -> int:
        """The special token that closes an assistant turn, else the tokenizer's end of text.

        Asked of the template itself: instruct models end a turn with <|eot_id|> or <|im_end|>,
        which is not always `eos_token_id`; a model trained on one and stopped by the other never
        stops.
        """
        ids = self._encode(
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
            opens_reply=False,
        )
        special = set(self.tokenizer.all_special_ids)
        last_word = max(
            i
            for i, token in enumerate(ids)
            if token not in special and self.tokenizer.decode([token]).strip()
        )
        closing = [token for token in ids[last_word + 1 :] if token in special]
        if closing:
            return closing[0]
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of '{self.tokenizer.name_or_path}' has no end-of-text token."
            )
        return int(self.tokenizer.eos_token_id)
