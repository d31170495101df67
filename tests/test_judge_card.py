"""The judge card: what labels say, what agreement means, what must not matter, and the page."""

from __future__ import annotations

import html
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward import figures
from reward.agreement import agreement_lines, grade_of, lead, scores_of, to_level
from reward.cases import draw_cases
from reward.coefficients import chance_corrected, rank_correlation, weighted_kappa
from reward.evaluator import Assessment
from reward.figures import Figure, clustered, resampled, share_of
from reward.judge_card import Card, make_card, table, validate
from reward.label_forms import load_labels
from reward.labels import Choice, Labels, Scale, one_against_rest
from reward.offline import EmbeddedEvaluator
from reward.page import bar, write_card, written
from reward.probes import (
    PADDING,
    asked,
    injection_suite,
    load_attacks,
    order_lines,
    padding_attack,
)
from reward.recall import read_risk, safety_lines
from reward.rubric import load_rubric
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import UserError

ROOT = Path(__file__).resolve().parents[1]
RUBRIC = load_rubric()
EVIL = "<script>alert(1)</script>"


def value(figure: Figure) -> float:
    assert figure.value is not None, figure.missing
    return figure.value


def quiet(n: int) -> None:
    assert n > 0


@dataclass
class ByRule:
    """An evaluator whose quality is a function of (message, reply, place in the call)."""

    rule: Callable[[str, str, int], float | None]
    name: str = f"by-rule {EVIL}"
    rubric: str = "test@1"
    calls: int = 0

    def assess(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Assessment]:
        self.calls += len(candidates)
        return [self._one(prompt, c, place) for place, c in enumerate(candidates)]

    def _one(self, prompt: Prompt, c: Candidate, place: int) -> Assessment:
        quality = self.rule(prompt.messages[-1]["content"], c.text, place)
        if quality is None:
            return Assessment.without_score(c, "refused", evaluator=self.name, rubric=self.rubric)
        criteria = {"empathy": 1 + 4 * quality}
        safe = "unsafe" not in c.text
        return Assessment(
            c.id, prompt.id, criteria, quality, safe, [], "", self.name, self.rubric, None
        )


def first_number(message: str, reply: str, place: int) -> float:
    """The reply's first number, 0..100, as a share: the truth of the made labels."""
    found = re.search(r"\d+", reply)
    assert found
    return int(found[0]) / 100


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "RESAMPLES", 200)


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def made_labels(folder: Path, *, prompts: int = 40, raters: int = 2) -> Labels:
    """Replies `k/100` good, of lengths that say nothing, graded by people who nearly agree."""
    rng = np.random.default_rng(0)
    rows = []
    for p in range(prompts):
        for good in rng.choice(np.arange(0, 101, 25), 4, replace=False):
            reply = f"{good} {'word ' * int(rng.integers(1, 30))}"
            for r in range(raters):
                grade = min(5, max(1, 1 + good // 25 + (r == 1 and rng.random() < 0.2)))
                rows.append(
                    {"prompt": f"m {p}", "reply": reply, "rater": f"r{r}", "overall": int(grade)}
                )
    return load_labels([write(folder / "labels.jsonl", rows)], RUBRIC)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    return made_labels(tmp_path_factory.mktemp("labels"))


def assessed(labels: Labels, judge: ByRule) -> dict[str, Assessment]:
    found = {}
    for prompt, replies in labels.of_prompt().items():
        found |= {a.candidate_id: a for a in judge.assess(labels.prompts[prompt], replies)}
    return found


# --- figures --------------------------------------------------------------------------------------


def test_a_figure_has_a_value_or_a_reason() -> None:
    with pytest.raises(ValueError):
        Figure(0.5, 0.4, 0.6, 10, 10, "and a reason")
    with pytest.raises(ValueError):
        Figure(None, None, None, 0, 0)
    with pytest.raises(ValueError):
        Figure(0.5, 0.6, 0.7, 10, 10)
    assert not share_of(0, 0, missing="nobody asked").measured
    assert clustered([("a", 1.0), ("a", 0.0)]).missing == "all cases belong to one prompt"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 1)), min_size=1, max_size=30))
def test_an_interval_holds_its_value(scored: list[tuple[str, float]]) -> None:
    figure = clustered(scored)
    if figure.value is not None and figure.low is not None and figure.high is not None:
        assert figure.low <= figure.value <= figure.high
        assert figure.value == pytest.approx(sum(v for _, v in scored) / len(scored))


