"""The reward model: one adapter on the shared base, and two scalar heads that never meet.

`reward` says how good a reply is, in log-odds of being preferred (Bradley and Terry 1952): only
differences between replies to one prompt mean something, and its zero is the mean of reference
replies. `safety` is the log-odds that the reply passes the safety flow. Both read the last hidden
state of the token that ends the reply; the heads are float32 whatever the base computes in.

Not here: losses and training (`reward.train`), what it is worth (`reward.held_out`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from trl.trainer.utils import disable_dropout_in_model

from reward.lessons import encode
from reward.tree import add_tree_forward, build_tree, collate_ends, reason_against
from sft import model as models
from sft.chat import Chat, system_prompt
from sft.config import ModelSection
from sft.data import Message
from sft.files import UserError, sha256_of, short_hash, to_json
from sft.train import autocast

HEAD = "reward_head.safetensors"
FORMAT = "counsel-rlaif reward head 1"
WIDTH = 32  # rows are padded to a multiple: few shapes, for which kernels are chosen anew

Sequences = Sequence[Sequence[int]]


class Scores(NamedTuple):
    """Of each reply, (C) each in float32.

    Attributes:
        reward: log-odds against a reply of reward 0, the mean of the reference replies.
        safety: log-odds that the reply is safe.
    """

    reward: torch.Tensor
    safety: torch.Tensor


class Score(NamedTuple):
    """What the model says of one reply: its reward, and the probability that it is safe."""

    reward: float
    p_safe: float


class Heads(torch.nn.Module):
    """Two linear heads in float32. They start at zero, so that before training every reward is 0
    and every reply is safe with probability 1/2.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.reward = torch.nn.Linear(hidden, 1, bias=False)
        self.safety = torch.nn.Linear(hidden, 1)
        self.register_buffer("offset", torch.zeros(()))
        self.offset: torch.Tensor
        for parameter in self.parameters():
            torch.nn.init.zeros_(parameter)

    def forward(self, states: torch.Tensor) -> Scores:
        """(C, H) last hidden states of the tokens that end the replies -> scores."""
        with torch.autocast(states.device.type, enabled=False):
            states = states.float()
            return Scores(self.reward(states)[:, 0] - self.offset, self.safety(states)[:, 0])


