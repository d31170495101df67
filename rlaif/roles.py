"""Policy, reference, value function and reward model as adapters on one base.

The base is loaded once, in 4 bit where the recipe says so; what differs between the roles is a LoRA
adapter each, and small heads in float32. Where no adapter was trained before, the reference is the
base itself. What a rollout needs of all roles is computed in one pass, in which rows of one batch
go through different adapters (PEFT's `adapter_names`), so that a 4-bit base is dequantised once;
what learns is computed alone, with its own adapter active.

Not here: what is sampled (`rlaif.rollout`), losses (`rlaif.ppo_math`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from peft import PeftModel
from trl.trainer.utils import disable_dropout_in_model

from reward.model import Heads, Scores, heads_in
from reward.token_scores import Scored, score_tokens
from reward.tree import (
    add_tree_forward,
    build_tree,
    collate,
    reason_against,
)
from sft import model as models
from sft.chat import Chat, system_prompt
from sft.config import Recipe
from sft.sharding import refuse_shares
from sft.train import autocast

POLICY, REFERENCE, VALUE, REWARD = "default", "reference", "value", "reward"
BASE = "__base__"  # PEFT's word for rows without an adapter
WIDTH = 32  # rows are padded to a multiple: few shapes, for which kernels are chosen anew

Ids = Sequence[int]


class Batch(NamedTuple):
    """Some prompts with their replies, as rows of the base and places among them.

    Shapes: B rows of T tokens; C replies with M tokens together.

    Attributes:
        inputs: `input_ids` with `position_ids` and `tree_ends`, or with `attention_mask`; (B, T).
        before: (M) place among B x T of the token before each reply's token.
        targets: (M) the replies' tokens.
        lengths: (C) tokens of each reply; they add up to M.
        last: (C) place of each reply's last token.
    """

    inputs: dict[str, torch.Tensor]
    before: torch.Tensor
    targets: torch.Tensor
    lengths: torch.Tensor
    last: torch.Tensor


class Opinions(NamedTuple):
    """What all roles say of the replies of a batch; (M) of each token, (C) of each reply.

    Attributes:
        policy: log-probabilities by the policy, nats.
        entropy: of the policy, nats.
        reference: log-probabilities by the reference, nats.
        values: expected return before each token.
        scores: of the reward model, where there is one.
    """

    policy: torch.Tensor
    entropy: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor
    scores: Scores | None


class Roles:
    """The roles on one base, and how conversations are rendered for them.

    Attributes:
        model: the base with its adapters.
        value_head: (H) states to a value, in float32.
        heads: of the reward model; None = the evaluator rewards.
        chat: renders prompts and replies.
        precision: what the device computes in.
        reference: name of its adapter, or `BASE`.
        value: name of the adapter that the value head reads: its own, or the policy's.
        why_rows: why replies are rows and not trees; None = they are trees.
    """

    def __init__(
        self,
        recipe: Recipe,
        start: Path | None,
        reward: Path | None,
        temperature: float,
        policy: Path | None = None,
    ) -> None:
        """Load the base and what lies on it.

        Args:
            recipe: its `model` and `ppo` sections.
            start: adapter that the policy starts from, frozen also the reference; None = the base.
            reward: folder of the reward model's adapter; None = there is none.
            temperature: that logits are divided by, in sampling as in scoring.
            policy: an adapter that is further on than `start`; None = it starts there.

        Raises:
            UserError: a folder holds no adapter, or a reward model of something else.
        """
        section = recipe.model
        refuse_shares("PPO", "its roles are adapters on one base, outside of any wrapper")
        self.precision = models.choose_precision(section.dtype, use_cpu=recipe.use_cpu)
        tokenizer = models.load_tokenizer(section)
        self.chat = Chat(tokenizer, system_prompt(section.system_prompt), section.max_length)
        base = models.load_base(section, self.precision)
        self.why_rows = reason_against(base.config, section.max_length)
        begin = policy or start
        self.model: PeftModel = (
            models.new_adapter(base, section)
            if begin is None
            else models.load_adapter(base, begin, trainable=True)
        )
        self.temperature = temperature
        self.reference = BASE
        if start is not None:
            self.reference = models.add_adapter(self.model, start, REFERENCE)
        self.value = POLICY
        if recipe.ppo.value == "adapter":
            self.value = models.add_adapter(self.model, start, VALUE)
        hidden = base.config.hidden_size
        self.value_head = torch.nn.Linear(hidden, 1).to(base.device)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.heads: Heads | None = None
        if reward is not None:
            models.add_adapter(self.model, reward, REWARD)
            self.heads = Heads(hidden).to(base.device)
            self.heads.load_state_dict(heads_in(reward, self.model, self.chat))
            self.heads.requires_grad_(False)
        add_tree_forward(base, recipe.model.attn_implementation)
        # A ratio of two policies may not depend on chance. In eval mode, which is no other without
        # dropout, bitsandbytes packs 4-bit weights anew on a CPU, for good.
        disable_dropout_in_model(self.model)
        self.model.train()
        self.learn_with(POLICY)
        if recipe.ppo.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def learn_with(self, adapter: str) -> None:
        """Make an adapter the active and the only trainable one; gradients of others stay."""
        self.model.set_adapter(adapter)

    def weights(self) -> dict[str, torch.nn.Parameter]:
        """What is trained: the policy's adapter, the value's where it has one, and its head."""
        names = {POLICY, self.value}
        found = {
            name: value
            for name, value in self.model.named_parameters()
            if "lora_" in name and any(f".{each}." in name for each in names)
        }
        heads = {f"value_head.{name}": p for name, p in self.value_head.named_parameters()}
        return found | heads

    @contextmanager
    def speaking(self) -> Iterator[PeftModel]:
        """The policy, ready to generate: checkpointing would switch the cache off."""
        self.learn_with(POLICY)
        checkpointed = self.model.is_gradient_checkpointing
        if checkpointed:
            self.model.gradient_checkpointing_disable()
        yield self.model
        if checkpointed:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def batch(self, groups: Sequence[tuple[Ids, Sequence[Ids]]]) -> Batch:
        """Groups of (prompt, its replies) as rows: one tree, or a row for each reply."""
        pad_id = self.chat.tokenizer.pad_token_id
        sequences = [[*prompt, *reply] for prompt, replies in groups for reply in replies]
        starts = [len(prompt) for prompt, replies in groups for _ in replies]
        device = self.model.device
        if self.why_rows is None:
            tree = build_tree(sequences)
            made = collate([tree], [starts], pad_id, WIDTH)
            inputs = {
                "input_ids": made.input_ids,
                "position_ids": made.position_ids,
                "tree_ends": made.ends,
            }
            before, last = made.where, torch.tensor([path[-1] for path in tree.paths])
        else:
            width = max(map(len, sequences))
            width += -width % WIDTH
            padded = [ids + [pad_id] * (width - len(ids)) for ids in sequences]
            held = [[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences]
            inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(held)}
            rows = list(enumerate(zip(sequences, starts, strict=True)))
            before = torch.tensor(
                [i * width + t for i, (ids, start) in rows for t in range(start - 1, len(ids) - 1)]
            )
            last = torch.tensor([i * width + len(ids) - 1 for i, (ids, _) in rows])
        targets = [t for ids, at in zip(sequences, starts, strict=True) for t in ids[at:]]
        lengths = [len(ids) - at for ids, at in zip(sequences, starts, strict=True)]
        return Batch(
            {name: value.to(device) for name, value in inputs.items()},
            before.to(device),
            torch.tensor(targets, device=device),
            torch.tensor(lengths, device=device),
            last.to(device),
        )

    def states(self, batch: Batch) -> torch.Tensor:
        """(M, H) states before the replies' tokens by the active adapter, with a gradient."""
        with autocast(self.precision):
            found: torch.Tensor = self.model(**batch.inputs, tree_where=batch.before)
        return found

    def scored(
        self,
        states: torch.Tensor,
        targets: torch.Tensor,
        *,
        temperature: float | None = None,
        entropy_gradient: bool = False,
    ) -> Scored:
        """Log-probabilities, entropy and greedy hits of (M) tokens from the states before them.

        Args:
            states: (M, H).
            targets: (M) token ids.
            temperature: that logits are divided by; None = the roles' own.
            entropy_gradient: whether the entropy is trained.
        """
        head = self.model.get_base_model().get_output_embeddings()
        with autocast(self.precision):
            return score_tokens(
                states,
                targets,
                head,
                temperature=temperature or self.temperature,
                entropy_gradient=entropy_gradient,
            )

    def values(self, states: torch.Tensor) -> torch.Tensor:
        """(M) values from the states before the tokens, in float32."""
        said: torch.Tensor = self.value_head(states.float())[:, 0]
        return said

    @torch.no_grad()
    def opinions(self, batch: Batch, temperature: float | None = None) -> Opinions:
        """What policy, reference, value function and reward model say, in one pass.

        Args:
            batch: replies with their prompts.
            temperature: of policy and reference; None or 0 (greedy has none) = the roles' own.
        """
        names = [POLICY, self.reference]
        places = [batch.before, batch.before]
        if self.value != POLICY:
            names, places = [*names, VALUE], [*places, batch.before]
        if self.heads is not None:
            names, places = [*names, REWARD], [*places, batch.last]
        rows, width = batch.inputs["input_ids"].shape
        inputs = {name: value.repeat(len(names), 1) for name, value in batch.inputs.items()}
        where = torch.cat([i * rows * width + each for i, each in enumerate(places)])
        with autocast(self.precision), _mixing(self.model):
            mixed = [name for name in names for _ in range(rows)]
            found = self.model(**inputs, tree_where=where, adapter_names=mixed)
        states = dict(zip(names, found.split([len(each) for each in places]), strict=True))
        policy = self.scored(states[POLICY], batch.targets, temperature=temperature)
        reference = self.scored(states[self.reference], batch.targets, temperature=temperature)
        scores = None if self.heads is None else self.heads(states[REWARD])
        values = self.values(states[self.value])
        return Opinions(policy.log_probs, policy.entropy, reference.log_probs, values, scores)


@contextmanager
def _mixing(model: PeftModel) -> Iterator[None]:
    # PEFT refuses `adapter_names` in training mode, because of dropout, which is off here; the
    # layers stay in it (see `Roles`).
    model.base_model.training = False
    yield
    model.base_model.training = True
