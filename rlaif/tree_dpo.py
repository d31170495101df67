"""DPO on prefix trees: TRL's `DPOTrainer` as the frame, each prompt of a micro-batch computed once.

A row is a prompt with all candidates that stand in a pair, not a pair. The reference's
log-probabilities are computed once per candidate, before training. Pairs weigh the same whatever
micro-batch they fall in: sums are divided by what a micro-batch of its size holds on average, so
1 x 8, 8 x 1 and two processes give the same update. (Only the last micro-batch of an epoch, where
it is a short one, counts as a whole one: Trainer averages over micro-batches.) Not here: the tree
(`reward.tree`), the losses (`rlaif.preference`), the stage (`rlaif.dpo`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel
from trl import DPOTrainer

from reward.tree import Scored, TreeBatch, build_tree, collate, reason_against, score_tree
from rlaif.preference import LOSSES, Ratios
from sft.config import DpoSection
from sft.train import TrainerRules

REFERENCE_ROWS = 4  # without a gradient, as many times the rows of a micro-batch fit


def to_groups(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of token rows, joined by prompt: one group per prompt, each candidate once.

    Args:
        rows: `prompt_id`, `prompt_ids`, `chosen_ids`, `rejected_ids` of each pair.

    Returns:
        Of each prompt `number` (its own), `sequences` (token ids of prompt and reply), `starts`
        (first token of each reply), `pairs` ([chosen, rejected], places in `sequences`) and
        `length` (nodes of the tree).
    """
    groups: dict[str, dict[str, Any]] = {}
    places: dict[str, dict[tuple[int, tuple[int, ...]], int]] = {}
    for row in rows:
        name, start = row["prompt_id"], len(row["prompt_ids"])
        group = groups.setdefault(
            name, {"number": len(groups), "sequences": [], "starts": [], "pairs": []}
        )
        known = places.setdefault(name, {})
        pair = []
        for side in ("chosen_ids", "rejected_ids"):
            ids = [*row["prompt_ids"], *row[side]]
            place = known.setdefault((start, tuple(ids)), len(known))
            if place == len(group["sequences"]):
                group["sequences"].append(ids)
                group["starts"].append(start)
            pair.append(place)
        group["pairs"].append(pair)
    for group in groups.values():
        group["length"] = len(build_tree(group["sequences"]).tokens)
    return list(groups.values())


def reason_for_pairs(
    section: DpoSection, model: PreTrainedModel, rows: Sequence[Mapping[str, Any]]
) -> str | None:
    """Why a run trains on plain rows of pairs instead of trees; None = it trains on trees."""
    if not section.tree:
        return "dpo.tree is off"
    if others := sorted({*map(str, section.loss_type)} - set(LOSSES) - {"sft"}):
        return f"loss {', '.join(others)} is TRL's own"
    unread = {"use_weighting", "f_divergence_type", "sync_ref_model", "disable_dropout"}
    unread |= {"max_length", "truncation_mode", "pad_token", "precompute_ref_batch_size"}
    if others := sorted(unread & set(section.trainer)):
        return f"dpo.trainer sets {', '.join(others)}"
    return reason_against(model.config, max(row["length"] for row in rows))


