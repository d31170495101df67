"""Repeat noise, the tie band and a pair's confidence: formulas, laws, and what they promise."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist, fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.confidence import (
    LEAST_DEGREES,
    RepeatNoise,
    confidence,
    repeat_noise,
    tie_band,
    trust,
    variance_share,
    verdict_share,
    vote_share,
)
from reward.evaluator import Assessment, Judgement, mean_quality
from reward.pairing import WITHOUT_REPEATS
from reward.pairs import Judged, Pair, compare, make_pairs
from sft.candidates import Candidate
from sft.config import PairSection
from sft.data import Prompt
from sft.files import UserError, read_rows, write_rows

PROMPT = Prompt("p", [{"role": "user", "content": "Hi."}], "test", "sleep", "none", "train")
NOISE = RepeatNoise(sd=0.08, degrees=100, repeated=50)
grades = st.integers(0, 20).map(lambda n: n / 20)


def assessed(name: str, judgements: Sequence[Judgement], safe: bool = True) -> Assessment:
    """An assessment that its judgements give; `safe` where at least one says so."""
    safe = safe if any(j.safe == safe for j in judgements) else not safe
    return Assessment(
        name, "p", {}, mean_quality(judgements), safe, [], "", "t", "r@1", None,
        judgements=list(judgements),
    )  # fmt: skip


def single(name: str, quality: float, safe: bool = True) -> Assessment:
    return Assessment(name, "p", {}, quality, safe, [], "", "t", "r@1", None)


def repeats(qualities: Sequence[float]) -> list[Judgement]:
    return [Judgement("one", quality, True) for quality in qualities]


judgements = st.builds(Judgement, st.sampled_from(["a", "b", "c"]), grades, st.booleans())
panels = st.lists(judgements, min_size=1, max_size=9)


# --- the assessment ----------------------------------------------------------------------------


def test_a_row_without_judgements_reads_as_before_and_one_with_them_comes_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "assessments.jsonl"
    row = assessed("c", [Judgement("a", 0.25, True), Judgement("b", 0.75, False)])
    write_rows(path, [row])
    assert read_rows(path, Assessment) == [row]
    old = json.loads(path.read_text())
    del old["judgements"]
    path.write_text(json.dumps(old) + "\n")
    assert read_rows(path, Assessment)[0].judgements == []


def test_the_mean_gives_each_judge_the_same_weight() -> None:
    rows = [Judgement("a", 0.2, True), Judgement("a", 0.4, True), Judgement("b", 0.9, True)]
    assert mean_quality(rows) == pytest.approx((0.3 + 0.9) / 2)


def test_a_score_that_its_judgements_do_not_give_is_refused() -> None:
    told = repeats([0.2, 0.4])
    common = ("c", "p", {}), ([], "", "t", "r@1")
    with pytest.raises(ValueError, match=r"quality is 0\.9, the mean of its judgements 0\.3000"):
        Assessment(*common[0], 0.9, True, *common[1], None, judgements=told)
    with pytest.raises(ValueError, match="no judgement says that safe is False"):
        Assessment(*common[0], 0.3, False, *common[1], None, judgements=told)
    with pytest.raises(ValueError, match="quality is None"):
        Assessment(*common[0], None, None, *common[1], "refused", judgements=told)
    with pytest.raises(ValueError, match=r"1\.5, not 0\.\.1"):
        Judgement("a", 1.5, True)


# --- noise and the tie band --------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(grades, min_size=1, max_size=5), min_size=1, max_size=8))
def test_noise_is_the_pooled_standard_deviation_of_repeats(groups: list[list[float]]) -> None:
    found = repeat_noise([assessed(f"c{i}", repeats(each)) for i, each in enumerate(groups)])
    several = [each for each in groups if len(each) > 1]
    degrees = sum(len(each) - 1 for each in several)
    squares = sum((len(each) - 1) * stdev(each) ** 2 for each in several)
    assert (found.degrees, found.repeated) == (degrees, len(several))
    assert found.sd == pytest.approx(math.sqrt(squares / degrees) if degrees else 0, abs=1e-12)


def test_another_judge_is_no_repeat() -> None:
    panel = [Judgement("a", 0.1, True), Judgement("b", 0.9, True)]
    assert repeat_noise([assessed("c", panel)]) == WITHOUT_REPEATS


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_band_is_the_critical_difference_of_two_means(n: int) -> None:
    row = assessed("c", repeats([0.5] * n))
    assert tie_band(row, row, "auto", NOISE) == pytest.approx(1.96 * 0.08 * math.sqrt(2 / n))
    assert tie_band(row, row, 0.3, NOISE) == 0.3


def test_a_candidate_asked_once_has_the_noise_of_one_answer() -> None:
    once, thrice = single("a", 0.5), assessed("b", repeats([0.5] * 3))
    assert tie_band(once, thrice, "auto", NOISE) == pytest.approx(
        1.96 * 0.08 * math.sqrt(1 + 1 / 3)
    )


def test_a_panels_mean_has_the_variance_of_a_mean_of_means() -> None:
    rows = [Judgement("a", 0.5, True)] * 4 + [Judgement("b", 0.5, True)]
    assert variance_share(assessed("c", rows)) == pytest.approx((1 / 4 + 1) / 4)


def noisy(
    rng: random.Random, name: str, true: float, sd: float, n: int
) -> tuple[Candidate, Assessment]:
    """A candidate judged n times with normal noise."""
    told = [min(1.0, max(0.0, rng.gauss(true, sd))) for _ in range(n)]
    return Candidate(name, "p", f"reply {name}", "m", 1.0, 1.0, 0, "eos"), assessed(
        name, repeats(told)
    )


def test_of_equal_replies_about_one_in_twenty_comparisons_leaves_the_band() -> None:
    rng, n = random.Random(7), 3
    rows = [noisy(rng, f"c{i}", 0.5, 0.06, n)[1] for i in range(3000)]
    noise = repeat_noise(rows)
    assert noise.sd == pytest.approx(0.06, rel=0.03)
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    out = sum(abs(a.quality - b.quality) >= tie_band(a, b, "auto", noise) for a, b in pairs)
    # 1500 comparisons at 5 %: standard deviation 0.56 %, so these are three of them.
    assert 0.033 < out / len(pairs) < 0.067


def test_the_confidence_of_noisy_comparisons_is_how_often_they_are_right() -> None:
    rng = random.Random(11)
    stated, right = [], []
    noise = RepeatNoise(sd=0.05, degrees=1000, repeated=500)
    for i in range(6000):
        first, second = rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)
        a = noisy(rng, f"a{i}", first, 0.05, 2)[1]
        b = noisy(rng, f"b{i}", second, 0.05, 2)[1]
        (won, lost), (better, worse) = (a, b), (first, second)
        if a.quality < b.quality:
            (won, lost), (better, worse) = (b, a), (second, first)
        stated.append(confidence(won, lost, noise))
        right.append(better > worse)
    for low, high in ((0.5, 0.7), (0.7, 0.9), (0.9, 1.0)):
        within = [i for i, share in enumerate(stated) if low <= share < high]
        assert len(within) > 200
        said, was = fmean(stated[i] for i in within), fmean(right[i] for i in within)
        assert was == pytest.approx(said, abs=0.05)


# --- auto is refused where nothing is known ----------------------------------------------------


def rows_with_repeats(
    n_candidates: int, qualities: Sequence[float]
) -> tuple[list[Candidate], list[Assessment]]:
    made = [
        (
            Candidate(f"c{i}", "p", f"reply {i}", "m", 1.0, 1.0, i, "eos"),
            assessed(f"c{i}", repeats([q * (i + 1) / n_candidates for q in qualities])),
        )
        for i in range(n_candidates)
    ]
    return [c for c, _ in made], [a for _, a in made]


AUTO = PairSection(margin="auto", strategy="best_rest")


def test_auto_without_enough_repeats_says_what_to_do() -> None:
    candidates, rows = rows_with_repeats(4, [0.2])
    with pytest.raises(UserError, match=r"0 candidates were judged more than once.*judged twice"):
        make_pairs([PROMPT], candidates, rows, AUTO)
    candidates, rows = rows_with_repeats(LEAST_DEGREES - 1, [0.2, 0.3])
    with pytest.raises(UserError, match="29 degrees of freedom of the 30 needed"):
        make_pairs([PROMPT], candidates, rows, AUTO)
    candidates, rows = rows_with_repeats(1, [0.2])  # refused also where nothing is compared
    with pytest.raises(UserError, match="0 degrees of freedom"):
        make_pairs([PROMPT], candidates, rows, AUTO)
    candidates, rows = rows_with_repeats(LEAST_DEGREES, [0.2, 0.3])
    assert make_pairs([PROMPT], candidates, rows, AUTO).pairs


def test_repeats_that_never_differ_are_no_noise_of_nought() -> None:
    candidates, rows = rows_with_repeats(20, [0.7, 0.7, 0.7])
    with pytest.raises(UserError, match="the same quality each time"):
        make_pairs([PROMPT], candidates, rows, AUTO)
    pairs = make_pairs([PROMPT], candidates, rows, PairSection(margin=0.05)).pairs
    assert [pair.confidence for pair in pairs] == [trust(pair.margin) for pair in pairs]


def test_auto_pairs_what_leaves_the_band_and_reports_it() -> None:
    rng = random.Random(3)
    made = [noisy(rng, f"c{i:02}", 0.4 + 0.005 * i, 0.05, 3) for i in range(40)]
    rows = {row.candidate_id: row for _, row in made}
    result = make_pairs([PROMPT], [c for c, _ in made], list(rows.values()), AUTO)
    assert result.pairs and result.comparisons["tie (margin too small)"]
    band = 1.96 * repeat_noise(list(rows.values())).sd * math.sqrt(2 / 3)
    assert result.band == pytest.approx(band)
    best = max(rows.values(), key=lambda row: row.quality)
    apart = {row.candidate_id for row in rows.values() if best.quality - row.quality >= band}
    assert {pair.rejected_id for pair in result.pairs} == apart
    assert all(pair.confidence >= NormalDist().cdf(1.96) - 1e-9 for pair in result.pairs)


# --- confidence --------------------------------------------------------------------------------

noises = st.sampled_from([WITHOUT_REPEATS, NOISE, RepeatNoise(0.5, 40, 20)])


def paired(a: Assessment, b: Assessment, noise: RepeatNoise, margin: float = 0.0) -> Pair | str:
    judged = [
        Judged(Candidate(row.candidate_id, "p", f"reply {i}", "m", 1.0, 1.0, i, "eos"), row)
        for i, row in enumerate((a, b))
    ]
    return compare(judged[0], judged[1], PROMPT, PairSection(margin=margin), noise)


@settings(max_examples=300, deadline=None)
@given(panels, panels, st.booleans(), st.booleans(), noises)
def test_confidence_is_above_a_coins_and_knows_no_order(
    first: list[Judgement],
    second: list[Judgement],
    safe: bool,
    other_safe: bool,
    noise: RepeatNoise,
) -> None:
    a, b = assessed("a", first, safe), assessed("b", second, other_safe)
    pair = paired(a, b, noise)
    backward = paired(b, a, noise)
    assert isinstance(pair, Pair) == isinstance(backward, Pair)
    if isinstance(pair, Pair) and isinstance(backward, Pair):
        assert 0.5 < pair.confidence <= 1
        assert (pair.chosen_id, pair.confidence) == (backward.chosen_id, backward.confidence)
    swapped = paired(assessed("a", second, other_safe), assessed("b", first, safe), noise)
    if isinstance(pair, Pair) and isinstance(swapped, Pair):
        assert (swapped.chosen_id, swapped.confidence) == (pair.rejected_id, pair.confidence)


@settings(max_examples=200, deadline=None)
@given(grades, grades, grades, st.integers(1, 4), noises)
def test_confidence_rises_with_the_margin_and_with_repeats(
    low: float, middle: float, high: float, n: int, noise: RepeatNoise
) -> None:
    low, middle, high = sorted((low, middle, high))
    worst, medium, best = (assessed("c", repeats([q] * n)) for q in (low, middle, high))
    assert confidence(medium, worst, noise) <= confidence(best, worst, noise)
    if high - middle > 0.01 and noise is WITHOUT_REPEATS:
        assert confidence(medium, worst, noise) < confidence(best, worst, noise)
    more = [assessed("c", repeats([q] * (n + 1))) for q in (low, high)]
    assert confidence(best, worst, noise) <= confidence(more[1], more[0], noise) + 1e-12


def test_confidence_is_the_probability_of_the_sign() -> None:
    better, worse = assessed("a", repeats([0.6, 0.6])), assessed("b", repeats([0.5, 0.5]))
    assert confidence(better, worse, NOISE) == pytest.approx(NormalDist().cdf(0.1 / 0.08))


@given(grades, grades)
def test_single_answers_have_the_confidence_they_always_had(a: float, b: float) -> None:
    low, high = sorted((a, b))
    difference = high - low
    assert confidence(single("a", high), single("b", low), WITHOUT_REPEATS) == 0.5 + difference / 2
    assert confidence(single("a", low), single("b", high, safe=False), WITHOUT_REPEATS) == 1.0


def panel(**told: float) -> list[Judgement]:
    return [Judgement(name, quality, True) for name, quality in told.items()]


@pytest.mark.parametrize("noise", [WITHOUT_REPEATS, NOISE])
def test_a_panel_that_disagrees_lowers_the_confidence(noise: RepeatNoise) -> None:
    worse = assessed("b", panel(a=0.4, b=0.4, c=0.4))
    agreed = assessed("a", panel(a=0.6, b=0.6, c=0.6))
    split = assessed("a", panel(a=1.0, b=0.5, c=0.3))
    assert split.quality == pytest.approx(agreed.quality)
    assert vote_share(agreed, worse) == 1
    assert vote_share(split, worse) == pytest.approx((2 + 1) / 4)
    assert confidence(split, worse, noise) < confidence(agreed, worse, noise)


def test_safety_verdicts_that_disagree_lower_the_confidence() -> None:
    sure = assessed("a", [Judgement("a", 0.5, True)] * 4)
    unsure = assessed("a", [Judgement("a", 0.5, True)] * 3 + [Judgement("a", 0.5, False)])
    failed = assessed("b", [Judgement("a", 0.5, False)] * 2, safe=False)
    doubted = assessed("b", [Judgement("a", 0.5, False), Judgement("a", 0.5, True)], safe=False)
    assert verdict_share(unsure) == 0.75
    assert confidence(sure, failed, WITHOUT_REPEATS) == 1
    assert confidence(unsure, failed, WITHOUT_REPEATS) == pytest.approx(0.5 + 0.5 * 0.75)
    assert confidence(unsure, doubted, WITHOUT_REPEATS) == pytest.approx(0.5 + 0.5 * 0.375)
    weaker = assessed("b", [Judgement("a", 0.3, True)] * 2)
    assert confidence(unsure, weaker, NOISE) < confidence(sure, weaker, NOISE)


def test_differences_that_are_rounding_are_ties() -> None:
    # 0.1 + 0.2 is 0.30000000000000004, and half of that would be a confidence of 0.5.
    assert paired(single("a", 0.1 + 0.2), single("b", 0.3), WITHOUT_REPEATS) == (
        "tie (margin too small)"
    )
