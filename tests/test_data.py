import dataclasses
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft import data, sources
from sft.data import Demonstration, Message, Prompt, Risk
from sft.files import CheckFailed, StorageError, UserError
from sft.split import NEAR, NearIndex, words_of

COUNSEL_CHAT = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "counsel_chat" / "answers.jsonl"
)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def risk_by_word(messages: list[Message]) -> Risk:
    return "crisis" if "die" in messages[-1]["content"] else "none"


def load(source: Path | str, seed: int = 1, held_out_share: float = 0.5) -> list[Prompt]:
    return data.load_prompts(
        str(source),
        seed=seed,
        held_out_share=held_out_share,
        message_risk=risk_by_word,
        label_topic=lambda text: "sleep" if "sleep" in text else "other",
    )


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = "\n".join(json.dumps(row) for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def questions(count: int) -> list[dict[str, str]]:
    """Return rows with different words in each, so that none is near another."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=6)) for _ in range(400)]
    return [{"prompt": " ".join(rng.sample(words, 12))} for _ in range(count)]


# --- formats --------------------------------------------------------------------------------------

FORMATS: dict[str, tuple[Any, str]] = {
    "messages": ([{"messages": [user("I cannot sleep"), assistant("Tell me more.")]}], "a.jsonl"),
    "prompt and completion": (
        [{"prompt": [user("I cannot sleep")], "completion": [assistant("Tell me more.")]}],
        "a.jsonl",
    ),
    "plain prompt and completion": (
        [{"prompt": "I cannot sleep", "completion": "Tell me more."}],
        "a.jsonl",
    ),
    "psychology-10k array": (
        json.dumps(
            [
                {
                    "instruction": "If you are a licensed psychologist, answer.",
                    "input": "I cannot sleep",
                    "output": "Tell me more.",
                }
            ],
            indent=1,
        ),
        "a.json",
    ),
    "psychology-10k lines in a .json file": (
        [{"instruction": "Answer.", "input": "I cannot sleep", "output": "Tell me more."}],
        "a.json",
    ),
    "psychology-10k, blank input": (
        [{"instruction": "I cannot sleep", "input": "", "output": "Tell me more."}],
        "a.jsonl",
    ),
    "psychology-10k csv": (
        "instruction,input,output\r\nAnswer.,I cannot sleep,Tell me more.\r\n",
        "a.csv",
    ),
    "counsel-chat": (
        [
            {
                "question_id": 3,
                "title": None,
                "question": "I cannot sleep",
                "topic": "",
                "answer": "Tell me more.",
                "upvotes": 1,
            }
        ],
        "a.jsonl",
    ),
    "counsel-chat csv": (
        "questionID,questionTitle,questionText,answerText,upvotes,topic\n"
        "1,I cannot sleep,,Tell me more.,2,\n",
        "a.CSV",
    ),
    "byte order mark, CRLF and control characters": (
        b'\xef\xbb\xbf{"prompt": "\\u0000 I cannot \\u0007sleep\\r\\n", '
        b'"completion": "Tell me more.\\ud800"}\r\n\r\n',
        "a.jsonl",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_prompt_and_demonstration(
    name: str, save: Callable[..., Path]
) -> None:
    content, file = FORMATS[name]
    path = save(content, file)
    messages = [user("I cannot sleep")]
    identity = data.prompt_id(messages)
    assert load(path, held_out_share=0) == [
        Prompt(identity, messages, path.name, "sleep", "none", "train")
    ]
    assert data.load_demonstrations(str(path)) == [
        Demonstration(identity, messages, [assistant("Tell me more.")])
    ]


def test_conversations_stay_multi_turn_and_keep_their_system_message(
    save: Callable[..., Path],
) -> None:
    turns = [system("Be kind."), user("Hello"), assistant("Hello."), user("I cannot sleep")]
    path = save([{"messages": turns}, {"messages": [*turns, assistant("Since when?")]}])
    assert [p.messages for p in load(path)] == [turns]
    path = save([{"messages": [*turns, assistant("Since when?"), user("May")]}])
    assert load(path)[0].messages[-1] == user("May")
    (row,) = data.load_demonstrations(str(path))
    assert (row.prompt, row.completion) == (turns, [assistant("Since when?")])


def test_our_own_rows_come_back_as_they_were(save: Callable[..., Path]) -> None:
    prompts = [
        Prompt("mine-1", [user("I want to die")], "ward 3", "grief", "none", "held_out"),
        Prompt("mine-2", [user("Work is too much")], "ward 4", "work", "crisis", "train"),
    ]
    assert load(save([dataclasses.asdict(p) for p in prompts])) == prompts
    row = Demonstration("mine-1", [user("Hi")], [assistant("Hello.")], "grief")
    assert data.load_demonstrations(str(save([dataclasses.asdict(row)]))) == [row]


def test_what_a_row_does_not_say_validly_the_functions_say(save: Callable[..., Path]) -> None:
    row = {"prompt": "I want to die", "risk": "high", "topic": 7, "split": "test"}
    (prompt,) = load(save([row]), held_out_share=1)
    assert (prompt.risk, prompt.topic, prompt.split) == ("crisis", "other", "held_out")


def test_counsel_chat_takes_the_answer_with_most_votes_and_merges_the_title(
    save: Callable[..., Path],
) -> None:
    def row(title: str, question: str, answer: str | None, upvotes: object) -> dict[str, object]:
        return {"title": title, "question": question, "answer": answer, "upvotes": upvotes}

    path = save(
        [
            row("Why me?", "I feel low.", "first", 1),
            row("Why me?", "I feel low.", "best", "3"),
            row("Why me?", "I feel low.", "equal", 3.0),
            row("I feel  LOW.", "Today I feel low. Why?", "only", None),
            row("Nobody", "answered this", None, 9),
        ]
    )
    got = [
        (d.prompt[0]["content"], d.completion[0]["content"])
        for d in data.load_demonstrations(str(path))
    ]
    assert got == [("Why me?\nI feel low.", "best"), ("Today I feel low. Why?", "only")]
    assert len(load(path)) == 3


# --- mistakes -------------------------------------------------------------------------------------


def refused(source: Path | str, *, need_reply: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        if need_reply:
            data.load_demonstrations(str(source))
        else:
            load(source)
    return str(caught.value)


ROWS: dict[str, tuple[Any, str]] = {
    "content is a list": ({"messages": [{"role": "user", "content": ["a"]}]}, "content is a list"),
    "null": ({"prompt": [{"role": "user", "content": None}]}, "prompt[0] content is null"),
    "blank": ({"prompt": " \u0000\n "}, "prompt[0] content is blank"),
    "number": ({"prompt": 3}, "prompt is a number, not a list of messages"),
    "no messages": ({"messages": []}, "messages is an empty list"),
    "no role": ({"messages": [{"text": "a"}]}, 'messages[0] is not {"role"'),
    "other role": ({"messages": [{"role": "human", "content": "a"}]}, "role 'human'; accepted"),
    "late system": ({"prompt": [user("a"), system("b")]}, "prompt[1] is a system message"),
    "two in a row": ({"messages": [user("a"), user("b")]}, "messages[1]: two user turns in a row"),
    "starts wrong": ({"messages": [assistant("a"), user("b")]}, "the user speaks first"),
    "ends wrong": ({"prompt": [user("a"), assistant("b")]}, "a prompt ends with the user's"),
    "system only": ({"prompt": [system("a")]}, "prompt has no user turn"),
    "blank question": ({"title": None, "question": " "}, "title and question are both blank"),
    "blank input": ({"input": "", "instruction": None}, "input and instruction are both blank"),
    "question is a number": ({"question": 3}, "question is a number, not text"),
    "not an object": (["a"], "not a JSON object"),
    "other columns": ({"prompts": "a"}, "wrong columns: prompts"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_mistake_names_file_line_and_reason(name: str, save: Callable[..., Path]) -> None:
    row, reason = ROWS[name]
    path = save([{"prompt": "fine"}, row])
    message = refused(path)
    assert f"{path}:2: " in message
    assert reason in message


REPLIES: dict[str, tuple[Any, str]] = {
    "blank": ({"prompt": "a", "completion": " "}, "completion is blank"),
    "null": ({"input": "a", "output": None}, "output is null"),
    "two": (
        {"prompt": "a", "completion": [assistant("b"), user("c")]},
        "not exactly one assistant",
    ),
    "user's": ({"prompt": "a", "completion": [user("b")]}, "not exactly one assistant"),
    "none": ({"messages": [user("a")]}, "no assistant turn to learn from"),
    "votes": ({"question": "a", "answer": "b", "upvotes": "many"}, "upvotes is not a number"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_demonstration_without_a_usable_reply_is_a_mistake(
    name: str, save: Callable[..., Path]
) -> None:
    row, reason = REPLIES[name]
    path = save([{"prompt": "fine", "completion": "fine"}, row])
    message = refused(path, need_reply=True)
    assert f"{path}:2: " in message
    assert reason in message


def test_ten_mistakes_are_shown_and_all_are_counted(save: Callable[..., Path]) -> None:
    message = refused(save("\n".join(['{"prompt": "a"}', *["{broken"] * 12, "[1]"])))
    assert "13 mistakes" in message
    assert message.count("not JSON") == 10


def test_wrong_columns_say_what_was_found_and_what_is_accepted(save: Callable[..., Path]) -> None:
    message = refused(save("text;label\nhello;1\n", "a.csv"))
    assert "Found: text;label" in message
    assert "psychology-10k" in message
    message = refused(save([{"prompt": "a"}]), need_reply=True)
    assert "Found: prompt" in message


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        ("", "a.jsonl", "empty"),
        (b"\xef\xbb\xbf\n \n", "a.jsonl", "no rows"),
        ("[]", "a.json", "no rows"),
        ("prompt\n", "a.csv", "no rows"),
        ("hello", "a.txt", "Accepted: .jsonl, .json, .csv"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}', "a.jsonl", "a.jsonl:2: not UTF-8"),
        ('[\n{"prompt": "a"},\n{"prompt" "a"}]', "a.json", "a.json:3: not JSON"),
        ('[{"prompt": "a"}, 3]', "a.json", "a.json: item 2: not a JSON object"),
        ('prompt\nfine\n"never closed\nat all\n', "a.csv", "a.csv:3: not CSV"),
        ("prompt\na,b\n", "a.csv", "more fields than the 1 columns"),
        ("[" * 100_000, "a.json", "nested too deeply"),
    ],
)
def test_files_that_cannot_be_read(
    content: Any, name: str, reason: str, save: Callable[..., Path]
) -> None:
    assert reason in refused(save(content, name))


def test_a_huge_line_is_a_mistake(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 200_000)
    long = "a" * 150_000  # beyond the csv module's own limit
    assert len(load(save(f"prompt\n{long}\n", "a.csv"))) == 1
    assert "a line of 300,014 characters" in refused(save([{"prompt": "a"}, {"prompt": long * 2}]))
    assert "field larger than" in refused(save(f"prompt\n{long * 2}\n", "a.csv"))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "no.jsonl")
    assert "is a folder" in refused(tmp_path)


def test_a_file_without_permission(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", deny)  # root, as in a container, may read everything
    with pytest.raises(StorageError):
        load(save("x"))


def test_one_content_in_both_splits_and_one_id_for_two_contents(save: Callable[..., Path]) -> None:
    rows = [
        {"prompt": "a", "split": "train"},
        {"prompt": "A ", "split": "held_out"},
        {"id": "x", "prompt": "b"},
        {"id": "x", "prompt": "c"},
    ]
    path = save(rows)
    message = refused(path)
    assert f"{path}:2: another row has the same messages and another split" in message
    assert f"{path}:4: id 'x' is that of another prompt ({path}:3)" in message


# --- Hub ------------------------------------------------------------------------------------------


class DatasetsError(Exception):
    """Stands for the library's own class, whose import takes a second."""


def hub(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def load_dataset(name: str, split: str) -> Any:
        assert (name, split) == ("owner/set-1.0", "train")
        if isinstance(answer, Exception):
            raise answer
        return answer

    errors = SimpleNamespace(DatasetsError=DatasetsError)
    module = SimpleNamespace(load_dataset=load_dataset, exceptions=errors)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hub_name_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, [{"input": "I cannot sleep", "instruction": "Answer."}])
    assert load("owner/set-1.0")[0].source == "owner/set-1.0"
    hub(monkeypatch, [{"prompt": "a"}, {"prompt": ""}])
    assert "owner/set-1.0: row 2: prompt[0] content is blank" in refused("owner/set-1.0")


@pytest.mark.parametrize(
    "error",
    [ConnectionError("Couldn't reach the Hub"), FileNotFoundError("x"), ValueError("split")],
)
def test_a_hub_that_does_not_answer_gives_the_next_step(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, error)
    message = refused("owner/set-1.0")
    assert str(error) in message
    assert "hf auth login" in message


def test_a_path_with_a_typing_error_is_not_looked_up_on_the_hub() -> None:
    assert "does not exist" in refused("data/promts.jsonl")


# --- identity and split (law 4) -------------------------------------------------------------------


def test_content_is_the_same_whatever_its_case_space_and_instruction() -> None:
    key = data.content_key([user("I can't sleep")])
    assert data.content_key([system("x"), user(" i CAN'T\n sleep ")]) == key
    assert data.content_key([user("I can't sleep!")]) != key
    assert data.content_key([user("a"), assistant("b"), user("c")]) != data.content_key([user("c")])
    assert data.prompt_id([user("I can't sleep")]) == f"p-{key[:16]}"


def test_duplicates_are_merged_into_the_first(save: Callable[..., Path]) -> None:
    prompts = load(save([{"prompt": "Help me"}, {"prompt": "b"}, {"prompt": "help  ME"}]))
    assert [p.messages[0]["content"] for p in prompts] == ["Help me", "b"]


@settings(max_examples=20)
@given(st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_order(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random
) -> None:
    rows = questions(60)
    rows += [{"prompt": row["prompt"] + " indeed"} for row in rows[:20]]
    path = tmp_path_factory.mktemp("split") / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    expected = {p.id: p.split for p in load(path)}
    rng.shuffle(rows)
    path.write_text("\n".join(map(json.dumps, rows)))
    assert {p.id: p.split for p in load(path)} == expected


def test_more_rows_do_not_move_the_others_and_seeds_differ(save: Callable[..., Path]) -> None:
    rows = questions(300)
    some = {p.id: p.split for p in load(save(rows[:200]), held_out_share=0.2)}
    everyone = {p.id: p.split for p in load(save(rows), held_out_share=0.2)}
    assert some == {name: everyone[name] for name in some}
    assert 40 <= sum(split == "held_out" for split in everyone.values()) <= 80
    assert everyone != {p.id: p.split for p in load(save(rows), seed=2, held_out_share=0.2)}


def test_even_two_prompts_fall_on_two_sides(save: Callable[..., Path]) -> None:
    path = save(questions(2))
    for seed in range(10):
        assert {p.split for p in load(path, seed=seed, held_out_share=0.1)} == {"train", "held_out"}
        assert {p.split for p in load(path, seed=seed, held_out_share=0.9)} == {"train", "held_out"}
    assert {p.split for p in load(path, held_out_share=0)} == {"train"}
    assert {p.split for p in load(path, held_out_share=1)} == {"held_out"}


OPENING = "My father died in spring and I am not coping"


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "I am not coping, and in spring my father died!"},
        {"prompt": [user(OPENING), assistant("I am sorry."), user("Nights are worst.")]},
        {"prompt": [system("Be kind."), user(OPENING + " at all")]},
    ],
)
def test_paraphrases_and_continuations_share_a_side(
    other: dict[str, Any], save: Callable[..., Path]
) -> None:
    path = save([{"prompt": OPENING}, *questions(3), other])
    for seed in range(20):
        prompts = load(path, seed=seed)
        assert prompts[0].split == prompts[-1].split