def test_identical_cases_still_have_a_width_that_follows_the_prompts() -> None:
    many = clustered([(f"p{i % 5}", 1.0) for i in range(500)])
    assert (many.value, many.high, many.groups) == (1.0, 1.0, 5)
    assert many.low == pytest.approx(share_of(5, 5).low)


def test_more_replies_to_the_same_prompts_do_not_narrow_the_interval() -> None:
    once = [(f"p{i}", float(i % 2)) for i in range(20)]
    assert clustered(once).low == pytest.approx(clustered(once * 10).low)


# --- coefficients ---------------------------------------------------------------------------------


def test_weighted_kappa_of_known_tables() -> None:
    assert weighted_kappa(np.diag([3.0, 4.0, 5.0])) == 1.0
    assert weighted_kappa(np.outer([1.0, 2.0], [3.0, 4.0])) == pytest.approx(0.0)
    # Two levels: Cohen's plain kappa. Observed 0.7, by chance 0.5: (0.7 - 0.5) / 0.5.
    assert weighted_kappa(np.array([[20.0, 5.0], [10.0, 15.0]])) == pytest.approx(0.4)
    assert math.isnan(weighted_kappa(np.array([[5.0, 0.0], [0.0, 0.0]])))


def test_perfect_and_reversed_agreement() -> None:
    levels = [1.0, 2.0, 3.0]
    same = [(f"p{i}", levels[i % 3], levels[i % 3]) for i in range(30)]
    upside = [(p, a, 4 - a) for p, a, _ in same]
    for figure in chance_corrected(same, levels, "none").values():
        assert figure.value == pytest.approx(1.0)
    against = chance_corrected(upside, levels, "none")
    assert against["weighted kappa"].value == pytest.approx(-1.0)
    assert value(against["Krippendorff alpha"]) < -0.8
    constant = chance_corrected([(f"p{i}", 1.0, 1.0) for i in range(9)], levels, "none")
    assert constant["percent agreement"].value == 1.0
    assert not constant["weighted kappa"].measured and not constant["Krippendorff alpha"].measured


def test_rank_correlation_within_prompts_ignores_what_prompts_differ_in() -> None:
    prompts = [f"p{i // 3}" for i in range(60)]
    x = [float(i % 3) for i in range(60)]
    y = [v + 100 * (i // 3) for i, v in enumerate(x)]
    assert rank_correlation(x, y, prompts, within=True, missing="").value == pytest.approx(1.0)
    over_all = rank_correlation(x, y, prompts, within=False, missing="").value
    assert over_all is not None and over_all < 0.2
    singles = rank_correlation(x, y, [str(i) for i in range(60)], within=True, missing="alone")
    assert singles.missing == "alone"
    assert rank_correlation([1.0] * 60, y, prompts, within=False, missing="flat").missing == "flat"


def test_the_bootstrap_of_a_mean_is_that_of_any_statistic() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=80)
    prompts = [f"p{i // 4}" for i in range(80)]
    whole = resampled(lambda rows: float(values[rows].mean()), prompts, missing="none")
    mean = clustered(list(zip(prompts, values, strict=True)))
    assert whole.value == pytest.approx(mean.value)
    assert whole.low == pytest.approx(mean.low, abs=0.04)
    assert whole.high == pytest.approx(mean.high, abs=0.04)


# --- labels ---------------------------------------------------------------------------------------


def test_own_columns_in_every_file_type(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "I am sad", "reply": "Tell me more.", "rater": "a", "overall": 4, "safe": "yes"},
        {"prompt": "I am sad", "reply": "Tell me more.", "rater": "b", "empathy": 2, "safe": "no"},
    ]
    jsonl = load_labels([write(tmp_path / "a.jsonl", rows)], RUBRIC)
    csv = tmp_path / "a.csv"
    csv.write_text(
        "prompt,reply,rater,overall,empathy,safe\n"
        "I am sad,Tell me more.,a,4,,yes\nI am sad,Tell me more.,b,,2,no\n"
    )
    assert load_labels([csv], RUBRIC).grades == jsonl.grades
    assert len(jsonl.replies) == 1 and set(jsonl.scales) == {"overall", "empathy"}
    assert [v.broken for v in jsonl.verdicts] == [False, True]


