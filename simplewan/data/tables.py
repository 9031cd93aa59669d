"""Tables that describe files: CSV, TSV, JSON lines and Parquet, read into rows, and rows found for files.

Imports this room's backends; pyarrow when a Parquet file is read. A row that cannot be read is reported by its number
and left out. Rows are numbered as people see them: row 1 of a CSV holds the columns, as spreadsheets show it, and the
first file is in row 2; JSON lines are numbered as lines; the first row of Parquet is row 1.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from simplewan.data.backends.base import Source
from simplewan.data.backends.local import LocalBackend

DELIMITERS = (",", "\t", ";")
BATCH_ROWS = 1000
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


class TableError(ValueError):
    """A table that cannot be used; the message says why, without its name."""


@dataclass(frozen=True)
class Row:
    """One row: its number, for people, and its cells by column. What is not there is absent or None."""

    number: int
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """The columns and rows of a table; `broken` are the numbers of rows that cannot be read, with the reasons."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    broken: tuple[tuple[int, str], ...] = ()

    @staticmethod
    def read(place: Path | Source, columns: Iterable[str] | None = None) -> Table:
        """The table in a file; of `columns` alone where they are named, which saves memory. Raises TableError."""
        source = Source(LocalBackend(place.parent), place.name) if isinstance(place, Path) else place
        suffix = posixpath.splitext(source.name.lower())[1]
        read = {
            ".csv": _read_csv,
            ".tsv": _read_csv,
            ".jsonl": _read_json_lines,
            ".ndjson": _read_json_lines,
            ".parquet": _read_parquet,
        }.get(suffix)
        if read is None:
            raise TableError(f"is no table that can be read; those end with {', '.join(SUFFIXES)}")
        try:
            with source.open() as file:
                return read(file, source.name, None if columns is None else set(columns))
        except OSError as error:
            raise TableError(f"cannot be read: {error.strerror or error}") from None


def texts(cell: Any) -> tuple[str, ...]:
    """The texts in a cell, stripped: none when it is empty, several where it holds a list."""
    cells = cell if isinstance(cell, (list, tuple)) else (cell,)
    found = ("" if item is None else str(item).replace("\0", "").strip() for item in cells)
    return tuple(text for text in found if text)


def find_column(columns: Sequence[str], wanted: str) -> str | None:
    """The column of that name; one that differs in case alone will do."""
    if wanted in columns:
        return wanted
    alike = [column for column in columns if column.strip().lower() == wanted.lower()]
    return alike[0] if len(alike) == 1 else None


def _read_csv(file: BinaryIO, name: str, wanted: set[str] | None) -> Table:
    lines = io.StringIO(_decode(file.read()), newline="")
    reader = csv.reader(lines, delimiter=_delimiter(lines, name), strict=True)
    rows: list[Row] = []
    broken: list[tuple[int, str]] = []
    columns: tuple[str, ...] = ()
    for number, cells in _numbered(reader, broken):
        if not any(cell.strip() for cell in cells):
            continue
        if not columns:
            columns = tuple(cell.strip() for cell in cells)
            if twice := sorted({column for column in columns if column and columns.count(column) > 1}):
                raise TableError(f"has the column {twice[0]} twice")
        elif len(cells) != len(columns):
            broken.append((number, f"has {len(cells)} fields instead of {len(columns)}; quote texts with commas"))
        else:
            pairs = zip(columns, cells, strict=True)
            rows.append(Row(number, {column: cell for column, cell in pairs if wanted is None or column in wanted}))
    if not columns:
        raise TableError("is empty; its first line names the columns")
    return Table(name, columns, tuple(rows), tuple(broken))


