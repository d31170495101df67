"""Law 9: every configuration file loads with the parser that the stages use.

And TRL takes what the recipes ask of it: its configuration classes are built as the stages do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from reward.rubric import load_rubric
from reward.train import fit_reward, reward_options
from rlaif.dpo import dpo_options, train_dpo
from rlaif.roles import Roles
from sft import config, hub
from sft import model as models
from sft.chat import system_prompt
from sft.config import Recipe
from sft.files import UserError
from sft.sharding import sharding
from sft.train import trainer_options

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*.yaml") if path.name != "rubric.yaml")
STAGES = [
    None,
    "finetune",
    "generate",
    "score",
    "pair",
    "reward",
    "dpo",
    "evaluate",
    "export",
    "plan",
]
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def load(path: Path, *flags: str) -> Recipe:
    return config.load(["--config", str(path), *flags], None, "")


def test_there_is_a_recipe_for_each_experiment() -> None:
    names = {path.stem for path in RECIPES}
    assert {"quickstart", "llama3-8b-t4", "llama3-8b-multi-gpu", "dialogpt-medium"} <= names


@each_recipe
@pytest.mark.parametrize("stage", STAGES)
def test_a_recipe_loads_for_every_stage(path: Path, stage: str | None) -> None:
    recipe = config.load(["--config", str(path)], stage, "")
    assert recipe.run == path.stem  # two recipes in one folder would refuse each other's results
    system_prompt(recipe.model.system_prompt)


@each_recipe
def test_trl_takes_the_training_settings(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    precision = models.choose_precision(recipe.model.dtype, use_cpu=True)
    options = trainer_options(recipe.finetune, recipe, precision, tmp_path)
    made = SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True})
    assert made.learning_rate == recipe.finetune.learning_rate
    assert made.optim == recipe.finetune.optim
    fitted = TrainingArguments(**reward_options(recipe, precision, tmp_path))
    assert fitted.learning_rate == recipe.reward.learning_rate
    assert not fitted.remove_unused_columns  # rows are prompts, whose columns no model names
    aligned = DPOConfig(**dpo_options(recipe, precision, tmp_path))
    assert aligned.beta == recipe.dpo.beta
    assert aligned.loss_type == recipe.dpo.loss_type
    assert aligned.max_length is None  # nothing is cut in silence


@each_recipe
def test_rounds_leave_room_for_every_reply(path: Path) -> None:
    recipe = load(path)
    for n in range(1, recipe.rounds + 1):
        assert load(path, "--round", str(n)).round == n
    longest = max(recipe.generate.max_new_tokens, recipe.evaluate.max_new_tokens)
    assert longest < recipe.model.max_length / 2


def test_the_quickstart_runs_without_key_network_or_download() -> None:
    recipe = load(CONFIGS / "quickstart.yaml")
    assert recipe.score.evaluator == "embedded"
    assert recipe.evaluate.judge == "practice-clinic"
    assert Path(hub.model_source(recipe.model.name_or_path)).is_dir()
    assert recipe.tracking == "none"


def test_the_big_recipes_judge_by_what_did_not_label() -> None:
    for path in RECIPES:
        recipe = load(path)
        assert recipe.evaluate.judge != recipe.score.evaluator
        assert not recipe.score.allow_remote  # sending conversations away is a user's decision


def test_the_rubric_loads() -> None:
    assert load_rubric(CONFIGS / "rubric.yaml").id.startswith("supportive-reply@")


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_takes_its_configuration(path: Path) -> None:
    made = load_config_from_file(str(path))
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert made.num_processes == given["num_processes"] > 1
    # The recipe chooses the precision: a second one here would be a mixture of both.
    assert made.mixed_precision == "no"
    assert made.distributed_type == given["distributed_type"]


SHARED = {"fsdp2": "FSDP", "zero3": "ZeRO-3"}


@pytest.mark.parametrize(("name", "kind"), SHARED.items())
def test_a_launch_that_shares_the_base_out_is_known_as_such(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By accelerate's own way from the file to the environment of its processes."""
    arguments = launch.launch_command_parser().parse_args(
        ["--config_file", str(CONFIGS / "accelerate" / f"{name}.yaml"), "x.py"]
    )
    arguments, defaults, _ = launch._validate_launch_command(arguments)
    if name == "fsdp2":
        environment = prepare_multi_gpu_env(arguments)
        assert environment["FSDP_VERSION"] == "2"
    else:
        given = ",".join(defaults.deepspeed_config)  # as its launcher does after this
        arguments.deepspeed_fields_from_accelerate_config = given
        _, environment = prepare_deepspeed_cmd_env(arguments)
    assert sharding() is None
    for key in (each for each in environment if each.startswith(("ACCELERATE_", "FSDP_"))):
        monkeypatch.setenv(key, environment[key])
    assert sharding() == kind
    recipe = load(CONFIGS / "quickstart.yaml")
    with pytest.raises(UserError, match=f"PPO needs the whole base.*{kind}.*multi-gpu"):
        Roles(recipe, None, None, 1.0)
    stage: Any = None  # nothing is written before
    with pytest.raises(UserError, match="DPO needs the whole base"):
        train_dpo(recipe, [], None, stage)
    with pytest.raises(UserError, match="the reward model needs the whole base"):
        fit_reward(recipe, [], [], None, stage)
    on_cpu = models.load_base(recipe.model, models.choose_precision("float32", use_cpu=True))
    assert on_cpu.device.type == "cpu"
