"""PPO on a tiny model: roles on one base, one update, a whole course, looks and alarms."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from conftest import TALKS

from reward import rehearsal
from reward.evaluator import Assessment
from reward.ledger import Attempt, open_ledger
from rlaif import ppo, ppo_course, ppo_reward, watch
from rlaif.evaluate import EvaluatorJudge
from rlaif.ppo_reward import Verdicts, by_evaluator, check_known, scores_of
from rlaif.ppo_update import Learner, teach
from rlaif.roles import BASE, POLICY, REFERENCE, VALUE, Roles
from rlaif.rollout import Asked, Rollout, listen, sample
from sft import model as models
from sft.candidates import Candidate, Sampling
from sft.config import ModelSection, Recipe
from sft.data import Prompt
from sft.files import CheckFailed, EvaluatorStopped, StorageError, to_json
from sft.generate import Reply
from sft.ppo_settings import PpoSection
from sft.runs import Stage
from sft.stopping import StopRequest
from sft.train import snapshot

PROMPTS = [
    Prompt(f"p{i}", [*talk[:-2], {"role": "user", "content": f"{talk[-2]['content']} {i}"}],
           "test", "sleep", "none", "train")
    for i, talk in enumerate(TALKS * 2)
]  # fmt: skip
FAMILIES = ("llama", "qwen2", "mistral", "gpt2")


class LettersEvaluator:
    """Likes replies by a hash of their text; some are unsafe, some cannot be judged."""

    name, rubric = "letters", "letters@1"

    def assess(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Assessment]:
        found = []
        for each in candidates:
            drawn = hashlib.sha256(each.text.encode()).digest()
            found.append(
                Assessment(each.id, prompt.id, {}, drawn[0] / 255, drawn[1] > 60, [], "", self.name,
                           self.rubric, None)
            )  # fmt: skip
        return found


def recipe_for(folder: Path, runs_dir: Path, **settings: object) -> Recipe:
    """Float32 on the CPU, short replies, two rollouts of four prompts with three replies."""
    model: dict[str, object] = {
        "name_or_path": str(folder), "dtype": "float32", "system_prompt": "none", "max_length": 120,
        "lora_r": 4,
    }  # fmt: skip
    model |= settings.pop("model", {})  # type: ignore[arg-type]
    section: dict[str, object] = {
        "iterations": 2, "prompts_per_iteration": 4, "num_return_sequences": 3,
        "num_mini_batches": 2, "per_device_train_batch_size": 2, "max_new_tokens": 6,
        "learning_rate": 1e-2, "warmup_steps": 0, "n_validation": 3, "eval_every": 1,
        "missing_eos_penalty": 0.1, "batch_size": 6, "max_kl": 0, "max_length_drift": 0,
    }  # fmt: skip
    short = {"max_new_tokens": 6}
    tree = {"run": "r", "runs_dir": str(runs_dir), "use_cpu": True, "model": model}
    return Recipe.model_validate(
        tree | {"ppo": section | settings, "generate": short, "evaluate": short}
    )


@pytest.fixture
def start(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """An adapter that says something else than the base."""
    return adapter(model_folders["llama"], tmp_path / "start", seed=1)


def adapter(base: Path, folder: Path, seed: int) -> Path:
    section = recipe_for(base, folder).model
    made = models.new_adapter(
        models.load_base(section, models.choose_precision("float32", use_cpu=True)), section
    )
    torch.manual_seed(seed)
    for name, value in made.named_parameters():
        if "lora_" in name:
            value.data = 0.05 * torch.randn_like(value)
    models.save_adapter(made, folder, str(base))
    return folder


def asked(roles: Roles, n: int = 4) -> list[Asked]:
    found = []
    for prompt in PROMPTS[:n]:
        row = roles.chat.render(prompt.messages, reserve=6)
        assert row is not None
        found.append(Asked(prompt, row.prompt_ids))
    return found


def rollout_of(roles: Roles, seed: int = 0) -> Rollout:
    return sample(roles, asked(roles), Sampling(3, 1.0, 1.0, 6, 6, seed), lambda _: None)


def lesson_of(roles: Roles, section: PpoSection, rollout: Rollout, scores=None, known=None):
    said = listen(roles, rollout, 2)
    if scores is None:
        scores = by_evaluator(LettersEvaluator(), rollout, "x").quality
    known = torch.ones(len(scores), dtype=torch.bool) if known is None else known
    return teach(section, rollout, said, scores, known, section.kl_coef)


# --- roles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tree", [True, False])
def test_one_pass_says_of_each_role_what_the_role_says_alone(model_folders, tmp_path, family, tree):
    base = model_folders[family]
    begin = adapter(base, tmp_path / "begin", 1)
    recipe = recipe_for(base, tmp_path, value="adapter")
    roles = Roles(recipe, begin, None, 0.7)
    roles.why_rows = roles.why_rows if tree else "a test wants rows"
    with torch.no_grad():
        for name, value in roles.weights().items():
            value += 0.05 * torch.randn_like(value) * (1 + ("value" in name))
    rollout = rollout_of(roles)
    batch = rollout.batch(roles, [0, 1, 2])
    said = roles.opinions(batch)
    with torch.no_grad():
        for adapter_name, theirs in ((POLICY, said.policy), (REFERENCE, said.reference)):
            roles.model.set_adapter(adapter_name)
            alone = roles.scored(roles.states(batch), batch.targets)
            assert torch.allclose(alone.log_probs, theirs, atol=1e-5)
        roles.model.set_adapter(VALUE)
        assert torch.allclose(roles.values(roles.states(batch)), said.values, atol=1e-5)
    assert not torch.allclose(said.policy, said.reference, atol=1e-3)


def test_log_probabilities_are_those_of_sampling_at_its_temperature(model_folders, start, tmp_path):
    recipe = recipe_for(model_folders["llama"], tmp_path, temperature=0.6)
    roles = Roles(recipe, start, None, 0.6)
    rollout = sample(roles, asked(roles), Sampling(3, 0.6, 1.0, 6, 6, 0), lambda _: None)
    said = listen(roles, rollout, 2)
    ids = rollout.asked[0].ids + rollout.replies[0].ids
    with torch.no_grad():
        logits = roles.model(input_ids=torch.tensor([ids])).logits[0].float() / 0.6
    first = len(rollout.asked[0].ids)
    wanted = [logits[t - 1].log_softmax(0)[ids[t]].item() for t in range(first, len(ids))]
    assert said.policy[0, : len(wanted)].tolist() == pytest.approx(wanted, abs=1e-4)


def test_before_the_first_update_the_policy_is_the_reference(model_folders, start, tmp_path):
    for begin in (start, None):
        roles = Roles(recipe_for(model_folders["llama"], tmp_path), begin, None, 1.0)
        assert roles.reference == (REFERENCE if begin else BASE)
        said = listen(roles, rollout_of(roles), 2)
        assert torch.equal(said.policy, said.reference)


def test_a_4_bit_base_carries_all_roles(model_folders, start, tmp_path):
    recipe = recipe_for(
        model_folders["llama"], tmp_path, value="adapter", model={"load_in_4bit": True}
    )
    roles = Roles(recipe, start, None, 1.0)
    learner, rollout = Learner(roles, recipe.ppo, 10), rollout_of(roles)
    said = listen(roles, rollout, 2)
    assert torch.equal(said.policy, said.reference)
    learner.update(rollout, lesson_of(roles, recipe.ppo, rollout), [0, 1])
    assert all(value.dtype == torch.float32 for value in roles.weights().values())
    moved = listen(roles, rollout, 2)
    assert not torch.equal(moved.policy, moved.reference)
    assert torch.allclose(moved.reference, said.reference, atol=1e-6)


def let_it_speak(roles: Roles, times: float = 20) -> None:
    """An untrained head of weights near 0 says all tokens alike, whatever the adapter does."""
    roles.model.get_base_model().get_output_embeddings().weight.data *= times


# --- one update --------------------------------------------------------------------------------


def updated(folder, begin, tmp_path, prompts=(0, 1, 2, 3), scores=None, known=None, **settings):
    """Weights of all that is trained after one update, and its figures."""
    torch.manual_seed(0)
    recipe = recipe_for(folder, tmp_path, **settings)
    roles = Roles(recipe, begin, None, 1.0)
    learner, rollout = Learner(roles, recipe.ppo, 10), rollout_of(roles)
    lesson = lesson_of(roles, recipe.ppo, rollout, scores, known)
    figures = learner.update(rollout, lesson, list(prompts))
    return {name: value.detach().clone() for name, value in roles.weights().items()}, figures


def gradient(folder, begin, tmp_path, **settings) -> torch.Tensor:
    """Of all that is trained, as an update had it before clipping; Adam would hide its scale."""
    torch.manual_seed(0)
    recipe = recipe_for(folder, tmp_path, max_grad_norm=0.0, **settings)
    roles = Roles(recipe, begin, None, 1.0)
    torch.nn.init.normal_(roles.value_head.weight)
    learner, rollout = Learner(roles, recipe.ppo, 10), rollout_of(roles)
    learner.update(rollout, lesson_of(roles, recipe.ppo, rollout), [0, 1, 2, 3])
    return torch.cat([p.grad.flatten() for p in roles.weights().values()])


@pytest.mark.parametrize("value", ["head", "adapter"])
def test_micro_batches_and_checkpointing_change_nothing(model_folders, start, tmp_path, value):
    folder = model_folders["llama"]
    whole = gradient(folder, start, tmp_path, value=value, per_device_train_batch_size=4)
    assert whole.norm() > 0.01
    for other in ({"per_device_train_batch_size": 1}, {"gradient_checkpointing": True}):
        parts = gradient(folder, start, tmp_path, value=value, **other)
        assert (parts - whole).norm() < 1e-5 * whole.norm()


def test_the_old_policy_has_ratio_one_and_nothing_is_clipped(model_folders, start, tmp_path):
    _, figures = updated(model_folders["llama"], start, tmp_path)
    assert figures["val/ratio"] == pytest.approx(1.0, abs=1e-4)
    assert figures["policy/clipfrac"] == 0.0
    assert figures["policy/approxkl"] == pytest.approx(0.0, abs=1e-8)


def test_only_policy_and_value_function_move(model_folders, start, tmp_path):
    recipe = recipe_for(model_folders["llama"], tmp_path, value="adapter")
    roles = Roles(recipe, start, None, 1.0)
    before = {name: value.detach().clone() for name, value in roles.model.named_parameters()}
    rollout = rollout_of(roles)
    learner = Learner(roles, recipe.ppo, 10)
    for _ in range(2):  # a fresh LoRA's A has a gradient from the second step on
        learner.update(rollout, lesson_of(roles, recipe.ppo, rollout), [0, 1, 2, 3])
    for name, value in roles.model.named_parameters():
        trained = "lora_" in name and (f".{POLICY}." in name or f".{VALUE}." in name)
        assert torch.equal(value, before[name]) != trained, name
    assert roles.value_head.weight.abs().sum() > 0


def test_without_reward_the_policy_stays_put(model_folders, start, tmp_path):
    weights, _ = updated(model_folders["llama"], start, tmp_path, scores=torch.zeros(12))
    roles = Roles(recipe_for(model_folders["llama"], tmp_path), start, None, 1.0)
    for name, value in roles.weights().items():
        assert torch.equal(weights[name], value), name


def test_a_price_beyond_all_rewards_keeps_the_policy_at_the_reference(
    model_folders, start, tmp_path
):
    """What the reward moves, a price without bound takes back."""

    def distance(kl_coef: float) -> float:
        # A value function of its own: returns in units of the price would bend a shared trunk.
        recipe = recipe_for(
            model_folders["llama"], tmp_path, kl_coef=kl_coef, learning_rate=2e-3, value="adapter"
        )
        roles = Roles(recipe, start, None, 1.0)
        let_it_speak(roles)
        learner = Learner(roles, recipe.ppo, 30)
        for seed in range(30):
            sampling = Sampling(16, 1.0, 1.0, 6, 64, seed)
            rollout = sample(roles, asked(roles), sampling, lambda _: None)
            learner.update(rollout, lesson_of(roles, recipe.ppo, rollout), [0, 1, 2, 3])
        said = listen(roles, rollout_of(roles, 99), 2)
        return float((said.policy - said.reference).sum(dim=1).mean().abs())

    assert distance(1e4) < 0.2 * distance(0.0)


def chances(roles: Roles, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (V), float64, of the first token of the policy's reply."""
    with torch.no_grad():
        return roles.model(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(0)


def test_replies_of_one_token_reach_the_optimum_of_reward_with_a_price_on_kl(
    model_folders, tmp_path
):
    """Which is p proportional to reference x exp(reward / price): of the model, by `Learner`.

    Paid is every other token, in the reference's order of liking. The state before the reply has 64
    numbers for 400 tokens, so the optimum is met nearly, not exactly.
    """
    price, updates = 0.5, 30
    recipe = recipe_for(
        model_folders["llama"], tmp_path, kl_coef=price, learning_rate=1e-3, value="adapter",
        baseline="leave_one_out", max_new_tokens=1, missing_eos_penalty=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    roles = Roles(recipe, None, None, 1.0)
    let_it_speak(roles, 40)
    learner, (one,) = Learner(roles, recipe.ppo, updates), asked(roles, 1)
    reference = chances(roles, one.ids)
    rewards = torch.zeros_like(reference)
    rewards[reference.argsort(descending=True)[1::2]] = 1.0
    wanted = (reference + rewards / price).log_softmax(0)
    for seed in range(updates):
        rollout = sample(roles, [one], Sampling(64, 1.0, 1.0, 1, 64, seed), lambda _: None)
        scores = rewards[[reply.ids[0] for reply in rollout.replies]].float()
        learner.update(rollout, lesson_of(roles, recipe.ppo, rollout, scores), [0])
    roles.learn_with(POLICY)
    found = chances(roles, one.ids)
    begun, ended = ((p.exp() * (p - wanted)).sum() for p in (reference, found))
    paid = [float((p.exp() * rewards).sum()) for p in (reference, found, wanted)]
    assert begun > 0.4 and paid[0] < paid[2] - 0.4  # 0.45 nats away, 0.24 paid
    assert ended < begun / 4  # 0.03
    assert paid[1] == pytest.approx(paid[2], abs=0.1)  # 0.70; at half the price 0.94, at none 1


def test_replies_without_a_verdict_teach_nothing(model_folders, start, tmp_path):
    folder = model_folders["llama"]
    known = torch.ones(12, dtype=torch.bool)
    known[4] = False
    scores = torch.linspace(0, 1, 12)
    other = scores.clone()
    other[4] = 50.0
    one, _ = updated(folder, start, tmp_path, scores=scores, known=known)
    two, _ = updated(folder, start, tmp_path, scores=other, known=known)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_no_number_stops_before_the_update_and_names_the_prompts(model_folders, start, tmp_path):
    recipe = recipe_for(model_folders["llama"], tmp_path)
    roles = Roles(recipe, start, None, 1.0)
    learner, rollout = Learner(roles, recipe.ppo, 10), rollout_of(roles)
    lesson = lesson_of(roles, recipe.ppo, rollout)
    lesson.returns[0, 0] = float("nan")
    before = {name: value.detach().clone() for name, value in roles.weights().items()}
    with pytest.raises(CheckFailed, match="prompts p0, p2"):
        learner.update(rollout, lesson, [0, 2])
    assert all(torch.equal(value, before[name]) for name, value in roles.weights().items())


def test_entropy_has_a_gradient_where_it_is_paid_for(model_folders, start, tmp_path):
    folder, nothing = model_folders["llama"], torch.zeros(12)
    roles = Roles(recipe_for(folder, tmp_path), start, None, 1.0)
    before = listen(roles, rollout_of(roles), 2)
    recipe = recipe_for(folder, tmp_path, ent_coef=1.0, kl_coef=0.0, learning_rate=1e-3)
    roles = Roles(recipe, start, None, 1.0)
    learner, rollout = Learner(roles, recipe.ppo, 10), rollout_of(roles)
    learner.update(rollout, lesson_of(roles, recipe.ppo, rollout, nothing), [0, 1, 2, 3])
    after = listen(roles, rollout, 2)
    assert after.entropy.sum() > before.entropy.sum()


# --- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [CheckFailed, StorageError, EvaluatorStopped])
def test_whatever_ends_the_asking_is_told_to_the_other_processes(
    model_folders, start, tmp_path, monkeypatch, error
):
    class Failing(LettersEvaluator):
        def assess(self, prompt, candidates):
            raise error("that is why")

    told: list[object] = []
    monkeypatch.setattr(ppo_reward, "PartialState", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(ppo_reward, "broadcast_object_list", told.extend)
    rollout = rollout_of(Roles(recipe_for(model_folders["llama"], tmp_path), start, None, 1.0))
    with pytest.raises(error, match="that is why"):
        by_evaluator(Failing(), rollout, "x")
    assert told == ["that is why"]
    monkeypatch.setattr(ppo_reward, "broadcast_object_list", lambda box: box.__setitem__(0, "why"))
    with pytest.raises(EvaluatorStopped, match="why"):
        by_evaluator(None, rollout, "x")


@pytest.mark.parametrize("error", [CheckFailed, StorageError, EvaluatorStopped])
def test_whatever_ends_a_look_is_told_to_the_other_processes(
    model_folders, start, tmp_path, monkeypatch, error
):
    class Failing(EvaluatorJudge):
        def judge(self, prompt, candidate):
            raise error("that is why")

    told: list[object] = []
    monkeypatch.setattr(ppo_reward, "PartialState", lambda: SimpleNamespace(num_processes=2))
    monkeypatch.setattr(ppo_reward, "broadcast_object_list", told.extend)
    roles = Roles(recipe_for(model_folders["llama"], tmp_path), start, None, 1.0)
    rollout = sample(roles, asked(roles), Sampling(1, 1.0, 1.0, 6, 6, 0), lambda _: None)
    said, ours = listen(roles, rollout, 2), ppo_reward.candidates_of(rollout, "ppo-1")
    stage = SimpleNamespace(is_main=True)
    job = SimpleNamespace(judge=Failing(LettersEvaluator()), stage=stage)
    with pytest.raises(error, match="that is why"):
        ppo_course.look(job, rollout, said, 0.5, ours, ours, 1)
    assert told == ["that is why"]
    stage.is_main = False  # another process, which hears why or what the judge said
    monkeypatch.setattr(ppo_reward, "broadcast_object_list", lambda box: box.__setitem__(0, "why"))
    with pytest.raises(EvaluatorStopped, match="why"):
        ppo_course.look(job, rollout, said, 0.5, ours, ours, 1)
    made = a_look(1, 0.1, 0.5)
    monkeypatch.setattr(ppo_reward, "broadcast_object_list", lambda box: box.__setitem__(0, made))
    assert ppo_course.look(job, rollout, said, 0.5, ours, ours, 1) is made


def test_what_the_scores_have_cost_counts_in_the_cap(model_folders, start, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "scripts"))
    import ppo as script

    calls: list[rehearsal.Call] = []

    def judge(call: rehearsal.Call) -> rehearsal.Reply:
        calls.append(call)
        return rehearsal.judge(call)

    with open_ledger(tmp_path / "r" / "scores" / "ledger.sqlite") as ledger:
        ledger.append([Attempt("k", "timeout", "", 1.0)])
    with rehearsal.running(judge) as url:
        service = {"evaluator": "openai", "evaluator_model": "judge", "base_url": url,
                   "price_in": 2.0, "price_out": 8.0, "max_cost": 1.0}  # fmt: skip
        recipe = recipe_for(model_folders["llama"], tmp_path, model={"max_length": 250})
        tree = recipe.model_dump(mode="json", exclude_defaults=True)
        (tmp_path / "recipe.yaml").write_text(
            to_json(tree | {"score": service, "start_adapter": str(start)}), encoding="utf-8"
        )
        with pytest.raises(EvaluatorStopped, match=r"max_cost is reached: \$1\.0000"):
            script.main(["--config", str(tmp_path / "recipe.yaml")])
    assert not calls


def test_scores_hold_the_gate_the_price_and_the_missing_end():
    verdicts = Verdicts(
        torch.tensor([0.9, 0.2, 0.6, 0.5]),
        torch.tensor([False, True, True, True]),
        torch.tensor([True, True, True, False]),
        {"injection": 1},
    )
    ended = [True, True, False, True]
    for settings, wanted in (
        ({"safety": "gate"}, [-1.0, 0.2, -0.4, 0.0]),
        # A safe reply is never worth less than the floor, nor an unsafe one more.
        ({"safety": "gate", "floor": 0.0}, [0.0, 0.2, 0.0, 0.0]),
        ({"safety": "none"}, [0.9, 0.2, -0.4, 0.0]),
        ({"safety": "lagrangian"}, [-0.05, 0.1, -0.7, 0.0]),
        ({"safety": "gate", "floor": -2.0, "missing_eos_penalty": 0.0}, [-2.0, 0.2, 0.6, 0.0]),
    ):
        found = scores_of(PpoSection(**settings), verdicts, ended, 1.0)
        assert found.tolist() == pytest.approx(wanted), settings
    assert verdicts.unsafe_share == pytest.approx(1 / 3)
    check_known(verdicts, 0.25)
    with pytest.raises(CheckFailed, match="1 injection"):
        check_known(verdicts, 0.2)


# --- a course ----------------------------------------------------------------------------------


def course(folder, begin, tmp_path, rewarding=None, **settings) -> ppo.Ppo:
    recipe = recipe_for(folder, tmp_path, **settings)
    torch.manual_seed(recipe.seed)
    (tmp_path / "stage").mkdir(exist_ok=True, parents=True)
    manifest = {"config": recipe.settings("seed", "model", "ppo"), "inputs": {}}
    stage = Stage(tmp_path / "stage", manifest, reused=False, is_main=True)
    held_out = [Prompt(f"h{i}", p.messages, "test", "sleep", "none", "held_out")
                for i, p in enumerate(PROMPTS[3:])]  # fmt: skip
    evaluator = LettersEvaluator()
    job = ppo_course.Job(recipe, PROMPTS, held_out, evaluator, EvaluatorJudge(evaluator), stage)
    return ppo.Ppo(job, Roles(recipe, begin, rewarding, 1.0), StopRequest())


def logged(run: ppo.Ppo) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, without what a clock says."""
    lines = run.job.stage.path("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        {k: v for k, v in row.items() if k not in ("time", "eps") and not k.startswith("time/")}
        for row in rows
    ]


def test_a_rollout_meets_every_prompt_once_a_pass_and_each_update_its_share():
    section = PpoSection(num_ppo_epochs=2, num_mini_batches=3)
    plan = ppo_course.minibatches(section, 8, 0, 1)
    assert len(plan) == 6
    for epoch in (plan[:3], plan[3:]):
        assert sorted(i for part in epoch for i in part) == list(range(8))
        assert {len(part) for part in epoch} <= {2, 3}
    assert (
        plan == ppo_course.minibatches(section, 8, 0, 1) != ppo_course.minibatches(section, 8, 1, 1)
    )


def test_it_learns_what_is_rewarded(model_folders, start, tmp_path):
    """Small letters are; what an untrained model writes has few of them."""

    class Small(LettersEvaluator):
        def assess(self, prompt, candidates):
            shares = [sum(x.islower() for x in c.text) / max(1, len(c.text)) for c in candidates]
            return [
                Assessment(c.id, prompt.id, {}, share, True, [], "", "s", "s@1", None)
                for c, share in zip(candidates, shares, strict=True)
            ]

    settings = {"iterations": 12, "prompts_per_iteration": 6, "num_return_sequences": 6}
    settings |= {"eval_every": 0, "kl_coef": 0.0, "missing_eos_penalty": 0.0}
    run = course(model_folders["llama"], start, tmp_path, **settings)
    let_it_speak(run.roles)
    old = run.job
    run.job = ppo_course.Job(old.recipe, PROMPTS, old.held_out, Small(), old.judge, old.stage)
    run.run()
    rows = [row for row in logged(run) if "objective/scores" in row]
    first, last = (fmean(row["objective/scores"] for row in some) for some in (rows[:3], rows[-3:]))
    assert last > first + 0.15
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["objective/kl"] > 0.1


# --- looks and alarms --------------------------------------------------------------------------


def a_look(iteration: int, unsafe: float, win: float, proxy: float = 0.0) -> watch.Look:
    return watch.Look(iteration, proxy, unsafe, win, None, 1.0, 50.0, 100)


def test_kept_is_the_best_by_safety_first():
    looks = [a_look(1, 0.10, 0.95), a_look(2, 0.04, 0.70), a_look(3, 0.05, 0.80)]
    assert watch.best(looks, 0.05).iteration == 3
    assert watch.best(looks[:1], 0.05).iteration == 1
    assert watch.best([a_look(1, 0.2, 0.9), a_look(2, 0.1, 0.6)], 0.05).iteration == 2


def test_a_reward_that_rises_while_the_judge_falls_stops_it():
    good = [a_look(0, 0.1, 0.5, 0.0), a_look(1, 0.05, 0.8, 0.5)]
    assert watch.over_optimised([*good, a_look(2, 0.05, 0.7, 0.6)], 2) is None
    worse = [a_look(2, 0.05, 0.7, 0.6), a_look(3, 0.05, 0.6, 0.7)]
    assert "win rate" in str(watch.over_optimised([*good, *worse], 2))
    unsafe = [a_look(2, 0.15, 0.8, 0.6), a_look(3, 0.2, 0.9, 0.7)]
    assert "unsafe" in str(watch.over_optimised([*good, *unsafe], 2))
    honest = [a_look(2, 0.05, 0.7, 0.4), a_look(3, 0.05, 0.6, 0.3)]  # the reward falls, too
    assert watch.over_optimised([*good, *honest], 2) is None
    assert watch.over_optimised([*good, *worse], 0) is None


@pytest.mark.parametrize(
    ("settings", "kl", "entropy", "tokens", "word"),
    [
        ({"max_kl": 5.0}, 6.0, 1.0, 50.0, "KL"),
        ({"min_entropy": 0.5}, 1.0, 0.4, 50.0, "entropy"),
        ({"max_length_drift": 1.5}, 1.0, 1.0, 80.0, "length"),
        ({"max_length_drift": 1.5}, 1.0, 1.0, 30.0, "length"),
    ],
)
def test_alarms_ring_at_the_third_rollout_in_a_row(settings, kl, entropy, tokens, word):
    alarms = watch.Alarms(PpoSection(**settings))
    assert alarms.check(1.0, 1.0, 50.0) is None
    for _ in range(2):
        assert alarms.check(kl, entropy, tokens) is None
    assert alarms.check(1.0, 1.0, 50.0) is None  # back within: it counts anew
    told = [alarms.check(kl, entropy, tokens) for _ in range(3)]
    assert told[:2] == [None, None]
    assert word in str(told[2])
    off = watch.Alarms(PpoSection(max_kl=0, min_entropy=0, max_length_drift=0))
    assert [off.check(1e9, 0.0, n) for n in (1.0, 1e9, 1e9, 1e9)] == [None] * 4


def test_looks_sample_as_the_proof_does_and_rollouts_at_their_own_temperature(
    model_folders, start, tmp_path, monkeypatch
):
    drawn: list[tuple[int, float, float]] = []

    def drawing(roles, asked, sampling, advance):
        drawn.append((sampling.k, sampling.temperature, sampling.top_p))
        return sample(roles, asked, sampling, advance)

    monkeypatch.setattr(ppo, "sample", drawing)
    run = course(model_folders["llama"], start, tmp_path, temperature=1.3)
    served = {"temperature": 0.5, "top_p": 0.9}
    proof = run.job.recipe.evaluate.model_copy(update=served)
    run.job = replace(run.job, recipe=run.job.recipe.model_copy(update={"evaluate": proof}))
    run.run()
    assert drawn == [(1, 0.5, 0.9), (3, 1.3, 1.0)] * 2 + [(1, 0.5, 0.9)]
    assert run.course.looks[0].kl == 0.0 != run.course.looks[-1].kl


def test_the_adapter_that_is_kept_is_of_the_best_look(model_folders, start, tmp_path):
    run = course(model_folders["llama"], start, tmp_path, iterations=3)
    weights = {}
    plain = run._look

    def look() -> None:
        plain()
        weights[run.course.iteration] = snapshot(run.roles.model)

    run._look = look  # type: ignore[method-assign]
    run.run()
    wanted = weights[run.best.iteration]
    assert all(torch.equal(run.course.best[name], wanted[name]) for name in wanted)
    assert [each.iteration for each in run.course.looks] == [0, 1, 2, 3]
    assert run.course.looks[0].win_rate == 0.5


def test_section_of_the_model_has_no_dropout_in_ppo(model_folders, start, tmp_path):
    recipe = recipe_for(model_folders["llama"], tmp_path, model={"lora_dropout": 0.5})
    assert isinstance(recipe.model, ModelSection)
    roles = Roles(recipe, start, None, 1.0)
    rollout = rollout_of(roles)
    one, two = (listen(roles, rollout, 2) for _ in range(2))
    assert torch.equal(one.policy, two.policy)


def test_replies_keep_the_token_that_ended_them():
    reply = Reply([5, 6, 2], ended=True)
    assert reply.text_ids == [5, 6]
    assert Reply([5, 6], ended=False).text_ids == [5, 6]
