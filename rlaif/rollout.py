"""A rollout: the policy's own replies to some prompts, and what all roles say of them.

Processes share the work and all have the whole result, so that what is learned from it does not
depend on how many there are. Not here: the roles (`rlaif.roles`), rewards (`rlaif.ppo_reward`), the
mathematics (`rlaif.ppo_math`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from rlaif.roles import Batch, Roles
from sft.candidates import Sampling
from sft.chat import Chat
from sft.data import Prompt
from sft.files import UserError, short_hash
from sft.generate import Reply, sample_tokens


@dataclass(frozen=True)
class Asked:
    """A prompt as the policy reads it."""

    prompt: Prompt
    ids: list[int]


def fitting(chat: Chat, prompts: Sequence[Prompt], room: int) -> list[Asked]:
    """The prompts that leave room for a reply of so many tokens, rendered.

    Raises:
        UserError: none does.
    """
    rendered = [(prompt, chat.render(prompt.messages, reserve=room)) for prompt in prompts]
    found = [Asked(prompt, row.prompt_ids) for prompt, row in rendered if row]
    if not found:
        raise UserError(
            f"no prompt leaves room for a reply of {room} tokens: raise model.max_length "
            f"({chat.max_length}), or lower ppo.max_new_tokens"
        )
    return found


def next_places(first: int, n: int, size: int, seed: int) -> list[int]:
    """Which of `size` prompts come at places `first` to `first + n`: each pass shuffles anew."""
    found: list[int] = []
    for number in range(first // size, (first + n - 1) // size + 1):
        order = list(range(size))
        random.Random(f"{seed} pass {number}").shuffle(order)
        found += order[max(0, first - number * size) : first + n - number * size]
    return found


@dataclass
class Rollout:
    """Replies to prompts, K to each, those to one prompt together: C = prompts x K of them.

    Attributes:
        asked: the prompts.
        replies: C replies.
        texts: C, as a judge reads them.
        k: replies to each prompt.
        temperature: of sampling.
        left_out: replies that a server drew and whose tokens are not known; others replaced them.
    """

    asked: list[Asked]
    replies: list[Reply]
    texts: list[str]
    k: int
    temperature: float
    left_out: int = 0

    def batch(self, roles: Roles, prompts: Sequence[int]) -> Batch:
        """Some of the prompts with their replies, by number."""
        groups = [
            (self.asked[i].ids, [r.ids for r in self.replies[i * self.k : (i + 1) * self.k]])
            for i in prompts
        ]
        return roles.batch(groups)

    def rows(self, prompts: Sequence[int]) -> list[int]:
        """Numbers of the replies to some of the prompts."""
        return [i * self.k + n for i in prompts for n in range(self.k)]

    @property
    def mask(self) -> torch.Tensor:
        """(C, L) float: 1 on a reply's own tokens."""
        lengths = torch.tensor([len(reply.ids) for reply in self.replies])
        return (torch.arange(int(lengths.max()))[None] < lengths[:, None]).float()


@dataclass
class Said:
    """What the roles say of a rollout, in float32 on the CPU; (C, L), 0 on padding, or (C).

    Attributes:
        policy, reference: log-probabilities, nats.
        entropy: of the policy, nats.
        values: expected return before each token.
        reward: of the reward model (C); None = there is none.
        p_safe: its probability that a reply is safe (C); None = there is none.
    """

    policy: torch.Tensor
    reference: torch.Tensor
    entropy: torch.Tensor
    values: torch.Tensor
    reward: torch.Tensor | None
    p_safe: torch.Tensor | None


def sample(
    roles: Roles,
    asked: Sequence[Asked],
    sampling: Sampling,
    advance: Callable[[int], None],
) -> Rollout:
    """Let the policy answer, `sampling.k` times each prompt.

    A batch draws its random numbers from the seed and its own prompts, so that one process and
    several draw the same.

    Args:
        roles: whose policy answers.
        asked: prompts that leave room for a reply.
        sampling: how, with the rollout's own seed.
        advance: called after each batch with the prompts answered.
    """
    order = sorted(range(len(asked)), key=lambda i: (len(asked[i].ids), asked[i].prompt.id))
    size = max(1, sampling.batch_size // sampling.k)
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    state = PartialState()
    made: list[tuple[int, list[Reply]]] = []
    with roles.speaking() as model:
        # Longest first: the batch that may not fit in memory fails at once, not at the end.
        for numbers in batches[::-1][state.process_index :: state.num_processes]:
            # With its place: a prompt that is asked twice gets other replies.
            names = [[i, asked[i].prompt.id] for i in numbers]
            seed = int(short_hash([sampling.seed, names]), 16) % 2**63
            prompts = [asked[i].ids for i in numbers]
            replies = sample_tokens(model, roles.chat, prompts, sampling, seed)
            k = sampling.k
            made += [(i, replies[n * k : (n + 1) * k]) for n, i in enumerate(numbers)]
            advance(len(numbers) * state.num_processes)
    found = dict(gather_object(made) if state.num_processes > 1 else made)
    every = [reply for i in range(len(asked)) for reply in found[i]]
    texts = [roles.chat.text(reply.text_ids) for reply in every]
    return Rollout(list(asked), every, texts, sampling.k, sampling.temperature)


def listen(roles: Roles, rollout: Rollout, at_once: int) -> Said:
    """Ask all roles about a rollout, `at_once` prompts in a pass; processes share the prompts.

    Log-probabilities are those at the rollout's temperature, which is also that of the KL.
    """
    sizes = [len(each.ids) for each in rollout.asked]
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i], i))
    batches = [order[i : i + at_once] for i in range(0, len(order), at_once)]
    state = PartialState()
    made: list[tuple[int, dict[str, Any]]] = []
    for numbers in batches[state.process_index :: state.num_processes]:
        batch = rollout.batch(roles, numbers)
        said = roles.opinions(batch, rollout.temperature)
        lengths = batch.lengths.tolist()
        columns: dict[str, Sequence[torch.Tensor]] = {
            name: getattr(said, name).float().cpu().split(lengths)
            for name in ("policy", "entropy", "reference", "values")
        }
        if said.scores is not None:
            columns["reward"] = said.scores.reward.cpu().split(1)
            columns["p_safe"] = said.scores.safety.sigmoid().cpu().split(1)
        for n, row in enumerate(rollout.rows(numbers)):
            made.append((row, {name: values[n] for name, values in columns.items()}))
    found = dict(gather_object(made) if state.num_processes > 1 else made)
    rows = [found[row] for row in range(len(rollout.replies))]
    padded = {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True)
        for name in rows[0]
    }
    single = {name: padded.pop(name)[:, 0] for name in ("reward", "p_safe") if name in padded}
    return Said(**padded, reward=single.get("reward"), p_safe=single.get("p_safe"))
