"""Rows of JSON lines, a JSON array, CSV or a Hub dataset, each with its place for messages."""

import csv
import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from sft.files import UserError, read_bytes

Row = dict[str, object]

MAX_LINE = 10_000_000  # characters in a line or CSV field; more is a broken file
FILE_TYPES = (".jsonl", ".json", ".csv")
_OTHER_TYPES = (".txt", ".tsv", ".parquet", ".arrow", ".xlsx", ".gz", ".zip", ".yaml", ".yml")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def source_rows(source: str) -> Iterator[tuple[str, Row | str]]:
    """Yield (place, row), or (place, what is wrong) for a row that cannot be read.

    `source` is a path, or owner/name of a Hub dataset, whose train split is read. Raises
    `UserError` where nothing can be read: missing, empty, of another type, not UTF-8, no such name.
    """
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    accepted = ", ".join(FILE_TYPES)
    if path.is_dir():
        raise UserError(f"{source} is a folder. Give one file in it ({accepted}).")
    is_name = _HUB_NAME.fullmatch(source) and suffix not in FILE_TYPES + _OTHER_TYPES
    if is_name and not path.exists():
        return _hub_rows(source)
    content = read_bytes(path)
    if suffix not in FILE_TYPES:
        raise UserError(f"{source}: cannot read this type of file. Accepted: {accepted}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{source}:{line}: not UTF-8 text. Save the file as UTF-8.") from None
    if suffix == ".csv":
        return _csv_rows(source, text)
    if text.lstrip().startswith("["):
        return _array_rows(source, text)
    return _json_lines(source, text)


def _json_lines(source: str, text: str) -> Iterator[tuple[str, Row | str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{source}:{number}"
        if len(line) > MAX_LINE:
            yield place, f"a line of {len(line):,} characters; the most is {MAX_LINE:,}"
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            yield place, f"not JSON ({reason})"
            continue
        yield place, row if isinstance(row, dict) else "not a JSON object"


def _array_rows(source: str, text: str) -> Iterator[tuple[str, Row | str]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{source}:{error.lineno}"
        raise UserError(f"{place}: not JSON ({error.msg}). Correct the file.") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deeply. Give an array of flat objects.") from None
    for number, row in enumerate(rows, start=1):
        yield f"{source}: item {number}", row if isinstance(row, dict) else "not a JSON object"


def _csv_rows(source: str, text: str) -> Iterator[tuple[str, Row | str]]:
    csv.field_size_limit(MAX_LINE)
    # strict: an unclosed quote would otherwise swallow the rest of the file into one field
    reader = csv.DictReader(StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            place, line = f"{source}:{line + 1}", reader.line_num
            if None in row:
                yield place, f"more fields than the {len(reader.fieldnames or [])} columns"
            else:
                yield place, dict(row)
    except csv.Error as error:
        yield f"{source}:{line + 1}", f"not CSV ({error})"


def _hub_rows(name: str) -> Iterator[tuple[str, Row | str]]:
    import datasets  # here, because it takes a second and most runs read files

    try:
        rows = datasets.load_dataset(name, split="train")
    except (
        OSError,
        ValueError,
        datasets.exceptions.DatasetsError,
    ) as error:  # network, names, splits
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{name}: no such file, and the Hub dataset's train split could not be loaded "
            f"({reason[0] if reason else type(error).__name__}).\n"
            "Check the name and the network; for a gated dataset accept its terms on its page and "
            "run `hf auth login`; or download it and give the path of a .jsonl, .json or .csv file."
        ) from error
    return ((f"{name}: row {n}", dict(row)) for n, row in enumerate(rows, start=1))
