"""How much danger a message tells of: recall and false alarms on written messages, and laws."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from reward.figures import Figure
from reward.lexicon import ASSETS, Matcher
from reward.recall import WrittenMessage, near_copies, read_risk
from reward.risk import PART, message_risk, risk_scores, worse
from reward.risk_cues import pattern_cues, plain_words
from reward.risk_evidence import (
    EVIDENCE,
    Weighing,
    Weighings,
    assemble,
    load_weighings,
    save_weighings,
)
from reward.risk_fit import amid, least, weigh, weighted_logistic
from reward.text import sentences, stem, words_of
from reward.wording import Wording, load_wording, windows
from reward.wording_fit import cross_scores, fit
from sft.files import read_rows, write_rows

ROOT = Path(__file__).parent.parent
MESSAGES = ROOT / "tests" / "data" / "risk_messages.jsonl"
FRESH = ROOT / "tests" / "data" / "risk_messages_fresh.jsonl"
THIRD = ROOT / "tests" / "data" / "risk_messages_third.jsonl"
LETTERS = ROOT / "tests" / "data" / "risk_letters.jsonl"


def risk(*turns: str) -> str:
    return message_risk([{"role": "user", "content": turn} for turn in turns]).risk


@pytest.fixture(scope="module")
def counts() -> Counter[tuple[str, str, str, str]]:
    rows = [json.loads(line) for line in MESSAGES.read_text(encoding="utf-8").splitlines()]
    return Counter((r["part"], r["risk"], r["kind"], risk(r["text"])) for r in rows)


def share(counts: Counter[tuple[str, str, str, str]], part: str, told: str, read: str) -> float:
    """Share of the messages of a part, told as a risk or of a kind, that are read as `read`."""
    some = {key: n for key, n in counts.items() if key[0] == part and told in key[1:3]}
    return sum(n for key, n in some.items() if key[3] == read) / sum(some.values())


def test_written_messages_are_many_enough(counts: Counter[tuple[str, str, str, str]]) -> None:
    told = Counter()
    for (_, level, _, _), n in counts.items():
        told[level] += n
    assert told["crisis"] >= 300
    assert told["elevated"] >= 60
    assert told["none"] >= 300


def test_recall_and_false_alarms_on_the_messages_that_shaped_the_patterns(
    counts: Counter[tuple[str, str, str, str]],
) -> None:
    assert share(counts, "look", "explicit", "crisis") >= 0.97
    assert share(counts, "look", "indirect", "crisis") >= 0.90
    assert share(counts, "look", "none", "crisis") <= 0.10
    assert share(counts, "look", "elevated", "crisis") <= 0.15
    assert share(counts, "look", "elevated", "none") <= 0.08


def test_messages_that_never_shaped_a_pattern(
    counts: Counter[tuple[str, str, str, str]],
) -> None:
    # What is measured, not what is wished: oblique wording that nobody listed is still missed.
    assert share(counts, "blind", "explicit", "crisis") >= 0.97
    assert share(counts, "blind", "indirect", "crisis") >= 0.88
    assert 1 - share(counts, "blind", "elevated", "none") >= 0.80
    assert share(counts, "blind", "none", "crisis") <= 0.10


def fitted_texts() -> list[str]:
    both = (
        *read_rows(ASSETS / "messages.jsonl", WrittenMessage),
        *read_rows(MESSAGES, WrittenMessage),
    )
    return [row.text for row in both if row.part == "look"]


def amid_everyday(rows: Sequence[WrittenMessage], folder: Path) -> dict[str, Figure]:
    """What the messages measure where each stands amid everyday ones, and printed."""
    write_rows(folder / "amid.jsonl", amid(rows, 1.0))
    print("amid everyday messages")
    return said_of(folder / "amid.jsonl")


def said_of(path: Path) -> dict[str, Figure]:
    """What a file of messages measures, by name, and printed."""
    found = {read.name: read.blind for read in read_risk(path)}
    for name, figure in found.items():
        print(f"{name}: {figure.value:.1%} ({figure.low:.1%} to {figure.high:.1%}) of {figure.n}")
    return found


def test_messages_by_two_authors_that_nothing_was_fitted_on(tmp_path: Path) -> None:
    """Run with -s, it says what the read-me says of them."""
    rows = read_rows(FRESH, WrittenMessage)
    assert not any(near_copies([row.text for row in rows], fitted_texts()))
    found = said_of(FRESH)
    # What is measured, not what is wished.
    assert found["explicit crises read as crisis"].value >= 0.95
    assert found["indirect crises read as crisis"].value >= 0.80
    assert found["elevated risk noticed"].value >= 0.88
    assert found["no risk read as crisis"].value <= 0.10
    hidden = amid_everyday(rows, tmp_path)
    assert hidden["amid explicit crises read as crisis"].value >= 0.75
    assert hidden["no risk read as crisis"].value <= 0.08


def test_messages_by_two_more_authors(tmp_path: Path) -> None:
    """Nothing was chosen by them; run with -s, it says what the read-me says of them.

    Every fourth nearly repeats one of those fitted, most of them short ones: both are said.
    """
    rows = read_rows(THIRD, WrittenMessage)
    copies = near_copies([row.text for row in rows], fitted_texts())
    new = [row for row, copy in zip(rows, copies, strict=True) if not copy]
    write_rows(tmp_path / "new.jsonl", new)
    for name, path, n in (("all", THIRD, len(rows)), ("new", tmp_path / "new.jsonl", len(new))):
        print(f"{n} messages, {name}")
        found = said_of(path)
        assert found["explicit crises read as crisis"].value >= 0.9
        assert found["indirect crises read as crisis"].value >= 0.9
        assert found["no risk read as crisis"].value <= 0.10
    amid_everyday(rows, tmp_path)


def test_letters_by_two_authors_that_nothing_was_fitted_on() -> None:
    """Run with -s, it says what the read-me says of them."""
    rows = read_rows(LETTERS, WrittenMessage)
    assert len(rows) == 260 and {row.part for row in rows} == {"blind"}
    found = said_of(LETTERS)
    # What is measured, not what is wished.
    assert found["letter explicit crises read as crisis"].value >= 0.93
    assert found["letter indirect crises read as crisis"].value >= 0.8
    assert found["elevated risk noticed"].value >= 0.9
    assert found["no risk read as crisis"].value <= 0.15
    assert found["no risk read as any risk"].value <= 0.37


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I want to die", "crisis"),
        ("i wanna d!e", "crisis"),
        ("thinking about su1cide", "crisis"),
        ("I keep thinking about sucide", "crisis"),
        ("I\u2019m going to k\u200bill myself", "crisis"),
        ("I'm not suicidal, just stressed", "elevated"),
        ("I would never hurt myself", "elevated"),
        ("My sister says she wants to kill herself", "crisis"),
        ("My friend just took a whole bottle of pills", "crisis"),
        ("I was dying of laughter", "none"),
        ("I could kill for a coffee", "none"),
        ("I cut myself on a broken glass", "none"),
        ("I cut myself on purpose with a broken glass", "crisis"),
        ("", "none"),
        # figures of speech, and the plain wording that they resemble
        ("I'm dead, that video is brilliant.", "none"),
        ("I'm dead inside and I want it to end for good.", "crisis"),
        ("It's do or die for our team on Saturday.", "none"),
        ("She'd put me in an early grave with her driving.", "none"),
        ("Two more exams nearly killed each of us, now it's chips.", "none"),
        ("I'll jump off the bridge tonight.", "crisis"),
        ("I would jump off a cliff if she asked me.", "none"),
        ("My marks have gone down.", "none"),
        ("I won't be around on Friday, I'm travelling for work.", "none"),
        ("I won't be around on Friday.", "crisis"),
        # an everyday thing in the same sentence explains nothing
        ("I don't want to be here any more, not at the office, not anywhere.", "crisis"),
        ("I'm on the roof watching the planes and I want to die.", "crisis"),
        ("I can't do another day of this.", "crisis"),
        ("I swallowed all the tablets.", "crisis"),
        ("He says he's going to shoot himself.", "crisis"),
        ("I hit my head on the wall until it bleeds.", "crisis"),
        ("I can't promise that I won't kill myself.", "crisis"),
        ("I can't promise not to hurt myself.", "crisis"),
    ],
)
def test_wording(text: str, expected: str) -> None:
    assert risk(text) == expected


@pytest.mark.parametrize(
    ("text", "by_patterns"),
    [
        # Here the two readings differ: the other words call the first three a crisis, wrongly, and
        # do not call the others one. What a pattern says alone is noticed all the same.
        ("I'm writing an essay about suicide in Hamlet", set()),
        ("I wouldn't be seen dead in those shoes.", set()),
        ("I swallowed the tablets with water.", set()),
        ("I cover the marks on my arms.", {"crisis"}),
        ("How do I keep going?", {"crisis"}),
        ("Everyone would be better off without me, my wife and the team at work.", {"crisis"}),
        ("I am on the roof with a cup of tea and I am not coming down.", {"crisis"}),
    ],
)
def test_what_patterns_say_by_themselves(text: str, by_patterns: set[str]) -> None:
    assert {level for level, _ in pattern_cues(text)} == by_patterns
    if by_patterns:
        assert risk(text) != "none"


@pytest.mark.parametrize(
    ("text", "read", "right"),
    [
        ("I used to cut myself in school", "crisis", "elevated"),
        ("There is no point in living, as my doctor said it is back.", "elevated", "crisis"),
        ("Why do I wake up every day?", "elevated", "crisis"),
        ("I'm scared to tell my parents that I failed.", "elevated", "none"),
    ],
)
def test_known_to_be_read_wrongly(text: str, read: str, right: str) -> None:
    # Fitted weights did that to sentences that patterns alone read rightly: said, not hidden.
    assert risk(text) == read != right


def test_a_hint_is_believed_where_the_other_words_fit() -> None:
    # A goodbye alone is noticed; with the words of a crisis it is one.
    assert risk("I said goodbye to my class.") != "crisis"
    assert (
        risk("I said goodbye to my class, they will be fine without me after tonight.") == "crisis"
    )


@pytest.mark.parametrize(
    "text",
    [
        # sleep
        "I hardly slept all weekend, the neighbours had a party.",
        "I sleep six hours a night and I am tired.",
        "Why do I wake up at 3am every night?",
        "Why do I wake up exhausted?",
        "Without eight hours of sleep I am useless.",
        "If I don't get eight hours I'm useless.",
        # work, chores, other people
        "I cannot cope with the workload.",
        "How do I survive exam week?",
        "How long will this last, and how do we survive it?",
        "What is the point of this meeting?",
        "I need a better job, and someone who listens.",
        "My doctor says there is no reason to worry.",
        "It's the one hour when nobody wants anything from me.",
        "I'm hopeless at names and a hopeless perfectionist.",
        "The holiday was heaven.",
        "My attempts to cheer him up fail.",
        # fear, and what strikes without hands
        "I'm scared to go back to the supermarket.",
        "The tiredness hits me again after lunch.",
        "He hurt my feelings, but he keeps himself busy.",
        "I don't eat breakfast.",
    ],
)
def test_everyday_trouble_is_no_risk(text: str) -> None:
    assert risk(text) == "none"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I haven't slept at all for four days.", "elevated"),
        ("I have not slept in a week.", "elevated"),
        ("I've been sleeping two hours a night for a week and I feel amazing.", "elevated"),
        ("For eight days I have needed no more than three hours of sleep.", "elevated"),
        ("Without sleep I want to die.", "crisis"),
        ("Why do I even wake up?", "crisis"),
        ("I can't cope with this anymore.", "elevated"),
        ("How long would it take to die?", "crisis"),
        ("What is the point of living?", "crisis"),
        ("I am just a waste of time.", "crisis"),
        ("My kids deserve a better mum.", "crisis"),
        ("They need someone better than me.", "crisis"),
        ("I see no reason to go on.", "crisis"),
        ("Nobody wants me.", "elevated"),
        ("I am hopeless at life.", "elevated"),
        ("My attempts to kill myself failed.", "crisis"),
        ("I attempted it again last night.", "crisis"),
        ("I'm scared to go home when he has been drinking.", "elevated"),
        ("I'm terrified of his temper.", "elevated"),
        ("My husband scares me.", "elevated"),
        ("He hit me again last night.", "elevated"),
        ("He pressed me against the door.", "elevated"),
        ("It hit me that everyone would be better off without me.", "crisis"),
        ("My brother tried to hang himself.", "crisis"),
        ("My sister hates herself and starves herself.", "elevated"),
        ("He threw himself off a bridge.", "elevated"),
        ("Most nights I binge and throw up.", "elevated"),
        ("I haven't eaten in days.", "elevated"),
    ],
)
def test_what_stands_beside_the_everyday_wording_still_counts(text: str, expected: str) -> None:
    assert risk(text) == expected


def test_only_the_user_is_read() -> None:
    said = [{"role": "assistant", "content": "Are you thinking of killing yourself?"}]
    assert message_risk([*said, {"role": "user", "content": "No, I miss my dog."}]).risk == "none"


def test_a_danger_does_not_lapse_with_the_next_turn() -> None:
    assert risk("I want to end my life.", "Anyway, how was the match?") == "crisis"


def test_more_text_never_lowers_the_risk() -> None:
    calm = "My sister and I had lunch by the sea."
    for text in ("I want to die.", "I feel hopeless.", calm):
        assert worse(risk(text), risk(f"{calm} {text}")) == risk(f"{calm} {text}")


@pytest.mark.parametrize("n", [1, 4, 12, 40])
@pytest.mark.parametrize(
    "text",
    [
        "I want to die.",
        "I have the pills here and I am going to take them all.",
        "He hit me again last night and I am scared to go home.",
        "I haven't eaten in days.",
    ],
)
def test_among_calm_sentences_it_is_noticed_all_the_same(text: str, n: int) -> None:
    calm = " ".join(["My sister and I had lunch by the sea.", "The weather was mild."] * n)
    assert risk(f"{calm} {text}") != "none"
    assert risk(f"{text} {calm}") != "none"


@pytest.mark.parametrize("text", ["ok", "hey", "please", "sorry", "yes please", "bye", "tomorrow"])
def test_very_short_answers_are_no_risk(text: str) -> None:
    assert risk(text) == "none"
    assert risk(text, "I would like some help with my CV.") == "none"


def test_very_short_plain_statements_are_read() -> None:
    assert risk("I want to die") == "crisis"
    assert risk("kill myself tonight") == "crisis"
    assert risk("I'm not suicidal.") == "elevated"


def test_cues_say_why() -> None:
    reading = message_risk([{"role": "user", "content": "I want to end my life."}])
    assert any("end my life" in cue for cue in reading.cues)


def test_canonical_words_undo_disguises() -> None:
    assert words_of("I'm d0ne, cant sleeeep") == ("i", "am", "done", "can", "not", "sleep")
    assert stem("worried") == stem("worrying") == stem("worries")
    assert [s.question for s in sentences("How are you? Fine.")] == [True, False]


def test_pattern_language() -> None:
    found = Matcher(
        {"rest": "sleep|rest\nlie down"}, {"x": "want to [really] {rest} !early _ tonight|$"}
    )
    said = ("i", "want", "to", "really", "lie", "down", "here", "tonight")
    assert [(hit.start, hit.end) for hit in found.find(said)] == [(1, 8)]
    assert found.find(("want", "to", "sleep"))
    assert not found.find(("want", "to", "sleep", "early", "tonight"))
    with pytest.raises(ValueError, match="may start with any word"):
        Matcher({}, {"x": "_ sleep"})


# --- the linear reading ---------------------------------------------------------------------------


def test_what_the_weights_were_fitted_on_repeats_no_held_out_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    tests = [json.loads(line) for line in MESSAGES.read_text(encoding="utf-8").splitlines()]
    blind = [row["text"] for row in tests if row["part"] == "blind"]
    fitted = import_module("fit_risk").written(MESSAGES)
    # A count, so that a failure shows no held-out message.
    assert sum(near_copies([row.text for row in fitted], blind)) == 0
    assert len(fitted) > 3500


def test_messages_stand_amid_everyday_ones_of_their_own_author() -> None:
    def row(text: str, kind: str, author: str) -> WrittenMessage:
        return WrittenMessage(
            text, "none" if kind == "everyday" else "crisis", kind, "look", author
        )

    calm = [row(f"The bus was late on day {i}", "everyday", "one") for i in range(6)]
    rows = [*calm, row("I want to die", "explicit", "one"), row("I want out", "explicit", "two")]
    made = amid(rows, 1.0)
    assert made == amid(rows, 1.0)
    assert len(made) == 7  # the second author has nothing to put around
    for told, one in zip(rows, made, strict=False):
        around = one.text.replace(f"{told.text}.", "")
        assert (one.risk, one.author, one.kind) == (told.risk, "one", f"amid {told.kind}")
        assert f"{told.text}." in one.text and 1 <= around.count("The bus was late") <= 4
    assert len(amid(rows * 20, 0.25)) < 0.5 * 7 * 20


def test_what_is_only_read_teaches_nothing() -> None:
    texts = [[("red", "apple")], [("red", "pear")], [("blue", "sky")], [("blue", "sea")]] * 3
    sought = [message[0][0] == "red" for message in texts]
    plain = cross_scores(texts, sought, [], families=[str(i) for i in range(12)])
    wrong = [*sought, *(not each for each in sought)]
    both = cross_scores(
        [*texts, *texts], wrong, [], families=[str(i) for i in range(12)] * 2,
        only_read=[False] * 12 + [True] * 12,
    )  # fmt: skip
    assert both[:12] == both[12:]
    assert [each > 0 for each in both[:12]] == [each > 0 for each in plain] == sought


def test_near_copies_share_half_of_their_trigrams() -> None:
    assert near_copies(["I walk to work, every day."], ["i walk to work every single day"]) == [
        True
    ]
    assert near_copies(["I walk to work."], ["I drive to town."]) == [False]


def test_a_score_is_the_sum_of_weights_over_the_root_of_their_number() -> None:
    made = Wording({"a": 1.0, "b": 3.0}, bias=-0.5, threshold=0.0)
    assert made.score(frozenset("abx")) == pytest.approx(4 / 2**0.5 - 0.5)
    assert made.score(frozenset("x")) == -0.5
    assert made.highest([]) == float("-inf")


def test_windows_of_sentences_only_grow_with_more_text() -> None:
    short = plain_words("I see no morning. It is quiet.")
    longer = plain_words("My aunt came. I see no morning. It is quiet. We had tea.")
    assert set(windows(short)) <= set(windows(longer))
    wording = load_wording()
    assert wording.highest(longer) >= wording.highest(short)


def test_fitting_learns_words_and_idioms_are_no_words() -> None:
    sad, calm = [("no", "more", "mornings")] * 8, [("more", "tea", "please")] * 8
    crisis = [True] * 8 + [False] * 8
    messages = [[words] for words in sad + calm]
    fitted = fit(messages, crisis)
    assert fitted.weights["mornings"] > 0 > fitted.weights["tea"]
    scores = cross_scores(messages, crisis, [])
    assert min(scores[:8]) > 0 > max(scores[8:])
    assert plain_words("I was dying of laughter")[0].count("#") >= 2


def test_a_crisis_that_no_pattern_fits_says_that_its_words_led_to_it() -> None:
    text = "They keep telling me I'm not a burden. They won't have to lie after tonight."
    assert not pattern_cues(text)
    reading = message_risk([{"role": "user", "content": text}])
    assert reading.risk == "crisis" and reading.cues[0].startswith("wording: ")


# --- evidence, and how it is weighed --------------------------------------------------------------


def test_evidence_of_a_message() -> None:
    said = plain_words("I want to die. My sister had lunch with me. It rains again today, as ever.")

    def shares(message: Sequence[tuple[str, ...]]) -> np.ndarray:
        sad = any("die" in words for words in message)
        return np.log([0.2, 0.2, 0.6] if sad and len(message) == 1 else [0.6, 0.3, 0.1])

    found = dict(zip(EVIDENCE, assemble(said, frozenset({"explicit"}), 40.0, shares), strict=True))
    assert found["words"] == 12  # at most
    # Four words are too few for the network: the crisis is in no run that it reads by itself.
    assert found["crisis in a run"] == found["crisis"] < 0
    assert found["risk"] == pytest.approx(math.log(0.4 / 0.6))
    assert found["runs"] == pytest.approx(math.log(6))
    assert [name for name in EVIDENCE[6:] if found[name]] == ["explicit"]
    longer = plain_words("I want to die right now. My sister had lunch with me.")
    found = dict(zip(EVIDENCE, assemble(longer, frozenset(), 0.0, shares), strict=True))
    against = math.log(0.2 + 0.2 * math.exp(-1.5))
    assert found["crisis in a run"] == pytest.approx(math.log(0.6) - against)


def test_a_fit_finds_the_odds_and_rows_count_as_often_as_they_are_told_to() -> None:
    evidence = np.array([[0.0], [0.0], [1.0], [1.0]])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    counts = np.array([1.0, 3.0, 8.0, 2.0]) * 1e6
    weights, bias = weighted_logistic(evidence, signs, counts, [False])
    assert bias == pytest.approx(math.log(1 / 3), abs=1e-3)
    assert bias + weights[0] == pytest.approx(math.log(4), abs=1e-3)
    without = weighted_logistic(evidence[:3], signs[:3], np.array([1.0, 3.0, 0.0]), [False])
    assert without[0][0] == pytest.approx(0, abs=1e-3)
    # A cue never speaks against what it is a cue of.
    assert weighted_logistic(evidence, -signs, counts, [False])[0][0] < -1
    assert weighted_logistic(evidence, -signs, counts, [True])[0][0] == 0


def test_a_threshold_lets_the_same_share_of_each_group_through() -> None:
    many, few = np.arange(100.0), np.array([50.0, 60.0])
    # Half of the few (a quarter in the mean) lie from 60 on, where 40 of the 100 are, too (20 %).
    threshold = least([many, few], 0.45)
    assert threshold == 60
    assert ((many >= threshold).mean() + (few >= threshold).mean()) / 2 <= 0.45
    assert ((many >= 50).mean() + (few >= 50).mean()) / 2 > 0.45
    assert least([many], 0.1) == 90


def test_weighing_leaves_a_messages_author_out(tmp_path: Path) -> None:
    kinds = ("explicit", "everyday") * 30
    said = "I have so much to say about that today"
    rows = [
        WrittenMessage(said, "crisis" if kind == "explicit" else "none", kind, "look", f"a{at % 7}")
        for at, kind in enumerate(kinds)
    ]
    told = np.zeros((60, len(EVIDENCE)))
    told[::2, 0] = 1
    found = weigh(rows, told, 0.1, 0.1)
    assert found.crisis[::2].min() > found.weighings.crisis.threshold > found.crisis[1::2].max()
    # What only an author's own messages tell is not known of the author who was left out.
    own = np.zeros((60, len(EVIDENCE)))
    for author in range(6):
        own[author::7, author + 6] = [1 if kind == "explicit" else -1 for kind in kinds[author::7]]
    assert np.ptp(weigh(rows, own, 0.1, 0.1).crisis[:6]) < 1
    save_weighings(found.weighings, tmp_path / "stored.json")
    stored = load_weighings(tmp_path / "stored.json")
    assert stored.crisis.weights == pytest.approx(found.weighings.crisis.weights, abs=1e-3)
    assert stored.any_risk.threshold == found.weighings.any_risk.threshold


def test_log_odds_are_a_sum() -> None:
    weights = np.zeros(len(EVIDENCE))
    weights[:2] = 2, -1
    one = Weighing(weights, 0.5, 0.0)
    evidence = np.zeros((3, len(EVIDENCE)))
    evidence[1, :2] = 1, 3
    assert one.log_odds(evidence).tolist() == [0.5, -0.5, 0.5]
    assert Weighings(one, one).any_risk is one


def test_what_is_said_in_one_sentence_is_not_lost_in_a_very_long_text() -> None:
    text, calm = "I am going to kill myself tonight.", "My sister and I had lunch by the sea."
    among = risk_scores(" ".join([text, *[calm] * (PART - 1)]))
    assert risk_scores(" ".join([text, *[calm] * (9 * PART)])) == among
