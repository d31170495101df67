"""Answers about several replies, comparisons and probabilities of digits are read exactly."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_verdict import JSON, PROSE, VALUES, verdict

from reward.expected import digits_of, expected_grades
from reward.rehearsal import completion
from reward.rubric import load_rubric
from reward.verdict import (
    Preference,
    outline,
    read_verdict,
    read_verdicts,
    safety_schema,
    verdict_schema,
    verdicts_schema,
)

RUBRIC = load_rubric()
NAMES = list(RUBRIC.criteria)
ITEMS = RUBRIC.items("none")
ONE = verdict_schema(RUBRIC, "none")
SEVERAL = verdicts_schema(RUBRIC, "none")
IDS = ("bcdfgh", "jkmnpq", "rtvwxz")


def answer(*ids: str) -> dict[str, Any]:
    return {"verdicts": [{"id": name, **verdict()} for name in ids]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps(answer(*IDS[:2])), "ids differ"),
        (json.dumps(answer(*IDS, IDS[0])), "ids differ"),
        (json.dumps(answer(*IDS[:2], IDS[0])), "ids differ"),
        (json.dumps(answer(*IDS[:2], "other")), "ids differ"),
        (json.dumps(answer(*IDS[:2], IDS[2].upper())), "ids differ"),
        (json.dumps(answer(*IDS)["verdicts"]), "invalid verdict: model_type"),
        (json.dumps(answer(*IDS))[:-1] + ', "verdicts": []}', "duplicate key"),
        (json.dumps({**answer(*IDS), "note": "x"}), "invalid verdict: extra_forbidden"),
        (json.dumps({"verdicts": {n: verdict() for n in IDS}}), "invalid verdict: list_type"),
        (json.dumps({"verdicts": []}), "ids differ"),
        (json.dumps(verdict()), "invalid verdict: missing"),
    ],
)
def test_what_is_no_answer_about_several_replies_has_a_reason(text, reason):
    assert read_verdicts(text, SEVERAL, IDS) == reason


def test_one_bad_verdict_spoils_the_whole_answer():
    for name, value in (("empathy", "4/5"), ("empathy", 6), (next(iter(ITEMS)), 1), ("id", 3)):
        said = answer(*IDS)
        said["verdicts"][1][name] = value
        assert str(read_verdicts(json.dumps(said), SEVERAL, IDS)).startswith("invalid verdict")


def several_text(rng: random.Random) -> str:
    """An answer about three replies as judges write them, with mistakes."""
    ids = list(IDS)
    rng.shuffle(ids)
    verdicts = []
    for name in ids:
        fields = [("id", f'"{name}"')]
        fields += [(criterion, str(rng.randint(1, 5))) for criterion in NAMES]
        fields += [(item, rng.choice(("true", "false"))) for item in ITEMS]
        said = rng.choice(("fine", r"it says \"empathy\": 5, \"id\": \"bcdfgh\"", "5/5", "}]"))
        fields.append(("critique", f'"{said}"'))
        if rng.random() < 0.15:
            at = rng.randrange(len(fields))
            match rng.randrange(4):
                case 0:
                    fields[at] = (fields[at][0], rng.choice(VALUES))
                case 1:
                    fields.append((fields[at][0], rng.choice(VALUES)))
                case 2:
                    fields[0] = ("id", rng.choice(('"other"', f'"{rng.choice(IDS)}"', "1", "null")))
                case _:
                    del fields[at]
        rng.shuffle(fields)
        verdicts.append("{" + ", ".join(f'"{n}": {value}' for n, value in fields) + "}")
    if rng.random() < 0.1:
        verdicts = rng.choice((verdicts[:-1], [*verdicts, verdicts[0]], []))
    text = f'{{"verdicts": [{", ".join(verdicts)}]}}'
    match rng.randrange(8):
        case 0:
            text = f"```json\n{text}\n```"
        case 1 if rng.random() < 0.3:
            text = rng.choice(PROSE) + text
        case 2 if rng.random() < 0.3:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice('"{}[],:0123456789\\x') + text[at + rng.randrange(2) :]
    return text


def test_no_score_of_several_that_is_not_in_the_text_of_30_000_answers():
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    for _ in range(30_000):
        text = several_text(rng)
        found = read_verdicts(text, SEVERAL, IDS)
        if isinstance(found, str):
            seen[found] += 1
            continue
        seen["read"] += 1
        assert set(found) == set(IDS)
        # By plain search: no quote that opens a name has a backslash before it.
        for name in NAMES:
            values = re.findall(rf'(?<!\\)"{re.escape(name)}"\s*:\s*([^\s,}}]+)', text)
            assert [float(v) for v in values] == [v[name] for v in found.values()], text
        for name in ITEMS:
            values = re.findall(rf'(?<!\\)"{re.escape(name)}"\s*:\s*([^\s,}}]+)', text)
            assert values == [str(v[name]).lower() for v in found.values()], text
        assert re.findall(r'(?<!\\)"id"\s*:\s*"(\w+)"', text) == list(found)
    assert seen["read"] > 8_000
    assert min(seen["ids differ"], seen["duplicate key"], seen["not JSON"]) > 300


@given(st.text() | JSON.map(json.dumps))
def test_any_other_text_or_json_is_no_answer_about_several_replies(text):
    assert isinstance(read_verdicts(text, SEVERAL, IDS), str)


# --- comparisons -------------------------------------------------------------------------------


@pytest.mark.parametrize("better", ["first", "second", "tie"])
def test_a_comparison_is_read_as_it_stands(better):
    text = json.dumps({"critique": "The second, I first thought.", "better": better})
    found = read_verdict(text, Preference)
    assert not isinstance(found, str)
    assert found["better"] == better


@pytest.mark.parametrize(
    "text",
    ["first", '"first"', '{"better": "first"}', '{"critique": "", "better": "First"}',
     '{"critique": "", "better": 1}', '{"critique": "", "better": "first or second"}',
     '{"critique": "", "better": "a"}', '{"critique": "", "better": null}',
     '{"critique": "", "better": "first", "better": "second"}',
     '{"critique": "", "better": ["first"]}', 'The first. {"critique": "", "better": "first"}',
     '{"critique": "", "better": "first", "empathy": 5}'],
)  # fmt: skip
def test_what_is_no_comparison_is_none(text):
    assert isinstance(read_verdict(text, Preference), str)


@given(JSON, JSON)
def test_no_preference_that_is_not_in_the_text(better, critique):
    found = read_verdict(json.dumps({"critique": critique, "better": better}), Preference)
    if not isinstance(found, str):
        assert found["better"] == better
        assert better in ("first", "second", "tie")


def test_the_outline_has_every_name_and_what_it_holds():
    several = outline(SEVERAL)
    assert several.startswith('{"verdicts": [{"id": <id of the reply>, "critique": <one or two')
    assert several.endswith(", ...]}")
    for name in (*NAMES, *ITEMS):
        assert f'"{name}": <' in several
    assert '"empathy": <1, 2, 3, 4 or 5>' in outline(ONE)
    assert '"better": <"first", "second" or "tie">' in outline(Preference)
    assert "empathy" not in outline(safety_schema(RUBRIC, "none"))


# --- probabilities -----------------------------------------------------------------------------


def token(text: str, p: float = 1.0, **others: float) -> dict[str, Any]:
    every = [{"token": name, "logprob": math.log(q)} for name, q in others.items() if q]
    own = {"token": text, "logprob": math.log(p)}
    return {**own, "top_logprobs": [own, *every]}


def tokens_of(text: str, grades: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    """A text in tokens of a character each, with the probabilities at some places."""
    made = []
    for place, character in enumerate(text):
        weights = dict(grades.get(place, {character: 1.0}))
        made.append(token(character, weights.pop(character), **weights))
    return made


def places(text: str) -> dict[str, int]:
    """Where the grade of each criterion stands."""
    return {n: re.search(rf'"{n}": (\d)', text).start(1) for n in NAMES}  # type: ignore[union-attr]


def means(text: str, content: object) -> dict[str, float]:
    said = read_verdict(text, ONE)
    assert not isinstance(said, str)
    (made,) = expected_grades(text, digits_of(text, {"content": content}), NAMES, [said])
    return made


TEXT = json.dumps(verdict(critique="She wrote 4 words, \"empathy\": 5. Caf\u00e9 \u2192 3"),
                  ensure_ascii=False)  # fmt: skip
AT = places(TEXT)


def test_an_expected_grade_is_the_mean_over_the_digits_at_its_own_token():
    grades = {AT[name]: {"4": 0.6, "5": 0.2, "3": 0.1} for name in NAMES}
    made = means(TEXT, tokens_of(TEXT, grades))
    assert made == pytest.approx(dict.fromkeys(NAMES, (4 * 0.6 + 5 * 0.2 + 3 * 0.1) / 0.9))


def test_other_tokens_and_the_space_before_a_digit_do_not_count():
    name = NAMES[0]
    content = tokens_of(TEXT, {})
    at = AT[name]
    # ": 4" as ":" and " 4", beside "4", " 5", a word and a number.
    alternatives = {" 4": 0.5, "4": 0.1, " 5": 0.2, "four": 0.1, "45": 0.05}
    others = [{"token": t, "logprob": math.log(p)} for t, p in alternatives.items()]
    content[at - 1 : at + 1] = [{"token": " 4", "logprob": math.log(0.5), "top_logprobs": others}]
    made = means(TEXT, content)
    assert made[name] == pytest.approx((4 * 0.6 + 5 * 0.2) / 0.8)


@pytest.mark.parametrize(
    "spoil",
    ["no list", "joined", "another text", "two in one", "nan", "above 1", "a word", "bool",
     "too much", "no objects"],
)  # fmt: skip
def test_where_a_digit_is_not_certain_the_grade_is_plain(spoil):
    name, at = NAMES[0], AT[NAMES[0]]
    content: Any = tokens_of(TEXT, {})
    if spoil == "no list":
        content = None
    elif spoil == "joined":
        content[at : at + 2] = [token("4,")]
    elif spoil == "another text":
        content[0] = token("[")
    elif spoil == "two in one":
        content[at - 2 : at + 1] = [token(": 4")]
    elif spoil == "too much":
        content[at] = token("4", 0.9, **{"5": 0.9})
    elif spoil == "no objects":
        content = ["{", "}"]
    else:
        value = {"nan": math.nan, "above 1": 0.5, "a word": "-0.1", "bool": False}[spoil]
        content[at] = {"token": "4", "logprob": value, "top_logprobs": []}
    made = means(TEXT, content)
    assert name not in made
    if spoil in ("joined", "two in one", "nan", "above 1", "a word", "bool", "too much"):
        assert set(made) == {*NAMES} - {name}
    else:
        assert made == {}


def test_4_point_0_is_a_grade_whose_digit_is_not_all_of_it():
    text = TEXT.replace('"empathy": 4', '"empathy": 4.0')
    assert set(means(text, tokens_of(text, {}))) == {*NAMES} - {"empathy"}


def test_characters_in_pieces_are_joined_by_their_bytes():
    content: list[dict[str, Any]] = []
    for character in TEXT:
        raw = character.encode()
        pieces = [raw] if len(raw) == 1 else [raw[:1], raw[1:]]
        content += [
            {"token": "\ufffd" if len(raw) > 1 else character, "bytes": list(piece),
             "logprob": -0.1, "top_logprobs": []}
            for piece in pieces
        ]  # fmt: skip
    content.append({"token": "<|end|>", "bytes": None, "logprob": 0.0, "top_logprobs": []})
    assert means(TEXT, content) == pytest.approx(dict.fromkeys(NAMES, 4.0))


def test_the_grades_of_several_replies_are_told_apart():
    said = answer(*IDS)
    text = json.dumps(said)
    spots = [m.start(1) for m in re.finditer(r'"empathy": (\d)', text)]
    weights = {spot: {"4": 0.5, str(g): 0.5} for spot, g in zip(spots, (1, 3, 5), strict=True)}
    digits = digits_of(text, {"content": tokens_of(text, weights)})
    found = read_verdicts(text, SEVERAL, IDS)
    assert not isinstance(found, str)
    made = expected_grades(text, digits, NAMES, list(found.values()))
    assert [grades["empathy"] for grades in made] == pytest.approx([2.5, 3.5, 4.5])
    assert all(grades["clarity"] == 4 for grades in made)


@given(st.lists(st.floats(0.01, 1.0), min_size=5, max_size=5), st.integers(1, 5))
def test_a_mean_lies_between_the_grades_that_have_a_probability(shares, grade):
    text = json.dumps(verdict(grade))
    p = {str(g): share / sum(shares) for g, share in enumerate(shares, 1)}
    content = tokens_of(text, dict.fromkeys(places(text).values(), p))
    expected = sum(int(g) * share for g, share in p.items())
    for mean in means(text, content).values():
        assert 1 <= mean <= 5
        assert mean == pytest.approx(expected, abs=1e-4)


def test_the_text_that_the_rehearsed_service_sends_has_its_tokens():
    from reward.played import logprobs

    text = json.dumps(verdict(), indent=1)
    assert completion(text)["choices"][0]["message"]["content"] == text
    assert means(text, logprobs(text)["content"]) == pytest.approx(dict.fromkeys(NAMES, 4.0))
