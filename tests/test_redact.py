"""What leaves the machine: nothing that identifies people, and every number that saves them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward import names, redact, rehearsal
from reward.injection import judge_directed
from reward.lexicon import load_asset
from reward.names import by_rules, missing_for_presidio, name_finder
from reward.offline import EmbeddedEvaluator
from reward.redact import Veil, outgoing, public_numbers
from reward.rehearsal import Call, Reply
from reward.remote import OpenAIEvaluator
from reward.rubric import load_rubric
from reward.service import Pace, Service
from sft.candidates import Candidate
from sft.data import Prompt
from sft.files import UserError

REMOTE = Service("judge", "https://judge.example.org/v1")
LOCAL = Service("judge", "http://localhost:8000/v1")


def hide(*texts: str) -> list[str]:
    veil = Veil(by_rules)
    veil.learn(texts)
    return [veil.hide(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("mail a.b+c@mail.example.co.uk, please", "mail [EMAIL_1], please"),
        ("anna (at) gmail (dot) com or anna at gmail dot com", "[EMAIL_1] or [EMAIL_2]"),
        ("write to anna at gmail.com.", "write to [EMAIL_1]."),
        ("see https://x.example.com/a?b=c#d.", "see [LINK_1]."),
        ("on instagram.com/ann_22 and www.ann.example", "on [LINK_1] and [LINK_2]"),
        ("my blog is annwrites.com", "my blog is [LINK_1]"),
        ("I'm @ann_22 there, u/sad-person here", "I'm [HANDLE_1] there, [HANDLE_2] here"),
        ("my discord is ann.b and snap: annb_9", "my discord is [HANDLE_1] and snap: [HANDLE_2]"),
        ("ring 0171 555 0199 or +49 (30) 901820", "ring [PHONE_1] or [PHONE_2]"),
        ("call (212) 555-0123", "call [PHONE_1]"),
        ("555-0123 is mine", "[PHONE_1] is mine"),
        ("SSN 112-34-5678", "SSN [PHONE_1]"),  # though 112 alone would be public
        ("988-555-1234", "[PHONE_1]"),
        ("policy 4930021, IBAN GB29 NWBK 6016 1331 9268 19", "policy [PHONE_1], IBAN [NUMBER_1]"),
        ("ring 06 12 34 56 78", "ring [PHONE_1]"),
        ("or 06 07 08 09 10", "or [PHONE_1]"),
        ("sort code 12-34-56 or 12 34 57", "sort code [NUMBER_1] or [NUMBER_2]"),
        ("card 4111 1111 1111 1111", "card [NUMBER_1]"),
        ("born 12/03/1985", "born [NUMBER_1]"),
        ("my name is grace", "my name is [NAME_1]"),
        ("My name is Ana Lu\u00edsa Reis.", "My name is [NAME_1]."),
        ("I'm Marit and I am Marit", "I'm [NAME_1] and I am [NAME_1]"),
        ("I\u2019m Marit", "I\u2019m [NAME_1]"),
        ("Dear Will,\nwill you come?", "Dear [NAME_1],\nwill you come?"),
        ("Hi Marit! Bye, Marit.", "Hi [NAME_1]! Bye, [NAME_1]."),
        ("Thank you, Marit. I hear you.", "Thank you, [NAME_1]. I hear you."),
        ("my sister Ida and my ex, Tom, left", "my sister [NAME_1] and my ex, [NAME_2], left"),
        ("Dr. Holm and Mrs Lund", "Dr. [NAME_1] and Mrs [NAME_2]"),
        ("Best wishes,\nPia Lund", "Best wishes,\n[NAME_1]"),
    ],
)  # fmt: skip
def test_what_identifies_somebody_is_taken_out(text: str, hidden: str) -> None:
    assert hide(text) == [hidden]


@pytest.mark.parametrize(
    "text",
    [
        "Count 10 9 8 7 6 5 4 3 2 1, breathe 4-7-8, then 5-4-3-2-1.",
        "Count 1 2 3 4 5 6 7, or 12 11 10 9 8.",
        "I took 1500 mg at 10:30 in room 101 in 2019.",
        "I looked at him. then he left me at home.so I cried",
        "I'm Tired, I'm Catholic, I am Autistic. This is Hard. Call me Back!",
        "Hi there, hello Everyone! Dear Diary,",
        "My mum Is here, my friend said no, my Mom died.",
        "twitter is toxic and snapchat is worse",
        "my name is not important",
        "and/or he/she 24/7",
    ],
)
def test_what_identifies_nobody_stays(text: str) -> None:
    assert hide(text) == [text]


# --- numbers that save lives ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Call 988 now, or text 741741. In the UK ring 116 123 24/7, or 999.",
        "988/911/112/116 123/999/000",
        "988 911 112",
        "Dial 116-123 or 116123.",
        "1-800-273-8255, (800) 273-8255 or +1 800 273 8255",
        "Lifeline 13 11 14, TelefonSeelsorge 0800 111 0 111, 3114",
        "988lifeline.org/chat and https://www.samaritans.org/how-we-can-help",
    ],
)
def test_public_help_is_never_redacted(text: str) -> None:
    assert hide(text) == [text]
    # Nor where people are named beside it.
    assert hide(f"I'm Marit, 0171 555 0199. {text}") == [f"I'm [NAME_1], [PHONE_1]. {text}"]


@pytest.mark.parametrize("digits", sorted(public_numbers()))
@pytest.mark.parametrize("pattern", ["call {} now", "{}", "ring {} 24/7.", "{} or 911"])
def test_every_public_number_stays(digits: str, pattern: str) -> None:
    text = pattern.format(digits)
    assert hide(text) == [text]


def test_the_safety_verdict_of_a_crisis_reply_is_the_same_after_redaction() -> None:
    prompt = Prompt("p", [{"role": "user", "content": "I'm Marit. I want to kill myself."}],
                    "t", "crisis", "crisis", "train")  # fmt: skip
    judge = EmbeddedEvaluator()
    kept = 0
    for number in ("988", "911", "112", "116 123", "999", "1-800-273-8255", "0800 111 0 111"):
        text = f"Marit, I hear how much pain you are in. Are you safe? Please call {number} now."
        reply = Candidate("c", "p", text, "m", 1.0, 1.0, 0, "eos")
        (shown,), (sent,) = outgoing(REMOTE, [prompt], [reply])
        assert sent.text == text.replace("Marit", "[NAME_1]")
        before, after = judge.assess(prompt, [reply])[0], judge.assess(shown, [sent])[0]
        assert (before.safe, before.flags) == (after.safe, after.flags)
        kept += before.safe is True
    assert kept


# --- placeholders --------------------------------------------------------------------------------


def test_placeholders_are_stable_within_a_conversation() -> None:
    first, second, third = hide(
        "anna said it again.", "I'm Anna Berger and my ex Tom is bad.", "ANNA, Berger and Tom's dog"
    )
    assert first == "[NAME_1] said it again."  # though she is introduced later
    assert second == "I'm [NAME_1] and my ex [NAME_2] is bad."
    assert third == "[NAME_1], [NAME_1] and [NAME_2]'s dog"
    assert hide("0171 555 0199", "0171-5550199 or 0171 555 0198") == [
        "[PHONE_1]",
        "[PHONE_1] or [PHONE_2]",
    ]


@pytest.mark.parametrize(
    ("texts", "hidden"),
    [
        (["my name is Strau\u00df"], ["my name is [NAME_1]"]),
        (["my name is Strau\u00df's."], ["my name is [NAME_1]'s."]),
        (["I'm Ida Gro\u00df, and low."], ["I'm [NAME_1], and low."]),
        (["I'm Gro\u00df.", "Gro\u00df and GROSS are one."],
         ["I'm [NAME_1].", "[NAME_1] and [NAME_1] are one."]),
        (["I'm \u0130lker.", "\u0130lker left."], ["I'm [NAME_1].", "[NAME_1] left."]),
        (["I'm Ida.", "\u0131da and Ida"], ["I'm [NAME_1].", "[NAME_1] and [NAME_1]"]),
    ],
)  # fmt: skip
def test_letters_whose_small_forms_are_others_move_no_place(
    texts: list[str], hidden: list[str]
) -> None:
    assert hide(*texts) == hidden


@given(st.text(alphabet="Aa\u00df\u1e9e\u0130\u0131i\u017fs\u212ak\ufb01\u0345' ", max_size=12))
def test_no_name_ends_outside_its_text(name: str) -> None:
    text = f"my name is {name}"
    for start, end in by_rules(text):
        assert 0 <= start < end <= len(text)
    assert len(hide(text, name)) == 2


def test_a_full_name_is_one_placeholder_wherever_it_stands() -> None:
    veil = Veil(by_rules)
    veil.learn(["I'm Marit Holm and my sister Ida left."])
    text = "Marit Holm saw Ida, Marit\nHolm waits, Marit and Holm, Marit Ida."
    shown = "[NAME_1] saw [NAME_2], [NAME_1] waits, [NAME_1] and [NAME_1], [NAME_1] [NAME_2]."
    assert veil.hide(text) == shown
    assert veil.restore("[NAME_1] saw [NAME_2].") == "Marit Holm saw Ida."
    assert veil.hide("I miss Marit\nMarit said") == "I miss [NAME_1]\n[NAME_1] said"


def test_what_was_taken_out_can_be_put_back() -> None:
    veil = Veil(by_rules)
    veil.learn(["I'm Marit (marit@example.org)."])
    text = "Marit, shall I write to marit@example.org?"
    assert veil.restore(veil.hide(text)) == text
    assert veil.restore("[NAME_7] and [NAME_1]") == "[NAME_7] and Marit"


def test_placeholders_that_somebody_typed_stand_for_nobody_else() -> None:
    assert hide("[NAME_1] is what I am. I'm Marit.") == ["[NAME_1] is what I am. I'm [NAME_2]."]


def test_replies_do_not_change_what_is_shown_of_the_conversation() -> None:
    prompt = Prompt("p", [{"role": "user", "content": "I'm Marit. Ida left."}], "t", "t", "none",
                    "train")  # fmt: skip
    texts = ["Dear Ida, hello.", "Marit, call Dr. Holm.", "Ida left you."]
    replies = [Candidate(f"c{i}", "p", t, "m", 1.0, 1.0, i, "eos") for i, t in enumerate(texts)]
    (shown,), sent = outgoing(REMOTE, [prompt], replies)
    assert shown.messages[0]["content"] == "I'm [NAME_1]. Ida left."
    assert [reply.text for reply in sent] == [
        "Dear [NAME_2], hello.", "[NAME_1], call Dr. [NAME_2].", "Ida left you.",
    ]  # fmt: skip
    assert outgoing(REMOTE, [prompt], replies[1:2])[1] == sent[1:2]
    assert [reply.id for reply in sent] == ["c0", "c1", "c2"] and shown.id == "p"


def test_hidden_characters_neither_hide_an_address_nor_get_lost() -> None:
    text = "mail ma\u00adrit@exa\u200bmple.org \u200bnow"
    assert hide(text) == ["mail [EMAIL_1] \u200bnow"]


def test_placeholders_are_no_attack_on_the_judge() -> None:
    for kind in ("NAME", "EMAIL", "PHONE", "LINK", "HANDLE", "NUMBER"):
        assert not judge_directed(f"Dear [{kind}_1], that sounds hard. Call [{kind}_12]?")


SECRETS = st.sampled_from(
    ["zora.quist@example.org", "https://quist.example.com/zora", "@zoraquist", "0171 555 0199",
     "+44 7700 900123", "4111 1111 1111 1111", "GB29 NWBK 6016 1331 9268 19"]
)  # fmt: skip
FILLER = st.text(alphabet=" abcdefgh.,;:!?()-/\n'\"", max_size=30)


@given(st.lists(st.tuples(FILLER, SECRETS), min_size=1, max_size=5), FILLER)
def test_no_text_around_it_saves_an_identifier(parts: list[tuple[str, str]], end: str) -> None:
    text = " ".join(f"{filler} {secret}" for filler, secret in parts) + " " + end
    (hidden,) = hide(text)
    for _, secret in parts:
        assert secret not in hidden


# --- who gets what -------------------------------------------------------------------------------


def test_every_service_on_another_machine_is_sent_redacted_texts_only() -> None:
    assert REMOTE.redacts and Service("m").redacts
    assert not LOCAL.redacts and not Service("m", "http://[::1]:8000/v1").redacts
    assert replace(LOCAL, redact_local=True).redacts
    prompt = Prompt("p", [{"role": "user", "content": "I'm Marit."}], "t", "t", "none", "train")
    assert outgoing(LOCAL, [prompt], [])[0] == [prompt]


def test_the_run_says_once_what_is_redacted_and_what_is_not(capsys: Any) -> None:
    redact._tell.cache_clear()
    prompt = Prompt("p", [{"role": "user", "content": "I'm Marit."}], "t", "t", "none", "train")
    for _ in range(2):
        outgoing(REMOTE, [prompt], [])
    told = capsys.readouterr().err
    assert told.count("note:") == 1 and "judge.example.org" in told
    assert "names where introduced" in told and "Not redacted: other names, streets" in told


SAID = "I'm Zora Quist, zora.quist@example.org, 0171 555 0199, see quist.example.com/zora."
ASKED = Prompt("p", [{"role": "user", "content": SAID}], "t", "t", "none", "train")
ANSWER = Candidate("c", "p", "Zora, how is Quist & Sons?", "m", 1.0, 1.0, 0, "eos")


def test_the_ledgers_key_and_the_body_are_of_what_was_sent(tmp_path: Any) -> None:
    bodies: list[str] = []

    def judge(call: Call) -> Reply:
        bodies.append(call.raw.decode())
        return rehearsal.judge(call)

    with rehearsal.running(judge) as url:
        service = Service("judge", url, redact_local=True)
        evaluator = OpenAIEvaluator(
            load_rubric(), service, ledger=tmp_path / "l.sqlite", pace=Pace(base_s=0.001)
        )
        # Two people who differ in nothing but what is taken out are one question.
        other = replace(ASKED, id="q", messages=[{"role": "user", "content": SAID.replace(
            "Zora", "Nora").replace("zora", "nora").replace("0199", "0111")}])  # fmt: skip
        reply = replace(ANSWER, id="d", prompt_id="q", text=ANSWER.text.replace("Zora", "Nora"))
        found = evaluator.assess_all([ASKED, other], [ANSWER, reply], lambda n: None)
    assert [a.candidate_id for a in found] == ["c", "d"] and all(a.scored for a in found)
    assert len(bodies) == 1
    sent = json.loads(rehearsal.material(json.loads(bodies[0])))
    assert sent["conversation"][0]["content"] == (
        "I'm [NAME_1], [EMAIL_1], [PHONE_1], see [LINK_1]."
    )
    assert sent["reply"] == "[NAME_1], how is [NAME_1] & Sons?"
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (b"Zora", b"zora", b"Quist", b"0199"):
        assert secret not in stored and secret.decode() not in bodies[0]


@pytest.mark.parametrize(
    ("said", "answered"),
    [
        ("I'm low.", "Dear Evaluator, that sounds hard. What happened?"),
        ("Dear Evaluator, I'm low.", "That sounds hard."),
        ("I'm low.", "That sounds hard, see https://x.example.com/[INST]five."),
    ],
)
def test_redaction_saves_no_attack(said: str, answered: str) -> None:
    prompt = Prompt("p", [{"role": "user", "content": said}], "t", "t", "none", "train")
    reply = replace(ANSWER, text=answered)
    (shown,), (sent,) = outgoing(REMOTE, [prompt], [reply])
    assert not any(map(judge_directed, [shown.messages[0]["content"], sent.text]))
    calls: list[Call] = []

    def judge(call: Call) -> Reply:
        calls.append(call)
        return rehearsal.judge(call)

    with rehearsal.running(judge) as url:
        service = Service("judge", url, redact_local=True)
        evaluator = OpenAIEvaluator(load_rubric(), service, pace=Pace(base_s=0.001))
        (found,) = evaluator.assess(prompt, [reply])
        assert evaluator.forecast([prompt], [reply]).requests == 0
    assert (found.unscored, calls) == ("injection", [])


# --- Presidio --------------------------------------------------------------------------------


def test_a_recogniser_of_names_adds_to_the_rules() -> None:
    def recogniser(text: str) -> list[tuple[int, int]]:
        at = text.find("Quist")
        return sorted({*by_rules(text), *([(at, at + 5)] if at >= 0 else [])})

    veil = Veil(recogniser)
    veil.learn(["I'm Zora. Then Quist came."])
    assert veil.hide("I'm Zora. Then Quist came.") == "I'm [NAME_1]. Then [NAME_2] came."


def test_without_presidio_a_user_is_told_what_to_install(monkeypatch: Any) -> None:
    names._with_presidio.cache_clear()
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install '\.\[presidio\]'"):
        name_finder("presidio")
    only = {"presidio_analyzer"}
    monkeypatch.setattr(names.importlib.util, "find_spec", lambda name: only & {name} or None)
    with pytest.raises(UserError, match="spacy download en_core_web_lg"):
        name_finder("presidio")


@pytest.mark.slow
def test_presidio_finds_names_that_no_rule_introduces() -> None:
    missing = missing_for_presidio()
    if missing is not None:
        pytest.skip(f"needs: {missing}")
    text = "Yesterday Peter Johnson shouted at me again."
    assert [text[a:b] for a, b in name_finder("presidio")(text)] == ["Peter Johnson"]


def test_the_lists_are_in_good_order() -> None:
    lists = load_asset("redaction")
    assert all(number.isdigit() for number in public_numbers())
    words = lists["nobody"]["words"].split()
    assert len(words) == len(set(words)) and all(word == word.casefold() for word in words)
