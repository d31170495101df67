"""What a stage really takes: its own function in a fresh process, on a model with random weights.

On a CPU: the peak of resident memory (VmHWM) less what was resident when the same stage had run on
a tiny model, so that the interpreter and the libraries do not count. On CUDA: the most that
PyTorch's allocator reserved, with its share of the card capped. Not here: what is compared with it
(`rlaif.plan.memory`).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from reward.comparisons import Question
from reward.evaluator import Assessment
from reward.pairing import Judged, Pair
from reward.train import fit_reward
from rlaif.bench.contestants import write_model
from rlaif.bench.material import words
from rlaif.bench.work import SIZES, Size
from rlaif.bench.worker import M_MMAP_THRESHOLD, status
from rlaif.dpo import train_dpo
from rlaif.ppo_update import Learner, teach
from rlaif.roles import Roles
from rlaif.rollout import Asked, listen, sample
from sft.candidates import Candidate, Sampling
from sft.config import Recipe
from sft.data import Demonstration, Message, Prompt
from sft.runs import Stage
from sft.train import finetune

STEPS = 3  # updates: heads move first, then B, then A; with the third one all weights have moved
TINY = SIZES["tiny"]
AROUND_PROMPT, AROUND_REPLY = 8, 1  # tokens of Llama-3's layout


@dataclass(frozen=True)
class Job:
    """What is measured.

    Attributes:
        stage: "finetune", "reward", "dpo" or "ppo" (whole iterations).
        size: of the model.
        settings: of the recipe, by section.
        prompt, reply: tokens of every one.
        cap: GiB of a GPU that may be used; 0 = a CPU.
    """

    stage: str
    size: Size
    settings: Mapping[str, Any]
    prompt: int
    reply: int
    cap: float

    def recipe(self, folder: Path | None, **more: Any) -> Recipe:
        """The recipe of the model in a folder (None = there is none yet), with more sections."""
        tree = {name: dict(values) for name, values in self.settings.items()}
        tree["model"]["name_or_path"] = str(folder)
        return Recipe.model_validate({"run": "memory", "use_cpu": not self.cap, **tree, **more})


def measure(job: Job) -> int:
    """Peak bytes of the job, measured in a fresh process.

    Raises:
        RuntimeError: it failed, as with too little memory; what it said is in the message.
    """
    told = json.dumps(asdict(job))
    done = subprocess.run(
        [sys.executable, "-m", "rlaif.plan.measure"], input=told, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{job.stage} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])


# --- in the process -------------------------------------------------------------------------------


def _texts(job: Job, n: int, size: Size) -> list[tuple[list[Message], list[list[Message]]]]:
    """N prompts with K replies each of random words, of the asked lengths."""
    rng, known = random.Random(0), words(size.vocabulary)

    def said(role: str, tokens: int) -> list[Message]:
        return [{"role": role, "content": " ".join(rng.choices(known, k=tokens))}]

    k = job.settings["generate"]["num_return_sequences"]
    return [
        (
            said("user", job.prompt - AROUND_PROMPT),
            [said("assistant", job.reply - AROUND_REPLY) for _ in range(k)],
        )
        for _ in range(n)
    ]


def _finetune(job: Job, recipe: Recipe, size: Size, stage: Stage) -> None:
    texts = _texts(job, 2 * STEPS * recipe.finetune.per_device_train_batch_size, size)
    finetune(recipe, [Demonstration(f"p{i}", p, r[0]) for i, (p, r) in enumerate(texts)], stage)


def _dpo(job: Job, recipe: Recipe, size: Size, stage: Stage) -> None:
    pairs = []
    for i, (prompt, replies) in enumerate(_texts(job, 4, size)):
        for a, b in combinations(range(len(replies)), 2):
            names = f"p{i}-{a}", f"p{i}-{b}"
            pairs.append(
                Pair(f"p{i}", prompt, replies[a], replies[b], 0.5, 0.75, *names, "quality")
            )
    train_dpo(recipe, pairs, None, stage)


def _reward(job: Job, recipe: Recipe, size: Size, stage: Stage) -> None:
    questions = []
    for i, (messages, replies) in enumerate(_texts(job, 6, size)):
        prompt = Prompt(f"p{i}", messages, "file", "other", "none", "train")
        judged = []
        for k, reply in enumerate(replies):
            name = f"p{i}-{k}"
            candidate = Candidate(name, prompt.id, reply[0]["content"], "m", 1.0, 1.0, k, "eos")
            quality = (k + 1) / len(replies)
            said = Assessment(
                name, prompt.id, {"empathy": 3.0}, quality, k > 0, [], "", "judge", "r@1", None
            )
            judged.append(Judged(candidate, said))
        questions.append(Question(prompt, judged))
    fit_reward(recipe, questions, [], None, stage)


def _ppo(job: Job, recipe: Recipe, size: Size, stage: Stage) -> None:
    """Two iterations with a look each, so that the second samples beside the optimiser's state."""
    section = recipe.ppo
    roles = Roles(recipe, None, None, section.temperature)
    asked = []
    for i, (messages, _) in enumerate(_texts(job, section.prompts_per_iteration, size)):
        rendered = roles.chat.render(messages, reserve=section.max_new_tokens)
        if rendered is None:
            raise ValueError(f"{job.prompt} and {job.reply} tokens do not fit the recipe")
        prompt = Prompt(f"p{i}", messages, "file", "other", "none", "train")
        asked.append(Asked(prompt, rendered.prompt_ids))
    learner = Learner(roles, section, 2)
    for seed in range(2):
        drawn = Sampling(
            k=section.num_return_sequences, temperature=section.temperature, top_p=1.0,
            max_new_tokens=section.max_new_tokens, seed=seed, batch_size=section.batch_size,
        )  # fmt: skip
        rollout = sample(roles, asked, drawn, lambda _: None)
        said = listen(roles, rollout, section.per_device_train_batch_size)
        scores = torch.linspace(0, 1, len(rollout.replies))
        known = torch.ones_like(scores, dtype=torch.bool)
        lesson = teach(section, rollout, said, scores, known, section.kl_coef)
        learner.update(rollout, lesson, range(len(asked)))
        looked = sample(roles, asked, replace(drawn, k=1), lambda _: None)
        listen(roles, looked, section.per_device_train_batch_size)