class RewardModel(torch.nn.Module):
    """A language model with its adapter "default", the heads, and how conversations are rendered.

    Attributes:
        language: the base with the adapter.
        heads: the two heads.
        chat: renders prompt and reply.
        precision: what the device computes in.
        tree: whether candidates that share a prompt are computed as a tree where that is exact.

    `attention` is the recipe's `model.attn_implementation`, as in `reward.tree.add_tree_forward`.
    """

    def __init__(
        self,
        language: PeftModel,
        chat: Chat,
        precision: models.Precision,
        *,
        tree: bool = True,
        attention: str = "sdpa",
    ) -> None:
        super().__init__()
        base = language.get_base_model()
        add_tree_forward(base, attention)
        # A reply's score may not depend on chance.
        disable_dropout_in_model(language)
        self.language = language
        self.heads = Heads(base.config.hidden_size).to(base.device)
        self.chat, self.precision, self.tree = chat, precision, tree
        # In eval mode, which is no other without dropout, bitsandbytes packs 4-bit weights anew on
        # a CPU, for good, and for a kernel that rounds otherwise.
        self.train()

    def forward(
        self,
        input_ids: torch.Tensor,
        where: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        ends: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> Scores:
        """Scores of the replies of a batch that `batch` made."""
        states = self.language(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            tree_ends=ends,
            tree_where=where,
        )
        scores: Scores = self.heads(states)
        return scores

    def why_rows(self, longest: int) -> str | None:
        """Why a row is one candidate and not a tree of them; None = it is a tree."""
        if not self.tree:
            return "reward.tree is off"
        return reason_against(self.language.get_base_model().config, longest)

    def batch(self, groups: Sequence[Sequences]) -> dict[str, torch.Tensor]:
        """The arguments of `forward` for groups of sequences; replies come in the groups' order."""
        pad_id = self.chat.tokenizer.pad_token_id
        longest = max(len(ids) for group in groups for ids in group)
        if self.why_rows(longest) is None:
            # One tree: prompts share their system prompt, and no row waits for a longer one.
            made = collate_ends([build_tree([*chain(*groups)])], pad_id, WIDTH)
            names = ("input_ids", "where", "position_ids", "ends")
            return {name: value for name, value in made._asdict().items() if name in names}
        width = longest + -longest % WIDTH
        rows = [list(ids) for group in groups for ids in group]
        return {
            "input_ids": torch.tensor([ids + [pad_id] * (width - len(ids)) for ids in rows]),
            "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows]),
            "where": torch.tensor([i * width + len(ids) - 1 for i, ids in enumerate(rows)]),
        }

    @torch.no_grad()
    def score_ids(self, groups: Sequence[Sequences], at_once: int) -> list[list[Score]]:
        """Score groups of token sequences, `at_once` groups in a forward pass."""
        sizes = [sum(map(len, group)) for group in groups]
        order = sorted(range(len(groups)), key=lambda i: -sizes[i])
        found: dict[int, list[Score]] = {}
        device = self.language.get_base_model().device
        # Longest first: the batch that may not fit in memory fails at once, not at the end.
        for first in range(0, len(order), at_once):
            numbers = order[first : first + at_once]
            batch = self.batch([groups[i] for i in numbers])
            with autocast(self.precision):
                scores = self(**{name: value.to(device) for name, value in batch.items()})
            values = zip(scores.reward.tolist(), scores.safety.sigmoid().tolist(), strict=True)
            for i in numbers:
                found[i] = [Score(*next(values)) for _ in groups[i]]
        return [found[i] for i in range(len(groups))]

    def score(
        self, asked: Sequence[tuple[Sequence[Message], str]], at_once: int = 16
    ) -> list[Score | None]:
        """Score replies to conversations; None for one that does not fit the length limit.

        Args:
            asked: (messages of the prompt, reply) each; those of equal messages share a tree.
            at_once: prompts in a forward pass.
        """
        places: dict[str, list[int]] = {}
        ids = [encode(self.chat, prompt, reply) for prompt, reply in asked]
        for i, (prompt, _) in enumerate(asked):
            if ids[i] is not None:
                places.setdefault(to_json(list(prompt)), []).append(i)
        groups = [[ids[i] or [] for i in some] for some in places.values()]
        found: list[Score | None] = [None] * len(asked)
        for some, scores in zip(places.values(), self.score_ids(groups, at_once), strict=True):
            for i, score in zip(some, scores, strict=True):
                found[i] = score
        return found

    def save(self, folder: Path, base_name: str) -> None:
        """Write adapter and heads, with what they belong to, so that a mix-up is told."""
        models.save_adapter(self.language, folder, base_name)
        weights = {
            name: value.contiguous().cpu() for name, value in self.heads.state_dict().items()
        }
        belongs = _belongs_to(folder, self.language, self.chat)
        save_file(weights, folder / HEAD, {"format": FORMAT, **belongs})

    @classmethod
    def load(cls, folder: Path, section: ModelSection, precision: models.Precision) -> RewardModel:
        """The model that `save` wrote, to score only.

        Args:
            folder: `runs/<run>/reward/adapter`.
            section: the recipe's model; its base, system prompt and chat template are checked.
            precision: what to compute in.

        Raises:
            UserError: no such file, or it belongs to another base, adapter or rendering.
        """
        if not (folder / HEAD).is_file():
            raise UserError(f"no reward model in {folder}. Run first: python scripts/fit_reward.py")
        system = system_prompt(section.system_prompt)
        chat = Chat(models.load_tokenizer(section), system, section.max_length)
        base = models.load_base(section, precision)
        language = models.load_adapter(base, folder, trainable=False)
        made = cls(language, chat, precision, attention=section.attn_implementation)
        made.read_heads(folder)
        return made

    def read_heads(self, folder: Path) -> None:
        """Take over the heads in a folder, beside whose adapter they were saved.

        Raises:
            UserError: they belong to another base, adapter or rendering than this model's.
        """
        self.heads.load_state_dict(heads_in(folder, self.language, self.chat))


def heads_in(folder: Path, language: PeftModel, chat: Chat) -> dict[str, torch.Tensor]:
    """Weights of the heads in a folder, beside whose adapter they were saved.

    Raises:
        UserError: they belong to another base, adapter or rendering.
    """
    if not (folder / HEAD).is_file():
        raise UserError(f"no reward model in {folder}. Run first: python scripts/fit_reward.py")
    _check(folder / HEAD, _belongs_to(folder, language, chat))
    return load_file(folder / HEAD)


def _belongs_to(folder: Path, language: PeftModel, chat: Chat) -> dict[str, str]:
    """What the heads are of no use without: adapter, base and rendering, each by its hash."""
    config = language.get_base_model().config
    shape = [config.model_type, config.num_hidden_layers, config.hidden_size, config.vocab_size]
    said = [chat.system, chat.tokenizer.chat_template]
    return {
        "adapter": sha256_of(folder / "adapter_model.safetensors"),
        "base": "{}, {} layers of {}, vocabulary of {}".format(*shape),
        "system prompt and chat template": short_hash(said),
    }


def _check(head: Path, expected: Mapping[str, str]) -> None:
    try:
        with safe_open(head, framework="pt") as file:
            said = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{head} is no safetensors file ({error}): fit the reward anew") from error
    if said.get("format") != FORMAT:
        raise UserError(f"{head} is no reward head of this project: fit the reward anew")
    others = [
        f"{name}: {said.get(name)} there, {now} now"
        for name, now in expected.items()
        if said.get(name) != now
    ]
    if others:
        raise UserError(
            f"{head} was fitted with another\n  "
            + "\n  ".join(others)
            + "\nUse the settings that it was fitted with, or fit it anew: scripts/fit_reward.py"
        )
