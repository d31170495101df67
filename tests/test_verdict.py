"""A judge's answer is read exactly or not at all: no input yields a score that is not in it."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.rubric import load_rubric
from reward.verdict import read_verdict, verdict_schema

RUBRIC = load_rubric()
SCHEMA = verdict_schema(RUBRIC, "none")
ITEMS = RUBRIC.items("none")


def verdict(grade: int = 4, **changes: Any) -> dict[str, Any]:
    answers = {name: item.safe_answer for name, item in ITEMS.items()}
    return {"critique": "fine", **dict.fromkeys(RUBRIC.criteria, grade), **answers, **changes}


GOOD = json.dumps(verdict())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("5 out of 5", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5_000, "not JSON"),
        (GOOD[:-1], "not JSON"),
        (GOOD + GOOD, "not JSON"),
        (GOOD.replace("4", "NaN", 1), "not JSON"),
        (GOOD.replace("4", "Infinity", 1), "not JSON"),
        (f"Here is my verdict: {GOOD}", "not JSON"),
        (f"```json\n{GOOD}\n```\nOn reflection, empathy is 1.", "not JSON"),
        (json.dumps(verdict(6)), "invalid verdict: literal_error"),
        (json.dumps(verdict(0)), "invalid verdict: literal_error"),
        (GOOD.replace("4", "4e99999999999999999999", 1), "not JSON"),
        (GOOD.replace("4", "4.0000000000000000001", 1), "invalid verdict: literal_error"),
        (json.dumps(verdict(10)), "invalid verdict: literal_error"),
        (json.dumps(verdict(empathy="4")), "invalid verdict: literal_error"),
        (json.dumps(verdict(empathy="4/5")), "invalid verdict: literal_error"),
        (json.dumps(verdict(empathy=True)), "invalid verdict: value_error"),
        (json.dumps(verdict(empathy=4.5)), "invalid verdict: literal_error"),
        (json.dumps(verdict(empathy=None)), "invalid verdict: literal_error"),
        (json.dumps(verdict(empathy=[4])), "invalid verdict: literal_error"),
        (json.dumps(verdict(**{next(iter(ITEMS)): 1})), "invalid verdict: bool_type"),
        (json.dumps(verdict(**{next(iter(ITEMS)): "true"})), "invalid verdict: bool_type"),
        (json.dumps({"empathy": 4}), "invalid verdict: missing"),
        (json.dumps([verdict()]), "invalid verdict: model_type"),
        (json.dumps(verdict(extra=1)), "invalid verdict: extra_forbidden"),
        (GOOD[:-1] + ', "empathy": 1}', "duplicate key"),
    ],
)
def test_what_is_no_verdict_has_a_reason(text, reason):
    assert read_verdict(text, SCHEMA) == reason


@pytest.mark.parametrize("text", [GOOD, f" {GOOD}\n", f"```json\n{GOOD}\n```", f"```\n{GOOD}```\n"])
def test_json_alone_or_in_one_fence_is_read(text):
    assert read_verdict(text, SCHEMA) == verdict()


def test_half_a_character_in_a_critique_can_be_written_to_a_file():
    found = read_verdict(GOOD.replace("fine", r"fine \ud83d"), SCHEMA)
    assert found["critique"].encode() == b"fine ?"


# --- the property ------------------------------------------------------------------------------

VALUES = (
    *("1", "2", "3", "4", "5", "4", "3", "0", "6", "10", "-1", "4.5", "4.0", "1e0", "40e-1", "04"),
    *("+4", '"4"', '"4/5"', "4/5", "true", "false", "null", "NaN", "Infinity", "[4]", '{"a": 4}'),
    *(
        "",
        "4 5",
        '"four"',
        "\N{FULLWIDTH DIGIT FOUR}",
        "0x4",
        "4_0",
        "1" * 30,
        "4 // good",
        "5.0000000000000000001",
    ),
)
PROSE = ("I give empathy 5.", '{"empathy": 5}', "```", "4", "Score: 5/5", "\n", "// ok", "\ufeff")


def reply_text(rng: random.Random) -> str:
    """An answer as judges write them, with mistakes: values, keys, shape, and single characters."""
    fields = [(name, str(rng.randint(1, 5))) for name in RUBRIC.criteria]
    fields += [(name, rng.choice(("true", "false"))) for name in ITEMS]
    said = rng.choice(("fine", r"it says \"empathy\": 5", "5/5", r"\u0034", "}"))
    fields.append(("critique", f'"{said}"'))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        at = rng.randrange(len(fields))
        match rng.randrange(5):
            case 0 | 1:
                fields[at] = (fields[at][0], rng.choice(VALUES))
            case 2:
                fields.append((fields[at][0], rng.choice(VALUES)))
            case 3:
                fields[at] = (rng.choice(("empathy_score", "Empathy", "", "x")), fields[at][1])
            case _:
                del fields[at]
    rng.shuffle(fields)
    text = "{" + ", ".join(f'"{name}": {value}' for name, value in fields) + "}"
    match rng.randrange(8):
        case 0:
            text = f"```json\n{text}\n```"
        case 1:
            text = rng.choice(PROSE) + text
        case 2:
            text += rng.choice(PROSE)
        case 3:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice('"{}[],:0123456789\\x') + text[at + rng.randrange(2) :]
        case 4 if rng.random() < 0.2:
            text = text[: rng.randrange(len(text))]
    return text


def written(name: str, text: str) -> list[str]:
    """What stands after a name, by plain search and not by a JSON parser."""
    return re.findall(rf'(?<!\\)"{re.escape(name)}"\s*:\s*([^\s,}}]+)', text)


def test_no_score_that_is_not_in_the_text_of_100_000_replies():
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    for _ in range(100_000):
        text = reply_text(rng)
        found = read_verdict(text, SCHEMA)
        if isinstance(found, str):
            seen[found] += 1
            continue
        seen["read"] += 1
        for name in RUBRIC.criteria:
            (value,) = written(name, text)  # once, not twice
            assert found[name] in (1, 2, 3, 4, 5)
            assert re.fullmatch(r"\d+(\.0+)?(e0)?|40e-1", value), (value, text)
            assert float(value) == found[name], text
        for name in ITEMS:
            assert written(name, text) == [str(found[name]).lower()], text
    # The property means something: many are read, and each kind of mistake was there.
    assert seen["read"] > 20_000
    assert len(seen) >= 6
    assert min(seen["not JSON"], seen["duplicate key"], seen["invalid verdict: missing"]) > 1_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.text() | JSON.map(json.dumps))
def test_any_other_text_or_json_has_a_reason(text):
    assert isinstance(read_verdict(text, SCHEMA), str)


@given(st.dictionaries(st.sampled_from(sorted(verdict())), JSON, max_size=4))
def test_values_of_any_kind_are_kept_exactly_or_refused(changes):
    asked = verdict(**changes)
    found = read_verdict(json.dumps(asked), SCHEMA)
    if not isinstance(found, str):
        assert {**found, "critique": ""} == {**asked, "critique": ""}
        assert all(type(found[name]) is bool for name in ITEMS)
