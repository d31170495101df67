"""What TRL's RLOO and GRPO are given: prompts as token ids, and scores by PPO's verdicts.

The verdicts, the rules of safety and the penalty of a missing end are PPO's (`rlaif.ppo_reward`). A
reply without a verdict is NaN to TRL: it is in no mean, and its advantage is 0. Where too many have
none the run ends. Not here: the trainers and the course (`rlaif.online`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from transformers import TrainerState

from rlaif import ppo_state
from rlaif.ppo_course import Job
from rlaif.ppo_math import Multiplier
from rlaif.ppo_reward import Verdicts, by_evaluator, by_model, check_known, scores_of
from rlaif.roles import Roles
from rlaif.rollout import Asked, Rollout, Said, listen
from sft.files import CheckFailed
from sft.generate import Reply


class Source:
    """Who says what replies are worth: PPO's verdicts, and one score from them.

    Attributes:
        asked: prompts of the course, in order; TRL is handed their numbers.
        multiplier: price of an unsafe reply (lagrangian).
    """

    def __init__(self, job: Job, roles: Roles, asked: Sequence[Asked]) -> None:
        section = job.recipe.ppo
        self.job, self.roles, self.section, self.asked = job, roles, section, asked
        self.multiplier = Multiplier(0.0, section.max_unsafe, section.multiplier_rate)
        tokenizer = roles.chat.tokenizer
        self.stops = {roles.chat.stop_id, tokenizer.eos_token_id} - {None}

    @property
    def updates(self) -> int:
        """Steps of the optimiser in a rollout."""
        return self.section.num_ppo_epochs * self.section.num_mini_batches

    def rollout(self, made: Sequence[tuple[int, list[int]]]) -> Rollout:
        """Number of the prompt and token ids of each reply; those to one prompt together."""
        k = self.section.num_return_sequences
        replies = [Reply(ids, ids[-1] in self.stops) for _, ids in made]
        texts = [self.roles.chat.text(reply.text_ids) for reply in replies]
        asked = [self.asked[number] for number, _ in made[::k]]
        return Rollout(asked, replies, texts, k, self.section.temperature)

    def judge(self, rollout: Rollout, said: Said | None, about: str) -> Verdicts:
        """Verdicts of whoever rewards; `said` is needed for a reward model."""
        if self.section.reward == "model" and said is not None:
            return by_model(said)
        return by_evaluator(self.job.evaluator, rollout, about)

    def scores(self, rollout: Rollout, verdicts: Verdicts) -> torch.Tensor:
        """(C) one score per reply; of those without a verdict NaN."""
        ended = [reply.ended for reply in rollout.replies]
        scores = scores_of(self.section, verdicts, ended, self.multiplier.value)
        return torch.where(verdicts.known, scores, torch.nan)

    def reward(self, rollout: Rollout, number: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Scores of a rollout, NaN where there is none, and what it was.

        Raises:
            CheckFailed: too many replies have no verdict.
        """
        said = None
        if self.section.reward == "model":
            said = listen(self.roles, rollout, self.section.per_device_train_batch_size)
        verdicts = self.judge(rollout, said, f"{self.section.method}-{number}")
        check_known(verdicts, self.job.recipe.score.max_unscored)
        scores, known = self.scores(rollout, verdicts), verdicts.known
        figures = {
            "objective/scores": float(scores[known].mean()),
            "objective/quality": float(verdicts.quality[known].mean()),
            "safety/unsafe": verdicts.unsafe_share,
            "safety/multiplier": self.multiplier.value,
            "unscored": float((~known).float().mean()),
        }
        self.multiplier.update(verdicts.unsafe_share)
        ppo_state.show(self.job.stage, rollout, said, verdicts, scores)
        return scores, figures


class Asking:
    """Mixin for TRL's trainers: token ids of prompts as they are, scores by a `Source`."""

    source: Source
    state: TrainerState
    accelerator: Accelerator
    _metrics: dict[str, defaultdict[str, list[float]]]
    update_rows: tuple[int, Sequence[int]] = (-1, ())

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        # TRL would render the conversations by its own rules.
        return [self.source.asked[int(each)].ids for each in prompts], None, {}

    def _calculate_rewards(
        self, inputs: Any, prompts: list[str], completions: Any, ids: list[list[int]]
    ) -> torch.Tensor:
        # TRL asks each process of its own share, and where a reply has no score it writes the
        # conversation into the log.
        mine = list(zip(map(int, prompts), ids, strict=True))
        made = gather_object(mine) if PartialState().num_processes > 1 else mine
        number = self.state.global_step // self.source.updates
        scores, figures = self.source.reward(self.source.rollout(made), number)
        for name, value in figures.items():
            self._metrics["train"][name].append(value)
        return scores[:, None].to(self.accelerator.device)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch, forward and backward.

        Raises:
            CheckFailed: the loss is NaN or infinite.
        """
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not math.isfinite(loss.item()):
            raise CheckFailed(
                f"the loss became {loss.item()}: stopped before the update. {self.named(())}. "
                "Lower ppo.learning_rate, or set --dtype float32"
            )
        return loss

    def named(self, numbers: Sequence[int]) -> str:
        """Where a training is, for the guard; TRL shuffles a rollout's replies without numbers."""
        return f"Rollout {self.state.global_step // self.source.updates + 1}"