def test_public_forms(tmp_path: Path) -> None:
    votes = write(
        tmp_path / "votes.jsonl",
        [
            {"title": "Sad", "question": None, "topic": "t", "answer": "Long one", "upvotes": 3},
            {"title": "Sad", "question": None, "topic": "t", "answer": "Short", "upvotes": 0},
        ],
    )
    found = load_labels([votes], RUBRIC)
    assert not found.scales["upvotes"].comparable and found.scales["upvotes"].low is None
    assert [found.replies[p.better].text for p in found.preferred("upvotes")] == ["Long one"]

    bench = tmp_path / "bench.csv"
    bench.write_text(
        "question_id,rater_id,overall_score,empathy_score,specificity_score,medical_advice_score,"
        "factual_consistency_score,toxicity_score,model,question,response\n"
        "7,r1,4,5,3,Yes,I am not sure,1,gpt4,I am sad,Take this\n"
        "7,r2,2,3,3,I am not sure,4,2,gpt4,I am sad,Take this\n"
    )
    found = load_labels([bench], RUBRIC)
    assert set(found.scales) == {"overall", "empathy", "specificity", "factual consistency"}
    assert found.scales["specificity"].judged_as == "relevance"
    assert len(found.by_rater("factual consistency")) == 1  # "I am not sure" is no label
    assert [(v.item, v.broken) for v in found.verdicts] == [("no_medication_advice", True)]

    level = tmp_path / "emotional-reactions-reddit.csv"
    level.write_text("sp_id,rp_id,seeker_post,response_post,level\n1,2,I am sad,I hear you,2\n")
    found = load_labels([level], RUBRIC)
    assert found.scales == {"emotional reactions": Scale("empathy", 0, 2)}


def test_choices_and_their_order(tmp_path: Path) -> None:
    row: dict[str, object] = {"prompt": "I am sad", "reply_a": "One", "reply_b": "Two words"}
    rows = [row | {"preferred": "a", "rater": "x"}, row | {"preferred": "tie", "rater": "y"}]
    found = load_labels([write(tmp_path / "c.jsonl", rows)], RUBRIC)
    assert [found.replies[p.better].text for p in found.preferred("overall")] == ["One"]
    choice = Choice("a", "b", "x", "overall", 1.0)
    assert choice.swap().swap() == choice and choice.swap().value == 0.0
    swapped = replace(found, choices=[c.swap() for c in found.choices])
    assert swapped.preferred("overall") == found.preferred("overall")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "reply": "r", "overall": 6}, "overall is not 1 to 5"),
        ({"prompt": "p", "reply": "r", "overall": "NaN"}, "overall is not a number"),
        ({"prompt": "p", "reply": "r", "overall": True}, "overall is not a number"),
        ({"prompt": "p", "reply": "r", "safe": "maybe"}, "safe is neither yes nor no"),
        ({"prompt": "p", "reply": " ", "overall": 3}, "reply is empty"),
        ({"prompt": "p", "reply": "r", "risk": "high", "overall": 3}, "risk is none of"),
        ({"prompt": "p", "reply_a": "r", "reply_b": "r", "preferred": "a"}, "are the same"),
        ({"prompt": "p", "reply_a": "r", "reply_b": "s", "preferred": "c"}, "none of a, b, tie"),
        ({"overall_score": 3, "empathy_score": 3, "question": "q"}, "no response: join the texts"),
        ({"something": "else"}, "wrong columns. Found: something"),
    ],
)
def test_mistakes_in_labels_are_told(tmp_path: Path, row: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_labels([write(tmp_path / "x.jsonl", [row])], RUBRIC)


def test_who_said_it_twice_is_told(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "p", "reply": "r", "overall": 3}] * 2
    with pytest.raises(UserError, match="no column `rater` says who"):
        load_labels([write(tmp_path / "x.jsonl", rows)], RUBRIC)


# --- agreement ------------------------------------------------------------------------------------


def test_an_evaluator_that_knows_the_truth_is_validated_and_its_opposite_is_not(
    labels: Labels,
) -> None:
    good = validate(labels, "overall", assessed(labels, ByRule(first_number)))
    bad = validate(
        labels, "overall", assessed(labels, ByRule(lambda m, r, k: 1 - first_number(m, r, k)))
    )
    assert good.validated and not bad.validated
    assert value(good.lines[0].evaluator) > 0.95
    assert value(bad.lines[0].evaluator) < 0.05
    assert "above chance" in bad.sentence


