"""The stage scripts: one small run through all of them, and what they say when something is wrong.

The run is made once, in this process, on the embedded model with few prompts and two updates.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from reward.model import RewardModel
from reward.pairs import Pair
from sft import config, hub, lineage
from sft import model as models
from sft.candidates import Candidate
from sft.config import Recipe
from sft.data import Prompt, set_apart
from sft.files import CheckFailed, ResultExists, UserError, read_json, read_rows, write_rows
from sft.runs import Stage
from sft.simulator import practice_prompts
from sft.tracking import Tracker

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
STAGES = {  # script: folder
    "finetune": "finetune",
    "generate": "candidates",
    "score": "scores",
    "refine": "refine",
    "pair": "pairs",
    "fit_reward": "reward",
    "dpo": "dpo",
    "evaluate_policy": "evaluation",
    "export": "export",
}
SMALL = shlex.split("""
    --use_cpu true --model.dtype float32 --model.system_prompt none --model.max_length 384
    --finetune.n_demonstrations 12 --finetune.max_steps 2 --finetune.warmup_steps 0
    --finetune.learning_rate 1e-3 --finetune.per_device_train_batch_size 4
    --finetune.gradient_accumulation_steps 1
    --generate.n_prompts 8 --generate.num_return_sequences 6 --generate.max_new_tokens 96
    --generate.n_borrowed 2
    --generate.batch_size 48
    --refine.passes 1 --pair.refined true
    --pair.strategy all --pair.margin 0
    --reward.max_steps 3 --reward.warmup_steps 0 --reward.learning_rate 1e-3
    --reward.per_device_train_batch_size 4 --reward.gradient_accumulation_steps 1
    --reward.report_share 0.4
    --dpo.max_steps 2 --dpo.warmup_steps 0 --dpo.learning_rate 1e-3
    --dpo.per_device_train_batch_size 4 --dpo.gradient_accumulation_steps 1
    --evaluate.n_prompts 12 --evaluate.crisis_prompts 4 --evaluate.max_new_tokens 48
    --evaluate.batch_size 12 --evaluate.bootstrap 100
    --export.merge true --export.force true
""")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its flags, and what each stage printed."""

    runs: Path
    said: dict[str, str]

    @property
    def home(self) -> Path:
        return self.runs / "small"

    def flags(self, *more: str) -> list[str]:
        return ["--run", "small", "--runs_dir", str(self.runs), *SMALL, *more]

    def stage(self, script: str) -> Path:
        return self.home / STAGES[script]


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The stage scripts as modules, found as `python scripts/x.py` finds them."""
    sys.path.insert(0, str(SCRIPTS))
    yield {name: importlib.import_module(name) for name in (*STAGES, "ppo", "frontier")}
    sys.path.remove(str(SCRIPTS))


def call(scripts: dict[str, ModuleType], name: str, flags: list[str]) -> str:
    """Run a script's main in this process; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        scripts[name].main(flags)
    return printed.getvalue()