STAGES: Mapping[str, Callable[[Job, Recipe, Size, Stage], None]] = {
    "finetune": _finetune,
    "reward": _reward,
    "dpo": _dpo,
    "ppo": _ppo,
}


def _run(job: Job, size: Size, folder: Path) -> None:
    """The stage once; what it prints is of no interest."""
    stage = folder / job.stage
    stage.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        recipe = job.recipe(folder / "model")
        STAGES[job.stage](
            job,
            recipe,
            size,
            Stage(stage, {"config": {}, "inputs": {}}, reused=False, is_main=True),
        )
    gc.collect()


def _peak(job: Job) -> int:
    """Run on a tiny model, then on the job's, and say what the second took."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)  # what is freed goes back at once
    with TemporaryDirectory() as scratch:
        for name, size in (("tiny", TINY), ("model", job.size)):
            write_model(size, Path(scratch, name, "model"), size.layers)
        gc.collect()
        _run(job, TINY, Path(scratch, "tiny"))
        if job.cap:
            card = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, job.cap * 2**30 / card))
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_reserved()
            _run(job, job.size, Path(scratch, "model"))
            return int(torch.cuda.max_memory_reserved()) - int(before)
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before = status("VmRSS")
        _run(job, job.size, Path(scratch, "model"))
        return status("VmHWM") - before


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    given = json.loads(sys.stdin.read())
    print(_peak(Job(**given | {"size": Size(**given["size"])})))
