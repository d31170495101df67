"""Fitting the reward model: Bradley-Terry over all comparisons of a prompt in one pass.

A row is a prompt with all its judged candidates, or, with `reward.tree_tokens`, a pack of prompts
that fills a micro-step; each candidate is computed once. Their rewards meet in every comparison of
the prompt (Ouyang et al. 2022, arXiv:2203.02155, equation 1), their verdicts in a
loss of the safety head. The two losses train one adapter together; the two scores are never added.
Sums are divided by what a micro-batch of its size holds on average, so that 1 x 8, 8 x 1 and two
processes give the same update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import TrainingArguments

from reward.comparisons import Question, Side
from reward.lessons import Row, prepare, to_packs
from reward.model import RewardModel, Score
from reward.pairing import Pair
from sft import model as models
from sft.chat import Chat, system_prompt
from sft.config import Recipe, RewardSection
from sft.resume import train
from sft.runs import Stage
from sft.sharding import refuse_shares
from sft.train import check_moved, snapshot, steps_line, trainer_options
from sft.trainer_rules import Reporter, TrainerRules

SCORED_ROWS = 4  # without a gradient, as many times the rows of a micro-batch fit


def bradley_terry(
    better: torch.Tensor, worse: torch.Tensor, confidence: torch.Tensor, lead: torch.Tensor
) -> torch.Tensor:
    """Loss of each comparison: -[c log s(d) + (1 - c) log s(-d)] with d = better - worse - lead.

    Bradley and Terry (1952); with a lead Touvron et al. 2023 (arXiv:2307.09288, equation 2); with
    c < 1 the target is a probability, and the loss is least at d = log(c / (1 - c)). With c = 1 it
    is the loss of TRL's `RewardTrainer`.

    Args:
        better: (P) rewards of the better replies.
        worse: (P) rewards of the other ones.
        confidence: (P) probability that the order is right, above 0.5 and at most 1.
        lead: (P) reward that the better reply has to be ahead by; 0 = none.

    Returns:
        (P) nats.
    """
    d = better - worse - lead
    return -(confidence * logsigmoid(d) + (1 - confidence) * logsigmoid(-d))


class RewardTrainer(TrainerRules):
    """Trainer on rows of whole prompts, or of packs of them."""

    def __init__(self, section: RewardSection, model: RewardModel, **options: Any) -> None:
        """Take what `Trainer` takes; the section has the weights of the loss."""
        super().__init__(model=model, data_collator=self._collate, **options)
        self.section = section
        self._sums: Counter[str] = Counter()

    def _collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """The model's batch, and places, margins and verdicts of its replies."""
        batch, first, pairs = self.model.batch([row["sequences"] for row in rows]), 0, []
        for row in rows:
            pairs += [[first + better, first + worse] for better, worse in row["pairs"]]
            first += len(row["sequences"])
        columns = {
            name: torch.tensor([value for row in rows for value in row[name]], dtype=torch.float32)
            for name in ("confidence", "margin", "safe", "judged")
        }
        places = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        return {**batch, **columns, "pairs": places, "rows": torch.tensor(len(rows))}

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Mean over comparisons plus weighted mean over verdicts; in training, in shares of an
        average micro-batch. The signature is Trainer's; there are no outputs to return.
        """
        own = ("confidence", "margin", "safe", "judged", "pairs", "rows")
        scores = model(**{name: value for name, value in inputs.items() if name not in own})
        better, worse = scores.reward[inputs["pairs"]].unbind(dim=1)
        lead = self.section.margin_scale * inputs["margin"]
        preferred = bradley_terry(better, worse, inputs["confidence"], lead)
        judged = inputs["judged"] * binary_cross_entropy_with_logits(
            scores.safety, inputs["safe"], reduction="none"
        )
        n_pairs, n_replies = float(len(preferred)), float(inputs["judged"].sum())
        if model.training:
            share = float(inputs["rows"]) / len(self.train_dataset)
            n_pairs, n_replies = (share * total for total in self._totals)
        self._note(
            {
                "pairs": torch.ones_like(preferred),
                "reward_loss": preferred,
                "accuracy": (torch.sign(better - worse) + 1) / 2,  # a tie counts half
                "lead": better - worse,
                "replies": inputs["judged"],
                "safety_loss": judged,
                "safety_accuracy": inputs["judged"] * ((scores.safety > 0) == (inputs["safe"] > 0)),
            }
        )
        return preferred.sum() / n_pairs + self.section.safety_weight * judged.sum() / n_replies

    @cached_property
    def _totals(self) -> tuple[float, float]:
        """Comparisons and verdicts of all rows."""
        rows = self.train_dataset
        return float(sum(map(len, rows["pairs"]))), float(sum(map(sum, rows["judged"])))

    @torch.no_grad()
    def _note(self, columns: Mapping[str, torch.Tensor]) -> None:
        """Add up what is logged, over all processes."""
        added = torch.stack([values.detach().float().sum() for values in columns.values()])
        totals = self.accelerator.reduce(added, "sum").tolist()
        self._sums.update(dict(zip(columns, totals, strict=True)))

    def sums(self) -> dict[str, Any]:
        """What was added up since the last logged line."""
        return dict(self._sums)

    def set_sums(self, sums: Mapping[str, Any]) -> None:
        """Put that back."""
        self._sums = Counter(sums)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log means since the last line beside what Trainer logs."""
        sums, self._sums = self._sums, Counter()
        for name, of in (
            *((name, "pairs") for name in ("reward_loss", "accuracy", "lead")),
            *((name, "replies") for name in ("safety_loss", "safety_accuracy")),
        ):
            if sums[of]:
                logs[name] = sums[name] / sums[of]
        super().log(logs, start_time)


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves for its report.

    Attributes:
        train, held_out: the two sides of the prompts.
        scores: of each reply, by its candidate's id, centred.
        centre: mean and spread of the rewards before centring.
        summary: counts and figures for the manifest.
    """

    train: Side
    held_out: Side
    scores: dict[str, Score]
    centre: dict[str, float]
    summary: dict[str, Any]


def fit_reward(
    recipe: Recipe,
    questions: Sequence[Question],
    pairs: Sequence[Pair],
    start: Path | None,
    stage: Stage,
) -> Fitted:
    """Fit adapter and heads, centre the reward, and write both to `<stage>/adapter`.

    Args:
        recipe: its `model` and `reward` sections, and `pair.margin`.
        questions: prompts with their scored replies.
        pairs: of the pair stage; read where `reward.comparisons` is "pairs".
        start: folder of the adapter of which a copy is trained; None = a fresh one.
        stage: where metrics and the adapter go.
    """
    refuse_shares("the reward model", "its heads read the base outside of a trainer's wrapper")
    precision = models.choose_precision(recipe.model.dtype, use_cpu=recipe.use_cpu)
    tokenizer = models.load_tokenizer(recipe.model)
    chat = Chat(tokenizer, system_prompt(recipe.model.system_prompt), recipe.model.max_length)
    material = prepare(recipe, questions, pairs, chat)
    stage.say(material.line())
    torch.manual_seed(recipe.seed)
    base = models.load_base(recipe.model, precision)
    language = (
        models.new_adapter(base, recipe.model)
        if start is None
        else models.load_adapter(base, start, trainable=True)
    )
    model = RewardModel(
        language, chat, precision,
        tree=recipe.reward.tree, attention=recipe.model.attn_implementation,
    )  # fmt: skip
    learned = _train(recipe, model, material.rows(), stage)
    every = [*material.train.questions, *material.held_out.questions]
    scores = _score_all(model, every, material.ids, recipe.reward.per_device_train_batch_size)
    own = [q.replies[i].candidate.id for q in material.train.questions for i in q.own]
    rewards = torch.tensor([scores[name].reward for name in own], dtype=torch.float64)
    offset = float(rewards.mean())
    model.heads.offset.fill_(offset)
    centre = {"offset": offset, "spread": float(rewards.std(correction=0)), "replies": len(own)}
    if stage.is_main:
        model.save(stage.path("adapter"), recipe.model.name_or_path)
    # In float32, as the heads do it: what is reported is what a reloaded model says.
    zero = model.heads.offset.cpu()
    centred = {name: Score(float(torch.tensor(r) - zero), p) for name, (r, p) in scores.items()}
    counts = {**material.left_out, "precision": precision.reason}
    return Fitted(material.train, material.held_out, centred, centre, learned | counts)


def _weights(model: RewardModel) -> dict[str, torch.Tensor]:
    """Copy of all that is trained."""
    heads = {
        f"heads.{name}": value.detach().clone() for name, value in model.heads.named_parameters()
    }
    return snapshot(model.language) | heads


def reward_options(recipe: Recipe, precision: models.Precision, folder: Path) -> dict[str, Any]:
    """Arguments of transformers' `TrainingArguments` by the recipe."""
    options = trainer_options(recipe.reward, recipe, precision, folder)
    # TRL's own; and Trainer would ask the module around the model for its checkpointing.
    for name in ("max_length", "gradient_checkpointing"):
        del options[name]
    return options | {"remove_unused_columns": False}


