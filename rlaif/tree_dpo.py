"""DPO on prefix trees: TRL's `DPOTrainer` as the frame, each prompt of a micro-step computed once.

A row is a pack of prompts with all candidates that stand in a pair, not a pair. Pairs weigh the
same whatever micro-step they fall in: sums are divided by what a micro-step of its size holds on
average, so 1 x 8, 8 x 1 and two processes give the same update. (The end of an epoch may differ: a
short last micro-batch counts as a whole one, and rows that do not divide among processes are filled
up with the first ones again.) Not here: the tree (`reward.tree`), the rows (`rlaif.groups`), the
losses (`rlaif.preference`), the stage (`rlaif.dpo`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from trl import DPOTrainer

from reward.token_scores import Scored
from reward.tree import TreeBatch, reason_against, score_tree
from rlaif.preference import LOSSES, Ratios
from sft.config import DpoSection
from sft.trainer_rules import TrlRules


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
    unread |= {"use_liger_kernel"}
    if others := sorted(unread & set(section.trainer)):
        return f"dpo.trainer sets {', '.join(others)}"
    return reason_against(model.config, max(row["length"] for row in rows))


class Totals(NamedTuple):
    """What all packs of an epoch hold."""

    pairs: int
    chosen_tokens: int  # of each pair's chosen reply
    winners: int  # replies that are chosen in some pair


class TreeTrainer(TrlRules, DPOTrainer):
    """TRL's trainer on packs instead of pairs; its options, metrics and checks stay.

    Attributes:
        section: settings of the losses that TRL has not.
    """

    section = DpoSection()

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Weighted sum of the configured losses; in training, in shares of an average micro-step.

        The signature is Trainer's; a tree has no outputs to return.
        """
        batch = TreeBatch(**{name: inputs[name] for name in TreeBatch._fields})
        scored, pairs = score_tree(model, batch), inputs["pairs"]
        ratios = self._ratios(scored.log_probs - inputs["reference"], batch.lengths, inputs)
        chosen_sums = _sums(scored.log_probs, batch.lengths)[pairs[:, 0]]
        n_pairs, n_tokens = float(len(pairs)), float(ratios.chosen_tokens.sum())
        n_winners = float(len(ratios.winner.unique()))
        if model.training:
            share = inputs["packs"] / len(self.train_dataset)
            n_pairs, n_tokens, n_winners = (share * each for each in self._totals)
        loss = scored.log_probs.new_zeros(())
        for name, weight in zip(self.loss_types, self.loss_weights, strict=True):
            if name == "sft":
                loss = loss - weight * chosen_sums.sum() / n_tokens
            else:
                each = LOSSES[name](ratios, self.beta)
                loss = loss + weight * each.sum() / (n_winners if name == "listwise" else n_pairs)
        self._note(model.training, batch, scored, ratios, pairs)
        return loss

    def _ratios(
        self, log_ratios: torch.Tensor, lengths: torch.Tensor, inputs: Mapping[str, Any]
    ) -> Ratios:
        """Log-ratios of both sides and what the pairs carry.

        With `ld_alpha`, a longer reply's surplus counts that much: LD-DPO,
        Liu et al. 2024 (arXiv:2409.06411), equation 11.
        """
        pairs = inputs["pairs"]
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
        smoothing = torch.full_like(both[:, 0], self.label_smoothing)
        if self.section.pair_confidence:
            smoothing = (1 - inputs["confidences"]).to(both.dtype)
        return Ratios(
            chosen=both[:, 0],
            rejected=both[:, 1],
            chosen_tokens=tokens[:, 0],
            rejected_tokens=tokens[:, 1],
            smoothing=smoothing,
            offset=self.section.offset * inputs["margins"].to(both.dtype),
            winner=pairs[:, 0],
        )

    @cached_property
    def _totals(self) -> Totals:
        pairs = tokens = winners = 0
        for group in (group for each in self.train_dataset for group in each["groups"]):
            chosen = [first for first, _ in group["pairs"]]
            pairs += len(chosen)
            tokens += sum(len(group["sequences"][c]) - group["starts"][c] for c in chosen)
            winners += len(set(chosen))
        return Totals(pairs, tokens, winners)

    @torch.no_grad()
    def first_look(self, packs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
        """DPO's loss on packs, and the largest absolute reward of any reply in their pairs."""
        inputs = self._prepare_inputs(self.data_collator(packs))
        batch = TreeBatch(**{name: inputs[name] for name in TreeBatch._fields})
        scored = score_tree(self.model, batch)
        log_ratios = scored.log_probs - inputs["reference"]
        ratios = self._ratios(log_ratios, batch.lengths, inputs)
        loss = LOSSES["sigmoid"](ratios, self.beta).mean()
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
