"""A recipe: everything one experiment is made from, and which settings exclude each other.

`sft.config` reads one from a file and the command line; `sft.sections` has the stages' settings.
"""

from __future__ import annotations

import random
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from sft.hub import known_config, too_long
from sft.judges import judging_problems, stage_problems
from sft.pair_settings import LONGER, PairSection, RefineSection
from sft.plan_settings import PlanSection
from sft.ppo_settings import PpoSection, ppo_problems
from sft.reward_settings import RewardSection
from sft.sections import (
    TREE_LOSSES,
    DpoSection,
    EvaluateSection,
    ExportSection,
    FinetuneSection,
    GenerateSection,
    ModelSection,
    Rate,
    ScoreSection,
    Share,
)
from sft.service_settings import Positive, Section
from sft.services import service_problems
from sft.trainer_fields import CONFIGS, trainer_fields

Problem = tuple[tuple[str, ...], str]


class Impossible(ValueError):
    """Settings that are fine alone and impossible together: `problems` are (fields, message)."""

    def __init__(self, problems: list[Problem]) -> None:
        """Keep the problems; the message joins them."""
        super().__init__("; ".join(message for _, message in problems))
        self.problems = problems


class Recipe(Section):
    """One experiment: what all stages share, and a section per stage."""

    run: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$",
        description="name of the run's folder: letters, digits, '.', '_', '-'",
    )
    runs_dir: str = Field(
        default="runs", description="folder of all runs, relative to the current one"
    )
    seed: int = Field(
        default=3407, ge=0, lt=2**32, description="seed of everything random, 0 to 2^32 - 1"
    )
    rounds: Positive = Field(default=1, description="how often the loop is walked, at least 1")
    round: Positive = Field(default=1, description="the round this command works on, 1 to rounds")
    tracking: Literal["none", "wandb"] = Field(
        default="none", description="wandb also logs to Weights & Biases; none = only metrics.jsonl"
    )
    log_text: bool = Field(
        default=False, description="conversations may go to the tracking service; false = never"
    )
    overwrite: bool = Field(
        default=False, description="do a finished stage again and replace its result; false = keep"
    )
    resume: Literal["auto", "never"] = Field(
        default="auto",
        description="auto = an unfinished training goes on from its newest checkpoint; never = it "
        "starts again",
    )
    use_cpu: bool = Field(
        default=False, description="leave the GPU alone; false = use it where there is one"
    )
    prompts: str = Field(
        default="practice-clinic", description="'practice-clinic', a path or a Hub name"
    )
    held_out: str | None = Field(
        default=None,
        description="path of held-out prompts; null = a share of prompts, split by content",
    )
    held_out_share: Rate = Field(
        default=0.2, description="share of prompts held out, between 0 and 1"
    )
    demonstrations: str = Field(
        default="practice-clinic",
        description="'practice-clinic', 'project' (98 shipped pairs), a path or a Hub name",
    )
    policy: Literal["dpo", "ppo"] = Field(
        default="dpo", description="the stage whose adapter is evaluated and exported"
    )
    start_adapter: str | None = Field(
        default=None,
        description="adapter folder that alignment starts from; 'none' = the base itself; "
        "null = the run's SFT adapter",
    )
    adapter: str | None = Field(
        default=None,
        description="adapter folder to evaluate and export; null = the last round's policy",
    )
    crisis_share: Share = Field(
        default=0.15, description="crises among training prompts (clinic only)"
    )
    elevated_share: Share = Field(
        default=0.2, description="elevated risk among training prompts (clinic only)"
    )
    model: ModelSection = ModelSection()
    finetune: FinetuneSection = FinetuneSection()
    generate: GenerateSection = GenerateSection()
    score: ScoreSection = ScoreSection()
    refine: RefineSection = RefineSection()
    pair: PairSection = PairSection()
    reward: RewardSection = RewardSection()
    dpo: DpoSection = DpoSection()
    ppo: PpoSection = PpoSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    plan: PlanSection = PlanSection()

    def settings(self, *names: str) -> dict[str, Any]:
        """Plain values of some top-level settings or whole sections, for a stage's manifest.

        Example: `recipe.settings("seed", "use_cpu", "model", "dpo")`.
        """
        missing = set(names) - set(Recipe.model_fields)
        if missing:
            raise KeyError(f"no such settings: {sorted(missing)}")
        return self.model_dump(mode="json", include=set(names))

    @property
    def round_seed(self) -> int:
        """This round's own seed, 0 to 2^32 - 1: of `seed` and `round` both, not of their sum."""
        return random.Random(f"{self.seed} round {self.round}").getrandbits(32)

    @model_validator(mode="after")
    def _possible(self, info: ValidationInfo) -> Recipe:
        problems = [
            *_device(self),
            *service_problems(self.generate, self.score, self.evaluate, self.ppo),
            *_numbers(self),
            *_room(
                self, optimises=self.policy == "ppo" or (info.context or {}).get("stage") == "ppo"
            ),
        ]
        problems += [*_pairs(self), *_trainers(self), *judging_problems(self.score, self.evaluate)]
        problems += ppo_problems(self.ppo)
        if info.context is not None:
            problems += stage_problems(info.context["stage"], self.score, self.ppo)
        if problems:
            raise Impossible(problems)
        return self


