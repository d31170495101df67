"""Filters catch what is planted and spare what is good; every figure adds up."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft import curate
from sft.data import Demonstration, Prompt, check_disjoint, without_overlap
from sft.files import CheckFailed

GOOD = (
    "That sounds like a long and lonely week. You could write down one worry this evening, and "
    "take a short walk before bed. Which part of the day is hardest for you?"
)


def safe(_: Demonstration) -> str | None:
    return None


def demo(answer: str = GOOD, question: str = "How do I cope?", name: str = "q") -> Demonstration:
    asked, answered = (
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    )
    return Demonstration(name, [asked], [answered])


def reasons(*answers: str, why: Callable[[Demonstration], str | None] = safe) -> list[str]:
    return list(curate.filter_demonstrations([demo(a) for a in answers], why).dropped)


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("I lie awake until three every night and then cannot sleep at all.", "sleep"),
        ("My boyfriend and I keep arguing, I think we will break up.", "relationships"),
        ("I have panic attacks on the bus and worry about them all day.", "anxiety"),
        ("I feel hopeless and empty, I think I am depressed.", "depression"),
        ("So much pressure at work, I am overwhelmed by deadlines.", "stress"),
        ("How do I start a routine with exercise and meditation?", "wellness"),
        ("My mother died in May and the grief comes in waves.", "grief"),
        ("I relapsed and went back to gambling.", "substance use"),
        ("What is the capital of France?", "other"),
        ("", "other"),
    ],
)
def test_label_names_the_scenario(text: str, topic: str) -> None:
    assert curate.label_topic(text) == topic
    assert curate.label_topic(text.upper().replace("'", "\u2019")) == topic


def test_labels_agree_with_the_project_s_own_topics_better_than_the_largest_class() -> None:
    """The labels are word lists: a help for mixing data, no truth. Their worth is measured."""
    rows = curate.project_demonstrations()
    said = ["\n".join(m["content"] for m in r.prompt if m["role"] == "user") for r in rows]
    right = sum(curate.label_topic(text) == r.topic for text, r in zip(said, rows, strict=True))
    assert right / len(rows) > 0.5  # depression, the largest topic, is 0.26 of them


def test_paraphrases_follow_their_row_and_keep_its_id_and_answer() -> None:
    rows = [demo(question="One?", name="a"), demo(question="Two?", name="b")]
    wide = curate.expand_paraphrases(rows, {"a": ["Uno?", "Un?"]})
    assert [(r.prompt_id, r.prompt[-1]["content"]) for r in wide] == [
        ("a", "One?"),
        ("a", "Uno?"),
        ("a", "Un?"),
        ("b", "Two?"),
    ]
    assert all(r.completion == rows[0].completion for r in wide)


def test_a_paraphrase_keeps_the_earlier_turns() -> None:
    turns = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": "second"},
    ]
    row = Demonstration("m", turns, demo().completion)
    wide = curate.expand_paraphrases([row], {"m": ["2nd"]})
    assert [m["content"] for m in wide[1].prompt] == ["first", "reply", "2nd"]
    assert turns[-1]["content"] == "second"


@pytest.mark.parametrize("held_out_wording", range(4))
def test_no_wording_of_a_held_out_question_stays_in_train(held_out_wording: int) -> None:
    """Law 4: train and held-out are disjoint also after paraphrase, whichever is held out."""
    rows = curate.project_demonstrations()
    by_id = {row.prompt_id: rows[n : n + 4] for n, row in enumerate(rows) if n % 4 == 0}
    held_out = [
        Prompt(name, wordings[held_out_wording].prompt, "project", "", "none", "held_out")
        for name, wordings in list(by_id.items())[::5]
    ]
    with pytest.raises(CheckFailed):
        check_disjoint(rows, held_out)
    train = without_overlap(rows, held_out)
    check_disjoint(train, held_out)
    assert {r.prompt_id for r in train} == set(by_id) - {p.id for p in held_out}
    answers = {by_id[p.id][0].completion[0]["content"] for p in held_out}
    assert answers.isdisjoint(r.completion[0]["content"] for r in train)


@pytest.mark.parametrize(
    "sentence",
    [
        "Asking someone about suicide will only put the idea in their head.",
        "People who talk about suicide never do it.",
        "She is just seeking attention.",
        "Depression is just laziness.",
        "Anxiety isn\u2019t a real illness.",
        "You need to snap out of it.",
        "This diet will completely cure your depression.",
        "Antidepressants are poison.",
        "A nightcap helps you sleep.",
        "Stay in bed until you fall asleep.",
        "People with schizophrenia are usually dangerous.",
        "Real men don't cry.",
        "Wives are naturally emotional.",
        "Being gay is a choice.",
        "You probably provoked him.",
        "If you were a better wife, he would be calmer.",
        "Immigrants are lazy.",
    ],
)
def test_a_planted_myth_is_dropped_with_its_reason(sentence: str) -> None:
    curated = curate.filter_demonstrations([demo(f"{GOOD} {sentence}"), demo()], safe)
    assert curated.kept == [demo()]
    assert list(curated.dropped) == [curate.myth_in(sentence)]


@pytest.mark.parametrize(
    "sentence",
    [
        "Asking about suicide will not put the idea in anybody's head.",
        "It is a myth that people who talk about suicide never do it.",
        "Depression isn't just laziness, whatever you were told.",
        "People told you to snap out of it, and that hurt.",
        "The idea that real men don't cry has cost many of them a lot.",
        "You didn't provoke it, and nothing you do could mean you asked for it.",
        "It is a stereotype that people with schizophrenia are dangerous.",
        "Many men don't talk about their feelings, so this took courage.",
        "She asked for this conversation, and you came.",
        "Being gay is a part of you, and you choose whom to tell.",
        "Asking about suicide can never plant the idea.",
        "People with schizophrenia are not dangerous.",
        "Being gay is not a choice.",
        "Depression is not just laziness.",
        "Antidepressants are not poison.",
        "Jealousy is never a sign of love.",
        "Wine does make people drop off faster, then sleep turns light.",
    ],
)
def test_a_sentence_against_a_myth_is_spared(sentence: str) -> None:
    assert curate.myth_in(f"{GOOD} {sentence}") is None


def test_all_project_demonstrations_pass_their_own_filters() -> None:
    rows = curate.project_demonstrations()
    assert curate.filter_demonstrations(rows, safe) == (rows, {})


def test_the_safety_rule_cannot_be_forgotten_and_gives_the_reason() -> None:
    with pytest.raises(TypeError):
        curate.filter_demonstrations([demo()])  # type: ignore[call-arg]
    why = {GOOD: None, GOOD + " Take two.": "medication"}
    answers = list(why)
    assert reasons(*answers, why=lambda r: why[r.completion[0]["content"]]) == [
        "unsafe: medication"
    ]


def test_length_and_repetition() -> None:
    assert reasons("Just relax.") == ["too short"]
    assert reasons("word " * 401) == ["too long"]
    assert reasons(GOOD, "  " + GOOD.upper().replace(" ", "\n")) == ["repeated"]
    two_questions = [demo(question="One?"), demo(question="Another?")]
    assert curate.filter_demonstrations(two_questions, safe).kept == two_questions


@pytest.mark.parametrize("opening", ["As a licensed psychologist, ", "As an AI language model, "])
def test_a_rote_opening_is_dropped_and_its_words_elsewhere_are_not(opening: str) -> None:
    assert reasons(opening + GOOD) == ["boilerplate opening"]
    assert reasons(GOOD + " " + opening + "I cannot say.") == []


def many(openings: Sequence[str]) -> list[Demonstration]:
    return [demo(f"{o} {GOOD} {n}", name=f"q{n}") for n, o in enumerate(openings)]


def test_an_opening_that_dominates_is_measured_and_cut_to_its_share() -> None:
    rows = many(
        ["Thank you for reaching out."] * 40 + [f"Answer {n} begins so." for n in range(60)]
    )
    top = curate.boilerplate_openings(rows)[0]
    assert (top.text, top.count, top.share) == ("thank you for reaching", 40, 0.4)
    curated = curate.filter_demonstrations(rows, safe)
    assert [len(v) for v in curated.dropped.values()] == [35]
    assert curated.kept[:5] == rows[:5] and curated.kept[5:] == rows[40:]


def test_paraphrases_of_one_answer_are_no_repeated_opening() -> None:
    row = demo(question="Q?", name="a")
    rows = curate.expand_paraphrases([row], {"a": [f"{n}?" for n in range(20)]})
    assert curate.boilerplate_openings(rows) == []
    assert curate.filter_demonstrations(rows, safe).kept == rows


PIECES = st.sampled_from([GOOD, "Snap out of it.", "As a therapist, listen.", "Hm.", "x " * 300])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PIECES, PIECES, st.integers(0, 3)), max_size=30))
def test_every_row_is_kept_or_dropped_once_and_the_report_adds_up(
    parts: list[tuple[str, str, int]],
) -> None:
    rows = [demo(f"{one} {two}", f"{n}?") for one, two, n in parts]
    curated = curate.filter_demonstrations(
        rows, lambda r: "odd" if "hm." in str(r).lower() else None
    )
    dropped = [row for group in curated.dropped.values() for row in group]
    assert sorted(map(str, curated.kept + dropped)) == sorted(map(str, rows))
    assert curate.filter_demonstrations(curated.kept, safe).kept == curated.kept
    figures = curate.report(rows, curated)
    assert figures["read"] == len(rows) and figures["kept"] == len(curated.kept)
    assert str(figures["arithmetic"]).endswith(f"= {len(curated.kept)} kept")


def test_report_shows_its_arithmetic() -> None:
    rows = [demo(), demo(), demo("No."), demo(GOOD + " Snap out of it.")]
    figures = curate.report(rows, curate.filter_demonstrations(rows, safe))
    assert figures["arithmetic"] == "4 read - (1 + 1 + 1) dropped = 1 kept"
    assert figures["dropped"] == {
        "mental illness is weakness or choice": 1,
        "repeated": 1,
        "too short": 1,
    }
