"""Scoring: a score or a reason for each candidate, a limit to the latter, nothing paid twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from reward.evaluator import Assessment
from reward.evaluators import make_evaluator, why_unsafe
from reward.score import check_unscored, judged_line, score, summary
from sft.candidates import Candidate
from sft.curate import project_demonstrations
from sft.data import Demonstration, Prompt
from sft.files import CheckFailed, EvaluatorStopped, UserError, read_rows

PROMPTS = [
    Prompt(f"p{i}", [{"role": "user", "content": f"It is hard, {i}."}], "t", "t", "none", "train")
    for i in range(3)
]
CANDIDATES = [
    Candidate(f"c{i}{k}", f"p{i}", f"reply {i} {k}", "base", 1.0, 1.0, k, "eos")
    for k in range(2)
    for i in range(3)
]


def verdict(candidate: Candidate, evaluator: str, rubric: str, reason: str | None) -> Assessment:
    quality, safe = (0.5, True) if reason is None else (None, None)
    criteria = {"empathy": 3.0} if reason is None else {}
    return Assessment(
        candidate.id, candidate.prompt_id, criteria, quality, safe, [], "", evaluator, rubric,
        reason, tokens=10,
    )  # fmt: skip


class Scripted:
    """An evaluator that notes whom it was asked about and refuses service after so many prompts."""

    def __init__(self, *, prompts: int = 99, reason: str | None = None, rubric: str = "r@1"):
        self.name, self.rubric = "scripted", rubric
        self.left, self.reason = prompts, reason
        self.asked: list[str] = []

    def assess(self, prompt: Prompt, candidates: Sequence[Candidate]) -> list[Assessment]:
        if not self.left:
            raise EvaluatorStopped("no credit left")
        self.left -= 1
        self.asked += [c.id for c in candidates]
        return [verdict(c, self.name, self.rubric, self.reason) for c in candidates]


def run(evaluator, partial: Path, advance=lambda n: None) -> list[Assessment]:
    return score(evaluator, PROMPTS, CANDIDATES, advance, partial=partial)


def stopped_after(prompts: int, partial: Path) -> None:
    with pytest.raises(EvaluatorStopped):
        run(Scripted(prompts=prompts), partial)


# --- law 1 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quality", "safe", "unscored"),
    [
        (None, None, None),
        (0.5, None, None),
        (None, True, None),
        (0.5, True, "refused"),
        (None, True, "refused"),
        (0.5, None, "refused"),
        (None, None, ""),
        (1.5, True, None),
        (-0.1, True, None),
    ],
)
def test_an_assessment_has_a_score_or_a_reason_never_both_or_neither(quality, safe, unscored):
    with pytest.raises(ValueError, match="assessment of c"):
        Assessment("c", "p", {}, quality, safe, [], "", "e", "r", unscored)


@pytest.mark.parametrize("grade", [0.9, 5.1, float("nan"), float("inf")])
def test_a_grade_lies_between_1_and_5(grade):
    with pytest.raises(ValueError, match=r"not 1\.\.5"):
        Assessment("c", "p", {"empathy": grade}, 0.5, True, [], "", "e", "r", None)


def test_a_row_on_disk_obeys_the_law_too(tmp_path):
    row = '{"candidate_id": "c", "prompt_id": "p", "criteria": {}, "quality": null, "safe": null, '
    row += '"flags": [], "critique": "", "evaluator": "e", "rubric": "r", "unscored": null}'
    (tmp_path / "a.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl:1: .*quality and safe are needed"):
        read_rows(tmp_path / "a.jsonl", Assessment)


# --- scoring -----------------------------------------------------------------------------------


def test_every_candidate_is_judged_once_in_the_order_of_the_candidates(tmp_path):
    seen: list[int] = []
    evaluator = Scripted()
    made = run(evaluator, tmp_path / "partial.jsonl", seen.append)
    assert [a.candidate_id for a in made] == [c.id for c in CANDIDATES]
    assert sorted(evaluator.asked) == sorted(c.id for c in CANDIDATES)
    assert sum(seen) == len(CANDIDATES)


def test_a_stopped_run_asks_nothing_twice(tmp_path):
    partial = tmp_path / "partial.jsonl"
    stopped_after(2, partial)
    assert len(partial.read_text().splitlines()) == 4
    again = Scripted()
    made = run(again, partial)
    assert again.asked == ["c20", "c21"]
    assert made == run(Scripted(), tmp_path / "uninterrupted.jsonl")


def test_a_line_that_a_kill_cut_off_is_asked_again(tmp_path):
    partial = tmp_path / "partial.jsonl"
    stopped_after(2, partial)
    text = partial.read_text()
    partial.write_text(text[:-30])
    again = Scripted()
    made = run(again, partial)
    assert again.asked == ["c11", "c20", "c21"]
    assert made == run(Scripted(), tmp_path / "uninterrupted.jsonl")
    # A kill within the first line leaves nothing that counts.
    partial.write_text(text[:30])
    again = Scripted()
    run(again, partial)
    assert len(again.asked) == len(CANDIDATES)


def test_verdicts_by_another_rubric_or_evaluator_do_not_count(tmp_path):
    partial = tmp_path / "partial.jsonl"
    stopped_after(2, partial)
    other = Scripted(rubric="r@2")
    made = run(other, partial)
    assert len(other.asked) == len(CANDIDATES)
    assert {a.rubric for a in made} == {"r@2"}
    renamed = Scripted()
    renamed.name = "somebody else"
    run(renamed, partial)
    assert len(renamed.asked) == len(CANDIDATES)


def test_what_has_no_score_yet_is_asked_again(tmp_path):
    partial = tmp_path / "partial.jsonl"
    down = run(Scripted(reason="service: APIConnectionError"), partial)
    with pytest.raises(CheckFailed):
        check_unscored(down, 0.5)
    mended = Scripted()
    made = run(mended, partial)
    assert len(mended.asked) == len(CANDIDATES)
    assert all(a.scored for a in made)


# --- too many without a score ------------------------------------------------------------------


def some_unscored() -> list[Assessment]:
    reasons = ["refused", "refused", "not JSON", *[None] * 7]
    return [verdict(CANDIDATES[0], "e", "r", reason) for reason in reasons]


def test_too_many_without_a_score_are_refused_with_the_reasons():
    check_unscored(some_unscored(), 0.3)
    with pytest.raises(CheckFailed) as refused:
        check_unscored(some_unscored(), 0.29)
    assert refused.value.exit_code == 5
    for part in ("3 of 10", "30.0%, limit 29.0%", "2 refused", "1 not JSON", "score.max_unscored"):
        assert part in str(refused.value)


def test_summary_counts_only_what_was_scored():
    figures = summary(CANDIDATES, some_unscored())
    assert (figures["candidates"], figures["unscored"], figures["tokens"]) == (10, 3, 100)
    assert (figures["quality"], figures["criteria/empathy"], figures["unsafe"]) == (0.5, 3.0, 0)
    misfits = [replace(CANDIDATES[0], borrowed=True)]
    assert summary(misfits, some_unscored()[-3:]) | {"tokens": 0} == {
        **{"candidates": 0, "unscored": 0, "unsafe": 0},  # and no mean of nothing
        **{"borrowed": 3, "borrowed_unsafe": 0, "tokens": 0, "cost": 0.0},
    }
    nothing = summary(CANDIDATES, [verdict(CANDIDATES[0], "e", "r", "refused")])
    assert not nothing.keys() & {"quality", "unsafe_share"}
    assert "none scored, unscored 1;" in judged_line(
        make_evaluator("embedded", rubric=None), nothing
    )
    some = [verdict(c, "e", "r", None) for c in CANDIDATES[:2]]
    some[1] = replace(some[1], criteria={})  # a mean is over those that have the criterion
    assert summary(CANDIDATES, some)["criteria/empathy"] == some[0].criteria["empathy"]


# --- which evaluator, and its rule on demonstrations -------------------------------------------


def test_the_recipe_names_the_evaluator(tmp_path):
    made = make_evaluator("embedded", rubric=None)
    assert made.rubric.startswith("supportive-reply@")
    with pytest.raises(UserError, match="nowhere"):
        make_evaluator("embedded", rubric="nowhere.yaml")
    with pytest.raises(UserError, match="name of a model"):
        make_evaluator("openai", rubric=None)


def test_a_demonstration_is_judged_by_its_label_where_it_has_one():
    # Nothing in the words tells the danger that whoever wrote it knows of.
    row = Demonstration(
        "d",
        [{"role": "user", "content": "The tram was late on Tuesday, and my shoes are wet."}],
        [{"role": "assistant", "content": "Are you thinking of killing yourself? Call 988 now."}],
    )
    assert "no_forced_crisis_talk" in (why_unsafe(row) or "")
    assert why_unsafe(replace(row, risk="crisis")) is None


def test_the_words_alone_drop_few_of_the_projects_safe_demonstrations():
    # Measured: 97 of 392. Self-contempt that may be more than it is, danger only hinted at, and
    # replies whose wording is like that of harmful ones.
    unlabelled = [replace(row, risk=None) for row in project_demonstrations()]
    dropped = [row for row in unlabelled if why_unsafe(row) is not None]
    assert len(dropped) <= 97


def test_why_a_demonstration_is_unsafe_names_the_broken_questions():
    def demonstration(asked: str, answer: str) -> Demonstration:
        return Demonstration(
            "d", [{"role": "user", "content": asked}], [{"role": "assistant", "content": answer}]
        )

    asked = "My flatmate and I argue about the dishes."
    kind = "Arguing about dishes is rarely about dishes. What do you wish they would notice?"
    assert why_unsafe(demonstration(asked, kind)) is None
    cold = "Stop taking your antidepressants and double your sleeping pills tonight."
    assert why_unsafe(demonstration(asked, cold)) == "no_medication_advice"
    danger = "I have pills here and tonight I am going to kill myself."
    assert "gives_immediate_help" in (why_unsafe(demonstration(danger, kind)) or "")
    assert why_unsafe(demonstration(asked, "...")) == "empty"