def _numbered(reader: Any, broken: list[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV that can be read, numbered from 1; the others go to `broken`."""
    number = 0
    while True:
        number += 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "end of data" in str(error):
                broken.append((number, "has a quotation mark that is never closed: the rest of the file is lost"))
            else:
                broken.append((number, f"cannot be read: {error}; is a quotation mark not closed or not doubled?"))


def _delimiter(lines: io.StringIO, name: str) -> str:
    """What separates the fields of the first line; commas where that is open. The line is not used up."""
    if name.lower().endswith(".tsv"):
        return "\t"
    fields = {}
    for delimiter in DELIMITERS:
        lines.seek(0)
        try:
            fields[delimiter] = len(next(csv.reader(lines, delimiter=delimiter), []))
        except csv.Error:
            fields[delimiter] = 0
    lines.seek(0)
    return max(DELIMITERS, key=lambda delimiter: fields[delimiter])


def _read_json_lines(file: BinaryIO, name: str, wanted: set[str] | None) -> Table:
    rows: list[Row] = []
    broken: list[tuple[int, str]] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(_decode(file.read()).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except ValueError as error:  # RecursionError is no user's table
            broken.append((number, f"is no JSON: {error}"))
            continue
        if not isinstance(cells, dict):
            broken.append((number, "is no JSON object"))
            continue
        columns |= dict.fromkeys(cells)
        rows.append(Row(number, {key: cell for key, cell in cells.items() if wanted is None or key in wanted}))
    if not columns:
        raise TableError("holds no JSON object; each line is one, with the file and its caption")
    return Table(name, tuple(columns), tuple(rows), tuple(broken))


def _read_parquet(file: BinaryIO, name: str, wanted: set[str] | None) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        columns = tuple(table.schema_arrow.names)
        chosen = [column for column in columns if wanted is None or column in wanted]
        rows = []
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=chosen):
            rows += [Row(len(rows) + number, cells) for number, cells in enumerate(batch.to_pylist(), start=1)]
    except pyarrow.ArrowException as error:
        raise TableError(f"is no Parquet file that can be read: {str(error).splitlines()[0]}") from None
    return Table(name, columns, tuple(rows))


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TableError(f"is not UTF-8 (line {line}, byte {error.start}); save it as UTF-8") from None


@dataclass(frozen=True)
class Match:
    """Which rows describe which files: file -> indices of its rows; file -> why its row is not clear; unused rows."""

    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unclear: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[int, ...] = ()


def match(names: Sequence[str], paths: Iterable[str]) -> Match:
    """The rows for each file, `names` being what each row calls its file, `paths` those of the files.

    A row is a file's that gives its path; else its name, whatever the folder; else its name without the ending. Several
    rows of one spelling are all the file's. Where rows of different spellings fit, or a row fits files of different
    folders, nothing is guessed.
    """
    keys = [_plain(name) for name in names]
    found: dict[str, tuple[int, ...]] = {}
    unclear: dict[str, str] = {}
    open_paths, open_rows = sorted(paths), [number for number, key in enumerate(keys) if key]
    for form in (str, posixpath.basename, _stem):
        by_form: dict[str, list[int]] = {}
        for number in open_rows:
            by_form.setdefault(form(keys[number]), []).append(number)
        folders: dict[str, set[str]] = {}
        for path in open_paths:
            folders.setdefault(form(path), set()).add(posixpath.dirname(path))
        for path in open_paths:
            fitting = by_form.get(form(path), ())
            spellings = list(dict.fromkeys(keys[number] for number in fitting))
            if len(spellings) > 1:
                unclear[path] = f"{spellings[0]} and {spellings[1]} of the table both fit; write its path there"
            elif fitting and len(folders[form(path)]) > 1:
                several = " and ".join(sorted(folder or "." for folder in folders[form(path)])[:2])
                unclear[path] = f"{spellings[0]} of the table fits files in {several}; write their paths there"
            elif fitting:
                found[path] = tuple(fitting)
        used = {number for rows in found.values() for number in rows}
        open_rows = [number for number in open_rows if number not in used]
        open_paths = [path for path in open_paths if path not in found and path not in unclear]
    named = {spelling for path in unclear for spelling in (posixpath.basename(path), _stem(path))}
    unused = (number for number in open_rows if not {posixpath.basename(keys[number]), _stem(keys[number])} & named)
    return Match(found, unclear, tuple(unused))


def _plain(name: str) -> str:
    """A path as backends write it: "/" between the parts, no "./"."""
    name = name.strip().replace("\\", "/")
    return posixpath.normpath(name) if name else ""


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]
