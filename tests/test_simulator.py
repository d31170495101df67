"""The practice clinic: what it produces, and that its two sides never meet."""

import re
from collections import Counter

import pytest

from sft import data, ground_truth
from sft.clinic import BAD_ACTS, CRISIS_STEPS, load_bank, mirror, sentence
from sft.counsellors import WORDS as REPLY_WORDS
from sft.sides import CUES, beside, holds_unseen, kept_out, used_in_training
from sft.simulator import (
    base_corpus,
    practice_demonstrations,
    practice_prompts,
)

BANK = load_bank()


def said(messages):
    return " ".join(m["content"] for m in messages if m["role"] == "user")


@pytest.fixture(scope="module")
def held_out():
    return practice_prompts("held_out", 400, 7)


@pytest.fixture(scope="module")
def train():
    return practice_prompts("train", 1500, 3)


@pytest.fixture(scope="module")
def corpus():
    return base_corpus(2500, 5)


@pytest.fixture(scope="module")
def demonstrations():
    return practice_demonstrations(1500, 5)


def truths(corpus, risk_of):
    for conversation in corpus:
        prompt, reply = conversation[:-1], conversation[-1]["content"]
        risk = risk_of(prompt)
        yield risk, ground_truth.judge(prompt, reply, risk)


def risk_in(prompt):
    text = prompt[-1]["content"].lower()
    if any(c.lower() in text for k in ("crisis_direct", "crisis_indirect") for c in BANK.people[k]):
        return "crisis"
    return "elevated" if any(c.lower() in text for c in BANK.people["elevated"]) else "none"


def test_banks_are_rich_and_shares_add_up():
    assert len(BANK.topics) >= 12
    assert sum(topic.share for topic in BANK.topics.values()) == pytest.approx(1)
    for topic in BANK.topics.values():
        assert len(topic.situations) >= 10
        assert len(topic.feelings) >= 6
        assert len(topic.asks) >= 5
        assert min(map(len, (topic.suggest, topic.plan, topic.questions))) >= 8
    assert len(BANK.people["elevated"]) >= 25
    assert len(BANK.people["crisis_direct"]) >= 25
    assert len(BANK.people["crisis_indirect"]) >= 35
    assert all(len(BANK.acts[act]) >= 20 for act in ("acknowledge", "reflect", "refer", *BAD_ACTS))
    assert all(len(BANK.acts[act]) >= 15 for act in CRISIS_STEPS)


def test_no_phrase_stands_in_two_banks():
    banks = [BANK.people[kind] for kind in CUES]
    for topic in BANK.topics.values():
        banks += [topic.situations, topic.feelings, topic.asks, topic.suggest, topic.plan]
        banks += [topic.questions, topic.facts]
    banks += list(BANK.acts.values())
    twice = {p: n for p, n in Counter(p for bank in banks for p in bank).items() if n > 1}
    assert not twice


@pytest.mark.parametrize(
    ("clause", "turned"),
    [
        ("I was hurt and my friends left me", "you were hurt and your friends left you"),
        ("I'm tired of myself", "you're tired of yourself"),
        ("we argue and I am afraid of us", "you argue and you are afraid of you"),
        ("my mind is full", "your mind is full"),
    ],
)
def test_mirror(clause, turned):
    assert mirror(clause) == turned


def test_mirrored_clauses_have_no_first_person_left():
    clauses = [c for t in BANK.topics.values() for c in (*t.situations, *t.feelings)]
    clauses += [c for kind in CUES for c in BANK.people[kind]]
    for clause in clauses:
        assert clause == clause.strip().rstrip(".")
        turned = mirror(clause)
        assert not re.search(r"\b(i|me|my|mine|myself|we|our|us)\b", turned.lower()), turned
        assert not re.search(r"\byou (am|was)\b", turned), turned


def test_sentence():
    assert sentence("my mind is full") == "My mind is full."
    assert sentence("why me?") == "Why me?"


def test_same_seed_same_material():
    assert practice_prompts("train", 40, 1) == practice_prompts("train", 40, 1)
    assert practice_demonstrations(40, 1) == practice_demonstrations(40, 1)
    assert base_corpus(40, 1) == base_corpus(40, 1)
    assert practice_prompts("train", 40, 1) != practice_prompts("train", 40, 2)
    assert base_corpus(40, 1) != base_corpus(40, 2)


def test_prompts_have_the_shares_asked_for():
    prompts = practice_prompts("train", 200, 1, crisis_share=0.15, elevated_share=0.2)
    assert Counter(p.risk for p in prompts) == {"crisis": 30, "elevated": 40, "none": 130}
    assert {p.risk for p in practice_prompts("train", 9, 1, crisis_share=1, elevated_share=0)} == {
        "crisis"
    }
    assert practice_prompts("held_out", 0, 1) == []


def test_prompts_are_well_formed(train, held_out):
    for prompt in train + held_out:
        roles = [m["role"] for m in prompt.messages]
        assert roles in (["user"], ["user", "assistant", "user"])
        assert 15 <= len(said(prompt.messages).split()) <= 60
        assert prompt.id == data.prompt_id(prompt.messages)
        assert prompt.topic in BANK.topics
    assert len({p.id for p in train}) == len(train)
    assert {p.split for p in train} == {"train"}
    assert {p.split for p in held_out} == {"held_out"}
    assert 0.15 < sum(len(p.messages) > 1 for p in train) / len(train) < 0.3
    assert {p.topic for p in train} == set(BANK.topics)


def test_risk_is_in_the_last_message(train, held_out):
    assert all(risk_in(p.messages) == p.risk for p in train + held_out)
    later = [p for p in train if len(p.messages) > 1]
    assert all(risk_in(p.messages[:1]) == "none" for p in later)
    assert {p.risk for p in later} == {"none", "elevated", "crisis"}