@dataclass
class Collator:
    """Groups to one batch of tensors.

    Attributes:
        reference: log-probability of every scored token of a group by its number, as in
            `TreeBatch.targets`.
    """

    pad_id: int
    multiple: int
    reference: dict[int, torch.Tensor] = field(default_factory=dict)

    def trees(self, groups: Sequence[Mapping[str, Any]]) -> TreeBatch:
        """The trees of the groups."""
        made = [build_tree(group["sequences"]) for group in groups]
        return collate(made, [group["starts"] for group in groups], self.pad_id, self.multiple)

    def __call__(self, groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Trees, pairs (P, 2) as places among the batch's candidates, and the reference (M)."""
        batch, first, pairs = self.trees(groups), 0, []
        for group in groups:
            pairs += [[first + chosen, first + rejected] for chosen, rejected in group["pairs"]]
            first += len(group["sequences"])
        reference = torch.cat([self.reference[group["number"]] for group in groups])
        return {**batch._asdict(), "pairs": torch.tensor(pairs), "reference": reference}


def score_reference(
    model: PreTrainedModel, groups: Sequence[Mapping[str, Any]], collator: Collator, rows: int
) -> None:
    """Fill `collator.reference` with what the model, as it is now, says of each candidate.

    Args:
        model: prepared by `reward.tree.add_tree_forward`, in the precision of training.
        groups: all of them; each process takes its share.
        collator: makes batches of trees, and keeps what is found.
        rows: groups at once.
    """
    state = PartialState()
    order = sorted(groups, key=lambda group: group["length"])
    batches = [order[i : i + rows] for i in range(0, len(order), rows)]
    found: list[tuple[int, torch.Tensor]] = []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        # Longest first: the batch that may not fit in memory fails at once, not at the end.
        for groups_now in batches[::-1][state.process_index :: state.num_processes]:
            batch = collator.trees(groups_now)
            on_device = TreeBatch(*(each.to(model.device) for each in batch))
            said = score_tree(model, on_device).log_probs.cpu()
            sizes = [_scored_tokens(group) for group in groups_now]
            numbers = (group["number"] for group in groups_now)
            found += zip(numbers, said.split(sizes), strict=True)
    model.train(was_training)
    collator.reference = dict(gather_object(found) if state.num_processes > 1 else found)


def _scored_tokens(group: Mapping[str, Any]) -> int:
    pairs = zip(group["sequences"], group["starts"], strict=True)
    return sum(len(ids) - start for ids, start in pairs)


class TreeTrainer(TrainerRules, DPOTrainer):
    """TRL's trainer on groups instead of pairs; its options, metrics and checks stay."""

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Weighted sum of the configured losses; in training, in shares of an average micro-batch.

        The signature is Trainer's; a tree has no outputs to return.
        """
        batch = TreeBatch(**{name: inputs[name] for name in TreeBatch._fields})
        scored, pairs = score_tree(model, batch), inputs["pairs"]
        ratios = self._ratios(scored.log_probs - inputs["reference"], batch.lengths, pairs)
        chosen_sums = _sums(scored.log_probs, batch.lengths)[pairs[:, 0]]
        n_pairs = float(len(pairs))
        n_tokens = float(ratios.chosen_tokens.sum())
        if model.training:
            share = len(batch.input_ids) / len(self.train_dataset)
            total_pairs, total_tokens = self._totals
            n_pairs, n_tokens = share * total_pairs, share * total_tokens
        loss = scored.log_probs.new_zeros(())
        for name, weight in zip(self.loss_types, self.loss_weights, strict=True):
            if name == "sft":
                loss = loss - weight * chosen_sums.sum() / n_tokens
            else:
                each = LOSSES[name](ratios, self.beta, self.label_smoothing)
                loss = loss + weight * each.sum() / n_pairs
        self._note(model.training, batch, scored, ratios, pairs)
        return loss

    def _ratios(
        self, log_ratios: torch.Tensor, lengths: torch.Tensor, pairs: torch.Tensor
    ) -> Ratios:
        """Log-ratios of both sides; with `ld_alpha`, a longer reply's surplus counts that much.

        LD-DPO, Liu et al. 2024 (arXiv:2409.06411), equation 11.
        """
        tokens = lengths[pairs]
        if self.ld_alpha is None:
            both = _sums(log_ratios, lengths)[pairs]
        else:
            width = int(lengths.max())
            mask = torch.arange(width, device=lengths.device) < lengths[:, None]
            padded = log_ratios.new_zeros(mask.shape).masked_scatter(mask, log_ratios)
            so_far = torch.nn.functional.pad(padded.cumsum(dim=1), (1, 0))[pairs]
            shared = tokens.min(dim=1, keepdim=True).values.expand(-1, 2)
            upto = so_far.gather(2, shared[..., None])[..., 0]
            both = upto + self.ld_alpha * (so_far[..., -1] - upto)
        return Ratios(both[:, 0], both[:, 1], tokens[:, 0], tokens[:, 1])

    @cached_property
    def _totals(self) -> tuple[int, int]:
        """Pairs of all groups, and tokens of their chosen replies."""
        pairs = tokens = 0
        for group in self.train_dataset:
            pairs += len(group["pairs"])
            tokens += sum(
                len(group["sequences"][chosen]) - group["starts"][chosen]
                for chosen, _ in group["pairs"]
            )
        return pairs, tokens

    @torch.no_grad()
    def first_look(self, groups: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
        """DPO's loss on groups, and the largest absolute reward of any reply in their pairs."""
        inputs = self._prepare_inputs(self.data_collator(groups))
        batch = TreeBatch(**{name: inputs[name] for name in TreeBatch._fields})
        scored = score_tree(self.model, batch)
        log_ratios = scored.log_probs - inputs["reference"]
        ratios = self._ratios(log_ratios, batch.lengths, inputs["pairs"])
        loss = LOSSES["sigmoid"](ratios, self.beta, 0.0).mean()
        largest = torch.cat([ratios.chosen, ratios.rejected]).abs().max()
        return float(loss), self.beta * float(largest)

    @torch.no_grad()
    def _note(
        self, training: bool, batch: TreeBatch, scored: Scored, ratios: Ratios, pairs: torch.Tensor
    ) -> None:
        """Metrics under TRL's names, over the pairs of all processes."""
        sums = _sums(scored.log_probs, batch.lengths)[pairs]
        chosen, rejected = self.beta * ratios.chosen, self.beta * ratios.rejected
        over_pairs = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "rewards/margins": chosen - rejected,
            "logps/chosen": sums[:, 0],
            "logps/rejected": sums[:, 1],
        }
        # Accuracy is about chosen replies, as TRL's; each candidate's tokens count once.
        ranks = torch.arange(len(batch.lengths), device=pairs.device)
        is_chosen = torch.isin(ranks, pairs[:, 0]).repeat_interleave(batch.lengths)
        over_tokens = {"entropy": scored.entropy}
        over_chosen = {"mean_token_accuracy": scored.is_top1 * is_chosen}
        counts = [len(pairs), len(scored.log_probs), int(is_chosen.sum()), int(batch.nodes)]
        columns = over_pairs | over_tokens | over_chosen
        added = [values.float().sum() for values in columns.values()]
        device = scored.log_probs.device
        everything = torch.stack([*added, *torch.tensor(counts, device=device).float()])
        *totals, n_pairs, n_tokens, n_chosen, n_nodes = self.accelerator.reduce(
            everything, "sum"
        ).tolist()
        metrics = self._metrics["train" if training else "eval"]
        for name, total in zip(columns, totals, strict=True):
            n = n_pairs if name in over_pairs else n_tokens if name in over_tokens else n_chosen
            metrics[name].append(total / n)
        if training:
            self._total_train_tokens += int(n_nodes)
        metrics["num_tokens"] = [self._total_train_tokens]


def _sums(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Sum the (M) values of each candidate: (C)."""
    owner = torch.repeat_interleave(lengths)
    return values.new_zeros(len(lengths)).index_add(0, owner, values)
