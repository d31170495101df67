"""RLOO and GRPO by TRL's own trainers, with the prompts, rewards and looks of this project's PPO.

No critic: what a reply is worth beyond the others to its prompt is its advantage (Ahmadian et al.
2024, arXiv:2402.14740; Shao et al. 2024, arXiv:2402.03300). TRL samples, scores and updates; from
here come the prompts' token ids as `sft.chat` renders them, in PPO's order; the score of each
reply, by the same verdicts and the same rules of safety; and looks at held-out prompts, of which
the best is kept. The policy goes on from a copy of the newest adapter, of which TRL keeps a frozen
copy as the reference, as it does for a PEFT model without a `peft_config`.

Not here: scores, and what a checkpoint holds (`rlaif.online_source`); when one is written
(`sft.resume`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rlaif import watch
from rlaif.online_source import Asking, Source
from rlaif.ppo import NO_KL
from rlaif.ppo_course import Job, keep, look, look_sampling
from rlaif.ppo_reward import candidates_of
from rlaif.roles import POLICY, REFERENCE, Roles
from rlaif.rollout import Asked, fitting, listen, next_places, sample
from sft import model as models
from sft.candidates import Candidate
from sft.files import CheckFailed, UserError, short_hash
from sft.resume import train
from sft.sections import TrainingSection
from sft.train import snapshot, trainer_options
from sft.trainer_rules import Reporter

TRAINERS = {"rloo": (RLOOTrainer, RLOOConfig), "grpo": (GRPOTrainer, GRPOConfig)}
TRL_REFERENCE = "ref"  # the name of TRL's frozen copy


class Looks:
    """Looks at held-out prompts as PPO has them; the adapter of the best one is kept."""

    def __init__(self, source: Source, held_out: Sequence[Asked]) -> None:
        self.source, self.held_out = source, held_out
        self.looks: list[watch.Look] = []
        self.start: list[Candidate] = []
        self.weights: dict[str, torch.Tensor] = {}

    @property
    def best(self) -> watch.Look:
        """The look whose adapter is kept; the start's does not count."""
        return watch.best(self.looks[1:], self.source.section.max_unsafe)

    @property
    def alarm(self) -> str | None:
        """Why looks end the course; None = they do not."""
        return watch.over_optimised(self.looks, self.source.section.patience)

    def due(self, step: int) -> bool:
        """Whether a look belongs after this many updates and was not made yet."""
        section = self.source.section
        iteration, rest = divmod(step, self.source.updates)
        if rest or (self.looks and self.looks[-1].iteration == iteration):
            return False
        every = section.eval_every
        return iteration in (0, section.iterations) or bool(every and iteration % every == 0)

    def look(self, step: int) -> watch.Look:
        """Let the policy answer the held-out prompts, and have the judge compare.

        Raises:
            CheckFailed: policy and reference are not the same before the first update.
        """
        source, section, iteration = self.source, self.source.section, step // self.source.updates
        job, roles, method = source.job, source.roles, section.method
        sampling = look_sampling(job.recipe, iteration)
        with torch.random.fork_rng():  # a look may not change what TRL draws next
            rollout = sample(roles, self.held_out, sampling, lambda _: None)
        said = listen(roles, rollout, section.per_device_train_batch_size)
        verdicts = source.judge(rollout, said, f"look-{iteration}")
        ours = candidates_of(rollout, f"{method}-{iteration}")
        proxy = float(source.scores(rollout, verdicts).nanmean())
        found = look(job, rollout, said, proxy, ours, self.start or ours, iteration)
        if iteration == 0 and abs(found.kl) > NO_KL * section.max_new_tokens:
            raise CheckFailed(
                f"before the first update the KL is {found.kl:.2e} nats a reply (must be 0): "
                "policy and reference are not the same model"
            )
        self.start = self.start or ours
        self.looks.append(found)
        job.stage.log(found.metrics(), step=step)
        job.stage.say(found.line())
        if iteration and self.best is self.looks[-1]:
            self.weights = snapshot(roles.model)
        return found

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds of them."""
        return {
            "looks": [vars(each) for each in self.looks],
            "start": [asdict(each) for each in self.start],
            "best": self.weights,
        }

    def put_back(self, kept: Mapping[str, Any]) -> None:
        """Put that back."""
        self.looks = [watch.Look(**each) for each in kept["looks"]]
        self.start = [Candidate(**each) for each in kept["start"]]
        device = self.source.roles.model.device
        self.weights = {name: each.to(device) for name, each in kept["best"].items()}


def online_options(job: Job, precision: models.Precision) -> dict[str, Any]:
    """Arguments of TRL's `RLOOConfig` or `GRPOConfig` by the recipe.

    Raises:
        UserError: processes cannot share the prompts of a mini-batch evenly.
    """
    section, processes = job.recipe.ppo, PartialState().num_processes
    each, rest = divmod(
        section.prompts_per_iteration, section.num_mini_batches * processes
    )  # prompts of a mini-batch for a process
    if rest:
        raise UserError(
            f"{section.prompts_per_iteration} prompts do not divide into "
            f"{section.num_mini_batches} mini-batches x {processes} processes: change "
            "ppo.prompts_per_iteration or ppo.num_mini_batches"
        )
    most = section.per_device_train_batch_size
    at_once = max(n for n in range(1, min(most, each) + 1) if each % n == 0)
    k = section.num_return_sequences
    updates = section.num_ppo_epochs * section.num_mini_batches
    training = TrainingSection(
        learning_rate=section.learning_rate,
        warmup_steps=section.warmup_steps,
        lr_scheduler_type=section.lr_scheduler_type,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        optim=section.optim,
        gradient_checkpointing=section.gradient_checkpointing,
        max_steps=section.iterations * updates,
        per_device_train_batch_size=at_once * k,
        gradient_accumulation_steps=each // at_once,
        logging_steps=updates,
    )
    options = trainer_options(training, job.recipe, precision, job.stage.folder)
    del options["max_length"]  # the prompts were chosen to fit
    return options | {
        "num_generations": k,
        "steps_per_generation": section.num_mini_batches * (each // at_once),
        "num_iterations": section.num_ppo_epochs,
        "max_completion_length": section.max_new_tokens,
        "shuffle_dataset": False,  # the rows are in the order of the course
        "temperature": section.temperature,
        "beta": section.kl_coef,
        "epsilon": section.cliprange,
    }


def make_trainer(source: Source, rows: Sequence[int], held_out: Sequence[Asked]) -> Any:
    """TRL's trainer on these prompts; the reference becomes its copy of the policy."""
    roles, (kind, config) = source.roles, TRAINERS[source.section.method]
    before = snapshot(roles.model)
    if roles.reference == REFERENCE:
        roles.model.delete_adapter(REFERENCE)
    roles.model.generation_config.eos_token_id = sorted(source.stops)
    trainer = type("Trainer", (Asking, kind), {})(
        model=roles.model,
        reward_funcs=source.reward,  # for its name: see `Asking`
        args=config(**online_options(source.job, roles.precision)),
        train_dataset=Dataset.from_list([_row(source, number) for number in rows]),
        processing_class=roles.chat.tokenizer,
    )
    trainer.source, trainer.looks = source, Looks(source, held_out)
    models.keep_float32(roles.model, before)
    roles.reference = TRL_REFERENCE
    roles.learn_with(POLICY)
    return trainer