@pytest.fixture(scope="module")
def run(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run(tmp_path_factory.mktemp("runs"), {})
    for name in STAGES:
        made.said[name] = call(scripts, name, made.flags())
    return made


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Run:
    """The same run elsewhere, to be spoiled."""
    shutil.copytree(run.home, tmp_path / "small")
    return Run(tmp_path, run.said)


# --- the whole chain ---------------------------------------------------------------------------


def test_every_stage_finishes_with_its_manifest_and_figures(run: Run) -> None:
    for script in STAGES:
        manifest = read_json(run.stage(script) / "manifest.json")
        assert manifest["status"] == "finished", script
        assert set(manifest["outputs"]) and all(
            (run.stage(script) / name).exists() for name in manifest["outputs"]
        )
    said = run.said
    assert "12 of the practice clinic as they are" in said["finetune"]
    assert "8 prompts x 6 = 48 candidates" in said["generate"]
    assert "16 borrowed from messages of another risk" in said["generate"]
    assert "48 candidates judged by embedded-12" in said["score"]
    assert "beside them 16 borrowed" in said["score"]
    assert re.search(r"pass 1: .* = 8 rewritten", said["refine"])
    assert "against borrowed replies) + " in said["pair"]
    assert "more of rewritten replies" in said["pair"]
    assert re.search(
        r"\d prompts to learn from: .* \d+ borrowed; \d+ comparisons", said["fit_reward"]
    )
    assert "rows are prompts" in said["fit_reward"]
    assert "safety head" in said["fit_reward"] and "best of n" in said["fit_reward"]
    # The reference is scored in batches of another size: equal but for rounding.
    largest = re.search(r"= ln 2, largest reward (\S+)", said["dpo"])
    assert largest is not None and float(largest[1]) < 1e-6
    assert "Unsafe replies: crisis" in said["evaluate_policy"]
    assert "Merged model: Largest difference" in said["export"]


def test_pairs_of_rewritten_replies_are_trained_on_only_if_asked(
    copied: Run, scripts: dict[str, ModuleType]
) -> None:
    sampled = {c.id for c in read_rows(copied.stage("generate") / "candidates.jsonl", Candidate)}
    made = read_rows(copied.stage("refine") / "candidates.jsonl", Candidate)
    assert made and {c.refined_from for c in made} <= sampled
    assert not {c.id for c in made} & sampled
    before = read_rows(copied.stage("pair") / "pairs.jsonl", Pair)
    pair = replace(before[0], chosen_id=made[0].id, chosen=[{"role": "assistant", "content": "x"}])
    write_rows(copied.stage("refine") / "pairs.jsonl", [pair])
    said = call(scripts, "pair", copied.flags("--overwrite", "true"))
    assert "1 more of rewritten replies" in said
    assert read_rows(copied.stage("pair") / "pairs.jsonl", Pair)[-1] == pair
    call(scripts, "pair", copied.flags("--pair.refined", "false", "--overwrite", "true"))
    left = read_rows(copied.stage("pair") / "pairs.jsonl", Pair)
    assert pair not in left and len(left) >= len(before) - 8


PPO = shlex.split("""
    --ppo.iterations 2 --ppo.prompts_per_iteration 3 --ppo.num_return_sequences 2
    --ppo.num_mini_batches 1 --ppo.num_ppo_epochs 1 --ppo.n_validation 6 --ppo.eval_every 1
    --ppo.max_new_tokens 24 --ppo.batch_size 6 --ppo.learning_rate 1e-3 --ppo.warmup_steps 0
""")


def test_ppo_is_proved_and_exported_beside_dpo_and_drawn_against_it(
    copied: Run, scripts: dict[str, ModuleType]
) -> None:
    start = ["--start_adapter", str(copied.stage("finetune") / "adapter")]
    shutil.copytree(copied.stage("fit_reward"), copied.runs / "of-model" / "reward")
    call(scripts, "ppo", copied.flags(*PPO, "--run", "of-model", "--ppo.reward", "model", *start))
    said = call(scripts, "ppo", copied.flags(*PPO))
    assert "2 rollouts x 3 prompts x 2 replies = 12 replies" in said
    assert "held out after 0 rollouts" in said and "kept the adapter after" in said
    made = read_json(copied.home / "ppo" / "manifest.json")
    assert made["status"] == "finished"
    assert (
        made["inputs"]["adapter"]["sha256"]
        == read_json(copied.stage("finetune") / "manifest.json")["outputs"]["adapter"]
    )
    assert {"adapter", "prompts.jsonl", "looks.jsonl"} == set(made["outputs"])
    ungated = ["--run", "small-no-gate", "--ppo.safety", "none", *start]
    call(scripts, "ppo", copied.flags(*PPO, *ungated))
    drawn = call(scripts, "frontier", copied.flags(*PPO))
    assert re.search(r"gate +DPO +round 1 +KL", drawn)
    assert re.search(r"none +best of n +best of 16 +KL  1.84", drawn)
    ours = copied.flags("--policy", "ppo")
    call(scripts, "evaluate_policy", ours)
    report = (copied.home / "evaluation-ppo" / "report.html").read_text(encoding="utf-8")
    assert "square root of KL" in report and "PPO: score of rollouts" in report
    call(scripts, "export", ours)
    assert (copied.home / "export-ppo" / "adapter" / "adapter_model.safetensors").is_file()
    # DPO's own proof is where it was.
    assert read_json(copied.home / "evaluation" / "manifest.json")["status"] == "finished"
    assert "PPO" not in (copied.home / "evaluation" / "report.html").read_text(encoding="utf-8")


def test_replies_are_rewritten_in_one_process(
    copied: Run, scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="refine works in one process"):
        call(scripts, "refine", copied.flags())


def test_the_lineage_is_in_the_manifests(run: Run) -> None:
    made = {script: read_json(run.stage(script) / "manifest.json") for script in STAGES}
    sft = made["finetune"]["outputs"]["adapter"]
    policy = made["dpo"]["outputs"]["adapter"]
    assert made["generate"]["inputs"]["adapter"]["sha256"] == sft
    assert made["dpo"]["inputs"]["adapter"]["sha256"] == sft
    proof = made["evaluate_policy"]["inputs"]
    assert (proof["policy"]["sha256"], proof["baseline"]["sha256"]) == (policy, sft)
    assert made["export"]["inputs"]["adapter"]["sha256"] == policy
    # Other weights of the base would be another run.
    assert "base model.safetensors" in made["finetune"]["inputs"]
    assert made["dpo"]["summary"]["loss_before"] == pytest.approx(math.log(2), abs=1e-6)
    assert made["dpo"]["summary"]["largest_change"] > 0
    # A run that is shorter than logging_steps has its figures too.
    assert made["finetune"]["summary"]["first_loss"] > 0


def test_the_report_has_the_measures_that_others_read(run: Run) -> None:
    report = read_json(run.stage("evaluate_policy") / "report.json")
    measures = {row["name"]: row for row in report["measures"]}
    for name in ("win_rate", "unsafe_rate", "unsafe_rate_crisis", "words"):
        assert {"value", "low", "high", "n"} <= set(measures[name]["policy"])
        assert {"value", "low", "high", "n"} <= set(measures[name]["baseline"])
    assert report["n_prompts"] == 12


def test_training_prompts_and_held_out_prompts_are_other_people(run: Run) -> None:
    trained = read_rows(run.stage("generate") / "prompts.jsonl", Prompt)
    held_out = read_rows(run.stage("evaluate_policy") / "prompts.jsonl", Prompt)
    assert {p.split for p in trained} == {"train"}
    assert {p.split for p in held_out} == {"held_out"}
    assert not {p.id for p in trained} & {p.id for p in held_out}


def test_a_second_call_reuses_every_stage_and_says_so(
    run: Run, scripts: dict[str, ModuleType]
) -> None:
    # Not all of `stat`: reading a file may change when it was last read.
    before = {script: (run.stage(script) / "manifest.json").stat().st_mtime_ns for script in STAGES}
    for script in STAGES:
        assert f"reused: {run.stage(script)}" in call(scripts, script, run.flags())
        assert (run.stage(script) / "manifest.json").stat().st_mtime_ns == before[script]
    # What says where and how loudly does not change a result.
    assert "reused" in call(scripts, "pair", run.flags("--log_text", "true", "--rounds", "2"))


class Recorder(Tracker):
    """Keeps what a stage would show."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.tables: dict[str, tuple[Sequence[str], Sequence[Sequence[object]]]] = {}
        self.made: list[tuple[Path, list[Path]]] = []

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        self.tables[name] = columns, rows

    def artifact(self, path: Path, type: str, uses: Sequence[Path] = ()) -> None:
        self.made.append((path, list(uses)))


@pytest.mark.parametrize("script", ["finetune", "evaluate_policy"])
def test_what_a_stage_gives_to_tracking(
    copied: Run, scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    shutil.rmtree(copied.stage(script))
    kept: list[Recorder] = []

    def record(kind: str, recipe: Recipe, stage: Stage) -> Recorder:
        kept.append(Recorder(stage))
        return kept[-1]

    monkeypatch.setattr(scripts[script], "tracker", record)
    call(scripts, script, copied.flags())
    folder, tracked = copied.stage(script), kept[0]
    if script == "finetune":
        lessons = folder / "demonstrations.jsonl"
        assert tracked.made == [(lessons, []), (folder / "adapter", [lessons])]
        return
    compared = [copied.stage("dpo") / "adapter", copied.stage("finetune") / "adapter"]
    assert tracked.made == [(folder / "report.json", compared)]
    columns, rows = tracked.tables["samples"]
    assert columns[:4] == ["risk", "prompt", "policy", "baseline"]
    assert len(rows) == 12
    first = json.loads((folder / "samples.jsonl").read_text().splitlines()[0])
    assert rows[0][2:5] == [first["policy"]["text"], first["baseline"]["text"], first["preference"]]
    assert str(rows[0][1]).endswith(first["prompt"][-1]["content"])


# --- the reward model --------------------------------------------------------------------------


def test_the_reported_scores_are_those_of_the_reloaded_reward_model(run: Run) -> None:
    recipe = config.load(run.flags(), "reward", "")
    precision = models.choose_precision("float32", use_cpu=True)
    folder = run.stage("fit_reward") / "adapter"
    model = RewardModel.load(folder, recipe.model, precision)
    candidates = read_rows(run.stage("generate") / "candidates.jsonl", Candidate)
    asked = {p.id: p for p in read_rows(run.stage("generate") / "prompts.jsonl", Prompt)}
    report = read_json(run.stage("fit_reward") / "report.json")
    own = [c for c in candidates if not c.borrowed]
    apart = set_apart([*asked.values()], share=0.4, seed=recipe.seed, purpose="reward")
    scores = {c.id: model.score([(asked[c.prompt_id].messages, c.text)])[0] for c in own}
    trained_on = [scores[c.id].reward for c in own if c.prompt_id not in apart]
    held_out = [scores[c.id].reward for c in own if c.prompt_id in apart]
    # Centred on the replies to the prompts that were learned from.
    assert sum(trained_on) / len(trained_on) == pytest.approx(0, abs=1e-5)
    assert report["centre"]["replies"] == len(trained_on)
    mean = sum(held_out) / len(held_out)
    assert report["held_out_mean"]["value"] == pytest.approx(mean, abs=1e-5)
    first = report["best_of_n"]["by_reward"][0]
    assert first["n"] == 1 and first["kl"] == 0
    assert first["means"]["reward"] == pytest.approx(mean, abs=1e-5)
    assert report["fitted_on"]["prompts"] + report["held_out"]["prompts"] == len(asked)
    every = next(row for row in report["accuracy"] if row["of"] == "all")
    assert every["reward"]["n"] == report["held_out"]["comparisons"]
    # The clinic's truth is asked, and of no more than the evaluator has told apart.
    assert 0 < report["truth"]["evaluator"]["n"] <= every["reward"]["n"]
    lines = (run.stage("fit_reward") / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["held_out/accuracy"] == every["reward"]["value"]


def test_the_reward_model_can_learn_from_the_pairs_alone(
    copied: Run, scripts: dict[str, ModuleType]
) -> None:
    flags = copied.flags("--reward.comparisons", "pairs", "--reward.tree", "false")
    with pytest.raises(ResultExists, match=r"reward\.comparisons: all there, pairs now"):
        call(scripts, "fit_reward", flags)
    said = call(scripts, "fit_reward", [*flags, "--overwrite", "true"])
    assert "rows are candidates: reward.tree is off" in said
    counts = read_json(copied.stage("fit_reward") / "report.json")["fitted_on"]
    assert counts["comparisons"] == counts["both_safe"]
    (copied.stage("pair") / "pairs.jsonl").unlink()
    with pytest.raises(UserError, match=r"run scripts/pair\.py of this recipe first"):
        call(scripts, "fit_reward", [*flags, "--overwrite", "true"])


def test_what_has_nothing_to_compare_says_so(copied: Run, scripts: dict[str, ModuleType]) -> None:
    flags = copied.flags("--pair.margin", "1", "--overwrite", "true")
    with pytest.raises(UserError, match=r"differ in quality by 1\.0 or more: give more prompts"):
        call(scripts, "fit_reward", flags)


# --- what is exported --------------------------------------------------------------------------


def test_the_exported_adapter_and_the_merged_model_say_what_was_trained(run: Run) -> None:
    source = hub.model_source("embedded")
    exported = run.stage("export")
    tokenizer = AutoTokenizer.from_pretrained(exported / "adapter")
    talk = [{"role": "user", "content": "I cannot sleep and I am tired all day."}]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])

    def logits(folder: str | Path, adapter: Path | None = None) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
        with torch.inference_mode():
            found: torch.Tensor = model.eval()(input_ids=ids).logits
        return found

    trained = logits(source, run.stage("dpo") / "adapter")
    assert torch.equal(logits(source, exported / "adapter"), trained)
    merged = logits(exported / "merged")
    assert (merged - trained).abs().max() < 0.1 * trained.std()  # rounded to bfloat16 once
    assert (merged - trained).norm() < (logits(source) - trained).norm()
    assert read_json(exported / "adapter" / "adapter_config.json")["base_model_name_or_path"] == (
        "embedded"
    )
    card = (exported / "README.md").read_text()
    assert "Released with `--force`" in card
    assert str(run.runs) not in card


def test_export_is_refused_without_a_passing_report(
    copied: Run, scripts: dict[str, ModuleType]
) -> None:
    shutil.rmtree(copied.stage("export"))
    flags = copied.flags("--export.force", "false")
    assert read_json(copied.stage("evaluate_policy") / "report.json")["passed"] is False
    with pytest.raises(CheckFailed, match="export refused") as refused:
        call(scripts, "export", flags)
    assert refused.value.exit_code == 5
    shutil.rmtree(copied.stage("evaluate_policy"))
    with pytest.raises(CheckFailed, match="there is no report"):
        call(scripts, "export", flags)
    assert not copied.stage("export").exists()


# --- a different result is there ---------------------------------------------------------------


def test_a_changed_setting_is_refused_and_overwritten_only_when_asked(
    copied: Run, scripts: dict[str, ModuleType]
) -> None:
    before = (copied.stage("pair") / "pairs.jsonl").read_bytes()
    with pytest.raises(ResultExists, match=r"pair\.margin: 0\.0 there, 0\.1 now") as refused:
        call(scripts, "pair", copied.flags("--margin", "0.1"))
    assert refused.value.exit_code == 4
    assert (copied.stage("pair") / "pairs.jsonl").read_bytes() == before
    call(scripts, "pair", copied.flags("--margin", "0.1", "--overwrite", "true"))
    # The next stage now has another input and will not pass its old result off as the answer.
    with pytest.raises(ResultExists, match=r"input pairs: the contents of .* have changed"):
        call(scripts, "dpo", copied.flags())


# --- the user's mistakes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "first"),
    [
        ("generate", "finetune.py"),
        ("score", "generate.py"),
        ("pair", "generate.py"),
        ("fit_reward", "finetune.py"),
        ("dpo", "finetune.py"),
        ("evaluate_policy", "dpo.py --round 1"),
        ("export", "dpo.py --round 1"),
    ],
)
def test_a_missing_earlier_stage_names_the_script_to_run(
    scripts: dict[str, ModuleType], tmp_path: Path, script: str, first: str
) -> None:
    with pytest.raises(UserError) as told:
        call(scripts, script, Run(tmp_path, {}).flags())
    assert first in str(told.value)
    assert not (tmp_path / "small" / STAGES[script]).exists()


def test_an_unfinished_earlier_stage_is_not_built_upon(
    copied: Run, scripts: dict[str, ModuleType]
) -> None:
    path = copied.stage("score") / "manifest.json"
    path.write_text(json.dumps(read_json(path) | {"status": "interrupted"}))
    with pytest.raises(UserError, match=r"unfinished stage \(interrupted\): run scripts/score\.py"):
        call(scripts, "pair", copied.flags())


def test_a_tie_band_from_repeats_that_are_not_there_is_refused(
    copied: Run, scripts: dict[str, ModuleType]
) -> None:
    flags = copied.flags("--margin", "auto", "--overwrite", "true")
    with pytest.raises(UserError, match="0 candidates were judged more than once") as refused:
        call(scripts, "pair", flags)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("q.jsonl", '{"messages": [{"role": "user", "content": "Hi."}]}\n{"messages": [\n', ":2"),
        ("q.jsonl", "", "empty"),
        ("q.csv", "colour,size\nred,3\n", "colour"),
        ("missing.jsonl", None, "does not exist"),
    ],
)
def test_bad_prompt_files_are_told_with_their_line(
    scripts: dict[str, ModuleType], tmp_path: Path, name: str, text: str | None, told: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    flags = Run(tmp_path, {}).flags("--prompts", str(path), "--start_adapter", "none")
    with pytest.raises(UserError, match=f"{name}.*{told}") as error:
        call(scripts, "generate", flags)
    assert error.value.exit_code == 2


@pytest.mark.parametrize("name", ["../other", "/tmp/other", "a/b", ".."])
def test_a_run_name_stays_in_the_runs_folder(
    scripts: dict[str, ModuleType], tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match="run"):
        call(scripts, "finetune", [*Run(tmp_path, {}).flags(), "--run", name])
    assert list(tmp_path.iterdir()) == []


def test_round_two_starts_from_the_policy_of_round_one(copied: Run, tmp_path: Path) -> None:
    recipe = Recipe(run="small", runs_dir=str(copied.runs), rounds=2, round=2)
    assert lineage.start_adapter(recipe) == copied.stage("dpo") / "adapter"
    assert lineage.baseline_adapter(recipe) == copied.stage("finetune") / "adapter"
    with pytest.raises(UserError, match=r"dpo\.py --round 2"):
        lineage.policy_adapter(recipe)


# --- processes ---------------------------------------------------------------------------------

WITHOUT_TORCH = """
import importlib, sys
SLOW = {"torch", "transformers", "trl", "peft", "accelerate", "datasets"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in SLOW:
            raise ImportError(f"{name} was loaded before the mistake was told")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
from sft.files import UserError
for name in sys.argv[3:]:
    try:
        flags = ["--run", "t", "--runs_dir", sys.argv[2], "--prompts", "missing.jsonl"]
        importlib.import_module(name).main(flags + ["--demonstrations", "missing.jsonl"])
    except UserError as error:
        print(name, "told:", error)
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_mistakes_are_told_before_torch_is_loaded(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(SCRIPTS), str(tmp_path), *STAGES]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if "told:" in line] == [*STAGES]


def test_a_users_mistake_ends_with_its_code_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "pair.py"), *Run(tmp_path, {}).flags()]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def waits_for(ready: Callable[[], bool], process: subprocess.Popen[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never got so far"
        time.sleep(0.02)


def stopped(command: list[str], number: int, ready: Callable[[], bool], cwd: Path) -> str:
    """Start a script, send it a signal when it is at work; what it wrote on stderr."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background lets its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        waits_for(ready, process, 60)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    return said


def many_candidates(folder: Path, prompts: int, k: int) -> int:
    """Enough replies that the evaluator is at work for some seconds."""
    people = practice_prompts("train", prompts, 1, crisis_share=0.2, elevated_share=0.2)
    text = "That sounds so hard. Would you like to tell me a little more about it? " * 6
    rows = [
        Candidate(f"c-{p.id}-{i}", p.id, f"{text}{i}.", "base", 1.0, 1.0, i, "eos")
        for p in people
        for i in range(k)
    ]
    write_rows(folder / "prompts.jsonl", people)
    write_rows(folder / "candidates.jsonl", rows)
    return len(rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_stage_says_how_to_go_on_and_keeps_what_was_judged(
    scripts: dict[str, ModuleType], tmp_path: Path, number: signal.Signals
) -> None:
    made = Run(tmp_path, {})
    total = many_candidates(made.stage("generate"), 200, 8)
    partial = made.stage("score") / "partial.jsonl"

    def at_work() -> bool:
        return partial.is_file() and partial.stat().st_size > 0

    command = [sys.executable, str(SCRIPTS / "score.py"), *made.flags()]
    said = stopped(command, number, at_work, tmp_path)
    manifest = read_json(made.stage("score") / "manifest.json")
    assert manifest["status"] == "interrupted"
    assert "scores is unfinished; earlier stages are kept. To go on: python" in said
    judged = len(partial.read_bytes().splitlines())
    assert 0 < judged < total
    said = call(scripts, "score", made.flags())
    assert "starting afresh" in said
    assert f"{total} candidates judged" in said
    assert read_json(made.stage("score") / "manifest.json")["status"] == "finished"
    assert not partial.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    made = Run(tmp_path, {})
    flags = made.flags("--max_steps", "5000", "--logging_steps", "1")
    metrics = made.stage("finetune") / "metrics.jsonl"
    command = [sys.executable, str(SCRIPTS / "finetune.py"), *flags]
    said = stopped(command, number, metrics.is_file, tmp_path)
    assert "finetune is unfinished; earlier stages are kept. To go on: python" in said
    assert read_json(made.stage("finetune") / "manifest.json")["status"] == "interrupted"
    assert not (made.stage("finetune") / "adapter").exists()


# --- the scripts themselves --------------------------------------------------------------------


def test_scripts_stay_short() -> None:
    long = {p.name: len(p.read_text().splitlines()) for p in SCRIPTS.glob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > 80} == {}