def test_a_row_follows_the_given_split_of_its_paraphrase(save: Callable[..., Path]) -> None:
    rows = [{"prompt": OPENING}, {"prompt": OPENING + " at all", "split": "held_out"}]
    assert [p.split for p in load(save(rows), held_out_share=0)] == ["held_out", "held_out"]


def test_a_duplicate_may_state_the_split(save: Callable[..., Path]) -> None:
    rows = [{"prompt": "a"}, {"prompt": "A", "split": "held_out"}, {"prompt": "other"}]
    assert [p.split for p in load(save(rows), held_out_share=0)] == ["held_out", "train"]


def test_overlap_is_found_removed_and_refused() -> None:
    def prompt(name: str, text: str) -> Prompt:
        return Prompt(name, [user(text)], "test", "other", "none", "train")

    held_out = [prompt("h", OPENING)]
    train = [prompt("a", "Something else entirely"), prompt("b", OPENING.upper() + "?")]
    shown = [
        Demonstration("h", [user("A paraphrase in other words")], [assistant("Hm.")]),
        Demonstration("d", [user("Another question")], [assistant("Hm.")]),
    ]
    data.check_disjoint(train[:1], held_out)
    with pytest.raises(CheckFailed, match="1 of 2 training rows") as caught:
        data.check_disjoint(train, held_out)
    assert "b and held-out h" in str(caught.value)
    assert OPENING not in str(caught.value)  # conversations stay out of messages and logs
    with pytest.raises(CheckFailed):
        data.check_disjoint(shown, held_out)
    assert data.without_overlap(train, held_out) == train[:1]
    assert data.without_overlap(shown, held_out) == shown[1:]


