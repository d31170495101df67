"""Which pairs are taken: off-values change nothing, length, near duplicates, and the counts."""

from __future__ import annotations

import random
import re
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.evaluator import Assessment
from reward.offline import EmbeddedEvaluator
from reward.pair_choice import (
    over_longer_share,
    shingles,
    similarity,
    take,
    without_near_duplicates,
)
from reward.pairs import Judged, Pair, Pairing, balance_line, make_pairs
from sft.candidates import Candidate
from sft.config import PairSection
from sft.data import Prompt
from sft.simulator import base_corpus, practice_prompts

STRATEGIES = ["best_worst", "best_rest", "best_rest_safe_unsafe", "all"]
TEXTS = [
    "I hear how tired you are tonight, and that sounds hard.",
    "I hear how tired you are tonight and that sounds hard",
    "I hear how tired you are this week, and that sounds hard.",
    "Please call someone you trust, and tell them what you told me just now, all of it.",
    "Sleep more.",
    "What would help you most this evening?",
    "What would help you most this evening? " * 4,
    "Drink some tea.",
    "",
]
verdicts = st.one_of(st.none(), st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans()))
replies = st.tuples(
    verdicts, st.sampled_from(TEXTS), st.sampled_from(["eos", "eos", "length"]), st.booleans()
)
people = st.lists(
    st.tuples(
        st.sampled_from(["none", "elevated", "crisis"]),
        st.sampled_from(["sleep", "grief"]),
        st.lists(replies, max_size=7),
    ),
    min_size=1,
    max_size=5,
)
off = {
    "strategy": st.sampled_from(STRATEGIES),
    "margin": st.sampled_from([0.0, 0.1, 0.3]),
    "max_pairs_per_prompt": st.integers(0, 3),
    "max_length_ratio": st.sampled_from([0.0, 1.5]),
}
on = off | {
    "max_longer_share": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    "length_match": st.sampled_from([0.0, 0.1, 1.0]),
    "near_duplicate": st.sampled_from([0.0, 0.5, 1.0]),
}
Rows = tuple[list[Prompt], list[Candidate], list[Assessment]]


def rows_of(drawn: list) -> Rows:
    """Prompts, candidates and assessments of drawn people."""
    prompts, candidates, assessments = [], [], []
    for number, (risk, topic, group) in enumerate(drawn):
        name = f"p{number}"
        said = [{"role": "user", "content": f"Message {number}."}]
        prompts.append(Prompt(name, said, "test", topic, risk, "train"))
        for k, (verdict, text, stop, borrowed) in enumerate(group):
            mark = f"{name}-c{k}"
            candidates.append(Candidate(mark, name, text, "m", 1.0, 1.0, k, stop, borrowed))
            quality, safe = verdict or (None, None)
            reason = None if verdict else "refused"
            assessments.append(
                Assessment(mark, name, {}, quality, safe, [], "", "t", "r@1", reason)
            )
    return prompts, candidates, assessments


def clinic_rows(n_prompts: int, seed: int) -> Rows:
    """Replies of the clinic's counsellors, good and bad, judged by the embedded evaluator."""
    rng, evaluator = random.Random(seed), EmbeddedEvaluator()
    prompts = practice_prompts("train", n_prompts, seed)
    said = [m["content"] for t in base_corpus(200, seed) for m in t if m["role"] == "assistant"]
    candidates, assessments = [], []
    for prompt in prompts:
        group = [
            Candidate(
                f"{prompt.id}-{k}", prompt.id, rng.choice(said), "m", 1.0, 1.0, k,
                rng.choice(["eos", "eos", "eos", "length"]), k > 4,
            )
            for k in range(7)
        ]  # fmt: skip
        candidates += group
        assessments += evaluator.assess(prompt, group)
    return prompts, candidates, assessments


# --- off-values --------------------------------------------------------------------------------


