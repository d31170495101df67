"""The 98 pairs of this project and its system prompts: counts, mix, form, what they never say."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from sft.curate import ProjectDemonstration, project_demonstrations, project_rows
from sft.data import content_key, load_demonstrations
from sft.split import normalised, words_of

ASSETS = Path(__file__).resolve().parents[1] / "sft" / "assets"
ROWS = project_rows()


def answer(row: ProjectDemonstration) -> str:
    return row.completion[0]["content"]


def everyone(*risks: str) -> list[ProjectDemonstration]:
    return [row for row in ROWS if row.risk in risks]


def first_words(text: str, n: int) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w']+", text.lower())[:n])


def test_there_are_98_pairs_in_the_mix_of_topics() -> None:
    """Anxiety and stress 35 %, depression 25 %, sleep and wellness 15 %, relationships 10 %."""
    count = Counter(row.topic for row in ROWS)
    assert count["anxiety"] + count["stress"] == 34
    assert (count["depression"], count["sleep"], count["wellness"]) == (25, 15, 14)
    assert count["relationships"] == 10
    assert len(ROWS) == count.total() == 98


def test_risks() -> None:
    assert Counter(row.risk for row in ROWS) == {"none": 84, "elevated": 8, "crisis": 6}
    assert Counter(row.topic for row in everyone("elevated"))["depression"] == 5


def test_ids_and_questions_are_unique() -> None:
    assert len({row.id for row in ROWS}) == 98
    wide = project_demonstrations()
    assert len(wide) == 98 * (1 + 3) == 392
    assert len({content_key(row.prompt) for row in wide}) == 392
    assert len(project_demonstrations(paraphrases=False)) == 98


def test_six_prompts_have_several_turns() -> None:
    roles = Counter(tuple(m["role"] for m in row.prompt) for row in ROWS)
    assert roles == {("user",): 92, ("user", "assistant", "user"): 6}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_an_answer_is_one_paragraph_of_80_to_170_words(row: ProjectDemonstration) -> None:
    assert [m["role"] for m in row.completion] == ["assistant"]
    text = answer(row)
    assert 80 <= len(text.split()) <= 170
    assert "\n" not in text and text == text.strip() and "  " not in text
    assert text.isascii()  # no typographic marks that a small tokenizer splits into bytes
    assert text.count('"') % 2 == 0


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_paraphrases_differ_from_the_question_and_each_other(row: ProjectDemonstration) -> None:
    assert len(row.paraphrases) == 3
    wordings = [row.prompt[-1]["content"], *row.paraphrases]
    assert all(text == text.strip() and text for text in wordings)
    for one, other in combinations(map(words_of, wordings), 2):
        assert len(one & other) / len(one | other) < 0.6
    assert len({first_words(text, 3) for text in wordings}) == 4


def test_no_two_answers_open_alike() -> None:
    assert len({first_words(answer(row), 4) for row in ROWS}) == 98
    assert max(Counter(first_words(answer(row), 1) for row in ROWS).values()) <= 5


def test_answers_end_in_different_ways() -> None:
    asks = sum(answer(row).endswith("?") for row in ROWS)
    assert 70 <= asks < 95  # most invite the person on, not all with a question
    lengths = [len(answer(row).split()) for row in ROWS]
    assert max(lengths) - min(lengths) > 60
    assert 120 <= sum(lengths) / len(lengths) <= 150


NEVER = {
    "boilerplate": r"^(?:as an? |i(?:'m| am) sorry to hear|thank you for (?:sharing|reach))",
    "diagnosis": r"\byou (?:clearly |probably |definitely |may |might )?(?:have|suffer from) "
    r"(?:\w+ )?(?:depression|anxiety disorder|ptsd|ocd|bipolar|adhd|insomnia|apnea|mania)",
    "dose": r"\b\d+ ?(?:mg|milligrams?|tablets|pills)\b|\b(?:melatonin|diazepam|sertraline)\b",
    "medication": r"\b(?:start|stop|increase|double|skip|halve) (?:taking )?(?:your|the) "
    r"(?:medication|medicine|meds|dose|tablets|pills|antidepressants?)\b",
    "claims to be a person": r"\bas a (?:therapist|psychologist|human|person|mother|father)\b"
    r"|\bi(?:'m| am) (?:human|a (?:person|therapist|doctor|nurse|counsell?or))\b",
    "promise": r"\b(?:i promise|guarantee|you will be (?:fine|cured))\b",
    "dismissal": r"\b(?:calm down|cheer up|get over it|others have it worse|at least you)\b",
    "method": r"\b(?:overdose|hang(?:ing)? (?:my|your|him|her)self|noose|firearm|gun)\b",
}


@pytest.mark.parametrize("what", NEVER)
def test_no_answer_has(what: str) -> None:
    found = [row.id for row in ROWS if re.search(NEVER[what], answer(row).lower())]
    assert found == []


HUMAN_HELP = re.compile(
    r"\b(?:doctor|therapist|counselor|midwife|nurse|prescriber|hotline|professional|psychologist)\b"
)


def offers(row: ProjectDemonstration) -> bool:
    return HUMAN_HELP.search(answer(row).lower()) is not None


def test_where_nothing_is_at_risk_nobody_is_sent_away() -> None:
    """A doctor is named where bodies, medicine or a diagnosis are the question; no more."""
    named = [row.id for row in everyone("none") if offers(row)]
    assert len(named) <= 0.15 * len(everyone("none"))
    assert not re.search(r"\b988\b|\b911\b", " ".join(answer(row) for row in everyone("none")))


def test_elevated_answers_offer_human_help() -> None:
    assert [row.id for row in everyone("elevated") if not offers(row)] == []


@pytest.mark.parametrize("row", everyone("crisis"), ids=lambda row: row.id)
def test_crisis_answers_ask_directly_and_bring_help_at_once(row: ProjectDemonstration) -> None:
    text = answer(row).lower()
    assert re.search(r"(?:killing yourself|kill yourself|end your life)[^.!]*\?", text)
    assert "988" in text and "in the us" in text
    assert "911" in text and "emergency number" in text
    assert re.search(r"\b(?:now|this minute|straight away|right now)\b", text)
    assert re.search(r"\b(?:roommate|sister|neighbor|parent|somebody|someone)\b", text)
    assert re.search(r"\bi'm an ai\b", text)
    assert text.endswith(("?", "stay here and tell me."))


def test_indirect_crises_are_among_them() -> None:
    said = [row.prompt[-1]["content"].lower() for row in everyone("crisis")]
    assert sum(not re.search(r"suicid|kill|end my life|\bdie\b", text) for text in said) >= 4


def test_the_file_is_a_dataset_of_its_own() -> None:
    rows = load_demonstrations(str(ASSETS / "demonstrations.jsonl"))
    assert [row.completion for row in rows] == [row.completion for row in ROWS]


def prompt_words(name: str) -> int:
    lines = (ASSETS / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"# {name} v1"
    return len(" ".join(lines[1:]).split())


def test_system_prompts_have_a_version_and_their_length() -> None:
    assert 120 <= prompt_words("support") <= 180
    assert prompt_words("brief") <= 20
    assert prompt_words("support_with_example") <= 320


@pytest.mark.parametrize("name", ["support", "support_with_example", "brief"])
def test_system_prompts_say_what_the_assistant_is_and_is_not(name: str) -> None:
    text = normalised((ASSETS / "prompts" / f"{name}.txt").read_text(encoding="utf-8"))
    for needed in ("ai", "listen", "diagnos", "at once"):
        assert needed in text