def _row(source: Source, number: int) -> dict[str, str]:
    """A prompt by its number; its contents are there for checkpoints, which compare rows."""
    return {"prompt": str(number), "content": short_hash(source.asked[number].ids)}


def train_online(job: Job, start: Path | None, reward: Path | None) -> dict[str, Any]:
    """Optimise the policy by TRL and write the best look's adapter to `<stage>/adapter`.

    Args:
        job: recipe, prompts, and who judges.
        start: adapter that policy and reference start from; None = the base itself.
        reward: folder of the reward model's adapter (`ppo.reward: model`).

    Returns:
        Counts, the looks and the largest weight change, for the manifest.
    """
    recipe, stage, section = job.recipe, job.stage, job.recipe.ppo
    torch.manual_seed(recipe.seed)
    roles = Roles(recipe, start, reward, section.temperature)
    before = snapshot(roles.model)
    asked = fitting(roles.chat, job.prompts, section.max_new_tokens)
    held_out = fitting(roles.chat, job.held_out, section.max_new_tokens)
    n = section.iterations * section.prompts_per_iteration
    source = Source(job, roles, asked)
    places = next_places(0, n, len(asked), recipe.round_seed)
    trainer = make_trainer(source, places, held_out)
    train(trainer, Reporter(stage, section.method), section.save_every * source.updates)
    looks = trainer.looks
    ended = keep(job, roles.model, before, looks.weights, looks.best, looks.alarm)
    return {
        "prompts": len(asked),
        "too_long": len(job.prompts) - len(asked),
        "iterations": looks.looks[-1].iteration,
        "precision": roles.precision.reason,
    } | ended