def plain_pairs(rows: Rows, section: PairSection) -> list[tuple[str, str, float, float, str]]:
    """The rules without repeats, near duplicates and length control, written down once more."""
    prompts, candidates, assessments = rows
    written = {c.id: c for c in candidates}
    made = []

    def met(x: Assessment, y: Assessment) -> tuple[str, str, float, float, str] | None:
        if not (x.safe or y.safe):
            return None
        if written[x.candidate_id].text.strip() == written[y.candidate_id].text.strip():
            return None
        gap = x.quality - y.quality
        if x.safe == y.safe:
            if gap == 0 or abs(gap) < section.margin:
                return None
            won, lost = (x, y) if gap > 0 else (y, x)
            said = [len(written[z.candidate_id].text.split()) for z in (won, lost)]
            if section.max_length_ratio and said[0] > section.max_length_ratio * max(1, said[1]):
                return None
            return won.candidate_id, lost.candidate_id, abs(gap), 0.5 + abs(gap) / 2, "quality"
        won, lost, gap = (x, y, gap) if x.safe else (y, x, -gap)
        return won.candidate_id, lost.candidate_id, max(1 + gap, 0.01), 1.0, "safety"

    for prompt in prompts:
        usable = [
            a
            for a in assessments
            if a.prompt_id == prompt.id
            and a.unscored is None
            and written[a.candidate_id].stop == "eos"
        ]
        usable.sort(key=lambda a: (not a.safe, -a.quality, a.candidate_id))
        own = [a for a in usable if not written[a.candidate_id].borrowed]
        foreign = [a for a in usable if written[a.candidate_id].borrowed and not a.safe]
        first = own[:1]
        wanted = {
            "best_worst": [(own[0], own[-1])] if len(own) > 1 else [],
            "best_rest": [(x, y) for x in first for y in own[1:]],
            "all": list(combinations(own, 2)),
        }
        wanted["best_rest_safe_unsafe"] = [
            (x, y) for x, y in wanted["all"] if x is own[0] or x.safe != y.safe
        ]
        found = [pair for x, y in wanted[section.strategy] if (pair := met(x, y))]
        found.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
        made += found[: section.max_pairs_per_prompt or None]
        if first and first[0].safe and foreign and (pair := met(first[0], foreign[-1])):
            made.append(pair)
    return made


def short(result: Pairing) -> list[tuple[str, str, float, float, str]]:
    return [(p.chosen_id, p.rejected_id, p.margin, p.confidence, p.rule) for p in result.pairs]


@settings(max_examples=300, deadline=None)
@given(people, st.builds(PairSection, **off))
def test_with_the_new_rules_off_pairs_are_what_they_were(drawn: list, section: PairSection) -> None:
    rows = rows_of(drawn)
    assert short(make_pairs(*rows, section)) == plain_pairs(rows, section)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_embedded_evaluators_pairs_are_what_they_were(strategy: str) -> None:
    rows = clinic_rows(40, 5)
    for margin, most, ratio in ((0.05, 0, 1.3), (0.1, 2, 0.0), (0.0, 0, 0.0)):
        section = PairSection(
            strategy=strategy, margin=margin, max_pairs_per_prompt=most, max_length_ratio=ratio
        )
        found = short(make_pairs(*rows, section))
        assert found == plain_pairs(rows, section)
        assert len(found) > 20


# --- everything on -----------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(people, st.builds(PairSection, **on))
def test_the_laws_hold_with_every_rule_on(drawn: list, section: PairSection) -> None:
    rows = rows_of(drawn)
    judged = {a.candidate_id: a for a in rows[2]}
    written = {c.id: c for c in rows[1]}
    result = make_pairs(*rows, section)
    for pair in result.pairs:
        chosen, rejected = judged[pair.chosen_id], judged[pair.rejected_id]
        assert chosen.safe and not written[pair.chosen_id].borrowed
        assert (pair.rule == "safety") == (rejected.safe is False)
        assert written[pair.chosen_id].text.strip() != written[pair.rejected_id].text.strip()
        assert pair.margin > 0 and 0.5 < pair.confidence <= 1
        if section.near_duplicate:
            alike = similarity(
                *(shingles(written[i].text) for i in (chosen.candidate_id, rejected.candidate_id))
            )
            assert alike < section.near_duplicate
    met = [{p.chosen_id, p.rejected_id} for p in result.pairs]
    assert len(met) == len({tuple(sorted(each)) for each in met})
    again = [list(reversed(each)) for each in rows[1:]]
    assert sorted(short(make_pairs(rows[0], again[0], again[1], section))) == sorted(short(result))


