"""The files that a table names, with their captions: in folders of this machine, or at addresses in the web.

Imports this package, and the tables and the kinds of media of the room. The table is read anew at each listing. What a
row asks for and cannot have is said by the row's number, and the other rows go on.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from simplewan.data.backends.base import Entry, Refused
from simplewan.data.backends.web import Downloads, Head, is_url, name_of, suffix_of
from simplewan.data.media import is_media_name
from simplewan.data.tables import Row, Table, TableError, find_column, texts
from simplewan.errors import Problem, UserError

FILE_COLUMN, CAPTION_COLUMN = "video", "caption"
# What other tables call them.
FILE_COLUMNS = ("image", "file_name", "filename", "file", "path", "url", "video_path", "image_path")
CAPTION_COLUMNS = ("prompt", "text")

Tell = Callable[[int, int], None]


def quiet(_count: int, _total: int) -> None:
    """A `Tell` that nobody hears."""


@dataclass(frozen=True)
class _File:
    """A file that rows name: where it is (the address, or the path on this machine), and what describes it."""

    entry: Entry
    place: Path | str
    head: Head | None
    captions: tuple[str, ...]


@dataclass(frozen=True)
class _Listing:
    files: Mapping[str, _File]
    remarks: tuple[str, ...]
    refused: tuple[Refused, ...]
    has_captions: bool


@dataclass(frozen=True)
class CsvBackend:
    """The files of `table`; relative ones count from `base`. Rows of the same file give several captions.

    A column that is None is looked for under the usual names. With `needs_captions` a row without a caption is refused,
    and so is a table without such a column. `tell` hears how many files of how many were asked for in the web.
    """

    table: Path
    base: Path
    downloads: Downloads
    file_column: str | None = None
    caption_column: str | None = None
    needs_captions: bool = True
    dataset: str = ""
    tell: Tell = field(default=quiet, repr=False, compare=False)
    _last: list[_Listing] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def root(self) -> str:
        return str(self.table)

    @property
    def remarks(self) -> tuple[str, ...]:
        return self._last[0].remarks if self._last else ()

    @property
    def refused(self) -> tuple[Refused, ...]:
        return self._last[0].refused if self._last else ()

    def list(self) -> Iterator[Entry]:
        self._last[:] = [self._read()]
        yield from sorted(file.entry for file in self._last[0].files.values())

    def stat(self, path: str) -> Entry:
        file = self._file(path)
        if isinstance(file.place, str):
            return file.entry
        stat = file.place.stat()
        return Entry(path, stat.st_size, stat.st_mtime_ns)

    def open(self, path: str) -> BinaryIO:
        return self._local(path).open("rb")

    def read(self, path: str) -> bytes:
        return self._local(path).read_bytes()

    def local_path(self, path: str) -> Path | None:
        """Where it lies; for a file from the web None until it was opened."""
        file = self._file(path)
        if isinstance(file.place, Path):
            return file.place
        assert file.head is not None, "files from the web were asked for"
        return self.downloads.copy(file.place, file.head)

    def identity(self, entry: Entry) -> str | None:
        return None

    def captions(self, path: str) -> tuple[str, ...] | None:
        """The captions of a file's rows, in the table's order; None in a table without captions."""
        file = self._file(path)
        return file.captions if self._last[0].has_captions else None

    def __getstate__(self) -> dict[str, object]:
        """For another process, where nobody listens."""
        return {**self.__dict__, "tell": quiet}

    def _file(self, path: str) -> _File:
        if not self._last:
            self._last[:] = [self._read()]
        try:
            return self._last[0].files[path]
        except KeyError:
            raise FileNotFoundError(2, "the table does not name it", f"{self.root}/{path}") from None

    def _local(self, path: str) -> Path:
        """The file on this machine, fetched if it is not there. Raises OSError."""
        file = self._file(path)
        if isinstance(file.place, Path):
            return file.place
        assert file.head is not None, "files from the web were asked for"
        return self.downloads.fetch(file.place, file.head)

    def _read(self) -> _Listing:
        try:
            table = Table.read(self.table)
        except TableError as error:
            raise UserError(Problem(self._at, str(error), "csv_file", str(self.table))) from None
        remarks: list[str] = []
        file_column = self._column(table, self.file_column, FILE_COLUMN, FILE_COLUMNS, "csv_video_column", remarks)
        caption_column = self._column(
            table, self.caption_column, CAPTION_COLUMN, CAPTION_COLUMNS, "csv_caption_column", remarks
        )
        reader = _Reader(self, table, file_column or "", caption_column if self.needs_captions else None)
        files = reader.files()
        has_captions = self.needs_captions and caption_column is not None
        return _Listing(files, (*remarks, *reader.remarks), tuple(reader.refused), has_captions)

    def _column(
        self, table: Table, named: str | None, usual: str, others: Sequence[str], key: str, remarks: list[str]
    ) -> str | None:
        """The column that is named, or the one with a usual name. Raises UserError, but for captions nobody needs."""
        there = ", ".join(column for column in table.columns if column)
        found = find_column(table.columns, named or usual)
        if found is not None:
            return found
        if named is not None:
            raise UserError(Problem(self._at, f"is no column of {self.table.name}, which has {there}", key, named))
        candidates = [column for other in others if (column := find_column(table.columns, other)) is not None]
        if len(candidates) == 1:
            remarks.append(f'{self.table.name}: the column "{candidates[0]}" is taken ({key} names another)')
            return candidates[0]
        if usual == CAPTION_COLUMN and not self.needs_captions:
            return None
        which = f"any of {', '.join(candidates)} may be meant" if candidates else f"it has {there}"
        raise UserError(
            Problem(self._at, f"{self.table.name} has no column {usual}: {which}", fix=f"name it with {key}")
        )

    @property
    def _at(self) -> str:
        return f'dataset "{self.dataset}"'


class _Reader:
    """One reading of the table: from rows to files, with what is refused on the way."""

    def __init__(self, backend: CsvBackend, table: Table, file_column: str, caption_column: str | None) -> None:
        self._backend, self._table = backend, table
        self._columns = file_column, caption_column
        self.refused = [Refused(self._name(number), reason, "broken row") for number, reason in table.broken]
        self.remarks: list[str] = []

    def files(self) -> dict[str, _File]:
        """The files that are there, by the path that each is known by."""
        rows = self._rows()
        heads = self._ask([place for place in rows if isinstance(place, str)])
        files: dict[str, _File] = {}
        for place, described in rows.items():
            found = self._on_disk(place) if isinstance(place, Path) else self._in_web(place, heads[place])
            if isinstance(found, Refused):
                self.refused += [found._replace(name=self._name(number)) for number in described.values()]
                continue
            if found.path in files:  # two addresses that differ in what the path leaves out
                found = found._replace(path=_distinct(found.path, str(place)))
            captions = tuple(caption for caption in described if caption)
            head = heads.get(place) if isinstance(place, str) else None
            files[found.path] = _File(found, place, head if isinstance(head, Head) else None, captions)
        stale = sum(isinstance(head, Head) and not head.asked for head in heads.values())
        if stale:
            count = "1 file" if stale == 1 else f"{stale} files"
            self.remarks.append(f"{count} could not be asked for in the web: the copies from earlier are used")
        return files

    def _rows(self) -> dict[Path | str, dict[str, int]]:
        """For each file its captions, in order, and the number of the row of each."""
        file_column, caption_column = self._columns
        found: dict[Path | str, dict[str, int]] = {}
        for row in self._table.rows:
            names = texts(row.cells.get(file_column))
            captions = texts(row.cells.get(caption_column)) if caption_column else ("",)
            if len(names) != 1:
                self._refuse(row, f"its {file_column} is empty" if not names else "names several files", "broken row")
                continue
            if not captions:
                self._refuse(row, f"its {caption_column} is empty", "no caption")
                continue
            place = names[0] if is_url(names[0]) else self._path(names[0])
            described = found.setdefault(place, {})
            new = [caption for caption in captions if caption not in described]
            described.update(dict.fromkeys(new, row.number))
            if not new:
                self._refuse(row, f"says the same as row {described[captions[0]]}", "repeated row")
        return found

    def _path(self, written: str) -> Path:
        base = self._backend.base
        path = Path(os.path.normpath(base / Path(written).expanduser()))
        if "\\" in written and not path.exists():
            path = Path(os.path.normpath(base / written.replace("\\", "/")))
        return path

    def _on_disk(self, path: Path) -> Entry | Refused:
        base = self._backend.base
        name = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
        try:
            stat = path.stat()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            reason = f"{name} is not there" if missing else f"{name} cannot be read: {error.strerror}"
            return Refused("", reason, "missing file" if missing else "broken file")
        if path.is_dir() or not is_media_name(name):
            return Refused("", f"{name} is no kind of file that is read", "no clip")
        return Entry(name, stat.st_size, stat.st_mtime_ns)

    def _in_web(self, url: str, head: Head | OSError) -> Entry | Refused:
        name = name_of(url)
        if isinstance(head, OSError):
            kind = "missing file" if isinstance(head, FileNotFoundError) else "no answer"
            return Refused("", f"{name} cannot be had: {head.strerror}", kind)
        suffix = suffix_of(url, head)
        if not suffix:
            return Refused("", f"{name} is no kind of file that is read", "no clip")
        if not name.lower().endswith(suffix):
            name = _distinct(f"{name}{suffix}", url)
        return Entry(name, head.size, head.stamp)

    def _ask(self, urls: Sequence[str]) -> Mapping[str, Head | OSError]:
        total = len(urls)
        return self._backend.downloads.look(urls, tell=lambda count: self._backend.tell(count, total))

    def _refuse(self, row: Row, reason: str, kind: str) -> None:
        self.refused.append(Refused(self._name(row.number), reason, kind))

    def _name(self, number: int) -> str:
        return f"{self._table.name} row {number}"


def _distinct(path: str, place: str) -> str:
    """The path with a few letters more, which follow from the place alone."""
    stem, suffix = posixpath.splitext(path)
    return f"{stem}-{hashlib.sha256(place.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}{suffix}"
