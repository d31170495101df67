"""The file of a ledger: its tables, its version, and what goes wrong with it.

Not here: what is written and read (`reward.ledger`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sft.files import StorageError, UserError, storage_errors

VERSION = 2  # 1 had no `digits`; such a file gets the column when it is opened
APPLICATION = 0x6C656467  # marks the file as ours in SQLite's header
# A second answer to a key (asked again because the first was cut off, or could not be read) has
# n = 2; two ledgers with the same (key, n) merge into one row.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT NOT NULL, n INTEGER NOT NULL, at REAL NOT NULL, text TEXT NOT NULL,
    finish TEXT NOT NULL, model TEXT NOT NULL, tokens_in INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL, cost REAL NOT NULL, digits TEXT NOT NULL DEFAULT '',
    UNIQUE (key, n));
CREATE TABLE IF NOT EXISTS attempts (
    key TEXT NOT NULL, at REAL NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL,
    cost REAL NOT NULL, UNIQUE (key, at, outcome));
CREATE TABLE IF NOT EXISTS batches (
    input_hash TEXT NOT NULL, at REAL NOT NULL, state TEXT NOT NULL, batch TEXT NOT NULL);
"""
_DIGITS = "ALTER TABLE answers ADD COLUMN digits TEXT NOT NULL DEFAULT '';"


def connect(path: Path) -> sqlite3.Connection:
    """Open a ledger's file, or make a new one; one of an earlier version gets what it lacks.

    Raises:
        UserError: the file is something else.
    """
    version = check_is_ledger(path) if path.exists() else 0
    # The writer's thread and the main one take turns; sqlite3 itself is compiled to allow it.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    # Alone with the file, WAL needs no shared memory and works on a network disk too.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(
        f"BEGIN; {_SCHEMA} {_DIGITS if version == 1 else ''} "
        f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
    )
    return connection


def check_is_ledger(path: Path) -> int:
    """The version of a ledger's file, 0 where nothing was written yet; others are refused.

    Raises:
        UserError: it is missing or something else; it is left as it is.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: name a ledger.sqlite of a scores folder")
    if not path.stat().st_size:
        return 0  # A kill came before the first table was written.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise UserError(f"{path} is no ledger ({error}): move it away") from None
    if application == version == 0:
        return 0  # Here too: the file is there and its first transaction is not.
    if application != APPLICATION:
        raise UserError(f"{path} is no ledger but another program's database: move it away")
    if version not in (1, VERSION):
        raise UserError(f"{path} is a ledger of version {version}, this program writes {VERSION}")
    return int(version)


@contextlib.contextmanager
def ledger_errors(path: Path) -> Iterator[None]:
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