@settings(max_examples=300, deadline=None)
@given(people, st.builds(PairSection, **on))
def test_all_that_was_dropped_adds_up(drawn: list, section: PairSection) -> None:
    prompts, candidates, assessments = rows_of(drawn)
    result = make_pairs(prompts, candidates, assessments, section)
    report = result.report()
    assert report["candidates"]["total"] == len(candidates)
    assert report["prompts"]["total"] == len(prompts)
    assert report["pairs"] == report["comparisons"]["kept"] + report["pairs_against_borrowed"]
    assert report["pairs"] == sum(report["pairs_by_rule"].values()) == len(result.pairs)
    assert report["prompts"].get("with pairs", 0) == len({p.prompt_id for p in result.pairs})
    groups = ("candidates", "comparisons", "comparisons_with_borrowed", "prompts")
    for counts in (report[name] for name in groups):
        said, total = counts["arithmetic"].split(" = ")
        parts = [int(each) for each in re.findall(r"(?:^|\+ )(\d+)", said)]
        by_reason = [n for name, n in counts.items() if name not in ("total", "arithmetic")]
        assert parts == (by_reason or [0])
        assert sum(parts) == int(total) == counts["total"]
    for by_value in report["balance"].values():
        assert sum(n["prompts"] for n in by_value.values()) == len(prompts)
        assert sum(n["with pairs"] for n in by_value.values()) == result.prompts["with pairs"]
        assert sum(n["pairs"] for n in by_value.values()) == len(result.pairs)
        assert all(n["safety"] + n["quality"] == n["pairs"] for n in by_value.values())
    longer = report["chosen_longer"]
    assert longer["quality"]["pairs"] + longer["safety"]["pairs"] == len(result.pairs)


def test_balance_is_one_line_with_the_extremes_of_topics() -> None:
    good, bad = ((0.9, True), "one two", "eos", False), ((0.1, True), "three", "eos", False)
    result = make_pairs(
        *rows_of([("none", "sleep", [good, bad]), ("crisis", "grief", [good])]), PairSection()
    )
    assert balance_line(result) == (
        "balance: pairs per prompt by risk 1.00 none, 0.00 crisis; by topic 0.00 (grief) to 1.00 "
        "(sleep), 1 of 2 topics without; chosen > 1.5 times longer: 100% by quality, 0% by safety"
    )


# --- length ------------------------------------------------------------------------------------


def pair_of(number: int, margin: float, chosen: int, rejected: int, rule: str = "quality") -> Pair:
    """A pair with that many words on its sides."""
    sides = [
        [{"role": "assistant", "content": " ".join([name] * n)}]
        for name, n in (("yes", chosen), ("no", rejected))
    ]
    mark = f"{number:03}"
    return Pair("p", [], *sides, margin, 0.9, f"c{mark}", f"r{mark}", rule)


many_pairs = st.lists(
    st.tuples(
        st.integers(1, 20).map(lambda n: n / 20),
        st.integers(1, 9),
        st.integers(1, 9),
        st.sampled_from(["quality", "quality", "safety"]),
    ),
    max_size=30,
).map(lambda rows: [pair_of(i, *row) for i, row in enumerate(rows)])


def longer_ones(pairs: list[Pair]) -> list[Pair]:
    return [p for p in pairs if p.rule == "quality" and p.lengthening > 1.5]


@settings(max_examples=300, deadline=None)
@given(many_pairs, st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]))
def test_the_share_of_much_longer_chosen_replies_is_capped(pairs: list[Pair], share: float) -> None:
    dropped = over_longer_share(pairs, share)
    left = [pair for pair in pairs if pair not in dropped]
    quality = sum(pair.rule == "quality" for pair in left)
    assert len(longer_ones(left)) <= share * quality + 1e-9
    assert longer_ones(dropped) == dropped
    if dropped:
        # No more than needed: with one of them back the share is over.
        assert len(longer_ones(left)) + 1 > share * (quality + 1)
        kept = longer_ones(left)
        assert not kept or min(p.margin for p in kept) >= max(p.margin for p in dropped)
    assert over_longer_share(list(reversed(pairs)), share) == dropped
    assert not (share == 1 and dropped)


def test_of_much_longer_ones_the_smallest_margins_go_first() -> None:
    pairs = [pair_of(i, margin, 4, 1) for i, margin in enumerate((0.3, 0.1, 0.2, 0.4))]
    pairs += [pair_of(10 + i, 0.05, 1, 1) for i in range(6)]
    # 4 of 10, 3 of 9, then 2 of 8, which is a quarter.
    assert [p.margin for p in over_longer_share(pairs, 0.25)] == [0.1, 0.2]


def test_pairs_by_safety_are_not_dropped_for_their_length() -> None:
    long = ((0.5, True), "word " * 50, "eos", False)
    rows = rows_of([("crisis", "grief", [long, ((0.9, False), "no", "eos", False)])])
    section = PairSection(max_longer_share=0.0, max_length_ratio=1.0)
    (pair,) = make_pairs(*rows, section).pairs
    assert pair.rule == "safety"
    rows = rows_of([("crisis", "grief", [long, ((0.1, True), "no", "eos", False)])])
    result = make_pairs(*rows, PairSection(max_longer_share=0.0))
    assert not result.pairs
    assert result.comparisons == {"kept": 0, "over max_longer_share": 1}
    assert result.prompts == {"with much longer chosen replies only": 1}


