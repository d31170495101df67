"""What the reward model learns from and what its report says: laws, and figures known by hand."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward import held_out, shares
from reward.best_of_n import Choice, curve, findings, gain, kl_of, weights
from reward.calibration import calibration
from reward.comparisons import (
    Comparison,
    Question,
    Side,
    every_two,
    gather,
    kind_of,
    paired,
    without_leaks,
)
from reward.confidence import RepeatNoise
from reward.evaluator import Assessment
from reward.model import Score
from reward.pairing import Judged, Pair
from sft.candidates import Candidate
from sft.data import Prompt, set_apart
from sft.files import UserError


def prompt_of(name="p", risk="none", topic="sleep", source="test", said="I cannot sleep."):
    return Prompt(name, [{"role": "user", "content": said}], source, topic, risk, "train")


def reply(
    name, quality, safe=True, text=None, *, prompt="p", borrowed=False, stop="eos", grades=None
):
    text = f"Reply {name}." if text is None else text
    candidate = Candidate(name, prompt, text, "m", 1.0, 1.0, 0, stop, borrowed)
    grades = {} if grades is None else grades
    verdict = (quality, safe, [], "", "judge", "r@1", None)
    return Judged(candidate, Assessment(name, prompt, grades, *verdict))


# --- comparisons -------------------------------------------------------------------------------

replies = st.lists(
    st.tuples(
        st.integers(0, 10).map(lambda n: n / 10),
        st.booleans(),
        st.sampled_from(["a b", "a b ", "c d e", "f"]),
        st.booleans(),
        st.sampled_from(["eos", "length"]),
    ),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(replies, st.sampled_from([0.0, 0.05, 0.3]))
def test_laws_of_comparing(group, least):
    made = [
        reply(f"c{i}", q, safe, text, borrowed=borrowed, stop=stop)
        for i, (q, safe, text, borrowed, stop) in enumerate(group)
    ]
    question = Question(prompt_of(), made)
    found = every_two(question, least)
    for each in found:
        better, worse = made[each.better], made[each.worse]
        gap = better.assessment.quality - worse.assessment.quality
        assert gap > 0
        assert gap >= least
        assert each.margin == gap
        assert each.confidence == pytest.approx(0.5 + gap / 2)
        assert not better.candidate.borrowed and not worse.candidate.borrowed
        assert better.candidate.stop == worse.candidate.stop == "eos"
        assert better.candidate.text.strip() != worse.candidate.text.strip()
    turned = every_two(Question(question.prompt, made[::-1]), least)
    last = len(made) - 1
    assert {(e.better, e.worse) for e in found} == {
        (last - e.better, last - e.worse) for e in turned
    }
    # Whatever the safety flow says, quality alone decides.
    other = [
        reply(f"c{i}", q, not safe, text, borrowed=borrowed, stop=stop)
        for i, (q, safe, text, borrowed, stop) in enumerate(group)
    ]
    assert every_two(Question(question.prompt, other), least) == found


def test_a_safe_reply_of_lower_quality_is_the_worse_one():
    question = Question(prompt_of(), [reply("a", 0.3, True), reply("b", 0.8, False)])
    (found,) = every_two(question, 0.05)
    assert (found.better, found.worse) == (1, 0)
    assert kind_of(question, found) == "one safe"


def test_repeats_say_what_is_a_tie_and_how_sure_the_rest_is():
    """With known noise a comparison is as sure as the normal distribution says."""
    noise = RepeatNoise(sd=0.1, degrees=40, repeated=40)
    group = [reply("a", 0.5), reply("b", 0.6, False), reply("c", 0.9)]
    found = every_two(Question(prompt_of(), group), "auto", noise)
    # 1.96 * 0.1 * sqrt(2) = 0.277: a and b are a tie.
    assert [(each.better, each.worse) for each in found] == [(2, 0), (2, 1)]
    for each in found:
        expected = NormalDist().cdf(each.margin / (0.1 * math.sqrt(2)))
        assert each.confidence == pytest.approx(expected)
    with pytest.raises(UserError, match=r"pair\.margin auto needs the evaluator's repeats"):
        every_two(Question(prompt_of(), group), "auto")


def test_pairs_keep_their_own_margin_and_confidence():
    question = Question(prompt_of(), [reply("a", 0.3), reply("b", 0.8), reply("c", 0.1, False)])
    said = [[{"role": "assistant", "content": text}] for text in ("Reply b.", "Reply a.", "no")]
    asked = question.prompt.messages
    pairs = [
        Pair("p", asked, said[0], said[1], 0.4, 0.9, "b", "a", "quality"),
        Pair("p", asked, said[0], said[2], 1.7, 1.0, "b", "c", "safety"),
        Pair("p", asked, said[0], said[2], 0.4, 0.9, "b", "unknown", "quality"),
    ]
    assert paired(question, pairs) == [Comparison(1, 0, 0.4, 0.9)]


def test_questions_have_scored_replies_only_and_name_what_is_amiss():
    scored, asked = reply("a", 0.5), prompt_of()
    silent = Candidate("b", "p", "text", "m", 1.0, 1.0, 0, "eos")
    reason = Assessment.without_score(silent, "refused", evaluator="judge", rubric="r@1")
    made = gather([asked], [scored.candidate, silent], [scored.assessment, reason])
    assert made == [Question(asked, [scored])]
    with pytest.raises(UserError, match=r"assessment of a: no such candidate.*score\.py"):
        gather([asked], [silent], [scored.assessment])


def test_training_has_no_text_of_a_held_out_prompt():
    secret = reply("h", 0.5, text="Only said to h.", prompt="h")
    stolen = reply("s", 0.1, False, text="Only said to h. ", borrowed=True)
    kept = reply("k", 0.1, False, text="Said to another.", borrowed=True)
    train = Question(prompt_of(), [reply("a", 0.5), stolen, kept])
    found, n = without_leaks([train], [Question(prompt_of("h"), [secret])])
    assert n == 1
    assert [r.candidate.id for r in found[0].replies] == ["a", "k"]


def test_prompts_set_apart_are_like_no_other_and_chosen_anew():
    words = "anger bread cloud doubt exams fever grief hope ink joy knee loss moon night"
    some = [prompt_of(f"q{i}", said=f"w{i} x{i} y{i} z{i}") for i in range(100)]
    twins = [prompt_of(f"t{i}", said=f"{words} {i}") for i in range(3)]
    for seed in range(12):  # of one kind, they share a side whatever the seed
        apart = set_apart([*some, *twins], share=0.3, seed=seed, purpose="reward")
        assert len(apart & {twin.id for twin in twins}) in (0, 3)
        assert 10 <= len(apart) <= 55
    assert apart == set_apart([*twins, *some][::-1], share=0.3, seed=11, purpose="reward")
    # What the main split left over is split by another rule: nothing of it would be below 0.3.
    rest = [p for p in some if p.id not in set_apart(some, share=0.3, seed=1, purpose="main")]
    assert len(set_apart(rest, share=0.3, seed=1, purpose="main")) <= 1
    assert 5 <= len(set_apart(rest, share=0.3, seed=1, purpose="reward")) <= 40
    assert len(set_apart(some[:2], share=0.01, seed=1, purpose="reward")) == 1


# --- best of n ---------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=7), st.data())
def test_the_expectation_is_that_of_all_subsets(ranks, data):
    n = data.draw(st.integers(1, len(ranks)))
    share = [0.0] * len(ranks)
    subsets = list(combinations(range(len(ranks)), n))
    for subset in subsets:
        top = max(ranks[i] for i in subset)
        winners = [i for i in subset if ranks[i] == top]
        for i in winners:
            share[i] += 1 / len(winners) / len(subsets)
    found = weights(ranks, n)
    assert sum(found) == pytest.approx(1)
    # Equal ranks share the total evenly, whichever of them a subset happens to have.
    for rank in set(ranks):
        places = [i for i, each in enumerate(ranks) if each == rank]
        expected = sum(share[i] for i in places) / len(places)
        assert [found[i] for i in places] == pytest.approx([expected] * len(places))


def test_kl_of_best_of_n():
    assert kl_of(1) == 0
    assert kl_of(4) == pytest.approx(math.log(4) - 0.75)


def test_a_proxy_that_turns_against_the_gold_is_told():
    def choices(gold):
        return [
            Choice(f"p{i}", [1, 2, 3, 4], {"reward": [1.0, 2.0, 3.0, 4.0], "gold": gold})
            for i in range(20)
        ]

    turning, loyal = choices([0.1, 0.5, 0.9, 0.0]), choices([0.1, 0.2, 0.3, 0.4])
    rewards = [point.means["reward"] for point in curve(turning)]
    assert rewards == sorted(rewards)
    assert rewards[0] == pytest.approx(2.5)
    assert rewards[-1] == pytest.approx(4.0)
    (said,) = findings(turning, "reward", {"gold": "the gold"}, "reward alone")
    assert said.startswith(
        "Warning: best-of-n by reward alone: from n = 2 to 4 the gold goes from 0.383"
    )
    assert said.endswith("over-optimised")
    (said,) = findings(loyal, "reward", {"gold": "the gold"}, "reward alone")
    assert said.startswith("best-of-n by reward alone: from n = 1 to 4 the gold goes from 0.250 to")
    assert "over-optimised" not in said
    assert gain(loyal, "gold", 1, 4).value == pytest.approx(0.15)


# --- calibration and accuracy ------------------------------------------------------------------


def test_calibration_by_hand():
    cases = [(0.55, 1.0), (0.55, 0.0), (0.95, 1.0), (1.0, 1.0)]
    found = calibration(cases, 0.5)
    assert [each["n"] for each in found.bins] == [2, 2]
    assert found.bins[0]["hits"] == 0.5
    assert found.error == pytest.approx(0.5 * 0.05 + 0.5 * 0.025)
    assert calibration([(0.0, 0.0), (1.0, 1.0)], 0.0).error == 0
    assert calibration([(1.0, 0.0)], 0.0).error == 1


def marked(prompt, quality, reward, *, words=10, safe=True, p_safe=0.9, risk="none", grades=None):
    score = Score(reward, p_safe)
    return held_out.Marked(
        prompt, risk, "sleep", words, False, score, quality, safe, grades or {}, None
    )


def some_pairs():
    """Two prompts: one told rightly, one wrongly, the longer reply the worse one in both."""
    return [
        held_out.Compared(
            marked("p", 0.9, 2.0, words=10, grades={"empathy": 5.0, "clarity": 1.0}),
            marked("p", 0.5, 1.0, words=11, grades={"empathy": 2.0, "clarity": 4.0}),
            "both safe",
            0.7,
            0.4,
        ),
        held_out.Compared(
            marked("q", 0.55, 1.0, words=10, risk="crisis"),
            marked("q", 0.5, 3.0, words=20, risk="crisis"),
            "both safe",
            0.525,
            0.05,
        ),
    ]


def test_accuracy_by_group():
    found = {(row.of, row.group): row for row in held_out.accuracies(some_pairs())}
    assert found["all", "all"].reward.value == 0.5
    assert found["all", "all"].words.value == 0.0
    assert found["all", "all"].gain.value == 0.5
    assert found["risk", "none"].reward.value == 1.0
    assert found["risk", "crisis"].reward.value == 0.0
    assert found["margin", "0.4 to 1"].reward.value == 1.0
    assert found["margin", "0 to 0.1"].reward.value == 0.0
    assert found["length", "within 10 %"].reward.n == 1
    # Clarity speaks against the better reply: a reward that agrees with quality does not follow it.
    assert found["criterion", "empathy"].reward.value == 1.0
    assert found["criterion", "clarity"].reward.value == 0.0
    assert found["criterion", "clarity"].words.value == 1.0
    assert ("criterion", "helpfulness") not in found


def test_a_reward_that_learned_safety_instead_is_seen():
    """Quality and safety disagree in one of two comparisons; the reward goes by safety."""
    torn = held_out.Compared(
        marked("p", 0.9, -1.0, safe=False), marked("p", 0.5, 1.0), "one safe", 0.7, 0.4
    )
    agreeing = held_out.Compared(
        marked("q", 0.9, 1.0), marked("q", 0.5, -1.0, safe=False), "one safe", 0.7, 0.4
    )
    found = {(row.of, row.group): row for row in held_out.accuracies([torn, agreeing])}
    assert found["safety", "one safe"].reward.value == 0.5
    assert found["safety", "the unsafe one better"].reward.value == 0.0
    assert found["safety", "the unsafe one better"].reward.n == 1


def test_one_prompt_says_nothing_of_others():
    some = [("p", 1.0), ("p", 0.0), ("p", 1.0)]
    found = shares.hit_rate(some)
    assert (found.value, found.low, found.high, found.n) == (pytest.approx(2 / 3), 0.0, 1.0, 3)
    alike = shares.hit_rate([("p", 1.0), ("q", 1.0), ("q", 1.0)])
    assert alike.value == 1.0
    assert 0.2 < alike.low < 0.5  # Wilson's for two of two
    assert alike.n == 3


def test_confidence_is_learned_where_the_odds_say_it():
    odds = math.log(0.7 / 0.3)
    pairs = [
        held_out.Compared(
            marked(f"p{i}", 0.9, odds), marked(f"p{i}", 0.5, 0.0), "both safe", 0.7, 0.4
        )
        for i in range(5)
    ]
    found = held_out.preference_calibration(pairs)
    assert found["confidence"].error == pytest.approx(0)
    assert found["verdict"].error == pytest.approx(0.3)


def test_the_safety_head_by_risk():
    replies = [
        marked("p", 0.5, 0.0, safe=False, p_safe=0.1, risk="crisis"),
        marked("q", 0.5, 0.0, safe=False, p_safe=0.8, risk="crisis"),
        marked("r", 0.5, 0.0, safe=True, p_safe=0.7),
        marked("s", 0.5, 0.0, safe=True, p_safe=0.2),
    ]
    found = {row["group"]: row for row in held_out.safety(replies)}
    assert found["all"]["recall_of_unsafe"].value == 0.5
    assert found["all"]["false_alarms"].value == 0.5
    assert found["all"]["area"] == pytest.approx(2 / 4)
    assert found["risk crisis"]["recall_of_unsafe"].n == 2
    assert found["risk crisis"]["area"] is None
    assert found["risk none"]["recall_of_unsafe"].n == 0
    assert "risk elevated" not in found


def test_the_truth_is_asked_where_it_is_known():
    two = [reply("a", 0.9, text="A long and kind reply."), reply("b", 0.1, False, text="Cold.")]
    question = Question(prompt_of(), two)
    side = Side([question], [every_two(question, 0.05)])
    scores = {"a": Score(1.0, 0.9), "b": Score(2.0, 0.1)}
    worth = {"A long and kind reply.": 0.8, "Cold.": 0.3}
    some = held_out.mark(question, scores, lambda _, text: held_out.Truth(worth[text], True))
    found = held_out.against_truth(held_out.compare(side, [some]), 0.02)
    assert found["evaluator"].value == 1.0
    assert found["reward model"].value == 0.0
    assert found["word count"].value == 1.0
    assert held_out.against_truth(held_out.compare(side, [some]), 0.6) is None  # a tie in truth
    rows = {row["group"]: row for row in held_out.safety(some)}
    assert rows["all"]["recall_of_unsafe"].n == 1
    assert rows["all, by the truth"]["recall_of_unsafe"].n == 0
    unknown = held_out.mark(question, scores, lambda *_: None)
    assert held_out.against_truth(held_out.compare(side, [unknown]), 0.02) is None
