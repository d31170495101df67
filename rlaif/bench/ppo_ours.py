"""This project's PPO as a contestant of the PPO benchmark, in a process of its own.

    python -m rlaif.bench.ppo_ours JOB.json prepare | head | adapter

An iteration is `rlaif.ppo`'s without looks, logs and checkpoints: sample, ask all roles, make the
lesson, update. Policy and value function learn, the reward model is a frozen adapter, and the
reference is the base without adapters, as TRL has it.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import transformers

from reward.model import RewardModel
from rlaif.bench.contestants import write_model
from rlaif.bench.material import make_material
from rlaif.bench.ppo_turns import Seat
from rlaif.bench.ppo_work import RATIO, SYSTEM, PpoJob
from rlaif.bench.work import RANK, Work
from rlaif.ppo_course import minibatches
from rlaif.ppo_reward import by_model, scores_of
from rlaif.ppo_update import Learner, teach
from rlaif.roles import Roles
from rlaif.rollout import Asked, listen, sample
from sft import model as models
from sft.candidates import Sampling
from sft.chat import Chat, system_prompt
from sft.data import Prompt
from sft.files import read_json
from sft.precision import choose_precision
from sft.recipe import Recipe

POSITIONS = 4096


def recipe_of(job: PpoJob, value: str) -> Recipe:
    """The job as a recipe."""
    return Recipe.model_validate(
        {
            "run": "bench",
            "use_cpu": True,
            "model": {
                "name_or_path": str(job.base),
                "dtype": job.dtype,
                "system_prompt": str(Path(job.folder) / "system.txt"),
                "max_length": POSITIONS,
                "lora_r": RANK,
                "lora_alpha": RANK,
            },
            "ppo": {
                "reward": "model",
                "safety": "none",
                "value": value,
                "iterations": job.iterations,
                "prompts_per_iteration": job.prompts,
                "num_return_sequences": job.k,
                "num_ppo_epochs": job.epochs,
                "num_mini_batches": job.mini_batches,
                "per_device_train_batch_size": max(1, job.rows // job.k),
                "batch_size": job.rows,
                "max_new_tokens": job.reply,
                "missing_eos_penalty": 0.0,
                "warmup_steps": 0,
            },
        }
    )


def prepare(job: PpoJob) -> None:
    """Write the base, a reward adapter of random weights, and the prompts as token ids.

    Tokens of the chat layout are suppressed in sampling by the base's own generation settings,
    which TRL reads and `take_part` puts back: so no reply ends early, and none holds padding.
    """
    size, folder = job.shape, Path(job.folder)
    write_model(size, job.base, size.layers)
    work = Work("ppo", "dpo", RATIO, prompts=-(-job.prompts // size.prompts), system=SYSTEM)
    material = make_material(work, size, seed=0)
    (folder / "system.txt").write_text(material.system, encoding="utf-8")
    recipe = recipe_of(job, "head")
    precision = choose_precision(job.dtype, use_cpu=True)
    tokenizer = models.load_tokenizer(recipe.model)
    chat = Chat(tokenizer, system_prompt(recipe.model.system_prompt), POSITIONS)
    special = [i for i in range(len(tokenizer)) if i in tokenizer.all_special_ids]
    settings = transformers.GenerationConfig(suppress_tokens=special)
    settings.save_pretrained(job.base)
    rows = [chat.render(pair.prompt, reserve=job.reply) for pair in material.pairs[: job.prompts]]
    ids = [row.prompt_ids for row in rows if row is not None]
    (folder / "prompts.json").write_text(json.dumps(ids), encoding="utf-8")
    adapter = models.new_adapter(models.load_base(recipe.model, precision), recipe.model)
    judge = RewardModel(adapter, chat, precision, attention="auto")
    torch.nn.init.normal_(judge.heads.reward.weight, std=0.02)
    judge.save(job.reward, str(job.base))


def roles_of(job: PpoJob, recipe: Recipe) -> Roles:
    """Load the roles; none of them samples what the base suppresses."""
    roles = Roles(recipe, None, job.reward, recipe.ppo.temperature)
    # Loading leaves out how a base ships to sample (`sft.model`).
    shipped = read_json(job.base / "generation_config.json")
    roles.model.generation_config.suppress_tokens = shipped["suppress_tokens"]
    return roles


def asked_of(job: PpoJob) -> list[Asked]:
    """Return the prompts that `prepare` wrote."""
    return [
        Asked(Prompt(f"p{i}", [], "bench", "", "none", "train"), ids)
        for i, ids in enumerate(job.prompt_ids())
    ]


def take_part(job: PpoJob, value: str) -> None:
    """Walk the iterations, one a turn."""
    seat = Seat()
    torch.manual_seed(0)
    recipe = recipe_of(job, value)
    section = recipe.ppo
    roles = roles_of(job, recipe)
    learner = Learner(roles, section, job.iterations * job.epochs * job.mini_batches)
    asked = asked_of(job)
    seat.ready()
    for number in range(job.iterations):
        seat.wait()
        marks = [time.perf_counter()]
        sampling = Sampling(job.k, section.temperature, 1.0, job.reply, job.rows, number)
        rollout = sample(roles, asked, sampling, lambda _: None)
        if {len(reply.ids) for reply in rollout.replies} != {job.reply}:
            raise ValueError("a reply ended early")
        marks.append(time.perf_counter())
        said = listen(roles, rollout, section.per_device_train_batch_size)
        verdicts = by_model(said)
        ended = [reply.ended for reply in rollout.replies]
        scores = scores_of(section, verdicts, ended, 0.0)
        lesson = teach(section, rollout, said, scores, verdicts.known, section.kl_coef)
        marks.append(time.perf_counter())
        for prompts in minibatches(section, len(asked), number, recipe.seed):
            learner.update(rollout, lesson, prompts)
        seat.took(*marks, time.perf_counter())
    if roles.heads is None:
        raise ValueError("the reward model is missing")
    heads = [*roles.value_head.parameters(), *roles.heads.parameters()]
    seat.leave([*roles.model.parameters(), *heads], learner.optimizer)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if sys.argv[2] == "prepare":
        prepare(PpoJob.read(Path(sys.argv[1])))
    else:
        take_part(PpoJob.read(Path(sys.argv[1])), sys.argv[2])