def test_a_word_count_never_leads_itself(labels: Labels) -> None:
    most = max(labels.words(reply) for reply in labels.replies)
    words = assessed(labels, ByRule(lambda m, r, k: len(r.split()) / most))
    found = validate(labels, "overall", words)
    assert not found.validated and "better than a word count" in found.sentence
    assert found.lead.value == 0.0
    scores = scores_of(words, "quality")
    assert lead(labels.preferred("overall"), scores, scores).value == 0.0


def test_too_few_cases_validate_nothing(tmp_path: Path) -> None:
    few = made_labels(tmp_path, prompts=6)
    found = validate(few, "overall", assessed(few, ByRule(first_number)))
    assert not found.validated and "at least 100 cases" in found.sentence


def test_labels_without_pairs_are_judged_by_rank(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    rows: list[dict[str, object]] = [
        {"seeker_post": f"post {i}", "rp_id": i, "level": good // 50,
         "response_post": f"{good} {'word ' * int(rng.integers(1, 30))}"}
        for i, good in enumerate(rng.choice([0, 50, 100], 120).tolist())
    ]  # fmt: skip
    some = load_labels([write(tmp_path / "explorations.jsonl", rows)], RUBRIC)
    good = validate(some, "explorations", assessed(some, ByRule(first_number)))
    assert good.validated and good.sentence.startswith("rank correlation 1.00, n = 120")
    assert good.lead.above(0.5) and not good.lines[0].evaluator.measured
    lines = {line.name: line.evaluator for line in good.lines}
    assert lines["weighted kappa"].value == 1.0 and lines["calibration offset"].value == 0.0
    blind = validate(some, "explorations", assessed(some, ByRule(lambda m, r, k: 0.5)))
    assert not blind.validated


def test_an_evaluator_without_the_criterion_is_not_measured(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "p", "reply": "50", "accuracy": 3}]
    some = load_labels([write(tmp_path / "x.jsonl", rows)], RUBRIC)
    found = validate(some, "accuracy", assessed(some, ByRule(first_number)))
    assert not found.validated and found.sentence == "the evaluator does not grade accuracy"


def test_the_ceiling_needs_two_people(tmp_path: Path, labels: Labels) -> None:
    scores = scores_of(assessed(labels, ByRule(first_number)), "quality")
    safe = dict.fromkeys(scores, True)
    lines = {line.name: line for line in agreement_lines(labels, "overall", scores, safe)}
    ceiling = lines["pair accuracy"].people
    assert ceiling is not None and ceiling.value is not None and 0.8 < ceiling.value <= 1.0
    alpha = lines["Krippendorff alpha"]
    assert alpha.people is not None and alpha.people.measured and alpha.evaluator.measured
    assert abs(value(lines["calibration offset"].evaluator)) < 0.2

    alone = made_labels(tmp_path, raters=1)
    scores = scores_of(assessed(alone, ByRule(first_number)), "quality")
    lines = {
        line.name: line
        for line in agreement_lines(alone, "overall", scores, dict.fromkeys(scores, True))
    }
    for name in ("pair accuracy", "weighted kappa", "Krippendorff alpha"):
        people = lines[name].people
        assert people is not None and not people.measured and people.missing
    assert list(one_against_rest(alone, "overall")) == []


def test_the_offset_is_what_is_added(labels: Labels) -> None:
    def higher(message: str, reply: str, place: int) -> float:
        return 0.1 + 0.8 * first_number(message, reply, place)

    def offset(rule: Callable[[str, str, int], float]) -> float:
        scores = scores_of(assessed(labels, ByRule(rule)), "quality")
        safe = dict.fromkeys(scores, True)
        lines = agreement_lines(labels, "overall", scores, safe)
        return value(next(x for x in lines if x.name == "calibration offset").evaluator)

    first = offset(lambda m, r, k: 0.8 * first_number(m, r, k))
    assert offset(higher) - first == pytest.approx(0.4)


def test_levels_of_another_scale() -> None:
    three = Scale("empathy", 0, 2)
    assert [to_level(three, x) for x in (1.0, 1.9, 2.1, 3.0, 4.1, 5.0)] == [0, 0, 1, 1, 2, 2]
    assert [three.on_five(x) for x in (0, 1, 2)] == [1, 3, 5]


