"""What TRL's RLOO and GRPO are given: prompts as token ids, and scores by PPO's verdicts.

The verdicts, the rules of safety and the penalty of a missing end are PPO's (`rlaif.ppo_reward`). A
reply without a verdict is NaN to TRL: it is in no mean, and its advantage is 0. Where too many have
none the run ends. Not here: the trainers and the course (`rlaif.online`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, send_to_device
from transformers import TrainerState

from rlaif import ppo_state
from rlaif.ppo_course import Job
from rlaif.ppo_math import Multiplier
from rlaif.ppo_reward import Verdicts, by_evaluator, by_model, check_known, scores_of
from rlaif.roles import Roles
from rlaif.rollout import Asked, Rollout, Said, listen
from sft.files import short_hash
from sft.generate import Reply
from sft.resumable import TrlSums

if TYPE_CHECKING:
    from rlaif.online import Looks


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
        ppo_state.show(self.job, number, rollout, said, verdicts, scores)
        return scores, figures


class Asking(TrlSums):
    """First among the bases of TRL's trainers: prompts' token ids as they are, a `Source`'s scores.

    A checkpoint also holds the replies at hand, the looks and what they keep; the looks come after
    the update before them was logged, so that a look that fails can be made again.
    """

    source: Source
    looks: Looks
    state: TrainerState
    accelerator: Accelerator
    files = (ppo_state.ROLLOUTS,)
    _step: int
    _buffered_inputs: list[dict[str, Any]] | None

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

    def where(self, *, update: bool = False) -> str:
        """Which rollout; TRL shuffles its replies without numbers."""
        return f"Rollout {self.state.global_step // self.source.updates + 1}"

    # --- looks and checkpoints -----------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What has to be the same to go on, beside the stage's facts and the rows."""
        return {"held_out": short_hash([each.ids for each in self.looks.held_out])}

    def begin(self, step: int) -> bool:
        """Make the look that is due before going on; say whether the course is over.

        Until an update follows, another start makes that look again, from the ledger's answers.
        """
        if self.looks.due(step):
            self.looks.look(step)
        last = step == self.source.section.iterations * self.source.updates
        return last or self.looks.alarm is not None

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.control.should_save = False  # what is logged is of before the look, saved is after it
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.looks.due(self.state.global_step):
            if self.keeper:
                self.keeper.hold()
            self.looks.look(self.state.global_step)
        if self.looks.alarm is not None:  # the end is saved with its last line of metrics
            self.control.should_training_stop = True
        elif self.keeper:
            self.keeper.hold()
            # A signal may have come meanwhile.
            self.keeper.on_step_end(self.args, self.state, self.control)
            super()._maybe_log_save_evaluate(*args, **kwargs)  # nothing is left to log

    def sums(self) -> dict[str, Any]:
        """TRL's sums, its count of micro-batches and the replies at hand."""
        return super().sums() | {"micro_batches": self._step, "replies": self._buffered_inputs}

    def set_sums(self, sums: Mapping[str, Any]) -> None:
        """Put them back."""
        super().set_sums(sums)
        self._step = sums["micro_batches"]
        self._buffered_inputs = send_to_device(sums["replies"], self.accelerator.device)

    def course(self) -> dict[str, Any]:
        """The price of an unsafe reply, the looks and what they keep."""
        return {"multiplier": self.source.multiplier.value} | self.looks.kept()

    def set_course(self, course: Mapping[str, Any]) -> None:
        """Put that back."""
        self.source.multiplier.value = course["multiplier"]
        self.looks.put_back(course)
