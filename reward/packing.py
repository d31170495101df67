"""Prompts with their candidates, packed into micro-steps of a given number of tree nodes.

Not here: the tree (`reward.tree`), what is trained on it.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward.tree import build_tree


@dataclass(frozen=True)
class Packs:
    """Rows of a trainer on trees.

    Attributes:
        rows: of each pack what the trainer takes, and `length` (nodes, at most).
        split: prompts whose candidates did not fit one micro-step.
        over: packs above the budget, because one pair is, or a prompt that is kept whole.
    """

    rows: list[dict[str, Any]]
    split: int
    over: int


def pack(sizes: Sequence[int], room: int, seed: int = 0) -> list[list[int]]:
    """Put things into as few bins as best-fit decreasing finds.

    The largest first, each into the fullest bin that has room for it; never more than 11/9 of the
    fewest bins possible, plus 4 (Johnson et al. 1974, doi:10.1137/0203025). What is larger than a
    bin has one of its own.

    Args:
        sizes: of the things.
        room: size of a bin.
        seed: orders things of one size, so that they meet others in another run.

    Returns:
        Of each bin the places in `sizes`.

    Example:
        >>> pack([5, 9, 1, 4], room=10)
        [[1, 2], [0, 3]]
    """
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    order.sort(key=lambda place: -sizes[place])
    bins: list[list[int]] = []
    left: list[tuple[int, int]] = []  # (room left, bin), sorted
    for place in order:
        fullest = bisect_left(left, (sizes[place], -1))
        if fullest < len(left):
            free, number = left.pop(fullest)
        else:
            free, number = room, len(bins)
            bins.append([])
        bins[number].append(place)
        if free > sizes[place]:
            insort(left, (free - sizes[place], number))
    return bins


def pack_trees(
    trees: Sequence[Sequence[Sequence[int]]], lengths: Sequence[int], room: int, seed: int
) -> list[tuple[list[int], int]]:
    """Put prompts into packs; what all begin with, as a system prompt, counts once per pack.

    Args:
        trees: of each prompt the token ids of its candidates with the prompt.
        lengths: nodes of each prompt's tree.
        room: nodes of a pack.
        seed: orders prompts of one size.

    Returns:
        Of each pack the places in `trees`, and its nodes, at most.
    """
    shared = common_prefix([ids for sequences in trees for ids in sequences])
    sizes = [length - shared for length in lengths]
    packs = pack(sizes, room - shared, seed)
    return [(places, shared + sum(sizes[place] for place in places)) for places in packs]


def split_pairs(
    sequences: Sequence[Sequence[int]], pairs: Sequence[tuple[int, int]], room: int
) -> list[list[int]]:
    """Split a prompt's pairs into parts whose candidates fit as one tree.

    A part takes each further pair that still fits, in order, so that candidates that meet often
    stay together. A pair that does not fit is a part of its own: none is lost.

    Args:
        sequences: token ids of each candidate with its prompt.
        pairs: places in `sequences`.
        room: nodes of a tree.

    Returns:
        Of each part the places in `pairs`; each pair is in one.
    """
    parts: list[list[int]] = []
    rest = list(range(len(pairs)))
    while rest:
        first, *others = rest
        part, within, rest = [first], {*pairs[first]}, []
        for number in others:
            more = within | {*pairs[number]}
            if more == within or _nodes([sequences[place] for place in sorted(more)]) <= room:
                part.append(number)
                within = more
            else:
                rest.append(number)
        parts.append(part)
    return parts


def _nodes(sequences: Sequence[Sequence[int]]) -> int:
    return len(build_tree(sequences).tokens)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all sequences begin with: those of a shared system prompt."""
    first, last = min(map(list, sequences)), max(map(list, sequences))
    same = (a == b for a, b in zip(first, last, strict=False))
    return next((n for n, equal in enumerate(same) if not equal), min(len(first), len(last)))
