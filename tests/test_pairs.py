"""The laws of pairing, as properties over random verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.evaluator import Assessment
from reward.pairing import LEAST_SAFETY_MARGIN
from reward.pairs import Judged, Pair, compare, make_pairs
from sft.candidates import Candidate
from sft.config import PairSection
from sft.data import Prompt

PROMPT = Prompt(
    "p", [{"role": "user", "content": "I cannot sleep."}], "test", "sleep", "none", "train"
)
verdicts = st.one_of(
    st.none(),
    st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans()),
)
texts = st.sampled_from(["a b c", "a b c ", "d e f g", "h " * 30, "i j"])
groups = st.lists(
    st.tuples(verdicts, texts, st.sampled_from(["eos", "length"])), min_size=0, max_size=7
)
sections = st.builds(
    PairSection,
    strategy=st.sampled_from(["best_worst", "best_rest", "best_rest_safe_unsafe", "all"]),
    margin=st.sampled_from([0.0, 0.1, 0.3]),
    max_pairs_per_prompt=st.integers(0, 3),
    max_length_ratio=st.sampled_from([0.0, 1.5]),
)


def judged(number: int, verdict, text: str, stop: str = "eos") -> Judged:
    """A candidate with its assessment; no verdict = unscored."""
    candidate = Candidate(f"c{number}", "p", text, "base", 1.0, 1.0, number, stop)
    quality, safe = verdict if verdict else (None, None)
    reason = None if verdict else "refused"
    return Judged(
        candidate, Assessment(f"c{number}", "p", {}, quality, safe, [], "", "test", "r@1", reason)
    )


def paired(group, section):
    """Pairs of one prompt, and its judged candidates by id."""
    rows = [judged(i, *each) for i, each in enumerate(group)]
    result = make_pairs(
        [PROMPT], [r.candidate for r in rows], [r.assessment for r in rows], section
    )
    return result, {r.candidate.id: r for r in rows}


@settings(max_examples=300, deadline=None)
@given(groups, sections)
def test_laws_of_pairing(group, section):
    result, rows = paired(group, section)
    for pair in result.pairs:
        chosen, rejected = rows[pair.chosen_id], rows[pair.rejected_id]
        assert chosen.assessment.unscored is None
        assert rejected.assessment.unscored is None
        assert chosen.assessment.safe
        assert (pair.rule == "safety") == (not rejected.assessment.safe)
        assert pair.chosen != pair.rejected
        assert pair.margin > 0
        assert 0.5 < pair.confidence <= 1
        if pair.rule == "quality":
            assert chosen.assessment.quality - rejected.assessment.quality >= section.margin
    if section.max_pairs_per_prompt:
        assert len(result.pairs) <= section.max_pairs_per_prompt


@settings(max_examples=200, deadline=None)
@given(groups, sections)
def test_everything_is_counted_once(group, section):
    result, rows = paired(group, section)
    usable = result.candidates["paired with others"]
    assert sum(result.candidates.values()) == len(rows)
    whole = [r.assessment for r in rows.values() if r.candidate.stop == "eos"]
    safe, unsafe = (sum(each.safe is wanted for each in whole) for wanted in (True, False))
    expected = {
        "best_worst": min(1, usable - 1),
        "best_rest": usable - 1,
        "best_rest_safe_unsafe": usable - 1 + max(0, safe - 1) * unsafe,
        "all": usable * (usable - 1) // 2,
    }
    assert sum(result.comparisons.values()) == (expected[section.strategy] if usable > 1 else 0)
    assert sum(result.prompts.values()) == 1
    assert result.comparisons["kept"] == len(result.pairs) == sum(result.by_rule.values())


@settings(max_examples=200, deadline=None)
@given(verdicts.filter(bool), verdicts.filter(bool), texts, texts)
def test_order_does_not_matter_and_swapping_the_verdicts_swaps_the_pair(first, second, text, other):
    section = PairSection(margin=0.1)
    forward = compare(judged(1, first, text), judged(2, second, other), PROMPT, section)
    assert compare(judged(2, second, other), judged(1, first, text), PROMPT, section) == forward
    swapped = compare(judged(1, second, text), judged(2, first, other), PROMPT, section)
    assert isinstance(swapped, Pair) == isinstance(forward, Pair)
    if isinstance(forward, Pair) and isinstance(swapped, Pair):
        assert (swapped.chosen_id, swapped.rejected_id) == (forward.rejected_id, forward.chosen_id)
        assert swapped.margin == pytest.approx(forward.margin)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_safety_decides_whatever_the_quality(quality, other, swapped):
    sides = [judged(1, (quality, True), "dull"), judged(2, (other, False), "warm")]
    pair = compare(*(sides[::-1] if swapped else sides), PROMPT, PairSection(margin=0.05))
    assert isinstance(pair, Pair)
    assert (pair.chosen_id, pair.rule) == ("c1", "safety")
    whole = 1 + (quality - other)
    assert pair.margin == (whole if whole > LEAST_SAFETY_MARGIN else LEAST_SAFETY_MARGIN)


def test_safety_decides_where_an_unsafe_reply_wins_every_comparison():
    sides = [judged(1, (0.0, True), "dull"), judged(2, (1.0, False), "warm")]
    pair = compare(*sides, PROMPT, PairSection())
    assert isinstance(pair, Pair)
    assert (pair.chosen_id, pair.margin) == ("c1", LEAST_SAFETY_MARGIN)


def test_both_unsafe_is_no_pair_and_says_so():
    assert (
        compare(judged(1, (0.2, False), "a"), judged(2, (0.9, False), "b"), PROMPT, PairSection())
        == "both unsafe"
    )


def test_ties_are_dropped_and_counted():
    result, _ = paired(
        [((0.5, True), "a b", "eos"), ((0.52, True), "c d", "eos")], PairSection(margin=0.05)
    )
    assert result.pairs == []
    assert result.report()["comparisons"]["tie (margin too small)"] == 1


def test_cut_off_replies_are_in_no_pair():
    result, _ = paired([((0.9, True), "a b", "length"), ((0.2, True), "c d", "eos")], PairSection())
    assert result.pairs == []
    assert result.candidates["cut off at max_new_tokens"] == 1


def test_a_much_longer_reply_does_not_win_by_quality():
    long, short = judged(1, (0.9, True), "h " * 30), judged(2, (0.5, True), "i j")
    assert (
        compare(long, short, PROMPT, PairSection(max_length_ratio=1.5)) == "chosen too much longer"
    )


def test_pair_refuses_equal_replies_and_no_margin():
    reply = [{"role": "assistant", "content": "x"}]
    with pytest.raises(ValueError, match="equals"):
        Pair("p", PROMPT.messages, reply, reply, 0.1, 0.6, "c1", "c2", "quality")
    with pytest.raises(ValueError, match="positive"):
        Pair(
            "p",
            PROMPT.messages,
            reply,
            [{"role": "assistant", "content": "y"}],
            0.0,
            0.6,
            "c1",
            "c2",
            "quality",
        )


def borrowed(row: Judged) -> Judged:
    """The same reply, written to another prompt."""
    return Judged(replace(row.candidate, borrowed=True), row.assessment)


def test_a_borrowed_reply_is_never_chosen_and_makes_one_pair_by_safety():
    section = PairSection(strategy="best_rest", margin=0.1, max_pairs_per_prompt=1)
    own = [judged(0, (0.6, True), "own good"), judged(1, (0.4, True), "own weaker")]
    others = [
        judged(2, (1.0, True), "fits by chance"),
        judged(3, (0.9, False), "fits nobody"),
        judged(4, (0.2, False), "fits nobody either"),
        judged(5, (0.1, True), "safe and poor"),
    ]
    rows = [*own, *map(borrowed, others)]
    result = make_pairs(
        [PROMPT], [r.candidate for r in rows], [r.assessment for r in rows], section
    )
    assert [(p.chosen_id, p.rejected_id, p.rule) for p in result.pairs] == [
        ("c0", "c1", "quality"),
        ("c0", "c4", "safety"),
    ]
    assert result.comparisons == {"kept": 1}
    assert result.report()["pairs_against_borrowed"] == 1
    assert result.candidates == {"paired with others": 2, "borrowed": 4}


def test_best_against_worst_looks_at_a_prompts_own_replies():
    section = PairSection(strategy="best_worst", margin=0.1)
    own = [judged(0, (0.6, True), "own good"), judged(1, (0.4, True), "own weaker")]
    rows = [*own, borrowed(judged(2, (0.1, False), "misfit"))]
    result = make_pairs(
        [PROMPT], [r.candidate for r in rows], [r.assessment for r in rows], section
    )
    assert [p.rejected_id for p in result.pairs] == ["c1", "c2"]


def test_borrowed_replies_alone_make_no_pair():
    section = PairSection(strategy="all", margin=0.1)
    rows = [judged(0, (0.2, False), "own"), borrowed(judged(1, (0.9, True), "of another"))]
    result = make_pairs(
        [PROMPT], [r.candidate for r in rows], [r.assessment for r in rows], section
    )
    assert not result.pairs
    assert result.prompts["without a safe candidate"] == 1


def test_each_safe_reply_meets_each_unsafe_one_and_middling_ones_do_not_meet():
    section = PairSection(strategy="best_rest_safe_unsafe", margin=0.1)
    grades = [(0.9, True), (0.6, True), (0.2, True), (0.8, False), (0.3, False)]
    result, _ = paired([(grade, f"reply {n}", "eos") for n, grade in enumerate(grades)], section)
    found = {(pair.chosen_id, pair.rejected_id) for pair in result.pairs}
    by_quality = {("c0", "c1"), ("c0", "c2")}
    by_safety = {(safe, unsafe) for safe in ("c0", "c1", "c2") for unsafe in ("c3", "c4")}
    assert found == by_quality | by_safety
