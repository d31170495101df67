"""What was asked, answered and paid: an append-only SQLite file that a kill cannot spoil.

An answer is kept under the hash of everything that shaped its request, as raw text, before anybody
reads it; a failure is an attempt and never an answer. Nothing expires and nothing is changed. Each
`append` is on the disk (WAL, synchronous FULL) when it returns. Not here: asking (`reward.client`),
reading answers (`reward.verdict`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from reward.ledger_file import VERSION, check_is_ledger, connect, ledger_errors
from sft.files import storage_errors
from sft.waiting import locked


@dataclass(frozen=True)
class Answer:
    """What a service answered to one request, as it came.

    Attributes:
        key: hash of everything that shaped the request.
        text: the raw content, unread.
        finish: why it ended, in the service's words: stop, length, content_filter, refusal.
        model: the name of the model that the service says it used.
        tokens_in: tokens of the request that were paid.
        tokens_out: tokens of the answer that were paid.
        cost: US dollars by the prices of that day, 0 where none were given.
        at: seconds since 1970.
        digits: probabilities of the grades' digits, where they were asked for and given; see
            `reward.expected.digits_of`.
    """

    key: str
    text: str
    finish: str
    model: str
    tokens_in: int
    tokens_out: int
    cost: float
    at: float = field(default_factory=time.time)
    digits: str = ""


@dataclass(frozen=True)
class Attempt:
    """A call without an answer, or a note on what one may cost or hold.

    Attributes:
        key: as in `Answer`.
        outcome: a failure ("rate limit", "timeout", ...), "sent" for a call that is about to leave
            or "settled" when its outcome is known; "form" notes in `detail` what a service takes.
        detail: what the service said, shortened; a batch's hash in what it "sent".
        cost: US dollars that it may have cost; "sent" holds the most and "settled" takes it back,
            so that a call on the wire at a kill stays counted.
        at: seconds since 1970.
    """

    key: str
    outcome: str
    detail: str = ""
    cost: float = 0.0
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class BatchNote:
    """One step in the life of a batch: "made" before it is sent, "sent" with its id, "done"."""

    input_hash: str
    state: str
    batch: str = ""
    at: float = field(default_factory=time.time)


Entry = Answer | Attempt | BatchNote
_ANSWER = ", ".join(each.name for each in fields(Answer))
_ATTEMPT = ", ".join(each.name for each in fields(Attempt))
_NOTE = ", ".join(each.name for each in fields(BatchNote))
_INSERT_ANSWER = (
    f"INSERT INTO answers (n, {_ANSWER}) VALUES "
    "((SELECT COALESCE(MAX(n), 0) + 1 FROM answers WHERE key = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


_INSERT_ATTEMPT = f"INSERT OR IGNORE INTO attempts ({_ATTEMPT}) VALUES (?, ?, ?, ?, ?)"
_INSERT_NOTE = f"INSERT INTO batches ({_NOTE}) VALUES (?, ?, ?, ?)"


def _values(entry: Entry) -> tuple[str | int | float, ...]:
    return tuple(vars(entry).values())


class Ledger:
    """A ledger that is open in this process and in no other; made by `open_ledger`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        """Made by `open_ledger`."""
        self.path, self._db = path, connection

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries in one transaction; they are on the disk when this returns.

        Raises:
            StorageError: the disk is full or may not be written; the ledger is as it was before.
        """
        with ledger_errors(self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for entry in entries:
                if isinstance(entry, Answer):
                    self._db.execute(_INSERT_ANSWER, (entry.key, *_values(entry)))
                elif isinstance(entry, Attempt):
                    self._db.execute(_INSERT_ATTEMPT, _values(entry))
                else:
                    self._db.execute(_INSERT_NOTE, _values(entry))

    def answers(self, key: str) -> list[Answer]:
        """The answers to a request, oldest first; most often one, or none."""
        rows = self._db.execute(f"SELECT {_ANSWER} FROM answers WHERE key = ? ORDER BY n", (key,))
        return [Answer(*row) for row in rows]

    def answered(self) -> set[str]:
        """Keys that have an answer, readable or not."""
        return {key for (key,) in self._db.execute("SELECT key FROM answers WHERE n = 1")}

    def spent(self) -> float:
        """US dollars that everything in here has cost, or may have where nobody knows."""
        sums = "SELECT (SELECT TOTAL(cost) FROM answers) + (SELECT TOTAL(cost) FROM attempts)"
        return float(self._db.execute(sums).fetchone()[0])

    def tokens(self, keys: Container[str] | None = None) -> tuple[int, int, int]:
        """How many answers there are, and the tokens of their requests and of themselves.

        Args:
            keys: only answers to these; None = to all.
        """
        count = tokens_in = tokens_out = 0
        for row in self._db.execute("SELECT key, tokens_in, tokens_out FROM answers"):
            if keys is None or row[0] in keys:
                count, tokens_in, tokens_out = count + 1, tokens_in + row[1], tokens_out + row[2]
        return count, tokens_in, tokens_out

    def form(self, key: str) -> str | None:
        """The last note on what a service takes; None = nobody has found it out."""
        said = "SELECT detail FROM attempts WHERE key = ? AND outcome = 'form' ORDER BY at DESC"
        row = self._db.execute(said, (key,)).fetchone()
        return None if row is None else str(row[0])

    def outcomes(self) -> dict[str, int]:
        """How often each kind of failure was met."""
        rows = self._db.execute(
            "SELECT outcome, COUNT(*) FROM attempts "
            "WHERE outcome NOT IN ('sent', 'settled', 'form') GROUP BY outcome"
        )
        return dict(rows.fetchall())

    def sent_with(self, batch: str) -> list[Attempt]:
        """The calls that were sent in a batch with the reserve of each."""
        rows = self._db.execute(
            f"SELECT {_ATTEMPT} FROM attempts WHERE outcome = 'sent' AND detail = ?", (batch,)
        )
        return [Attempt(*row) for row in rows]

    def open_batches(self) -> list[BatchNote]:
        """The last note on each batch that is not done, oldest first."""
        rows = self._db.execute(f"SELECT {_NOTE} FROM batches ORDER BY rowid")
        last: dict[str, BatchNote] = {}
        for row in rows:
            last[row[0]] = BatchNote(*row)
        return [note for note in last.values() if note.state != "done"]

    def merge(self, others: Sequence[Path]) -> int:
        """Take over the answers and attempts of other ledgers; returns how many answers were new.

        Merging twice changes nothing. Where two ledgers answered the same request, the first one's
        answer stays and the cost of the other stays counted.

        Raises:
            UserError: a file is no ledger, or another process is writing it.
        """
        return sum(self._merge(path) for path in others)

    def _merge(self, path: Path) -> int:
        with locked(path), ledger_errors(path):
            version = check_is_ledger(path)
            if not version:
                return 0
            theirs = _ANSWER if version == VERSION else _ANSWER.replace("digits", "''")
            self._db.execute("ATTACH DATABASE ? AS other", (str(path),))
            try:
                with self._db:
                    self._db.execute("BEGIN IMMEDIATE")
                    self._db.execute(
                        "INSERT OR IGNORE INTO attempts SELECT theirs.key, theirs.at, 'duplicate', "
                        "'', theirs.cost FROM other.answers theirs JOIN answers ours "
                        "ON ours.key = theirs.key AND ours.n = theirs.n AND ours.at != theirs.at"
                    )
                    new = self._db.execute(
                        f"INSERT OR IGNORE INTO answers (n, {_ANSWER}) "
                        f"SELECT n, {theirs} FROM other.answers"
                    ).rowcount
                    self._db.execute("INSERT OR IGNORE INTO attempts SELECT * FROM other.attempts")
            finally:
                self._db.execute("DETACH DATABASE other")
        return new


@contextlib.contextmanager
def open_ledger(path: Path) -> Iterator[Ledger]:
    """Open a ledger, or make a new one; no other process may have it open.

    Raises:
        UserError: another process works with it, or the file is something else.
        StorageError: the disk is full or may not be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        with ledger_errors(path):
            connection = connect(path)
        try:
            yield Ledger(path, connection)
        finally:
            connection.close()


def answered_in(path: Path) -> set[str]:
    """Keys that a ledger's file answers; nothing in it is changed.

    Raises:
        UserError: it is missing or no ledger, or another process works with it.
    """
    with locked(path), ledger_errors(path):
        if not check_is_ledger(path):
            return set()
        address = f"{path.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            return {key for (key,) in connection.execute("SELECT key FROM answers WHERE n = 1")}


def memory_ledger() -> Ledger:
    """A ledger that ends with this process."""
    path = Path(":memory:")
    return Ledger(path, connect(path))
