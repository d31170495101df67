"""Laws of the recipe: flags win, nothing unknown passes, all mistakes at once, no keys."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from pydantic import BaseModel, ValidationError
from trl import DPOConfig, SFTConfig

from sft import config
from sft.config import Recipe, load
from sft.files import UserError
from sft.ppo_settings import PPO_ONLY, PpoSection
from sft.settings_text import sections, shared_fields
from sft.trainer_fields import trainer_fields

QUICKSTART = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "run: 2026-11-20   # a date is a fine name\n"
        "seed: 7\n"
        "dpo:\n"
        "  learning_rate: 5e-6\n"
        "  beta: 0.3\n"
        "  loss_type: [sigmoid, sft]\n"
        "  trainer: {adam_epsilon: 1e-7}\n"
        "generate:\n"
    )
    return path


def mistakes(*argv: str, stage: str | None = "dpo") -> str:
    with pytest.raises(UserError) as raised:
        load(list(argv), stage, "Test.")
    return str(raised.value)


def test_the_file_is_read_as_its_writer_means_it(recipe_file: Path) -> None:
    recipe = load(["--config", str(recipe_file)], "dpo", "Test.")
    assert (recipe.run, recipe.seed) == ("2026-11-20", 7)
    assert (recipe.dpo.learning_rate, recipe.dpo.beta) == (5e-6, 0.3)
    assert recipe.dpo.trainer == {"adam_epsilon": 1e-7}
    assert recipe.generate == Recipe(run="x").generate


@pytest.mark.parametrize("stage", ["ppo", "refine"])
@pytest.mark.parametrize("field", ["dry_run", "rescore"])
def test_a_stage_that_judges_new_replies_refuses_to_ask_nobody(stage: str, field: str) -> None:
    said = mistakes("--run", "x", f"--score.{field}", "--seed", "-1", stage=stage)
    assert "2 problems" in said and f"score.{field}: {stage} judges replies" in said
    load(["--run", "x", f"--score.{field}"], "score", "Test.")


def test_ppo_waits_for_no_batch(recipe_file: Path) -> None:
    asks = ["--run", "x", "--score.evaluator", "openai", "--evaluator_model", "judge",
            "--score.base_url", "http://localhost:1/v1", "--score.mode", "batch"]  # fmt: skip
    asks[asks.index("--evaluator_model")] = "--score.evaluator_model"
    assert "every rollout would wait up to 24 h" in mistakes(*asks, stage="ppo")
    load([*asks, "--ppo.reward", "model"], "ppo", "Test.")
    load(asks, "score", "Test.")


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_what_only_ppo_reads_is_refused_elsewhere_or_says_so(method: str) -> None:
    """Each of them, by one message; what the quickstart sets for PPO says so instead."""
    other = {
        "value": "adapter", "vf_coef": "0.2", "cliprange_value": "0.3", "gamma": "0.9",
        "whiten_rewards": "true", "ent_coef": "0.1", "kl_target": "5", "kl_horizon": "500",
        "target_kl": "0.1", "max_kl": "9", "min_entropy": "0.1",
        "max_length_drift": "3", "rollout_url": "http://localhost:8000/v1",
    }  # fmt: skip
    assert set(other) == set(PPO_ONLY)
    flags = [part for name, value in other.items() for part in (f"--ppo.{name}", value)]
    text = mistakes("--run", "x", *flags, "--ppo.method", method, stage="ppo")
    assert f"{len(other)} problems" in text
    assert f"{method} does not read ppo.value: leave it at head" in text
    load(["--run", "x", *flags], "ppo", "Test.")
    kept = load(["--config", str(QUICKSTART), "--method", method], "ppo", "Test.").ppo
    assert kept.method == method and kept.lam == 1.0
    for name in ("baseline", "lam", "value_head_rate"):
        assert name in kept.model_fields_set
        assert str(PpoSection.model_fields[name].description).endswith("PPO only")


def test_flags_win_over_the_file(recipe_file: Path) -> None:
    argv = [
        "--seed",
        "8",
        "--config",
        str(recipe_file),
        "--beta=0.5",
        "--dpo.trainer.adam_beta1",
        "1e-1",
    ]
    recipe = load(argv, "dpo", "Test.")
    assert (recipe.seed, recipe.dpo.beta) == (8, 0.5)
    assert recipe.dpo.trainer == {"adam_epsilon": 1e-7, "adam_beta1": 0.1}


def test_a_bare_flag_means_the_stage_first_then_the_top_then_the_model() -> None:
    argv = ["--run", "x", "--n_prompts", "200", "--lora-r", "4", "--dpo.beta", "0.7"]
    assert load(argv, "evaluate", "Test.").evaluate.n_prompts == 200
    recipe = load(argv, "generate", "Test.")
    assert (recipe.generate.n_prompts, recipe.evaluate.n_prompts) == (200, 300)
    assert (recipe.model.lora_r, recipe.dpo.beta) == (4, 0.7)
    assert "did you mean 'generate.n_prompts'" in mistakes(*argv, stage="pair")


def test_flags_are_parsed_for_the_type_of_their_setting() -> None:
    argv = [
        "--run", "123", "--overwrite", "--use_cpu", "--max_steps", "-1", "--loss_type", "ipo, sft",
        "--loss_weights", "[1, 0.5]", "--ld_alpha", "null", "--model.lora_target_modules", "q,v",
        "--gradient_checkpointing", "true", "--trainer", "{dataloader_drop_last: true}",
        "--start_adapter", "none",
    ]  # fmt: skip
    recipe = load(argv, "dpo", "Test.")
    assert (recipe.run, recipe.overwrite, recipe.use_cpu) == ("123", True, True)
    assert (recipe.dpo.max_steps, recipe.dpo.ld_alpha) == (-1, None)
    assert (recipe.dpo.loss_type, recipe.dpo.loss_weights) == (["ipo", "sft"], [1.0, 0.5])
    assert recipe.model.lora_target_modules == "q,v"
    assert recipe.dpo.gradient_checkpointing
    assert recipe.dpo.trainer == {"dataloader_drop_last": True}
    assert recipe.start_adapter == "none"


def test_all_mistakes_are_told_at_once_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "run: ok\n"
        "seed: many\n"
        "dpo:\n"
        "  beat: 0.1\n"
        "  learning_rate: -1\n"
        "model: 3\n"
        "round: 2\n"
        "beta: 1\n"
        "seed: 4\n"
    )
    argv = ["--config", str(path), "--lora_rank", "4", "--beta", "x", "stray", "--max_steps"]
    text = mistakes(*argv)
    for said in (
        "10 problems",
        f"{path}:4: unknown setting 'dpo.beat': did you mean 'dpo.beta'?",
        f"{path}:5: dpo.learning_rate: -1: Input should be greater than 0",
        f"{path}:6: model is a section",
        f"{path}:7: round and rounds: round 2 of 1",
        f"{path}:8: unknown setting 'beta': did you mean 'dpo.beta'?",
        f"{path}:9: 'seed' was set in line 2 too",
        "--lora_rank: unknown setting 'lora_rank': did you mean 'model.lora_r'?",
        "--beta: dpo.beta: 'x'",
        "'stray': settings are given as --name value",
        "--max_steps: needs a value",
    ):
        assert said in text, said


def test_a_name_is_required_and_says_what_it_is() -> None:
    assert "run: is required (name of the run's folder" in mistakes()


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "/tmp/x", "", "-x", "a b", "x\n"])
def test_a_run_name_never_leaves_the_folder_of_runs(name: str) -> None:
    with pytest.raises(ValidationError):
        Recipe(run=name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("run: [x\n", "not YAML"),
        ("- run\n", "a recipe is a list of"),
        ("run: {a: 1}\n", "run: {'a': 1}"),
        ("dpo:\n\tbeta: 1\n", "bad.yaml:2: not YAML"),
        (" \n", "is empty"),
        ("run: !!python/object:os.system x\n", "bad.yaml:1: not YAML"),
    ],
)
def test_a_malformed_recipe_says_where(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert said in mistakes("--config", str(path))


def test_a_missing_recipe_names_its_neighbours(recipe_file: Path) -> None:
    text = mistakes("--config", str(recipe_file.with_name("recipes.yaml")))
    assert "does not exist: the folder has recipe.yaml" in text


IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"use_cpu": True, "model": {"dtype": "float16"}}, "float16 does not train on a CPU"),
    ({"use_cpu": True, "model": {"attn_implementation": "flash_attention_2"}}, "needs a GPU"),
    ({"model": {"attn_implementation": "flash_attention_2", "dtype": "float32"}}, "no float32"),
    ({"evaluate": {"judge": "embedded"}}, "may not judge the result"),
    (
        {
            "score": {
                "evaluator": "openai",
                "evaluator_model": "m",
                "allow_remote": "api.openai.com",
            },
            "evaluate": {"judge": "openai", "judge_model": "m", "allow_remote": "api.openai.com"},
        },
        "may not judge the result",
    ),
    ({"score": {"evaluator": "openai"}}, "evaluator openai needs score.evaluator_model"),
    (
        {"score": {"evaluator": "openai", "evaluator_model": "m"}},
        "to api.openai.com: say score.allow_remote api.openai.com",
    ),
    ({"round": 3, "rounds": 2}, "round 3 of 2"),
    ({"crisis_share": 0.7, "elevated_share": 0.5}, "0.7 + 0.5 = 1.2"),
    ({"prompts": "a.jsonl", "held_out": "a.jsonl"}, "may not be the training prompts"),
    ({"dpo": {"loss_weights": [1.0, 2.0]}}, "2 weights for 1 losses"),
    ({"dpo": {"loss_type": ["odpo"], "tree": False}}, "odpo: only on trees"),
    ({"dpo": {"pair_confidence": True, "tree": False}}, "pair_confidence: only on trees"),
    ({"dpo": {"loss_type": ["robust"], "pair_confidence": True}}, "weighs doubtful pairs most"),
    ({"dpo": {"tree_tokens": 2048, "tree": False}}, "a token budget packs trees"),
    ({"dpo": {"tree_tokens": 2048}}, "set dpo.per_device_train_batch_size 1"),
    ({"reward": {"tree_tokens": 2048, "tree": False}}, "leave reward.tree on"),
    ({"reward": {"tree_tokens": 2048}}, "set reward.per_device_train_batch_size 1"),
    ({"pair": {"max_length_ratio": 0.5}}, "never below 1"),
    ({"pair": {"max_length_ratio": 1.5, "max_longer_share": 0.2}}, "no pair by quality has"),
    ({"pair": {"length_match": 0.1, "strategy": "all"}}, "nothing to choose"),
    ({"evaluate": {"n_prompts": 10}}, "120 crises among 10 prompts"),
    ({"model": {"max_length": 256}}, "leave no room for a prompt"),
    ({"evaluate": {"max_new_tokens": 1024}}, "1024 tokens leave no room for a prompt"),
    ({"model": {"max_length": 2048}}, "'embedded' has 1024 positions: lower it to 1024"),
    ({"dpo": {"trainer": {"learning_rate": 1}}}, "set dpo.learning_rate instead"),
]


@pytest.mark.parametrize(("values", "said"), IMPOSSIBLE)
def test_impossible_combinations_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("+", r"\+")):
        Recipe(run="x", **values)


def test_a_margin_is_a_number_or_auto() -> None:
    for text, value in (("auto", "auto"), ("0.1", 0.1), ("0", 0.0)):
        assert load(["--run", "x", "--margin", text], "pair", "").pair.margin == value
    assert "less than or equal to 1" in mistakes("--run", "x", "--pair.margin", "2")
    assert "auto = 1.96 standard errors" in mistakes("--run", "x", "--pair.margin", "automatic")


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ('{"max_position_embeddings": 600}', 600),
        ('{"n_positions": 600}', 600),
        ('{"text_config": {"max_position_embeddings": 600}}', 600),
        ('{"model_type": "bloom"}', None),
    ],
)
def test_all_that_has_no_room_is_told_at_once(
    tmp_path: Path, config: str, limit: int | None
) -> None:
    (tmp_path / "config.json").write_text(config)
    argv = ["--run", "x", "--name_or_path", str(tmp_path), "--max_length", "700"]
    argv += ["--generate.max_new_tokens", "700", "--evaluate.max_new_tokens", "800"]
    text = mistakes(*argv)
    assert "--generate.max_new_tokens: generate.max_new_tokens and model.max_length" in text
    assert "--evaluate.max_new_tokens: evaluate.max_new_tokens and model.max_length" in text
    assert (f"has {limit} positions" in text) == (limit is not None)
    assert f"{3 if limit else 2} problems" in text


def test_the_limits_of_a_downloaded_model_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text('{"max_position_embeddings": 512}')
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValidationError, match="'some/model' has 512 positions"):
        Recipe(run="x", model={"name_or_path": "some/model"})
    Recipe(run="x", model={"name_or_path": "some/other"})


@pytest.mark.parametrize(("stage", "made"), [("finetune", SFTConfig), ("dpo", DPOConfig)])
def test_the_trainers_fields_are_those_of_trl(stage: str, made: type) -> None:
    assert trainer_fields(stage) >= {field.name for field in fields(made)}
    assert not {"beat", "adam_beta"} & trainer_fields(stage)


MISSPELT = """
import sys
from sft.config import load
from sft.files import UserError
try:
    load(sys.argv[1:], "pair", "")
