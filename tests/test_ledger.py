"""The ledger: what was appended is there after any end, once, and belongs to one process."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward.ledger import Answer, Attempt, BatchNote, Ledger, open_ledger
from sft.files import StorageError, UserError


def answer(key: str, text: str = "raw", cost: float = 0.5, at: float = 1.0) -> Answer:
    return Answer(key, text, "stop", "judge", 10, 5, cost, at)


def contents(ledger: Ledger, keys: list[str]) -> dict[str, list[Answer]]:
    return {key: ledger.answers(key) for key in keys}


def test_what_was_appended_is_read_back_in_order(tmp_path):
    path = tmp_path / "deep" / "ledger.sqlite"
    with open_ledger(path) as ledger:
        ledger.append([answer("a", "one"), answer("b"), answer("a", "two")])
        ledger.append([Attempt("c", "timeout", cost=0.25)])
    with open_ledger(path) as ledger:
        assert [a.text for a in ledger.answers("a")] == ["one", "two"]
        assert ledger.answers("b") == [answer("b")]
        assert ledger.answers("c") == []  # a failure is no answer
        assert ledger.answered() == {"a", "b"}
        assert ledger.outcomes() == {"timeout": 1}
        assert (ledger.spent(), ledger.tokens()) == (1.75, (3, 30, 15))


def test_a_call_that_a_kill_caught_stays_counted_and_a_settled_one_does_not(tmp_path):
    with open_ledger(tmp_path / "l") as ledger:
        ledger.append([Attempt("a", "sent", cost=2.0), Attempt("b", "sent", cost=2.0)])
        ledger.append([answer("a"), Attempt("a", "settled", cost=-2.0)])
        assert ledger.spent() == 2.5
        assert ledger.outcomes() == {}


def test_batches_that_are_not_done_are_told(tmp_path):
    with open_ledger(tmp_path / "l") as ledger:
        for state in ("made", "sent", "done"):
            ledger.append([BatchNote("one", state, "b1")])
        ledger.append([BatchNote("two", "made"), BatchNote("two", "sent", "b2")])
        assert [(n.input_hash, n.state, n.batch) for n in ledger.open_batches()] == [
            ("two", "sent", "b2")
        ]


@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), min_size=1, max_size=4))
def test_ledgers_merge_without_duplicates_in_any_number_of_times(shards):
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.sqlite" for i in range(len(shards))]
        for i, (path, keys) in enumerate(zip(paths, shards, strict=True)):
            with open_ledger(path) as ledger:
                ledger.append([answer(k, f"{k}{i}", at=i + j / 9) for j, k in enumerate(keys)])
        with open_ledger(Path(folder) / "all") as ledger:
            ledger.merge(paths)
            keys = sorted({key for shard in shards for key in shard})
            once = contents(ledger, keys)
            assert ledger.answered() == set(keys)
            # Every cent that was paid stays counted, also for an answer that is there already.
            assert ledger.spent() == pytest.approx(0.5 * sum(map(len, shards)))
            assert ledger.merge(paths) == 0
            assert contents(ledger, keys) == once
            assert ledger.spent() == pytest.approx(0.5 * sum(map(len, shards)))


def test_disk_full_leaves_the_ledger_as_it_was(tmp_path):
    path = tmp_path / "l"
    with open_ledger(path) as ledger:
        ledger.append([answer("a")])
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to be full
        with pytest.raises(StorageError, match="is intact; free some space") as caught:
            ledger.append([answer("b"), answer("c", "x" * 100_000)])
        assert caught.value.exit_code == 6
        assert ledger.answered() == {"a"}
    with open_ledger(path) as ledger:
        assert ledger.answers("a") == [answer("a")]
        ledger.append([answer("c", "x" * 100_000)])


HOLD = """
import sys, time
from pathlib import Path
from reward.ledger import Answer, open_ledger
with open_ledger(Path(sys.argv[1])) as ledger:
    n = 0
    while True:
        ledger.append([Answer(f"k{n}", "raw", "stop", "judge", 1, 1, 0.0)])
        print(n, flush=True)
        n += 1
"""


def test_a_second_process_is_refused_and_told_how_to_unlock_and_a_kill_loses_nothing(tmp_path):
    path = tmp_path / "l"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        lines = [int(holder.stdout.readline()) for _ in range(20)]
        with pytest.raises(UserError, match=rf"pid {holder.pid} on .*kill <pid>.*delete"):
            open_ledger(path).__enter__()
        os.kill(holder.pid, signal.SIGKILL)
        lines += [int(line) for line in holder.stdout.read().splitlines()]
    with open_ledger(path) as ledger:  # the system has freed the lock
        assert {f"k{n}" for n in lines} <= ledger.answered()


def of_version_1(path: Path, entries: list[Answer]) -> Path:
    """A ledger as it was before answers had the probabilities of digits."""
    with open_ledger(path) as ledger:
        ledger.append(entries)
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE answers DROP COLUMN digits")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    return path


def test_a_ledger_of_the_version_before_is_read_merged_and_goes_on(tmp_path):
    old = of_version_1(tmp_path / "old", [answer("a", "one"), answer("b")])
    other = of_version_1(tmp_path / "other", [answer("c")])
    digits = Answer("d", "4", "stop", "judge", 1, 1, 0.0, 1.0, '[[0, {"4": 1.0}]]')
    with open_ledger(tmp_path / "new") as ledger:
        ledger.append([digits])
        assert ledger.merge([other]) == 1
        assert ledger.answers("c") == [answer("c")]
    with open_ledger(old) as ledger:
        assert contents(ledger, ["a", "b"]) == {"a": [answer("a", "one")], "b": [answer("b")]}
        assert ledger.merge([tmp_path / "new"]) == 2
        assert ledger.answers("d") == [digits]
    with open_ledger(old) as ledger:  # the column is added once
        assert len(ledger.answered()) == 4


def test_the_last_note_on_a_form_counts_and_is_no_failure(tmp_path):
    with open_ledger(tmp_path / "l") as ledger:
        assert ledger.form("k") is None
        ledger.append([Attempt("k", "form", "plain", at=1.0), Attempt("k", "timeout", at=3.0)])
        ledger.append([Attempt("k", "form", "json_object", at=2.0)])
        assert ledger.form("k") == "json_object"
        assert ledger.outcomes() == {"timeout": 1}
    with open_ledger(tmp_path / "m") as ledger:
        ledger.merge([tmp_path / "l"])
        assert ledger.form("k") == "json_object"


def test_tokens_of_some_requests_alone(tmp_path):
    with open_ledger(tmp_path / "l") as ledger:
        ledger.append([answer("a"), answer("b"), answer("b")])
        assert ledger.tokens({"b", "c"}) == (2, 20, 10)


def test_another_file_is_refused_and_left_alone(tmp_path):
    for name, content in (("text", b"what is this? no data base, " * 40), ("missing", None)):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
            with pytest.raises(UserError, match="no ledger"):
                open_ledger(path).__enter__()
            assert path.read_bytes() == content
    foreign = tmp_path / "foreign"
    with sqlite3.connect(foreign) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(UserError, match="another program's"):
        open_ledger(foreign).__enter__()
    with (
        open_ledger(tmp_path / "l") as ledger,
        pytest.raises(UserError, match="does not exist"),
    ):
        ledger.merge([tmp_path / "missing"])