@given(st.lists(st.frozensets(st.sampled_from("abcdefghijkl")), max_size=30))
def test_the_index_finds_what_comparing_all_pairs_finds(sets: list[frozenset[str]]) -> None:
    index = NearIndex(sets)
    for words in sets:
        near = [n for n, s in enumerate(sets) if words and len(words & s) >= NEAR * len(words | s)]
        assert index.near(words) == near


def test_words_ignore_case_and_punctuation() -> None:
    assert words_of("Don't — STOP, don't!") == {"don", "t", "stop"}


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.skipif(not COUNSEL_CHAT.exists(), reason="the real data set is not on this machine")
def test_counsel_chat_as_it_is() -> None:
    prompts = load(COUNSEL_CHAT, held_out_share=0.2)
    demonstrations = data.load_demonstrations(str(COUNSEL_CHAT))
    assert len(prompts) == len(demonstrations) == 425  # 421 titles, 4 of them with two texts
    assert [p.id for p in prompts] == [d.prompt_id for d in demonstrations]
    held_out = [p for p in prompts if p.split == "held_out"]
    assert 60 <= len(held_out) <= 110
    data.check_disjoint([p for p in prompts if p.split == "train"], held_out)
    data.check_disjoint(data.without_overlap(demonstrations, held_out), held_out)
