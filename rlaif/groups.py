"""Preference pairs as rows of a trainer on trees: prompts with their candidates, in packs.

A group is a prompt with every candidate that stands in one of its pairs; a pack is what a trainer
takes as one row: a group, or, with a budget of tokens, as many groups as fit. Not here: the
reference's scores (`rlaif.reference`), the trainer (`rlaif.tree_dpo`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reward.packing import Packs, pack_trees, split_pairs
from reward.tree import TreeBatch, build_tree, collate

Group = dict[str, Any]


def to_groups(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Pairs of token rows, joined by prompt: one group per prompt, each candidate once.

    Args:
        rows: `prompt_id`, `prompt_ids`, `chosen_ids`, `rejected_ids`, `margin` and `confidence` of
            each pair.

    Returns:
        Of each prompt `sequences` (token ids of prompt and reply), `starts` (first token of each
        reply), `numbers` (the candidates', counted over all groups), `pairs` ([chosen, rejected],
        places in `sequences`), their `margins` and `confidences`, and `length` (nodes of the tree).
    """
    groups: dict[str, Group] = {}
    places: dict[str, dict[tuple[int, tuple[int, ...]], int]] = {}
    total = 0
    for row in rows:
        name, start = row["prompt_id"], len(row["prompt_ids"])
        empty = ("sequences", "starts", "numbers", "pairs", "margins", "confidences")
        group = groups.setdefault(name, {key: [] for key in empty})
        known = places.setdefault(name, {})
        pair = []
        for side in ("chosen_ids", "rejected_ids"):
            ids = [*row["prompt_ids"], *row[side]]
            place = known.setdefault((start, tuple(ids)), len(known))
            if place == len(group["sequences"]):
                group["sequences"].append(ids)
                group["starts"].append(start)
                group["numbers"].append(total)
                total += 1
            pair.append(place)
        group["pairs"].append(pair)
        group["margins"].append(row["margin"])
        group["confidences"].append(row["confidence"])
    return [_measured(group) for group in groups.values()]


def _measured(group: Group) -> Group:
    return group | {"length": len(build_tree(group["sequences"]).tokens)}


def split(group: Group, room: int) -> list[Group]:
    """A group's pairs as groups that fit `room` nodes; one pair that does not stays alone.

    A candidate is in every part that has a pair of it.
    """
    if group["length"] <= room:
        return [group]
    order = [(chosen, rejected) for chosen, rejected in group["pairs"]]
    parts = []
    for at in split_pairs(group["sequences"], order, room):
        within = sorted({place for i in at for place in order[i]})
        new = {old: place for place, old in enumerate(within)}
        part = {key: [group[key][old] for old in within] for key in _OF_CANDIDATES}
        part |= {key: [group[key][i] for i in at] for key in ("margins", "confidences")}
        part["pairs"] = [[new[place] for place in order[i]] for i in at]
        parts.append(_measured(part))
    return parts


_OF_CANDIDATES = ("sequences", "starts", "numbers")


def to_packs(groups: Sequence[Group], tree_tokens: int, seed: int, *, whole: bool) -> Packs:
    """Pack groups into micro-steps of at most `tree_tokens` nodes; 0 = a group each.

    What all groups begin with, as a system prompt, is counted once per pack.

    Args:
        groups: as `to_groups` made them.
        tree_tokens: nodes of a pack.
        seed: orders groups of one size.
        whole: a loss compares all candidates of a prompt at once, so that none is split.
    """
    if not tree_tokens:
        return Packs([{"groups": [group], "length": group["length"]} for group in groups], 0, 0)
    parts = [[group] if whole else split(group, tree_tokens) for group in groups]
    every = [part for each in parts for part in each]
    packs = pack_trees(
        [group["sequences"] for group in every],
        [group["length"] for group in every],
        tree_tokens,
        seed,
    )
    rows: list[dict[str, Any]] = [
        {"groups": [every[place] for place in places], "length": nodes} for places, nodes in packs
    ]
    over = sum(row["length"] > tree_tokens for row in rows)
    return Packs(rows, sum(len(each) > 1 for each in parts), over)


def trees_of(groups: Sequence[Mapping[str, Any]], pad_id: int, multiple: int) -> TreeBatch:
    """The groups as one row: a tree, or several side by side where nothing is shared."""
    tree = build_tree([ids for group in groups for ids in group["sequences"]])
    starts = [start for group in groups for start in group["starts"]]
    return collate([tree], [starts], pad_id, multiple)


@dataclass
class Collator:
    """Packs to one batch of tensors.

    Attributes:
        pad_id: token of the padding.
        multiple: the row's length is rounded up to a multiple of this.
        reference: log-probabilities of each candidate's tokens by the reference, by its number.
    """

    pad_id: int
    multiple: int
    reference: Mapping[int, torch.Tensor]

    def __call__(self, packs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The fields of a `TreeBatch`, and what the losses need of its P pairs.

        `pairs` (P, 2) places among the batch's candidates, `margins` (P), `confidences` (P),
        `reference` (M) of the scored tokens, and `packs`, how many there are.
        """
        groups = [group for each in packs for group in each["groups"]]
        batch, first, pairs = trees_of(groups, self.pad_id, self.multiple), 0, []
        for group in groups:
            pairs += [[first + chosen, first + rejected] for chosen, rejected in group["pairs"]]
            first += len(group["sequences"])
        numbers = [number for group in groups for number in group["numbers"]]
        return {
            **batch._asdict(),
            "pairs": torch.tensor(pairs),
            "margins": torch.tensor([x for group in groups for x in group["margins"]]),
            "confidences": torch.tensor([x for group in groups for x in group["confidences"]]),
            "reference": torch.cat([self.reference[number] for number in numbers]),
            "packs": len(packs),
        }