except UserError as error:
    print(error)
print(*{"torch", "trl", "transformers"} & set(sys.modules))
"""


def test_a_misspelt_trainer_field_is_told_by_every_stage_without_trl(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("run: x\nfinetune:\n  trainer: {adam_beta: 0.9}\n")
    command = [sys.executable, "-c", MISSPELT, "--config", str(path), "--dpo.trainer.pading", "1"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    *told, loaded = done.stdout.splitlines()
    assert "2 problems" in told[0]
    assert f"{path}:3: finetune.trainer.adam_beta" in told[1]
    assert "SFTConfig has no 'adam_beta': did you mean 'adam_beta" in told[1]
    assert "--dpo.trainer.pading: dpo.trainer.pading" in told[2]
    assert "did you mean 'padding_free'" in told[2]
    assert loaded == ""


def test_what_looks_impossible_and_is_not() -> None:
    Recipe(run="x", use_cpu=True, model={"load_in_4bit": True, "dtype": "float32"})
    Recipe(run="x", rounds=2, round=2, model={"lora_dropout": 0.1})
    local = {"evaluator": "openai", "evaluator_model": "m", "base_url": "http://localhost:8000/v1"}
    Recipe(run="x", score=local)
    far = {"judge": "openai", "judge_model": "n", "allow_remote": "api.openai.com"}
    Recipe(run="x", score=local, evaluate=far)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--allow_remote", "true"], "write allow_remote judge.example.org, or leave it out"),
        (["--allow_remote"], "--allow_remote: needs a value"),
        (["--allow_remote", "https://judge.example.org/v1"], "the host alone, without https://"),
        (["--allow_remote", "judge.example.org:443"], "the host alone, without https://, port"),
        (["--allow_remote", "example.org"], "say score.allow_remote judge.example.org"),
        ([], "say score.allow_remote judge.example.org"),
    ],
)
def test_a_host_that_is_not_local_has_to_be_named(argv: list[str], said: str) -> None:
    url = "https://Judge.Example.org:443/v1"
    text = mistakes(*FAR, "--base_url", url, *argv, stage="score")
    assert said in text


FAR = ("--run", "x", "--evaluator", "openai", "--evaluator_model", "m")


@pytest.mark.parametrize(
    "place", [("--score.base_url",), ("--generate.base_url",), ("--evaluate.base_url",),
              ("--ppo.rollout_url",), ("--score.panel", "b@")]
)  # fmt: skip
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000/v1", "begin the address with https:// or http://"),
        ("judge.example.org/v1", "begin the address with https:// or http://"),
        ("ftp://judge.example.org/v1", "begin the address with https:// or http://"),
        ("https:///v1", "begin the address with https:// or http://"),
        ("http://judge.example.org/v1", "cross the network as plain text"),
        ("http://10.0.0.7:8000/v1", "cross the network as plain text"),
    ],
)
def test_an_address_says_how_it_is_reached_and_nothing_leaves_as_plain_text(
    place: tuple[str, ...], url: str, said: str
) -> None:
    flag, *before = place
    away = ["--allow_remote", "judge.example.org,10.0.0.7"]
    text = mistakes(*FAR, *away, flag, "".join(before) + url, stage="score")
    assert said in text and flag.removeprefix("--") in text


@pytest.mark.parametrize(
    "other",
    [
        ["--generate.backend", "openai", "--generate.served_model", "p", "--generate.base_url",
         "https://gpu.example.org/v1", "--generate.allow_remote", "gpu.example.org"],
        ["--evaluate.judge", "openai", "--evaluate.judge_model", "n", "--evaluate.base_url",
         "https://gpu.example.org/v1", "--evaluate.allow_remote", "gpu.example.org"],
        ["--score.panel", "b@https://gpu.example.org/v1"],
        ["--ppo.rollout_url", "https://gpu.example.org/v1", "--ppo.allow_remote",
         "gpu.example.org"],
    ],
)  # fmt: skip
def test_the_key_goes_to_one_host(other: list[str]) -> None:
    here = [*FAR, "--allow_remote", "api.openai.com,gpu.example.org"]
    text = mistakes(*here, *other, stage="score")
    assert "1 problem" in text
    assert "OPENAI_API_KEY would go to api.openai.com and gpu.example.org" in text
    same = [each.replace("gpu.example.org", "api.openai.com") for each in other]
    load([*here, *same], "score", "")
    local = [each.replace("https://gpu.example.org", "http://localhost:8000") for each in other]
    load([*here, *local], "score", "")


def test_several_hosts_may_be_named_and_the_one_that_is_called_is_among_them() -> None:
    argv = [*FAR, "--base_url", "https://b.example.org/v1", "--allow_remote"]
    section = load([*argv, "a.example.org, B.example.org"], "score", "").score
    assert section.allow_remote == ["a.example.org", "b.example.org"]
    assert "to b.example.org: say score." in mistakes(*argv, "a.example.org", stage="score")
    again = Recipe(run="x", score={"allow_remote": "a.example.org,b.example.org"})
    assert again.score.allow_remote == section.allow_remote
    with pytest.raises(ValidationError, match=r"write allow_remote api\.openai\.com"):
        Recipe(run="x", score={"allow_remote": True})


@pytest.mark.parametrize(
    "argv",
    [
        ["--openai_api_key", "KEYKEYKEY"],
        ["--score.api_key=KEYKEYKEY"],
        ["--dpo.trainer.hub_token", "KEYKEYKEY"],
        ["--trainer", "{hub_token: KEYKEYKEY}"],
        ["--score.evaluator_model", "sk-KEYKEYKEYKEYKEYKEYKEY"],
        ["--score.base_url", "https://me:KEYKEYKEY@host/v1"],
        ["--score.base_url", "https://host/v1?api_key=KEYKEYKEY"],
    ],
)
def test_keys_are_refused_and_not_repeated(argv: list[str]) -> None:
    text = mistakes("--run", "x", *argv)
    assert "put it into the environment" in text
    assert "KEYKEYKEY" not in text


def test_keys_in_a_recipe_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("run: x\nscore:\n  OPENAI_API_KEY: KEYKEYKEY\n")
    text = mistakes("--config", str(path))
    assert f"{path}:3: a key may not stand" in text
    assert "KEYKEYKEY" not in text


def test_tokens_of_a_tokenizer_are_no_keys() -> None:
    argv = ["--run", "x", "--trainer.eos_token", "</s>", "--generate.max_new_tokens", "64"]
    assert load(argv, "finetune", "Test.").finetune.trainer == {"eos_token": "</s>"}


def all_fields() -> list[tuple[str, Any]]:
    inner = [
        (f"{name}.{key}", info)
        for name, kind in sections().items()
        for key, info in kind.model_fields.items()
    ]
    return [*shared_fields().items(), *inner]


@pytest.mark.parametrize(("name", "info"), all_fields())
def test_every_setting_is_described_and_has_a_default(name: str, info: Any) -> None:
    assert info.description, name
    assert name == "run" or not info.is_required()


def test_help_shows_every_setting_of_the_stage_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    description = "Train on pairs.\n\n    one command\n\nNot here: all else."
    with pytest.raises(SystemExit) as ended:
        load(["--help"], "dpo", description)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(description)
    for name, info in [*sections()["dpo"].model_fields.items(), *shared_fields().items()]:
        assert f"--{name}  [" in text
        assert info.description.split()[0] in text
    assert "--model.lora_r  [default 16]" in text


def test_the_resolved_settings_are_printed_once_by_the_main_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "_shown", set())
    argv = ["--run", "shown", "--beta", "0.25"]
    load(argv, "dpo", "Test.")
    text = capsys.readouterr().out
    assert "run=shown" in text
    assert "beta=0.25" in text
    load([*argv, "--lora_r", "8"], "dpo", "Test.")
    assert capsys.readouterr().out.startswith("model:")
    monkeypatch.setenv("RANK", "1")
    load(["--run", "other"], "dpo", "Test.")
    assert capsys.readouterr().out == ""


def test_a_recipe_does_not_change_and_gives_plain_values() -> None:
    recipe = Recipe(run="x")
    with pytest.raises(ValidationError):
        recipe.seed = 4  # type: ignore[misc]
    values = recipe.settings("seed", "pair")
    assert values["seed"] == 3407
    assert values["pair"]["strategy"] == "best_worst"
    with pytest.raises(KeyError):
        recipe.settings("sed")


def test_sections_are_models_of_their_own() -> None:
    assert set(sections()) == {
        "model", "finetune", "generate", "score", "refine", "pair", "reward", "dpo", "evaluate",
        "export", "ppo", "plan",
    }  # fmt: skip
    assert all(issubclass(kind, BaseModel) for kind in sections().values())
