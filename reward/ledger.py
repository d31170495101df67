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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from sft.files import StorageError, UserError, storage_errors
from sft.waiting import locked

VERSION = 1
APPLICATION = 0x6C656467  # marks the file as ours in SQLite's header
# A second answer to a key (asked again because the first was cut off, or could not be read) has
# n = 2; two ledgers with the same (key, n) merge into one row.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT NOT NULL, n INTEGER NOT NULL, at REAL NOT NULL, text TEXT NOT NULL,
    finish TEXT NOT NULL, model TEXT NOT NULL, tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL, cost REAL NOT NULL, UNIQUE (key, n));
CREATE TABLE IF NOT EXISTS attempts (
    key TEXT NOT NULL, at REAL NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL,
    cost REAL NOT NULL, UNIQUE (key, at, outcome));
CREATE TABLE IF NOT EXISTS batches (
    input_hash TEXT NOT NULL, at REAL NOT NULL, state TEXT NOT NULL, batch TEXT NOT NULL);
"""


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
    """

    key: str
    text: str
    finish: str
    model: str
    tokens_in: int
    tokens_out: int
    cost: float
    at: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Attempt:
    """A call without an answer, or a note on what one may cost.

    Attributes:
        key: as in `Answer`.
        outcome: a failure ("rate limit", "timeout", ...), "sent" for a call that is about to leave
            or "settled" when its outcome is known.
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
    "((SELECT COALESCE(MAX(n), 0) + 1 FROM answers WHERE key = ?), ?, ?, ?, ?, ?, ?, ?, ?)"
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
        with _errors(self.path), self._db:
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

    def tokens(self) -> tuple[int, int, int]:
        """How many answers there are, and the tokens of their requests and of themselves."""
        row = self._db.execute("SELECT COUNT(*), TOTAL(tokens_in), TOTAL(tokens_out) FROM answers")
        count, tokens_in, tokens_out = row.fetchone()
        return count, int(tokens_in), int(tokens_out)

    def outcomes(self) -> dict[str, int]:
        """How often each kind of failure was met."""
        rows = self._db.execute(
            "SELECT outcome, COUNT(*) FROM attempts WHERE outcome NOT IN ('sent', 'settled') "
            "GROUP BY outcome"
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
        with locked(path), _errors(path):
            check_is_ledger(path)
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
                        "INSERT OR IGNORE INTO answers SELECT * FROM other.answers"
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
        with _errors(path):
            connection = _connect(path)
        try:
            yield Ledger(path, connection)
        finally:
            connection.close()


def memory_ledger() -> Ledger:
    """A ledger that ends with this process."""
    path = Path(":memory:")
    return Ledger(path, _connect(path))


def _connect(path: Path) -> sqlite3.Connection:
    if path.exists():
        check_is_ledger(path)
    # The writer's thread and the main one take turns; sqlite3 itself is compiled to allow it.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    # Alone with the file, WAL needs no shared memory and works on a network disk too.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(
        f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION}; "
        f"PRAGMA user_version = {VERSION}; COMMIT;"
    )
    return connection


def check_is_ledger(path: Path) -> None:
    """Refuse a file that is no ledger of this version.

    Raises:
        UserError: it is missing or something else; it is left as it is.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a ledger.sqlite of a scores folder")
    if not path.stat().st_size:
        return  # A kill came before the first table was written.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise UserError(f"{path} is no ledger ({error}): move it away") from None
    if application == version == 0:
        return  # Here too: the file is there and its first transaction is not.
    if application != APPLICATION:
        raise UserError(f"{path} is no ledger but another program's database: move it away")
    if version != VERSION:
        raise UserError(f"{path} is a ledger of version {version}, this program writes {VERSION}")


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Tell a full disk and a file in use; SQLite has rolled the transaction back by then."""
    try:
        with storage_errors(path):
            yield
    except sqlite3.OperationalError as error:
        said = str(error)
        if "full" in said or "I/O error" in said or "readonly" in said:
            raise StorageError(
                f"{path} cannot be written ({said}). What it holds is intact; free some space on "
                "that disk and run the same command again"
            ) from error
        if "locked" in said or "busy" in said:
            raise UserError(f"another program has {path} open: close it ({said})") from error
        raise