def test_recall_and_false_alarms(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"p{i}", "reply": f"50 {'unsafe' if i % 3 else ''} {i}", "rater": "a",
         "safe": "no" if i < 12 else "yes"}
        for i in range(24)
    ]  # fmt: skip
    some = load_labels([write(tmp_path / "s.jsonl", rows)], RUBRIC)
    recall, alarms = safety_lines(some, assessed(some, ByRule(first_number)))
    assert (recall.evaluator.value, recall.evaluator.n) == (8 / 12, 12)
    assert (alarms.evaluator.value, alarms.evaluator.n) == (8 / 12, 12)
    assert recall.evaluator == share_of(8, 12)
    nothing = safety_lines(Labels(), {})
    assert {line.evaluator.missing for line in nothing} == {"no label says whether a reply is safe"}


# --- what must not matter -------------------------------------------------------------------------


def test_order_that_matters_is_seen(labels: Labels) -> None:
    honest, biased = ByRule(first_number), ByRule(lambda m, r, place: 1 - 0.2 * place)
    for judge, kept, moved in ((honest, 1.0, 0.0), (biased, 0.0, 1.0)):
        cases = draw_cases(labels, assessed(labels, judge), 10)
        lines = {line.name: line.evaluator.value for line in order_lines(judge, cases, quiet)}
        assert lines["swap consistency: same order of two"] == kept
        # Of four replies in reverse, each changes its place.
        assert lines["grade moves when order is reversed"] == moved
        assert lines["repeat agreement: same order of two"] == 1.0


def test_a_single_reply_gets_company(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": f"p{i}", "reply": f"{i * 10} r", "overall": 3} for i in range(8)
    ]
    some = load_labels([write(tmp_path / "x.jsonl", rows)], RUBRIC)
    cases = draw_cases(some, assessed(some, ByRule(first_number)), 8)
    assert all(len(case.replies) == 2 for case in cases)
    assert all(reply.prompt_id == case.prompt.id for case in cases for reply in case.replies)


def test_padding_is_seen(labels: Labels) -> None:
    longer = ByRule(lambda m, r, k: min(1.0, len(r.split()) / 150))
    cases = draw_cases(labels, assessed(labels, longer), 20)
    rises = [value(each.rises) for each in padding_attack(longer, cases, quiet)]
    assert rises == sorted(rises) and rises[-1] == 1.0 and len(rises) == len(PADDING)
    for each in padding_attack(ByRule(first_number), cases, quiet):
        assert each.rises.value == 0.0 and each.change.value == 0.0


def test_injection_is_seen_wherever_it_comes_from(labels: Labels) -> None:
    attacks = [text for attack in load_attacks() for text in attack.texts]

    def gullible(message: str, reply: str, place: int) -> float | None:
        if any(text in reply or text in message for text in attacks if len(text) > 1):
            return 1.0
        return 0.2

    def strict(message: str, reply: str, place: int) -> float | None:
        if any(text in reply or text in message for text in attacks):
            return None
        return 0.2

    cases = draw_cases(labels, assessed(labels, ByRule(lambda m, r, k: 0.2)), 5)
    believed = injection_suite(ByRule(gullible), cases, quiet)
    assert all(f.moved.value == 1.0 and f.raised.value == 1.0 for f in believed)
    refused = injection_suite(ByRule(strict), cases, quiet)
    assert all(f.moved.value == 0.0 and f.unscored == f.tried for f in refused)


def test_the_suite_is_large_enough_and_its_families_differ() -> None:
    attacks = load_attacks()
    for part in ("look", "blind"):
        assert len({a.family for a in attacks if a.part == part}) >= 15
    assert all(len(attack.texts) >= 2 for attack in attacks)
    every = [text for attack in attacks for text in attack.texts]
    assert len(set(every)) == len(every)


# --- the card -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def card(labels: Labels, tmp_path_factory: pytest.TempPathFactory) -> Card:
    folder = tmp_path_factory.mktemp("card")
    file = write(folder / f"data {EVIL.replace('/', '')}.jsonl", [{"any": "thing"}])
    calls: list[int] = []

    def steady(message: str, reply: str, place: int) -> float | None:
        return first_number(message, reply, place) if re.match(r"\d+ ", reply) else None

    judge = ByRule(steady)
    made = make_card(
        judge, labels, data=[file], messages=None, n_probed=5, notes=[EVIL], tell=calls.append
    )
    assert sum(calls) <= judge.calls <= len(labels.replies) + asked(5)
    return made


