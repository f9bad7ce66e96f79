"""Tables of examples: csv, tsv, jsonl, json and parquet files, as columns whose values stand as they do in the file."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fishexp.errors import FishexpError, first_line

# separators of columns that a .csv may have: the second is that of spreadsheets where the comma is the decimal mark
_SEPARATORS = (",", ";", "\t")
# characters of a header that a message shows
_SHOWN = 80


@dataclass(frozen=True)
class Table:
    """Hold the columns of a file, or of a split of a data set.

    Attributes:
        source: What it was read from, for messages.
        columns: Name -> the value of each row: a text, a number, a bool, or None where it is missing.
        lines: Line of the file on which each row begins, counted from 1; empty if the file has no lines.
        classes: Column -> names of the classes that its numbers stand for, if the file says so.
    """

    source: str
    columns: dict[str, list[Any]]
    lines: Sequence[int] = ()
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def place(self, row: int) -> str:
        """Return where a row is, for a message; ``row`` counts from 0."""
        return f"{self.source} line {self.lines[row]}" if self.lines else f"{self.source} row {row + 1}"


def check_there(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        FishexpError: If it is a folder, or missing.
    """
    if not path.is_file():
        raise FishexpError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; name a file of examples")


def read_table(path: Path) -> Table:
    """Read a file of examples, by the ending of its name.

    Blank rows are skipped, and a BOM is. In a .csv, and in a .tsv whose quoted values are all well-formed, quotes are
    taken off; else a .tsv has none.

    Raises:
        FishexpError: If there is no such file, its ending is another, it is damaged, or it holds no rows.
    """
    readers = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _parquet}
    check_there(path)
    if path.suffix.lower() not in readers:
        raise FishexpError(f"{path}: files of examples end in {', '.join(readers)}; save it as one of these")
    if not path.stat().st_size:
        raise FishexpError(f"{path} is empty")
    table = readers[path.suffix.lower()](path)
    if not table.columns or not len(table):
        raise FishexpError(f"{path} holds no examples")
    return table


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise FishexpError(f"{path} line {number} is not UTF-8 text; save it as UTF-8") from None


def _read_csv(path: Path) -> Table:
    text = _text(path)
    header = text.lstrip().partition("\n")[0]
    separator = max(_SEPARATORS, key=header.count) if "," not in header else ","
    return _table(path, list(_rows(path, text, separator, csv.QUOTE_MINIMAL)))


def _read_tsv(path: Path) -> Table:
    """Read columns that tabs separate; many such files hold lone quotes, which mean nothing."""
    text = _text(path)
    rows = list(_rows(path, text, "\t", csv.QUOTE_NONE))
    quoted = [value for _, row in rows for value in row if value.startswith('"')]
    even = all(len(row) == len(rows[0][1]) for _, row in rows)
    if quoted and (not even or all(map(_is_quoted, quoted))):
        rows = list(_rows(path, text, "\t", csv.QUOTE_MINIMAL))
    return _table(path, rows)


def _is_quoted(value: str) -> bool:
    """Tell whether a value stands in quotes, with each quote in it doubled."""
    return len(value) > 1 and value.endswith('"') and '"' not in value[1:-1].replace('""', "")


def _rows(path: Path, text: str, separator: str, quoting: Any) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting, strict=True)
    start = 1
    with _any_length():
        try:
            for row in reader:
                if any(value.strip() for value in row):
                    yield start, row
                start = reader.line_num + 1
        except csv.Error as error:
            raise FishexpError(f"{path} line {start}: {error}; a quote that opens a value is to be closed") from None


@contextmanager
def _any_length() -> Iterator[None]:
    """Let values be longer than the csv module's 131,072 characters."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _table(path: Path, rows: list[tuple[int, list[str]]]) -> Table:
    """Make a table of rows, the first of which names the columns."""
    if not rows:
        raise FishexpError(f"{path} is empty")
    (number, header), *rows = rows
    names = [name.strip() for name in header]
    if double := [name for name in names if name and names.count(name) > 1]:
        raise FishexpError(f"{path} line {number}: two columns are called {double[0]!r}; rename one")
    if uneven := [number for number, row in rows if len(row) != len(names)]:
        found = next(len(row) for _, row in rows if len(row) != len(names))
        raise FishexpError(
            f"{path} line {uneven[0]} has {found} columns, its header {len(names)} ({len(uneven)} of {len(rows)} rows "
            "are so); a value that holds the separator stands in quotes"
        )
    columns = {name: [row[i] for _, row in rows] for i, name in enumerate(names) if name}
    if not columns:
        raise FishexpError(f"{path} line {number} names no columns: {' '.join(header)[:_SHOWN]!r}")
    return Table(str(path), columns, [number for number, _ in rows])


def _read_jsonl(path: Path) -> Table:
    lines = [(number, line) for number, line in enumerate(_text(path).split("\n"), 1) if line.strip()]
    rows = []
    for number, line in lines:
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise FishexpError(f"{path} line {number} is no JSON: {first_line(error)}") from None
    return _of_objects(path, rows, [number for number, _ in lines])


def _read_json(path: Path) -> Table:
    """Read a list of objects; a file of one object a line is one of JSON lines, whatever its name."""
    text = _text(path)
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    try:
        return _of_objects(path, json.loads(text), ())
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, FishexpError) else FishexpError(f"{path}: {first_line(error)}") from None


def _of_objects(path: Path, rows: list[Any], lines: Sequence[int]) -> Table:
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise FishexpError(
                f'{Table(str(path), {}, lines).place(i)} is no object such as {{"text": ..., "label": ...}}'
            )
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(str(path), {name: [row.get(name) for row in rows] for name in names}, lines)


def _parquet(path: Path) -> Table:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise FishexpError(f"{path} cannot be read: {first_line(error)}") from None
    names = [name for name in table.column_names if not name.startswith("__index_level_")]  # pandas' numbers of rows
    classes: dict[str, tuple[str, ...]] = {}
    if b"huggingface" in (table.schema.metadata or {}):
        from datasets import Features

        classes = classes_in(Features.from_arrow_schema(table.schema))
    return Table(str(path), {name: table.column(name).to_pylist() for name in names}, classes=classes)


def classes_in(features: Any) -> dict[str, tuple[str, ...]]:
    """Return column -> names of its classes, of the features of a data set of ``datasets``."""
    from datasets import ClassLabel

    return {name: tuple(kind.names) for name, kind in features.items() if isinstance(kind, ClassLabel)}
