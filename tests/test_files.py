"""Laws of files: typed rows, atomic writes, mistakes with file and line, hashes of contents."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft import files
from sft.files import (
    StorageError,
    UserError,
    read_json,
    read_rows,
    sha256_of,
    short_hash,
    write_json,
    write_rows,
)


@dataclass(frozen=True)
class Line:
    id: str
    score: float
    messages: list[dict[str, str]] = field(default_factory=list)
    risk: Literal["none", "crisis"] = "none"
    note: str | None = None

    def __post_init__(self) -> None:
        if self.score > 5:
            raise ValueError("a score is at most 5")


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5),
    score=st.floats(max_value=5, allow_nan=False, allow_infinity=False),
)
def test_rows_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], score: float
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [Line(text, score, [{"role": "user", "content": text}]) for text in texts]
    assert write_rows(path, rows) == len(rows)
    assert read_rows(path, Line) == rows


def test_a_line_separator_inside_a_text_is_no_new_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Line("a\u2028b\x85c\r", 1.0)])
    assert [row.id for row in read_rows(path, Line)] == ["a\u2028b\x85c\r"]


def test_blank_lines_and_a_byte_order_mark_are_no_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "score": 1}\n\n{"id": "b", "score": 2.5}\r\n')
    assert [(row.id, row.score) for row in read_rows(path, Line)] == [("a", 1.0), ("b", 2.5)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "a"', "Invalid JSON"),
        ('{"id": "a"}', "field 'score' is missing (found: id)"),
        ('{"id": 3, "score": 1}', "field 'id': Input should be a valid string"),
        ('{"id": "a", "score": "1"}', "field 'score'"),
        ('{"id": "a", "score": 1, "risk": "high"}', "'none' or 'crisis'"),
        ('{"id": "a", "score": 1, "messages": [{"role": 1}]}', "field 'messages.0.role'"),
        ('{"id": "a", "score": 9}', "a score is at most 5"),
        ("[1]", "object"),
    ],
)
def test_a_mistake_names_file_line_and_field(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "ok", "score": 1}\n' + line + "\n")
    with pytest.raises(UserError) as raised:
        read_rows(path, Line)
    assert f"{path}:2: " in str(raised.value)
    assert said in str(raised.value)


def test_the_first_ten_mistakes_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n" * 13)
    with pytest.raises(UserError) as raised:
        read_rows(path, Line)
    text = str(raised.value)
    assert text.count("is missing") == 10
    assert "26 mistakes" in text
    assert "and 16 more" in text


def test_messages_never_repeat_what_people_wrote(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": ["my secret"], "score": "my secret"}\n{"id": "my secret\n')
    with pytest.raises(UserError) as raised:
        read_rows(path, Line)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b" \n\n"])
def test_an_empty_file_is_a_mistake(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"rows\.jsonl is empty"):
        read_rows(path, Line)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").touch()
    with pytest.raises(UserError, match=r"does not exist: the folder has pairs\.jsonl"):
        read_rows(tmp_path / "pair.jsonl", Line)
    with pytest.raises(UserError, match="neither does the folder"):
        read_json(tmp_path / "no" / "x.json")
    with pytest.raises(UserError, match="not a file"):
        read_json(tmp_path)


def test_broken_json_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{\n"a": 1,\n}')
    with pytest.raises(UserError, match=r"x\.json:3: not JSON"):
        read_json(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        read_json(path)


def test_nan_is_not_written_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"value": 1.5, "acts": frozenset({"b", "a"}), "at": Path("a/b")})
    assert read_json(path) == {"value": 1.5, "acts": ["a", "b"], "at": "a/b"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"value": float("nan")})
    assert read_json(path)["value"] == 1.5
    assert os.listdir(tmp_path) == ["x.json"]


KILLED = """
import os, signal, sys
from pathlib import Path
from sft.files import write_rows

def rows():
    for number in range(100_000):
        yield {"id": str(number), "score": 2}
        if number == 50_000:
            os.kill(os.getpid(), signal.SIGKILL)

write_rows(Path(sys.argv[1]), rows())
"""


def test_killed_while_writing_the_old_content_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [Line("old", 1.0)])
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [row.id for row in read_rows(path, Line)] == ["old"]


ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("function", "number", "said"),
    [
        ("fsync", errno.ENOSPC, "the disk is full"),
        ("fsync", errno.EDQUOT, "the disk is full"),
        ("replace", errno.EACCES, "Permission denied"),
        ("replace", errno.EROFS, "Read-only"),
    ],
)
def test_a_full_or_forbidden_disk_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, number: int, said: str
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": True})

    def broken(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, function, broken)
    with pytest.raises(StorageError, match=said) as raised:
        write_json(path, {"old": False})
    assert raised.value.exit_code == 6
    monkeypatch.undo()
    assert read_json(path) == {"old": True}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_really_full_device_is_a_storage_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(StorageError),
        files.storage_errors(Path("x")),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_native_writers_say_disk_full_in_their_own_words() -> None:
    assert files.is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not files.is_disk_full(RuntimeError("out of memory"))


def test_exit_codes_are_the_documented_ones() -> None:
    kinds = ("UserError", "EvaluatorStopped", "ResultExists", "CheckFailed", "StorageError")
    assert [getattr(files, kind).exit_code for kind in kinds] == [2, 3, 4, 5, 6]


def test_the_hash_of_a_file_is_plain_sha256(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1_000_000)
    assert sha256_of(path) == hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    with pytest.raises(UserError, match="does not exist"):
        sha256_of(tmp_path / "y")


def test_the_hash_of_a_folder_is_of_names_and_contents_only(tmp_path: Path) -> None:
    def folder(name: str, content: dict[str, str]) -> str:
        for file, text in content.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        return sha256_of(tmp_path / name)

    first = folder("first", {"a": "1", "b/c": "2"})
    assert folder("same", {"b/c": "2", "a": "1"}) == first
    assert folder("renamed", {"a": "1", "b/d": "2"}) != first
    assert folder("swapped", {"a": "2", "b/c": "1"}) != first
    assert folder("more", {"a": "1", "b/c": "2", "d": ""}) != first


def test_short_hash_does_not_depend_on_the_order_of_keys() -> None:
    assert short_hash({"a": 1, "b": [1.5, None]}) == short_hash({"b": [1.5, None], "a": 1})
    assert short_hash({"a": 1}) != short_hash({"a": 2})
    assert len(short_hash(Line("a", 1.0))) == 16
    with pytest.raises(TypeError, match="no JSON form"):
        short_hash({"a": object()})