def test_the_card_is_one_escaped_page_and_its_json(card: Card, tmp_path: Path) -> None:
    write_card(card, tmp_path / "card.html")
    page = (tmp_path / "card.html").read_text(encoding="utf-8")
    assert EVIL not in page and "&lt;script&gt;" in page
    assert not re.search(r"<script|<link|<img|url\(|@import|https?://", page)
    assert card.rule in html.unescape(page)
    for name in (f.name for f in card.injection):
        assert name.replace("_", " ") in page
    assert "VALIDATED IN PART" in page
    assert "no label says whether a reply is safe" in page


def test_criteria_without_labels_are_not_validated(card: Card) -> None:
    found = {v.criterion: v for v in card.validations}
    assert found["overall"].validated
    assert not found["empathy"].validated and found["empathy"].sentence == "no label grades it"
    assert card.validated == 1


def test_the_table_says_what_the_card_says(card: Card) -> None:
    text = table(card)
    assert "overall: VALIDATED" in text and "empathy: NOT VALIDATED" in text
    for part in ("look", "blind"):
        assert "injection [{}]: {} of {} families".format(part, *card.resisted(part)) in text


def test_an_evaluator_that_scores_nothing_is_no_card(labels: Labels) -> None:
    silent = ByRule(lambda m, r, k: None)
    with pytest.raises(UserError, match="scored none of"):
        make_card(silent, labels, data=[], messages=None, n_probed=2, notes=[], tell=quiet)


def test_bars_stay_on_their_axis() -> None:
    figure = Figure(0.5, 0.25, 0.75, 10, 10)
    assert bar(figure, "share") == {"left": 25.0, "width": 50.0, "value": 50.0}
    assert written(figure, "share") == ("50.0 %", "25.0 to 75.0")
    assert written(Figure(-0.001, -0.2, 0.1, 9, 9), "coefficient") == ("0.00", "-0.20 to 0.10")
    with pytest.raises(ValueError, match="not measured: why"):
        written(Figure.none("why"), "share")


def test_grades_of_an_unscored_reply_are_none() -> None:
    reply = Candidate("c", "p", "", "m", 0.0, 1.0, 0, "eos")
    made = Assessment.without_score(reply, "empty", evaluator="e", rubric="r")
    assert grade_of(made, "quality") is None and grade_of(made, "empathy") is None


# --- the embedded evaluator -----------------------------------------------------------------------


def test_the_safety_flow_on_replies_that_shaped_no_pattern() -> None:
    some = load_labels([ROOT / "tests/data/safety_replies.jsonl"], RUBRIC)
    judge = EmbeddedEvaluator()
    found = {}
    for prompt, replies in some.of_prompt().items():
        found |= {a.candidate_id: a for a in judge.assess(some.prompts[prompt], replies)}
    recall, alarms = safety_lines(some, found)
    # Some are taken for text for the judge and left unscored. What is measured, not wished.
    assert recall.evaluator.n >= 208 and alarms.evaluator.n >= 209
    assert value(recall.evaluator) >= 0.6 and value(alarms.evaluator) <= 0.1


def test_reading_of_risk_is_reported_by_part() -> None:
    found = {each.name: each for each in read_risk(ROOT / "tests/data/risk_messages.jsonl")}
    assert found["explicit crises read as crisis"].look.above(0.94)
    assert found["indirect crises read as crisis"].blind.n == 259


def test_the_command_line(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {
            "prompt": f"I feel low, day {i}.",
            "reply": f"That sounds hard, day {i}. {t}",
            "overall": g,
        }
        for i in range(3)
        for t, g in (("What helps you?", 4), ("Get over it.", 1))
    ]
    data = write(tmp_path / "labels.jsonl", rows)
    run = [sys.executable, str(ROOT / "scripts" / "judge_card.py"), "--data", str(data)]

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*run, "--out", str(tmp_path / "out"), "--probes", "1", *more],
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    done = call()
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))
    assert made["replies"] == 6 and made["evaluator"] == EmbeddedEvaluator.name
    assert (tmp_path / "out" / "card.html").is_file()
    refused = call("--evaluator", "openai", "--model", "m")
    assert refused.returncode == 2 and "say --allow_remote api.openai.com" in refused.stderr
    refused = call("--evaluator", "openai", "--model", "m", "--base_url", "localhost:1/v1")
    assert refused.returncode == 2 and "--base_url: begin the address with" in refused.stderr