def _device(r: Recipe) -> list[Problem]:
    """Precisions and kernels that the device or each other exclude."""
    found: list[Problem] = []
    if r.use_cpu and r.model.dtype == "float16":
        text = "float16 does not train on a CPU: set model.dtype to auto, float32 or bfloat16"
        found.append((("model.dtype", "use_cpu"), text))
    if r.model.attn_implementation.startswith("flash_attention"):
        fields = ("model.attn_implementation", "use_cpu")
        if r.use_cpu:
            found.append((fields, "flash attention needs a GPU: set it to sdpa"))
        if r.model.dtype == "float32":
            text = "flash attention has no float32: set model.dtype to auto, or use sdpa"
            found.append((("model.attn_implementation", "model.dtype"), text))
    return found


def _numbers(r: Recipe) -> list[Problem]:
    """Numbers that contradict each other."""
    found: list[Problem] = []
    if r.round > r.rounds:
        text = f"round {r.round} of {r.rounds}: raise rounds, or name an earlier round"
        found.append((("round", "rounds"), text))
    if r.crisis_share + r.elevated_share > 1:
        total = f"{r.crisis_share} + {r.elevated_share} = {r.crisis_share + r.elevated_share:g}"
        found.append((("crisis_share", "elevated_share"), f"the shares are more than 1: {total}"))
    if r.held_out is not None and r.held_out == r.prompts:
        text = "held-out prompts may not be the training prompts: name another file, or null"
        found.append((("held_out", "prompts"), text))
    weights = r.dpo.loss_weights
    if weights is not None and len(weights) != len(r.dpo.loss_type):
        text = f"{len(weights)} weights for {len(r.dpo.loss_type)} losses: give one for each"
        found.append((("dpo.loss_weights", "dpo.loss_type"), text))
    only = sorted(TREE_LOSSES & set(r.dpo.loss_type))
    only += ["pair_confidence"] if r.dpo.pair_confidence else []
    if "robust" in r.dpo.loss_type and r.dpo.pair_confidence:
        # Its gradient grows with 1 / (2 confidence - 1): the least certain pairs would rule.
        text = "robust weighs doubtful pairs most: set conservative, or dpo.label_smoothing for all"
        found.append((("dpo.loss_type", "dpo.pair_confidence"), text))
    if only and not r.dpo.tree:
        text = f"{', '.join(only)}: only on trees; leave dpo.tree on, or choose a loss of TRL's"
        found.append((("dpo.tree", "dpo.loss_type"), text))
    found += _tree_tokens(r)
    clinic = r.prompts == "practice-clinic" and r.held_out is None
    if clinic and r.evaluate.crisis_prompts > r.evaluate.n_prompts:
        counts = f"{r.evaluate.crisis_prompts} crises among {r.evaluate.n_prompts} prompts"
        text = f"{counts}: lower the former or raise the latter"
        found.append((("evaluate.crisis_prompts", "evaluate.n_prompts"), text))
    return found


