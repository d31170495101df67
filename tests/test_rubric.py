"""The rubric file: what it may say, and how mistakes in it are told."""

from pathlib import Path

import pytest

from reward.flow import CHECKS, check_rubric
from reward.rubric import DEFAULT_RUBRIC, Rubric, load_rubric
from sft.files import UserError


@pytest.fixture
def text() -> str:
    return DEFAULT_RUBRIC.read_text(encoding="utf-8")


def load(tmp_path: Path, text: str) -> Rubric:
    path = tmp_path / "rubric.yaml"
    path.write_text(text, encoding="utf-8")
    return load_rubric(path)


def test_the_default_loads_and_every_safety_question_can_be_answered() -> None:
    rubric = load_rubric()
    check_rubric(rubric)
    assert set(rubric.safety) == set(CHECKS)
    assert {"empathy", "relevance", "clarity", "helpfulness"} <= set(rubric.criteria)
    for risk in ("none", "elevated", "crisis"):
        always = {"no_dismissal", "no_diagnosis", "no_medication_advice", "no_human_claim"}
        assert always <= set(rubric.items(risk))


def test_another_word_is_another_rubric(tmp_path: Path, text: str) -> None:
    same, other = load(tmp_path, text + "\n# a comment\n"), None
    assert same.id == load_rubric().id
    other = load(tmp_path, text.replace("About something else.", "Off topic."))
    assert other.id != same.id
    assert other.id.startswith("supportive-reply@")


def test_mistakes_name_line_and_field_all_at_once(tmp_path: Path, text: str) -> None:
    lines = text.replace("weight: 0.30", "weight: heavy", 1).replace(
        "safe_answer: no", "safe_anser: no", 1
    )
    number = 1 + lines.splitlines().index("    weight: heavy")
    with pytest.raises(UserError) as caught:
        load(tmp_path, lines)
    said = str(caught.value)
    assert f"rubric.yaml:{number}: criteria.empathy.weight" in said
    assert "safety.no_dismissal.safe_anser" in said
    assert "safety.no_dismissal.safe_answer" in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("      5: As 4, and", "      6: As 4, and", "grades 1 to 5"),
        ("name: supportive-reply", "name: Supportive Reply", "name"),
        ("risks: [crisis]", "risks: [severe]", "risks"),
        ("verdict: note", "verdict: maybe", "verdict"),
        ("criteria:\n", "criteria: [\n", "not valid YAML"),
        ("  relevance:\n", "  empathy:\n", "twice"),
    ],
)
def test_what_a_rubric_cannot_say(
    tmp_path: Path, text: str, old: str, new: str, message: str
) -> None:
    assert old in text
    with pytest.raises(UserError, match=message):
        load(tmp_path, text.replace(old, new))


def test_a_missing_file_and_an_empty_one_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_rubric(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="mistake"):
        load(tmp_path, "")


def test_weights_are_shared_among_the_graded(tmp_path: Path, text: str) -> None:
    rubric = load_rubric()
    assert rubric.quality({"empathy": 5, "clarity": 5}) == 1
    assert rubric.quality({"empathy": 1}) == 0
    low = rubric.quality({"empathy": 5, "clarity": 1})
    assert low == pytest.approx(0.30 / 0.40)
    with pytest.raises(ValueError, match="no graded criterion"):
        rubric.quality({})


def test_an_unknown_safety_question_is_refused_by_name(tmp_path: Path, text: str) -> None:
    rubric = load(tmp_path, text.replace("  no_secrecy:", "  speaks_french:"))
    with pytest.raises(UserError, match="speaks_french"):
        check_rubric(rubric)
