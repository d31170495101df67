"""On given replies one update of this project's PPO is that of TRL 1.12.0, the last that had one.

TRL's own code runs, in a process of its own (`ppo_by_trl.py`), and writes down what it computed.
Both start from the same weights in float32: an adapter as policy, the base without it as reference,
and a value function with an adapter and a head of its own (TRL's is a separate model; ours is
`ppo.value: adapter`). Rewards are a score at the end and the price of KL, with GAE, whitened
advantages, and one epoch of one mini-batch.

What is not compared, because the two differ by intent:

- Every reply has the full length, and some end with the token that ends a reply there. TRL puts the
  score of a shorter one on the first padding behind it, and lets its value loss see that position;
  here the score is on the reply's last token, as Ouyang et al. 2022 have it.
- TRL takes the mean of each micro-batch, this project that of a mini-batch's tokens: there is one
  micro-batch.
- TRL does not clip gradients in PPO, whatever `max_grad_norm` says: it is off here.
Both weigh the value loss with 1: nothing is shared between the two models.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny
from safetensors.torch import load_file, save_file

from rlaif.bench.ppo_process import install_trl
from rlaif.ppo_reward import Verdicts, scores_of
from rlaif.ppo_update import Learner, Lesson, teach
from rlaif.roles import POLICY, VALUE, Roles
from rlaif.rollout import Asked, Rollout, listen
from sft.config import Recipe
from sft.data import Prompt
from sft.files import UserError
from sft.generate import Reply

ROOT = Path(__file__).resolve().parents[1]
REPLY, K, TEMPERATURE, RANK = 6, 3, 0.7, 4
SETTINGS = {
    "kl_coef": 0.3, "gamma": 0.98, "lam": 0.9, "cliprange": 0.2, "cliprange_value": 0.2,
    "missing_eos_penalty": 0.5,
}  # fmt: skip
CASES = {
    "the policy that drew the replies": {"update": "old", "whiten_rewards": False},
    "a policy that has moved since": {"update": "new", "whiten_rewards": False},
    "whitened rewards": {"update": "new", "whiten_rewards": True},
}


@pytest.fixture(scope="module")
def trl() -> Path:
    """Folder of TRL 1.12.0, which is installed from a package index where it is not there yet."""
    try:
        return install_trl(ROOT / "runs" / "bench" / "trl-1.12.0")
    except UserError as error:
        pytest.skip(str(error))


def recipe_of(folder: Path, whiten: bool) -> Recipe:
    ppo = {
        "value": "adapter", "safety": "none", "whiten_rewards": whiten, "temperature": TEMPERATURE,
        "max_grad_norm": 0, "vf_coef": 1.0, "num_return_sequences": K, "max_new_tokens": REPLY,
        "per_device_train_batch_size": 8, "warmup_steps": 0, **SETTINGS,
    }  # fmt: skip
    model = {
        "name_or_path": str(folder / "base"), "dtype": "float32", "system_prompt": "none",
        "max_length": 120, "lora_r": RANK, "lora_alpha": RANK,
    }  # fmt: skip
    replies = {name: {"max_new_tokens": REPLY} for name in ("generate", "evaluate")}
    tree = {"run": "r", "use_cpu": True, "model": model, "ppo": ppo}
    return Recipe.model_validate(tree | replies)


def roles_in(recipe: Recipe) -> Roles:
    return Roles(recipe, None, None, TEMPERATURE)


def short(name: str) -> str:
    """A weight's key among `weights_for`'s, but for its time."""
    for adapter, role in ((POLICY, "policy"), (VALUE, "value")):
        if f".{adapter}." in name:
            return f"{role}/{name.replace(f'.{adapter}.', '.')}"
    return "value/head" if name == "value_head.weight" else name


def weights_for(roles: Roles) -> dict[str, torch.Tensor]:
    """Random weights of policy and value function, when the replies were drawn and later."""
    draw = torch.Generator().manual_seed(1)
    found = {}
    for name, weight in roles.weights().items():
        if name != "value_head.bias":  # which TRL's head has not, and which is 0 here
            old = 0.1 * torch.randn(weight.shape, generator=draw)
            found[f"old/{short(name)}"] = old
            found[f"new/{short(name)}"] = old + 0.02 * torch.randn(weight.shape, generator=draw)
    return found


def drawn(roles: Roles) -> Rollout:
    """Prompts of several lengths, each with replies of the full length; every other one ends."""
    rng, tokenizer = random.Random(2), roles.chat.tokenizer
    special = set(tokenizer.all_special_ids)
    plain = [token for token in range(len(tokenizer)) if token not in special]
    asked = [
        Asked(Prompt(f"p{n}", [], "test", "", "none", "train"), rng.sample(plain, 7 + 3 * n))
        for n in range(4)
    ]
    replies = []
    for n in range(4 * K):
        ids = rng.sample(plain, REPLY)
        ended = n % 2 == 0
        replies.append(Reply([*ids[:-1], tokenizer.eos_token_id] if ended else ids, ended))
    return Rollout(asked, replies, [""] * len(replies), K, TEMPERATURE)


@torch.no_grad()
def put(roles: Roles, weights: dict[str, torch.Tensor], when: str) -> None:
    for name, value in roles.weights().items():
        if name != "value_head.bias":
            value.copy_(weights[f"{when}/{short(name)}"])


def by_trl(folder: Path, trl: Path, case: dict) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """What TRL computed: tensors and figures."""
    (folder / "case.json").write_text(json.dumps(case), encoding="utf-8")
    path = os.pathsep.join([str(trl), str(ROOT)])
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "ppo_by_trl.py"), str(folder)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return load_file(folder / "found.safetensors"), figures


def by_us(
    recipe: Recipe, roles: Roles, rollout: Rollout, weights: dict[str, torch.Tensor],
    when: str, scores: torch.Tensor,
) -> tuple[Lesson, dict[str, torch.Tensor], dict[str, float]]:  # fmt: skip
    """Lesson, gradients and figures of one update."""
    section = recipe.ppo
    put(roles, weights, "old")
    said = listen(roles, rollout, 8)
    yes = torch.ones(len(scores), dtype=torch.bool)
    ended = [reply.ended for reply in rollout.replies]
    scores = scores_of(section, Verdicts(scores, yes, yes, {}), ended, 0.0)
    lesson = teach(section, rollout, said, scores, yes, section.kl_coef)
    put(roles, weights, when)
    learner = Learner(roles, section, 1)
    figures = learner.update(rollout, lesson, range(len(rollout.asked)))
    gradients = {short(name): value.grad for name, value in learner.parameters.items()}
    return lesson, gradients, figures


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_one_update_is_that_of_trl(name, trl, tokenizer, tmp_path):
    base = tiny("llama", len(tokenizer))
    base.get_output_embeddings().weight.data *= 20  # near 0 it says all tokens alike
    base.config.pad_token_id = tokenizer.pad_token_id  # without it TRL's value model takes one row
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    case = CASES[name]
    recipe = recipe_of(tmp_path, case["whiten_rewards"])
    roles = roles_in(recipe)
    weights, rollout = weights_for(roles), drawn(roles)
    save_file(weights, tmp_path / "weights.safetensors")
    layers = sorted({key.split(".")[-3] for key in weights if "lora_A" in key})
    rows = [
        {"prompt": a.ids, "replies": [r.ids for r in rollout.replies[i * K : (i + 1) * K]]}
        for i, a in enumerate(rollout.asked)
    ]
    about = {"rank": RANK, "alpha": RANK, "layers": layers, "temperature": TEMPERATURE}
    settings = SETTINGS | {"whiten_rewards": case["whiten_rewards"]}
    asked = about | {"rollout": rows, "reply": REPLY, "update": case["update"]}
    theirs, told = by_trl(tmp_path, trl, asked | {"settings": settings})

    order = [theirs["replies"].tolist().index(reply.ids) for reply in rollout.replies]
    scores = theirs["scores"][order]
    lesson, ours, figures = by_us(recipe, roles, rollout, weights, case["update"], scores)

    assert torch.allclose(lesson.advantages, theirs["advantages"][order], atol=2e-5)
    assert figures["val/loss"] == pytest.approx(told["loss/value_avg"], rel=1e-5)
    if case["update"] == "old":  # whitened advantages at ratio 1 add up to 0
        assert figures["policy/loss"] == pytest.approx(told["loss/policy_avg"], abs=1e-6)
    else:
        assert figures["policy/loss"] == pytest.approx(told["loss/policy_avg"], rel=1e-5)
        assert 0.1 < figures["policy/clipfrac"] < 0.9  # both branches are compared
        assert 0 < figures["val/clipfrac"] < 1
    for ours_is, trls in (
        ("policy/clipfrac", "policy/clipfrac_avg"), ("val/clipfrac", "val/clipfrac_avg"),
        ("policy/entropy", "policy/entropy_avg"), ("val/ratio", "val/ratio"),
        ("policy/approxkl", "policy/approxkl_avg"),
    ):  # fmt: skip
        assert figures[ours_is] == pytest.approx(told[trls], rel=1e-4, abs=1e-6), ours_is
    for role in ("policy", "value"):
        names = sorted(key for key in ours if key.startswith(f"{role}/"))
        assert names == sorted(key for key in theirs if key.startswith(f"{role}/"))
        a, b = (
            torch.cat([each[key].flatten().double() for key in names]) for each in (ours, theirs)
        )
        assert torch.nn.functional.cosine_similarity(a, b, dim=0) >= 0.99999
        assert float(a.norm()) == pytest.approx(float(b.norm()), rel=1e-5)