def _tree_tokens(r: Recipe) -> list[Problem]:
    """Budgets of tokens that could not act."""
    found: list[Problem] = []
    for name, section in (("dpo", r.dpo), ("reward", r.reward)):
        budget = f"{name}.tree_tokens"
        if section.tree_tokens and not section.tree:
            text = f"a token budget packs trees: leave {name}.tree on, or set {budget} 0"
            found.append(((budget, f"{name}.tree"), text))
        if section.tree_tokens and section.per_device_train_batch_size > 1:
            rows = f"{name}.per_device_train_batch_size"
            text = f"with {budget} a row is a pack that fills a micro-step: set {rows} 1"
            found.append(((budget, rows), text))
    return found


def _pairs(r: Recipe) -> list[Problem]:
    """Rules of pairing that could never act."""
    found: list[Problem] = []
    ratio = r.pair.max_length_ratio
    if 0 < ratio < 1:
        text = "how much longer a chosen reply may be is never below 1: give 1 or more, or 0 = off"
        found.append((("pair.max_length_ratio",), text))
    if 1 <= ratio <= LONGER and r.pair.max_longer_share < 1:
        text = (
            f"with max_length_ratio {ratio:g} no pair by quality has a chosen reply more than"
            f" {LONGER:g} times as long: raise it, set it 0, or leave max_longer_share 1"
        )
        found.append((("pair.max_longer_share", "pair.max_length_ratio"), text))
    choosing = r.pair.max_pairs_per_prompt > 0 or r.pair.strategy == "best_worst"
    if r.pair.length_match > 0 and not choosing:
        text = (
            "there is nothing to choose where every pair is taken: set pair.max_pairs_per_prompt,"
            " or strategy best_worst"
        )
        found.append((("pair.length_match", "pair.max_pairs_per_prompt"), text))
    return found


def _room(r: Recipe, *, optimises: bool) -> list[Problem]:
    """Tokens that a reply, a prompt and the model's positions must share."""
    found: list[Problem] = []
    replies = {"generate": r.generate.max_new_tokens, "evaluate": r.evaluate.max_new_tokens}
    if optimises:
        replies["ppo"] = r.ppo.max_new_tokens
    for name, longest in replies.items():
        if r.model.max_length <= longest:
            text = (
                f"replies of {longest} tokens leave no room for a prompt in"
                f" model.max_length {r.model.max_length}"
            )
            found.append(((f"{name}.max_new_tokens", "model.max_length"), text))
    config = known_config(r.model.name_or_path, r.model.revision)
    why = too_long(r.model.max_length, r.model.name_or_path, config or {})
    if why is not None:
        found.append((("model.max_length", "model.name_or_path"), why))
    return found


def _trainers(r: Recipe) -> list[Problem]:
    """Fields below `trainer:` that are settings of their own, or that the trainer does not have."""
    found: list[Problem] = []
    for name, section in (("finetune", r.finetune), ("reward", r.reward), ("dpo", r.dpo)):
        own = type(section).model_fields
        for key in sorted(section.trainer):
            if key in own:
                text = f"{key} is a setting of its own: set {name}.{key} instead"
            elif key not in (known := trainer_fields(name)):
                near = get_close_matches(key, known, n=1)
                text = f"{CONFIGS[name][1]} has no '{key}'"
                text += f": did you mean '{near[0]}'?" if near else ""
            else:
                continue
            found.append(((f"{name}.trainer.{key}", f"{name}.trainer"), text))
    return found
