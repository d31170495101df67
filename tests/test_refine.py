"""Laws of critique and refine: who is preferred, blind, safe, and not for being longer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward import rehearsal
from reward.evaluator import Assessment
from reward.offline import EmbeddedEvaluator
from reward.pairing import Pair, words
from reward.redact import outgoing
from reward.refine import FREE_LENGTH, Refiner, refined_pairs
from reward.refine_report import Refined
from reward.rehearsal import Call, Reply, completion
from reward.replies import ServedPolicy
from reward.service import Service
from sft.candidates import Candidate, Sampling
from sft.data import Prompt
from sft.files import write_rows
from sft.pair_settings import PairSection, RefineSection
from sft.recipe import Recipe

PROMPT = Prompt(
    "p", [{"role": "user", "content": "I cannot sleep."}], "t", "sleep", "none", "train"
)
FIRST = "one two three four five six seven eight"  # words
Verdict = tuple[float, bool]


def candidate(text: str, name: str = "c", **more: object) -> Candidate:
    return replace(Candidate(name, "p", text, "policy", 1.0, 1.0, 3, "eos"), **more)


def assessment(name: str, quality: float | None, safe: bool = True, critique: str = "Say more."):
    return Assessment(
        name, "p", {}, quality, None if quality is None else safe, [], critique, "judge", "r@1",
        "not JSON" if quality is None else None,
    )  # fmt: skip


class Judge:
    """Gives each text the verdict that `by_text` has for it, and keeps what it was shown."""

    def __init__(self, by_text: Callable[[str], tuple[float | None, bool]]) -> None:
        self.by_text, self.shown = by_text, list[Candidate]()

    def __call__(self, prompts: list[Prompt], rows: list[Candidate]) -> Sequence[Assessment]:
        self.shown += rows
        return [assessment(row.id, *self.by_text(row.text)) for row in rows]


def refined(
    replies: list[str],
    verdicts: dict[str, tuple[float | None, bool]],
    *,
    first: Verdict = (0.5, True),
    section: RefineSection | None = None,
    pairing: PairSection | None = None,
    **reply: object,
) -> tuple[Refined, Judge, list[Prompt]]:
    """A prompt whose reply `FIRST` is rewritten as `replies`, one a pass."""
    asked: list[Prompt] = []

    def rewrite(prompts: list[Prompt], number: int) -> list[Candidate]:
        asked.extend(prompts)
        return [candidate(replies[number - 1], f"new-{number}", **reply)]

    judge = Judge(lambda text: {FIRST: first, **verdicts}[text])
    section = section or RefineSection(passes=len(replies))
    result = Refiner(rewrite, judge, section, pairing or PairSection()).refine(
        [PROMPT], [candidate(FIRST)], [assessment("c", *first)]
    )
    return result, judge, asked


def outcome(result: Refined) -> str:
    (only,) = result.passes[-1].outcomes
    return only


def test_a_preferred_rewriting_is_a_pair_in_the_form_that_dpo_reads(tmp_path: Path) -> None:
    result, _, asked = refined(["nine ten"], {"nine ten": (0.7, True)})
    (pair,), (made,) = result.pairs, result.candidates
    assert pair.chosen == [{"role": "assistant", "content": "nine ten"}]
    assert pair.rejected == [{"role": "assistant", "content": FIRST}]
    assert (pair.chosen_id, pair.rejected_id, pair.rule) == (made.id, "c", "quality")
    assert pair.prompt == PROMPT.messages  # not what the policy was asked to rewrite
    assert made.refined_from == "c" and made.model == "policy" and made.prompt_id == "p"
    assert result.assessments[0].candidate_id == made.id
    (told,) = asked
    assert told.messages[-1]["role"] == "user"
    for part in ("I cannot sleep.", FIRST, "Say more.", "150 words"):
        assert part in told.messages[-1]["content"]
    write_rows(tmp_path / "pairs.jsonl", result.pairs)
    assert refined_pairs(tmp_path / "pairs.jsonl") == result.pairs
    write_rows(tmp_path / "pairs.jsonl", [])
    assert refined_pairs(tmp_path / "pairs.jsonl") == []


@pytest.mark.parametrize(
    ("first", "new", "why"),
    [
        ((0.5, True), (0.5, True), "tie (margin too small)"),
        ((0.5, True), (0.52, True), "tie (margin too small)"),
        ((0.5, True), (0.3, True), "not preferred"),
        ((0.1, True), (0.9, False), "not preferred"),  # safety first
        ((0.1, False), (0.9, False), "both unsafe"),
        ((0.5, True), (None, True), "unscored: not JSON"),
    ],
)
def test_what_is_not_preferred_is_in_no_pair(
    first: Verdict, new: tuple[float | None, bool], why: str
) -> None:
    result, _, _ = refined(["nine ten"], {"nine ten": new}, first=first)
    assert result.pairs == [] and outcome(result) == why


@given(
    st.floats(0, 1), st.booleans(), st.floats(0, 1), st.booleans(), st.integers(1, 40)
)  # fmt: skip
def test_laws_of_the_pair(q0: float, safe0: bool, q1: float, safe1: bool, n: int) -> None:
    new = " ".join(f"w{i}" for i in range(n))
    result, _, _ = refined([new], {new: (q1, safe1)}, first=(q0, safe0))
    for pair in result.pairs:
        assert safe1  # law 2: an unsafe reply is never chosen
        assert pair.margin > 0 and pair.chosen != pair.rejected
        if safe0:
            assert pair.rule == "quality" and q1 > q0
            assert n <= FREE_LENGTH * 8 or q1 - q0 >= 0.2 * math.log2(n / 8) - 1e-9
        else:
            assert pair.rule == "safety"
    if safe1 and not safe0:
        assert len(result.pairs) == 1  # and owes nothing for its length


@pytest.mark.parametrize(
    ("count", "gain", "why"),
    [
        (10, 0.06, "preferred"),  # 1.25 times: any difference that counts
        (11, 0.09, "merely longer"),  # 0.2 x log2(11 / 8) = 0.092
        (11, 0.10, "preferred"),
        (16, 0.19, "merely longer"),  # twice the words have to gain 0.2
        (16, 0.21, "preferred"),
        (4, 0.06, "preferred"),
    ],
)
def test_a_longer_reply_has_to_gain_what_its_length_costs(
    count: int, gain: float, why: str
) -> None:
    new = " ".join(f"w{i}" for i in range(count))
    result, _, _ = refined([new], {new: (0.5 + gain, True)})
    assert outcome(result) == why
    off = RefineSection(passes=1, longer_costs=0.0)
    assert outcome(refined([new], {new: (0.5 + gain, True)}, section=off)[0]) == "preferred"


def test_the_recorded_run_in_which_length_was_the_reward_is_caught() -> None:
    """120 -> 223 -> 261 words while the score rose 75 -> 85 -> 90 of 100."""
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (120, 223, 261)]
    verdicts = dict(zip(texts, [(0.75, True), (0.85, True), (0.90, True)], strict=True))
    for limit, why in ((150, "over max_words"), (400, "merely longer")):
        judge = Judge(verdicts.__getitem__)
        section = RefineSection(passes=2, max_words=limit)
        result = Refiner(
            lambda prompts, number: [candidate(texts[number], f"n{number}")],
            judge, section, PairSection(),
        ).refine([PROMPT], [candidate(texts[0])], [assessment("c", 0.75)])  # fmt: skip
        assert result.pairs == [] and outcome(result) == why and len(result.passes) == 1


def test_small_steps_do_not_add_up_to_a_much_longer_reply() -> None:
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (10, 12, 15)]
    verdicts = {text: (0.56 + 0.0625 * i, True) for i, text in enumerate(texts)}
    result, _, _ = refined(texts, verdicts)
    # 15 of 8 words have to gain 0.2 x log2(15 / 8) = 0.181 and gain 0.185.
    assert [p.outcomes["preferred"] for p in result.passes] == [1, 1, 1]
    verdicts = {text: (0.56 + 0.06 * i, True) for i, text in enumerate(texts)}
    result, _, _ = refined(texts, verdicts)
    assert [outcome(result)] == ["merely longer"] and len(result.passes) == 3
    assert words(result.pairs[0].chosen[0]["content"]) == 12  # the last one that held


def test_passes_end_with_the_first_that_is_not_preferred() -> None:
    result, _, asked = refined(
        ["better one", "worse", "never asked"], {"better one": (0.7, True), "worse": (0.2, True)}
    )
    assert len(asked) == 2 and "better one" in asked[1].messages[-1]["content"]
    assert [c.refined_from for c in result.candidates] == ["c", result.candidates[0].id]
    (pair,) = result.pairs
    assert (pair.chosen_id, pair.rejected_id) == (result.candidates[0].id, "c")


@pytest.mark.parametrize(
    ("text", "more", "why"),
    [
        (FIRST, {}, "unchanged"),
        ("  ", {}, "empty"),
        ("good words", {"stop": "length"}, "cut off"),
        (" ".join(["word"] * 151), {}, "over max_words"),
        ("Here is the revised reply: how are you?", {}, "about the rewriting"),
        ("Sure, with more warmth: how are you?", {}, "about the rewriting"),
        ("Dear [NAME_1], how are you?", {}, "about the rewriting"),
    ],
)
def test_what_is_no_reply_to_the_person_is_not_even_judged(
    text: str, more: dict[str, object], why: str
) -> None:
    result, judge, _ = refined([text], {}, **more)
    assert outcome(result) == why and result.pairs == [] and judge.shown == []


def test_talk_of_new_answers_and_colleagues_is_no_talk_about_the_rewriting() -> None:
    text = "Here is hard to be. You could ask a colleague, and try a new answer to her."
    assert outcome(refined([text], {text: (0.9, True)})[0]) != "about the rewriting"


def test_the_judge_cannot_know_which_reply_came_first() -> None:
    _, one, _ = refined(["nine ten"], {"nine ten": (0.7, True)})
    judge = Judge(lambda text: (0.5, True))
    Refiner(
        lambda prompts, number: [candidate(FIRST, "other")],
        judge, RefineSection(passes=1), PairSection(),
    ).refine([PROMPT], [candidate("nine ten", "c0")], [assessment("c0", 0.5)])  # fmt: skip
    # The same two texts with their parts changed look the same to the judge, in the same order.
    assert one.shown == judge.shown
    assert {row.refined_from for row in one.shown} == {None}
    assert len({(row.model, row.seed, row.temperature, row.stop) for row in one.shown}) == 1


def test_only_whole_own_replies_with_a_score_and_a_critique_are_rewritten() -> None:
    rows = [
        candidate("the best is borrowed", "b", borrowed=True),
        candidate("the next was cut off", "l", stop="length"),
        candidate("no critique", "n"),
        candidate("no score", "u"),
        candidate("unsafe and good", "x"),
        candidate("safe and poor", "s"),
    ]
    verdicts = [
        assessment("b", 0.9), assessment("l", 0.8), assessment("n", 0.7, critique=" "),
        assessment("u", None), assessment("x", 0.6, safe=False), assessment("s", 0.2),
    ]  # fmt: skip
    asked: list[Prompt] = []

    def rewrite(prompts: list[Prompt], number: int) -> list[Candidate]:
        asked.extend(prompts)
        return []

    judge = Judge(lambda text: (0.5, True))
    refiner = Refiner(rewrite, judge, RefineSection(), PairSection())
    result = refiner.refine([PROMPT], rows, verdicts)
    assert "safe and poor" in asked[0].messages[-1]["content"]
    assert outcome(result) == "no room for it"
    nothing = refiner.refine([PROMPT], rows[:4], verdicts[:4])
    assert nothing.passes == [] and sum(nothing.skipped.values()) == 1


def test_the_report_adds_up_and_shows_words_beside_quality() -> None:
    result, _, _ = refined(["nine ten"], {"nine ten": (0.7, True)})
    assert result.text() == (
        "pass 1: 1 preferred = 1 rewritten; quality 0.50 -> 0.70, words 8 -> 2\n"
        "1 pairs of a rewritten reply against the first one"
    )
    assert result.report()["passes"] == [
        {"rewritten": 1, "preferred": 1, "judged": 1, "quality_before": 0.5, "quality_after": 0.7,
         "words_before": 8, "words_after": 2, "outcomes": {"preferred": 1}}
    ]  # fmt: skip


def test_the_embedded_evaluator_prefers_a_reply_that_hears() -> None:
    evaluator = EmbeddedEvaluator()
    poor = "Everybody sleeps badly at times. You should just relax and not think about it so much."
    good = (
        "Lying awake night after night sounds exhausting. What goes through your mind then? You "
        "could try writing it down."
    )
    start = candidate(poor)
    pairs: list[Pair] = (
        Refiner(
            lambda prompts, number: [candidate(good, "n")],
            lambda prompts, rows: evaluator.assess(prompts[0], rows),
            RefineSection(passes=1),
            PairSection(),
        )
        .refine([PROMPT], [start], evaluator.assess(PROMPT, [start]))
        .pairs
    )
    assert [pair.chosen[0]["content"] for pair in pairs] == [good]


# --- names that a judge and a served policy do not see --------------------------------------------


@pytest.mark.parametrize("turns", [1, 3])
def test_names_in_a_critique_are_those_of_the_conversation_and_come_back(
    turns: int, tmp_path: Path
) -> None:
    said = "I'm Marit Holm. My sister Ida left, and my name is grace to nobody."
    reply = "Dear Ida, call Dr. Lund."  # who is named in the reply alone
    critique = "[NAME_2] is not the person, [NAME_1] is. Marit is. [NAME_3]? [NAME_4] is new."
    earlier = [{"role": "user", "content": "My brother Tom is here."},
               {"role": "assistant", "content": "Tell me more."}]  # fmt: skip
    messages = [*(earlier if turns > 1 else []), {"role": "user", "content": said}]
    if turns > 1:  # Tom is the first of that conversation
        critique = re.sub(r"\d", lambda m: str(int(m[0]) + 1), critique)
    prompt = replace(PROMPT, messages=messages)
    first = candidate(reply)
    (shown,), (sent,) = outgoing(Service("j", "https://j.example/v1"), [prompt], [first])
    judged = shown.messages[-1]["content"] + sent.text
    assert all(name in judged for name in re.findall(r"\[NAME_\d\]", critique))
    bodies: list[str] = []

    def policy(call: Call) -> Reply:
        bodies.append(" ".join(m["content"] for m in call.body["messages"]))
        (mine,) = re.findall(r"about your answer:\n(.*)\n", call.body["messages"][-1]["content"])
        return Reply(body=completion(mine, model="policy"))

    with rehearsal.running(policy) as url:
        generate = {"backend": "openai", "served_model": "policy", "base_url": url}
        recipe = Recipe(run="t", generate=generate | {"redact_local": True})
        served = ServedPolicy(recipe, None)
        how = Sampling.of(recipe.generate, k=1, seed=1)
        result = Refiner(
            lambda prompts, number: served.replies(prompts, how, tmp_path).candidates,
            Judge(lambda text: (0.5, True)), RefineSection(passes=1), PairSection(),
        ).refine([prompt], [first], [assessment("c", 0.5, critique=critique)])  # fmt: skip
    assert not any(name in bodies[0] for name in ("Marit", "Holm", "Ida", "Lund", "grace", "Grace"))
    (made,) = result.candidates
    assert made.text == "Ida is not the person, Marit Holm is. Marit Holm is. Grace? Lund is new."