def _train(recipe: Recipe, model: RewardModel, rows: Sequence[Row], stage: Stage) -> dict[str, Any]:
    """Train adapter and heads; losses, accuracy and the largest change, for the manifest."""
    section = recipe.reward
    longest = max(len(ids) for row in rows for ids in row["sequences"])
    plain = sum(len(ids) for row in rows for ids in row["sequences"])
    nodes = sum(row["length"] for row in rows)
    pairs = sum(len(row["sequences"][i]) for row in rows for pair in row["pairs"] for i in pair)
    reason = model.why_rows(longest)
    packs = to_packs(rows, 0 if reason else section.tree_tokens, recipe.seed)
    stage.say(
        f"rows are candidates: {reason}"
        if reason
        else f"rows are prompts: {pairs} token positions as pairs, {plain} as candidates, {nodes} "
        f"as trees: {pairs / nodes:.1f} : {plain / nodes:.1f} : 1"
    )
    if section.tree_tokens and not reason:
        stage.say(
            f"{len(packs.rows)} packs of prompts; {packs.split} prompts did not fit "
            f"reward.tree_tokens and were split, {packs.over} packs are longer than it"
        )
    if section.gradient_checkpointing:
        model.language.gradient_checkpointing_enable({"use_reentrant": False})
    before, reporter = _weights(model), Reporter(stage, "reward")
    trainer = RewardTrainer(
        section,
        model,
        args=TrainingArguments(**reward_options(recipe, model.precision, stage.folder)),
        train_dataset=Dataset.from_list(packs.rows),
    )
    stage.say(steps_line(section, len(packs.rows), trainer.args.world_size))
    train(trainer, reporter, section.save_every)
    moved = check_moved(before, _weights(model))
    logged = [row for row in reporter.history if "reward_loss" in row]
    names = ("reward_loss", "accuracy", "safety_loss", "safety_accuracy")
    return {
        **{f"first_{name}": logged[0].get(name) for name in names},
        **{f"last_{name}": logged[-1].get(name) for name in names},
        "largest_change": moved,
    }


def _score_all(
    model: RewardModel, questions: Sequence[Question], ids: Mapping[str, list[int]], rows: int
) -> dict[str, Score]:
    """Score every reply by its candidate's id; each process takes its share of the questions."""
    state = PartialState()
    mine = questions[state.process_index :: state.num_processes]
    names = [[reply.candidate.id for reply in question.replies] for question in mine]
    groups = [[ids[name] for name in some] for some in names]
    found = [
        (name, score)
        for some, scores in zip(names, model.score_ids(groups, SCORED_ROWS * rows), strict=True)
        for name, score in zip(some, scores, strict=True)
    ]
    return dict(gather_object(found) if state.num_processes > 1 else found)
