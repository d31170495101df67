"""Packing loses nothing, overfills nothing, and is the same for a seed."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from reward.packing import common_prefix, pack, split_pairs
from reward.tree import build_tree

SIZES = st.lists(st.integers(1, 30), max_size=40)


@given(SIZES, st.integers(1, 40), st.integers(0, 5))
def test_each_thing_is_in_one_bin_and_no_bin_is_overfull(sizes, room, seed):
    bins = pack(sizes, room, seed)
    assert Counter(place for each in bins for place in each) == Counter(range(len(sizes)))
    for each in bins:
        assert sum(sizes[place] for place in each) <= room or len(each) == 1
    assert bins == pack(sizes, room, seed)


@given(SIZES)
def test_at_most_one_bin_is_half_empty(sizes):
    """What any two bins hold does not fit into one: else best fit had put it there."""
    bins = pack(sizes, 30)
    filled = sorted(sum(sizes[place] for place in each) for each in bins)
    assert len(filled) < 2 or filled[0] + filled[1] > 30


def test_another_seed_lets_others_meet():
    assert pack([3] * 9, 6, seed=0) != pack([3] * 9, 6, seed=1)


@given(st.integers(2, 6), st.integers(5, 40))
def test_each_pair_is_in_one_part_that_fits_or_has_one_pair(k, room):
    prompt = [1, 2, 3, 4]
    sequences = [[*prompt, *[10 + n] * (2 + n)] for n in range(k)]
    pairs = list(combinations(range(k), 2))
    parts = split_pairs(sequences, pairs, room)
    assert sorted(number for part in parts for number in part) == list(range(len(pairs)))
    for part in parts:
        within = sorted({place for number in part for place in pairs[number]})
        nodes = len(build_tree([sequences[place] for place in within]).tokens)
        assert nodes <= room or len(part) == 1


def test_a_prompt_that_fits_is_one_part():
    sequences = [[1, 2, 3], [1, 2, 4], [1, 2, 5]]
    assert split_pairs(sequences, [(0, 1), (0, 2)], 5) == [[0, 1]]
    assert split_pairs(sequences, [(0, 1), (0, 2)], 4) == [[0], [1]]


def test_the_common_beginning_is_counted():
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 2
    assert common_prefix([[1], [2]]) == 0
