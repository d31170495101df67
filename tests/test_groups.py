"""Prompts with their candidates as rows: nothing is lost, split or counted twice in silence."""

from __future__ import annotations

from test_tree_dpo import pair_rows

from rlaif.groups import split, to_groups, to_packs


def row(prompt, chosen, rejected, name="p", margin=0.2, confidence=0.9):
    return {
        "prompt_id": name,
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": rejected,
        "margin": margin,
        "confidence": confidence,
    }


def test_each_candidate_is_in_its_group_once():
    groups = to_groups(pair_rows())
    assert [len(group["sequences"]) for group in groups] == [3, 2, 3]
    assert [group["numbers"] for group in groups] == [[0, 1, 2], [3, 4], [5, 6, 7]]
    assert groups[0]["pairs"] == [[0, 1], [0, 2], [1, 2]]
    assert groups[0]["length"] == 9 + 4 + 11 + 6


def test_pairs_of_one_prompt_with_other_histories_stay_apart():
    rows = [row([1, 2, 3], [4], [5]), row([1, 3], [4], [6])]
    (group,) = to_groups(rows)
    assert group["sequences"] == [[1, 2, 3, 4], [1, 2, 3, 5], [1, 3, 4], [1, 3, 6]]
    assert group["starts"] == [3, 3, 2, 2]
    assert group["pairs"] == [[0, 1], [2, 3]]
    assert group["length"] == 8


def pairs_of(groups):
    """Pairs by content, with what they carry."""
    return sorted(
        (group["sequences"][chosen], group["sequences"][rejected], margin, confidence)
        for group in groups
        for (chosen, rejected), margin, confidence in zip(
            group["pairs"], group["margins"], group["confidences"], strict=True
        )
    )


def test_a_split_keeps_each_pair_with_its_margin_and_confidence():
    (group,) = to_groups(
        [
            row([1, 2], [3, 3], [4, 4, 4], margin=0.1),
            row([1, 2], [3, 3], [5, 5], margin=0.2, confidence=0.7),
            row([1, 2], [4, 4, 4], [5, 5], margin=0.3),
        ]
    )
    assert split(group, 9) == [group]
    parts = split(group, 7)
    assert len(parts) == 3
    assert pairs_of(parts) == pairs_of([group])
    assert all(part["length"] <= 7 for part in parts)
    assert {number for part in parts for number in part["numbers"]} == {0, 1, 2}


def test_a_pair_that_stands_twice_keeps_both_margins():
    """Two rejected candidates may say the same."""
    rows = [row([1, 2], [3, 3], [4, 4], margin=margin) for margin in (0.1, 0.4)]
    (group,) = to_groups([*rows, row([1, 2], [3, 3], [5, 5, 5], margin=0.3)])
    assert pairs_of(split(group, 7)) == pairs_of([group])


def test_a_pair_that_fits_nowhere_is_kept_and_counted():
    packs = to_packs(to_groups([row([1, 2], [3] * 9, [4] * 9)]), 12, 0, whole=False)
    assert len(packs.rows) == 1
    assert packs.over == 1


def test_packs_hold_every_pair_within_the_budget_and_share_a_beginning():
    system = [9] * 20
    rows = [row([*system, n, n], [50 + n] * 5, [80 + n] * 6, name=f"p{n}") for n in range(10)]
    groups = to_groups(rows)
    packs = to_packs(groups, 20 + 3 * 13, 0, whole=False)
    assert len(packs.rows) == 4  # three prompts of 13 nodes beside the shared 20, and one left
    assert sorted(each["length"] for each in packs.rows) == [33, 59, 59, 59]
    held = [group for each in packs.rows for group in each["groups"]]
    assert pairs_of(held) == pairs_of(groups)
    assert packs == to_packs(groups, 20 + 3 * 13, 0, whole=False)


def test_a_loss_over_all_candidates_keeps_prompts_whole():
    groups = to_groups(pair_rows())
    packs = to_packs(groups, 25, 0, whole=True)
    assert packs.split == 0
    assert packs.over == 2  # 30 nodes each
