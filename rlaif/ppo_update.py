"""One update of PPO: what is learned from a rollout, by which gradient, in shares of a mini-batch.

A mini-batch is a number of prompts with all their replies; its loss is a mean over all its tokens,
whatever micro-batches and processes they fall into, so that 4 x 1, 1 x 4 and two processes give the
same update. Adapters are small: their gradients are added up over processes by hand, and no wrapper
is needed around a base that has several adapters. Not here: the rollout (`rlaif.rollout`), the
order of updates (`rlaif.ppo`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainingArguments, get_scheduler

from rlaif.ppo_math import (
    approximate_kl,
    gae,
    kl_per_token,
    leave_one_out,
    policy_loss,
    shaped_rewards,
    value_loss,
    whiten,
)
from rlaif.roles import POLICY, Batch, Roles
from rlaif.rollout import Rollout, Said
from sft.files import CheckFailed
from sft.ppo_settings import PpoSection

HEAD = "value_head."  # of the value head's weights by name


@dataclass(frozen=True)
class Lesson:
    """What a rollout teaches: (C, L) each, 0 on padding.

    Attributes:
        old: log-probabilities by the policy that drew the tokens, nats.
        values: as they were said then.
        advantages, returns: of each token.
        own: 1 on a reply's tokens.
        mask: as `own`, and 0 on replies without a score.
    """

    old: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    own: torch.Tensor
    mask: torch.Tensor


def teach(
    section: PpoSection, rollout: Rollout, said: Said, scores: torch.Tensor, known: torch.Tensor,
    kl_coef: float,
) -> Lesson:  # fmt: skip
    """Rewards, advantages and returns of a rollout.

    Args:
        section: discount, lambda and whitening.
        rollout: the replies.
        said: what the roles say of them.
        scores: (C), read where `known`.
        known: (C) bool.
        kl_coef: price of a nat.
    """
    own = rollout.mask
    mask = own * known[:, None]
    if section.baseline == "leave_one_out":
        scores = leave_one_out(scores, known, rollout.k)
    rewards = shaped_rewards(scores, kl_per_token(said.policy, said.reference), own, kl_coef)
    if section.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False) * own
    advantages, returns = gae(rewards, said.values, own, section.gamma, section.lam)
    return Lesson(said.policy, said.values, whiten(advantages, mask) * own, returns, own, mask)


class Learner:
    """The optimiser of what is trained, and one update at a time.

    Attributes:
        roles: whose policy and value function learn.
        parameters: what is trained, by name.
        optimizer: over the adapters, and the value head at its own rate.
        scheduler: of the rates, a step an update.
        scaler: of fp16's loss; off in other precisions.
    """

    def __init__(self, roles: Roles, section: PpoSection, updates: int) -> None:
        """Make the optimiser for so many updates in all."""
        self.roles, self.section = roles, section
        self.parameters = roles.weights()
        adapters = [p for name, p in self.parameters.items() if not name.startswith(HEAD)]
        head = [p for name, p in self.parameters.items() if name.startswith(HEAD)]
        arguments = TrainingArguments(
            output_dir=str(Path("unused")),
            optim=section.optim,
            learning_rate=section.learning_rate,
            use_cpu=roles.precision.device == "cpu",
        )
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        groups = [{"params": adapters}, {"params": head, "lr": section.value_head_rate}]
        self.optimizer: torch.optim.Optimizer = kind(
            groups, **options | {"weight_decay": section.weight_decay}
        )
        warmup = section.warmup_steps
        self.scheduler: LambdaLR = get_scheduler(
            section.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=round(warmup if warmup >= 1 else warmup * updates),
            num_training_steps=updates,
        )
        self.scaler = torch.amp.GradScaler(roles.precision.device, enabled=roles.precision.fp16)

    def update(self, rollout: Rollout, lesson: Lesson, prompts: Sequence[int]) -> dict[str, float]:
        """Learn from some prompts of a rollout: one step of the optimiser.

        Returns:
            Means over the tokens of all processes, by name.

        Raises:
            CheckFailed: loss or gradient is no number; nothing was changed.
        """
        tokens = float(lesson.mask[rollout.rows(prompts)].sum())
        if tokens == 0:
            return {}
        size, state = self.section.per_device_train_batch_size, PartialState()
        parts = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        sums: Counter[str] = Counter()
        for part in parts[state.process_index :: state.num_processes]:
            sums.update(self._learn(rollout, lesson, part, tokens))
        figures = self._share(sums)
        self._step(rollout, prompts, figures)
        return {name: value / tokens for name, value in figures.items()}

    def _learn(
        self, rollout: Rollout, lesson: Lesson, prompts: Sequence[int], tokens: float
    ) -> dict[str, float]:
        """Gradients of a micro-batch, in shares of a mini-batch of so many tokens; sums by name."""
        roles, section, rows = self.roles, self.section, rollout.rows(prompts)
        batch, own = rollout.batch(roles, prompts), lesson.own[rows].bool()
        device = batch.targets.device
        old, advantages, mask = (
            each[rows][own].to(device) for each in (lesson.old, lesson.advantages, lesson.mask)
        )
        roles.learn_with(POLICY)
        states = roles.states(batch)
        explore = section.ent_coef > 0
        scored = roles.scored(states, batch.targets, entropy_gradient=explore)
        policy = policy_loss(scored.log_probs, old, advantages, section.cliprange)
        loss = (policy.loss * mask).sum()
        if explore:
            loss = loss - section.ent_coef * (scored.entropy * mask).sum()
        if roles.value == POLICY:
            critic, found = self._critic(states, lesson, rows, own)
            self._backward((loss + section.vf_coef * critic) / tokens)
        else:
            self._backward(loss / tokens)
            critic, found = self._own_critic(batch, lesson, rows, own)
            self._backward(section.vf_coef * critic / tokens)
        with torch.no_grad():
            means = {
                "policy/loss": policy.loss,
                "policy/clipfrac": policy.clipped,
                "policy/approxkl": approximate_kl(scored.log_probs, old),
                "policy/entropy": scored.entropy,
                "val/ratio": policy.ratio,
            }
            sums = {name: float((value * mask).sum()) for name, value in means.items()}
        return sums | found

    def _own_critic(
        self, batch: Batch, lesson: Lesson, rows: Sequence[int], own: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The value function's loss where it has an adapter of its own, computed with that."""
        self.roles.learn_with(self.roles.value)
        return self._critic(self.roles.states(batch), lesson, rows, own)

    def _critic(
        self, states: torch.Tensor, lesson: Lesson, rows: Sequence[int], own: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Sum of the value loss over tokens, and figures of it."""
        before, returns, mask = (
            each[rows][own].to(states.device)
            for each in (lesson.values, lesson.returns, lesson.mask)
        )
        values = self.roles.values(states)
        loss, clipped = value_loss(values, before, returns, self.section.cliprange_value)
        total = (loss * mask).sum()
        figures = {"val/loss": float(total.detach()), "val/clipfrac": float((clipped * mask).sum())}
        return total, figures

    def _backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def _share(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Add gradients and figures up over all processes."""
        state = PartialState()
        if state.num_processes == 1:
            return dict(sums)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for gradient, part in zip(
            gradients, flat.split([each.numel() for each in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))
        told: list[dict[str, float]] = [{} for _ in range(state.num_processes)]
        torch.distributed.all_gather_object(told, dict(sums))
        total: Counter[str] = Counter()
        for each in told:
            total.update(each)
        return dict(total)

    def _step(self, rollout: Rollout, prompts: Sequence[int], figures: Mapping[str, float]) -> None:
        """Clip and step, if everything is a number; fp16's scaler skips a step that overflowed."""
        self.scaler.unscale_(self.optimizer)
        limit = self.section.max_grad_norm or float("inf")
        norms = [torch.nn.utils.clip_grad_norm_(some, limit) for some in self._clipped_together()]
        finite = all(torch.isfinite(norm) for norm in norms)
        told = torch.isfinite(torch.tensor(list(figures.values()))).all()
        # The scaler skips steps until its scale is small enough; at 1 the gradient itself is bad.
        skips = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if not told or (not finite and not skips):
            names = ", ".join(rollout.asked[i].prompt.id for i in prompts)
            raise CheckFailed(
                f"loss or gradient is no number: stopped before the update of prompts {names}. "
                "Lower ppo.learning_rate, or set --dtype float32"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()

    def _clipped_together(self) -> list[list[torch.nn.Parameter]]:
        """The policy's adapter, and what is the value function's alone: neither may scale the
        other's gradient down.
        """
        policy = [p for name, p in self.parameters.items() if f".{POLICY}." in name]
        value = [p for name, p in self.parameters.items() if f".{POLICY}." not in name]
        return [policy, value]