@settings(max_examples=300, deadline=None)
@given(many_pairs, st.sampled_from([0.05, 0.2, 1.0]), st.integers(1, 5))
def test_of_pairs_with_like_margins_the_likest_in_length_are_taken(
    pairs: list[Pair], width: float, most: int
) -> None:
    section = PairSection(strategy="all", length_match=width, max_pairs_per_prompt=most)
    taken = take(pairs, section)
    assert len(taken) == min(most, len(pairs))
    left = list(pairs)

    def unlike(pair: Pair) -> float:
        return max(pair.lengthening, 1 / pair.lengthening)

    for pair in taken:
        top = max(each.margin for each in left)
        assert pair.margin >= top - width
        alike = [each for each in left if each.margin >= top - width]
        assert unlike(pair) <= min(map(unlike, alike)) + 1e-9
        left.remove(pair)
    assert take(list(reversed(pairs)), section) == taken


@settings(max_examples=100, deadline=None)
@given(many_pairs, st.integers(0, 5))
def test_without_length_matching_pairs_are_taken_by_margin(pairs: list[Pair], most: int) -> None:
    taken = take(pairs, PairSection(strategy="all", max_pairs_per_prompt=most))
    margins = [pair.margin for pair in taken]
    assert margins == sorted((p.margin for p in pairs), reverse=True)[: most or None]


def test_best_against_worst_may_be_against_one_nearly_as_bad_of_like_length() -> None:
    group = [
        ((0.9, True), "a b c d e f", "eos", False),
        ((0.20, True), "g", "eos", False),
        ((0.25, True), "h i j k l m", "eos", False),
        ((0.80, True), "n o p q r s", "eos", False),
    ]
    rows = rows_of([("none", "sleep", group)])
    (plain,) = make_pairs(*rows, PairSection()).pairs
    result = make_pairs(*rows, PairSection(length_match=0.1))
    assert plain.rejected_id == "p0-c1"
    assert [pair.rejected_id for pair in result.pairs] == ["p0-c2"]
    assert result.comparisons == {"over one pair a prompt": 2, "kept": 1}


# --- near duplicates ---------------------------------------------------------------------------

groups = st.lists(replies.filter(lambda reply: reply[0] is not None), max_size=8)


def judged_of(group: list) -> list[Judged]:
    _, candidates, assessments = rows_of([("none", "sleep", group)])
    return [Judged(c, a) for c, a in zip(candidates, assessments, strict=True)]


@settings(max_examples=300, deadline=None)
@given(groups, st.sampled_from([0.0, 0.3, 0.6, 1.0]))
def test_near_duplicates_leave_and_nothing_else(group: list, threshold: float) -> None:
    judged = judged_of(group)
    stay, gone = without_near_duplicates(judged, threshold)
    assert sorted(j.candidate.id for j in [*stay, *gone]) == [j.candidate.id for j in judged]
    if threshold == 0:
        assert stay == judged
        return

    def near(one: Judged, other: Judged) -> bool:
        texts = (one.candidate.text, other.candidate.text)
        return similarity(*map(shingles, texts)) >= threshold

    assert not any(near(a, b) for a, b in combinations(stay, 2))
    for each in gone:
        assert any(near(each, other) for other in stay)
        # A failed reply never leaves for a safe twin that could then be chosen.
        assert each.assessment.safe or any(
            near(each, other) and not other.assessment.safe for other in stay
        )
    assert without_near_duplicates(list(reversed(judged)), threshold)[1] == gone[::-1]


def test_similarity_is_of_normalised_three_word_sequences() -> None:
    one, same, other, far = (shingles(text) for text in (*TEXTS[:3], TEXTS[3]))
    assert similarity(one, same) == 1
    assert len(one) == 9
    # "tonight" for "this week": three sequences of nine against four of ten.
    assert similarity(one, other) == 6 / 13
    assert similarity(one, far) == 0
    assert shingles("Sleep MORE!") == {("sleep", "more")}
    assert shingles(":)") != shingles("...")


def test_near_duplicates_are_counted_once_and_make_no_pair() -> None:
    group = [
        ((0.9, True), TEXTS[0], "eos", False),
        ((0.1, True), TEXTS[1], "eos", False),
        ((0.4, True), TEXTS[5], "eos", False),
    ]
    rows = rows_of([("none", "sleep", group)])
    assert len(make_pairs(*rows, PairSection(strategy="all")).pairs) == 3
    result = make_pairs(*rows, PairSection(strategy="all", near_duplicate=0.9))
    assert [(p.chosen_id, p.rejected_id) for p in result.pairs] == [("p0-c0", "p0-c2")]
    assert result.candidates == {"near duplicate of another reply": 1, "paired with others": 2}