def test_held_out_prompts_repeat_and_paraphrase_nothing(train, held_out, corpus, demonstrations):
    """Law 4, for everything that the model is trained on."""
    data.check_disjoint(train, held_out)
    data.check_disjoint(demonstrations, held_out)
    base = [
        data.Demonstration(str(n), conversation[:end], [])
        for n, conversation in enumerate(corpus)
        for end in range(1, len(conversation), 2)
    ]
    data.check_disjoint(base, held_out)


def test_a_held_out_pair_never_occurs_in_training(train, held_out, corpus):
    def pairs(text):
        text = text.lower()
        for topic in BANK.topics.values():
            for situation in topic.situations:
                if situation.lower() in text:
                    cues = [cue for kind in CUES for cue in BANK.people[kind]]
                    beside_it = [*topic.feelings, *topic.asks, *cues]
                    yield from ((situation, p) for p in beside_it if p.lower() in text)

    seen = {pair for c in corpus for pair in pairs(c[0]["content"])}
    seen |= {pair for p in train for pair in pairs(p.messages[0]["content"])}
    assert len(seen) > 1000
    assert not seen & {pair for p in held_out for pair in pairs(p.messages[0]["content"])}


def test_the_sides_of_a_situation_share_no_phrase():
    cues = BANK.people["crisis_indirect"]
    situation = BANK.topics["sleep"].situations[0]
    ours, theirs = beside(situation, cues, "train"), beside(situation, cues, "held_out")
    assert set(ours) | set(theirs) == set(used_in_training(cues))
    assert not set(ours) & set(theirs)
    assert not set(kept_out(cues)) & set(used_in_training(cues))


def test_some_phrasings_are_kept_out_of_training(train, held_out, corpus, demonstrations):
    assert not any(holds_unseen(p.messages) for p in train)
    for messages in [*corpus, *(d.prompt for d in demonstrations)]:
        prompt = data.Prompt("", messages, "", "", "none", "train")
        assert not holds_unseen(prompt.messages)
    assert 0.3 <= sum(holds_unseen(p.messages) for p in held_out) / len(held_out) <= 0.5
    text = " ".join(said(p.messages) for p in practice_prompts("held_out", 3000, 1)).lower()
    banks = [BANK.people[kind] for kind in CUES]
    for topic in BANK.topics.values():
        banks += [topic.situations, topic.feelings, topic.asks]
    for bank in banks:
        assert 0.1 <= len(kept_out(bank)) / len(bank) <= 0.2
        assert any(phrase.lower() in text for phrase in kept_out(bank))


def test_base_corpus_is_fluent_and_often_wrong(corpus):
    judged = list(truths(corpus, risk_in))
    by_risk = Counter(risk for risk, _ in judged)
    share = {risk: n / len(judged) for risk, n in by_risk.items()}
    assert share["crisis"] == pytest.approx(0.32, abs=0.03)
    assert share["elevated"] == pytest.approx(0.26, abs=0.03)
    harmful = sum(bool(t.acts & set(BAD_ACTS)) for _, t in judged) / len(judged)
    assert 0.24 <= harmful <= 0.34
    handled = [
        not {"no_resources", "danger_not_named"} & set(t.violations)
        for r, t in judged
        if r == "crisis"
    ]
    assert 0.55 <= sum(handled) / len(handled) <= 0.72
    referred = ["no_human_help" not in t.violations for r, t in judged if r == "elevated"]
    assert 0.55 <= sum(referred) / len(referred) <= 0.75
    assert all(t.fluent == 1 for _, t in judged)


def test_base_corpus_shows_every_act_for_every_risk(corpus):
    """What alignment should choose must occur in what the model was trained on."""
    seen = {risk: Counter() for risk in ("none", "elevated", "crisis")}
    for risk, truth in truths(corpus, risk_in):
        seen[risk].update(truth.acts)
        seen[risk]["perfect"] += truth.safe and truth.empathy >= 0.9 and truth.helpfulness >= 0.7
    usual = {"acknowledge", "reflect", "ask", "suggest", "plan", "refer", "perfect"}
    assert all(seen[risk][act] >= 5 for risk in ("none", "elevated") for act in usual)
    assert all(seen["crisis"][act] >= 5 for act in (*CRISIS_STEPS, "perfect"))
    assert all(seen["none"][act] >= 5 for act in BAD_ACTS)


def test_replies_have_a_readable_length(corpus):
    for conversation in corpus[:500]:
        assert [m["role"] for m in conversation] in (
            ["user", "assistant"],
            ["user", "assistant"] * 2,
        )
        for message in conversation[1::2]:
            assert REPLY_WORDS[0] <= len(message["content"].split()) <= REPLY_WORDS[1]


def test_demonstrations_are_middling_with_little_crisis_material(demonstrations):
    judged = [
        (risk_in(d.prompt), ground_truth.judge(d.prompt, d.completion[0]["content"], "none"))
        for d in demonstrations
    ]
    risks = Counter(risk for risk, _ in judged)
    assert risks["crisis"] == 45
    assert risks["elevated"] == 150
    bad = sum(bool(t.acts & set(BAD_ACTS)) for _, t in judged) / len(judged)
    assert 0.08 <= bad <= 0.14
    empathy = sum(t.empathy for _, t in judged) / len(judged)
    assert 0.4 <= empathy <= 0.65
    assert all(len(d.completion) == 1 for d in demonstrations)
    assert all(d.prompt_id == data.prompt_id(d.prompt) for d in demonstrations)
