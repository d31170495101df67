"""What stages hand to each other: typed JSON lines, atomic writes, content hashes, exit codes.

Not here: run folders and manifests (`sft.runs`), formats of foreign data sets (`sft.data`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

Row = TypeVar("Row")

SHOWN_MISTAKES = 10
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class UserError(Exception):
    """A mistake the user can mend: the message says what is wrong and what to do next."""

    exit_code: int = 2


class EvaluatorStopped(UserError):
    """The evaluator's service refuses to go on (no credit, bad key, unknown model)."""

    exit_code = 3


class ResultExists(UserError):
    """A different result is already there; it is never overwritten unasked."""

    exit_code = 4


class CheckFailed(UserError):
    """A law or gate failed: the run is not to be trusted or not to be exported."""

    exit_code = 5


class StorageError(UserError):
    """The disk is full, or the place may not be written."""

    exit_code = 6


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means a full disk or quota.

    Libraries that write from native code (safetensors) raise their own class with the system's
    message.
    """
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return True
    text = str(error)
    return "No space left on device" in text or "os error 28" in text


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission at `path` into a `StorageError`; all else passes."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise StorageError(
                f"the disk is full: {path} was not written. Nothing that was finished is lost; "
                f"free some space on that disk and run the same command again."
            ) from error
        if error.errno in NOT_ALLOWED:
            raise StorageError(
                f"{path}: {error.strerror}. Give yourself the permission, or choose another place "
                f"(setting runs_dir)."
            ) from error
        raise


def _plain(value: object) -> object:
    """What JSON does not know: sets become sorted lists, paths strings, dataclasses objects."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Path):
        return value.as_posix()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def to_json(obj: object, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Strict JSON of dataclasses, mappings, lists, sets, paths and plain values.

    Raises:
        ValueError: for NaN and infinity, which are not JSON; a missing number is `None`.
        TypeError: for a value that has no JSON form.
    """
    return json.dumps(
        obj,
        default=_plain,
        ensure_ascii=False,
        allow_nan=False,
        indent=indent,
        sort_keys=sort_keys,
    )


def write_atomically(path: Path, fill: Callable[[IO[bytes]], None]) -> None:
    """Let `fill` write a temporary file beside `path`, then put it in place in one step.

    Whoever reads `path` sees the old content or the new one, never a part, also after a kill.

    Raises:
        StorageError: the disk is full, or the folder may not be written. `path` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename durable: without it a power cut can bring the old name back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network folders (a mounted Drive on Colab) cannot be synced; the file itself was.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_rows(path: Path, rows: Iterable[object]) -> int:
    """Write dataclasses or mappings as one JSON object a line, atomically; returns how many.

    Raises:
        StorageError: see `write_atomically`.
        ValueError: a row holds NaN or infinity.
    """
    count = 0

    def fill(file: IO[bytes]) -> None:
        nonlocal count
        for row in rows:
            file.write(to_json(row).encode() + b"\n")
            count += 1

    write_atomically(path, fill)
    return count


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically; errors as in `write_atomically`."""

    def fill(file: IO[bytes]) -> None:
        file.write(text.encode())

    write_atomically(path, fill)


def write_json(path: Path, obj: object) -> None:
    """Write one JSON document, indented for people, atomically; errors as in `write_rows`."""
    write_text(path, to_json(obj, indent=2) + "\n")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that must be there and not empty.

    Raises:
        UserError: it is missing (neighbours with a like name are told), a folder, or empty.
        StorageError: it may not be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist{_neighbours(path)}") from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path} is not a file") from None
    except PermissionError:
        raise StorageError(f"{path} may not be read: give yourself the permission") from None
    if not content.strip():
        raise UserError(f"{path} is empty: write it again, or name another file")
    return content


def _neighbours(path: Path) -> str:
    """What the folder of a missing file does hold, as the end of a message."""
    if not path.parent.is_dir():
        return f": neither does the folder {path.parent}"
    names = sorted(each.name for each in path.parent.iterdir() if each.suffix == path.suffix)[:5]
    return f": the folder has {', '.join(names)}" if names else ""


def read_json(path: Path) -> Any:
    """One JSON document; a `UserError` names the line where it is broken."""
    try:
        return json.loads(read_bytes(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None


def raise_mistakes(mistakes: list[str], source: object) -> None:
    """Raise one `UserError` with the first ten mistakes of a file; none is no error."""
    if not mistakes:
        return
    shown = mistakes[:SHOWN_MISTAKES]
    if len(mistakes) > len(shown):
        shown.append(f"... and {len(mistakes) - len(shown)} more")
    noun = "mistake" if len(mistakes) == 1 else "mistakes"
    raise UserError(f"{source}: {len(mistakes)} {noun}\n  " + "\n  ".join(shown))


def read_rows(path: Path, cls: type[Row]) -> list[Row]:
    """Read one dataclass a line and check every field's type; columns beyond the class are ignored.

    The text of a row is never repeated in a message: rows hold conversations.

    Raises:
        UserError: the file is missing, empty or malformed; the first ten mistakes with `file:line`.
        StorageError: it may not be read.
    """
    adapter = TypeAdapter(cls)
    rows: list[Row] = []
    mistakes: list[str] = []
    for number, line in enumerate(read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(adapter.validate_json(line, strict=True))
        except ValidationError as error:
            mistakes += [f"{path}:{number}: {text}" for text in _explain(error, line)]
    raise_mistakes(mistakes, path)
    return rows


def _explain(error: ValidationError, line: bytes) -> list[str]:
    """One text per mistake of a row, without the row's content."""
    texts = []
    for each in error.errors(include_input=False, include_url=False):
        field = ".".join(str(part) for part in each["loc"])
        if each["type"] == "missing":
            found = ", ".join(sorted(json.loads(line))) or "nothing"
            texts.append(f"field '{field}' is missing (found: {found})")
        else:
            texts.append(f"field '{field}': {each['msg']}" if field else each["msg"])
    return texts


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, or of a folder's sorted file names and their contents.

    Raises:
        UserError: there is nothing at `path`.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        for each in sorted(each for each in path.rglob("*") if each.is_file()):
            digest.update(f"{each.relative_to(path).as_posix()}\0{sha256_of(each)}\n".encode())
        return digest.hexdigest()
    if not path.exists():
        raise UserError(f"{path} does not exist{_neighbours(path)}")
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def short_hash(obj: object) -> str:
    """The first 16 hex digits of SHA-256 of an object's canonical JSON (sorted keys).

    Example: `short_hash({"a": 1, "b": 2}) == short_hash({"b": 2, "a": 1})`.
    """
    return hashlib.sha256(to_json(obj, sort_keys=True).encode()).hexdigest()[:16]
