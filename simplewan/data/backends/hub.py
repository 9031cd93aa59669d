"""The rows of a dataset of the `datasets` library as files, with their captions: from the hub, or from this machine.

Imports this package and the room's tables; the library when the dataset is loaded. Clips are never decoded by it:
their bytes come out of the Arrow tables, or are the files that these name. What lies neither here nor in a table (at an
address, in an archive) is copied when it is opened, once.
"""

from __future__ import annotations

import errno
import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from simplewan.data.backends.base import Entry, Refused
from simplewan.data.backends.hub_loading import Columns, Wanted, choose_columns, failures, fingerprint, identity, load
from simplewan.data.backends.hub_rows import BATCH_ROWS, Cell, cells_of, copy_to, is_local, names_of, place_of
from simplewan.data.backends.hub_stream import Rows, Stream
from simplewan.data.backends.web import Downloads, Head, is_url
from simplewan.data.tables import texts
from simplewan.errors import UserError
from simplewan.events import Emit, Notice, Progress, silent

SAY_SECONDS = 30.0


@dataclass(frozen=True)
class _File:
    """A row's file: the place it lies at, or None where its bytes are in the row."""

    entry: Entry
    row: int
    place: str | None
    captions: tuple[str, ...]


@dataclass(frozen=True)
class _Listing:
    """`table` holds the bytes: the dataset in Arrow's format, of the column of the files alone."""

    files: Mapping[str, _File]
    remarks: tuple[str, ...]
    refused: tuple[Refused, ...]
    has_captions: bool
    table: Any = None


def never() -> None:
    """A check that never stops anything."""


@dataclass(frozen=True)
class HubBackend:
    """The rows of a dataset. Columns that are None are guessed where only one can be meant.

    `kind` is "video" or "image". With `needs_captions` a row without a caption is refused, and so is a dataset without
    a column of them. `streaming` reads the dataset once and keeps the bytes below `cache`. `check` may raise to stop.
    """

    wanted: Wanted
    cache: Path
    kind: str = "video"
    video_column: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    streaming: bool = False
    needs_captions: bool = True
    emit: Emit = field(default=silent, repr=False, compare=False)
    check: Callable[[], None] = field(default=never, repr=False, compare=False)
    _last: list[_Listing] = field(default_factory=list, init=False, repr=False, compare=False)
    _locks: dict[str, threading.Lock] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def root(self) -> str:
        return str(self.wanted)

    @property
    def remarks(self) -> tuple[str, ...]:
        return self._last[0].remarks if self._last else ()

    @property
    def refused(self) -> tuple[Refused, ...]:
        return self._last[0].refused if self._last else ()

    def list(self) -> Iterator[Entry]:
        self._last[:] = [self._read_stream() if self.streaming else self._read_table()]
        yield from sorted(file.entry for file in self._last[0].files.values())

    def stat(self, path: str) -> Entry:
        return self._file(path).entry

    def open(self, path: str) -> BinaryIO:
        place = self._local(path)
        return io.BytesIO(self._bytes(path)) if place is None else place.open("rb")

    def read(self, path: str) -> bytes:
        place = self._local(path)
        return self._bytes(path) if place is None else place.read_bytes()

    def local_path(self, path: str) -> Path | None:
        """Where it lies; None while its bytes are in a table, or it was not copied yet."""
        file = self._file(path)
        if file.place is None or is_local(file.place):
            return None if file.place is None else Path(file.place)
        if is_url(file.place):
            return self._downloads.copy(file.place, _head(file.entry))
        there = self._copy_path(file)
        return there if there.exists() else None

    def identity(self, entry: Entry) -> str | None:
        return None

    def captions(self, path: str) -> tuple[str, ...] | None:
        """The captions of a file's row: several where its cell holds a list; None where captions are not read."""
        file = self._file(path)
        return file.captions if self._last[0].has_captions else None

    def __getstate__(self) -> dict[str, object]:
        """For another process: it opens the tables itself, and nobody listens there."""
        return {**self.__dict__, "_last": [], "_locks": {}, "emit": silent, "check": never}

    def _listing(self) -> _Listing:
        if not self._last:
            list(self.list())
        return self._last[0]

    def _file(self, path: str) -> _File:
        try:
            return self._listing().files[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "the dataset has no such row", f"{self.root}/{path}") from None

    def _bytes(self, path: str) -> bytes:
        row, table = self._file(path).row, self._listing().table
        cell = table[row : row + 1][table.column_names[0]][0].as_py()
        return cell["bytes"] if isinstance(cell, dict) else cell

    def _local(self, path: str) -> Path | None:
        """The file on this machine, copied if need be; None where its bytes are in the table. Raises OSError."""
        file = self._file(path)
        if file.place is None or is_local(file.place):
            return None if file.place is None else Path(file.place)
        with self._locks.setdefault(path, threading.Lock()):
            if is_url(file.place):
                return self._downloads.fetch(file.place, _head(file.entry))
            there = self._copy_path(file)
            if not there.exists():
                try:
                    copy_to(file.place, there)
                except failures() as error:
                    text = f"it cannot be copied from {file.place}: {error}"
                    raise OSError(errno.EIO, text, f"{self.root}/{path}") from None
        return there

    @property
    def _downloads(self) -> Downloads:
        return Downloads(self.cache / "files")

    def _copy_path(self, file: _File) -> Path:
        name = hashlib.sha256(f"{file.entry.stamp} {file.place}".encode()).hexdigest()[:24]
        return self.cache / "files" / f"{name}{PurePosixPath(file.entry.path).suffix}"

    def _columns(self, features: Mapping[str, Any]) -> Columns:
        return choose_columns(
            self.wanted,
            features,
            video=self.video_column,
            image=self.image_column,
            caption=self.caption_column,
            kind=self.kind,
            needs_captions=self.needs_captions,
        )

    def _read_table(self) -> _Listing:
        dataset = load(self.wanted, streaming=False)
        columns = self._columns(dataset.features)
        arrow = dataset.select_columns(columns.names).with_format("arrow")
        cells: list[Cell] = []
        captions: list[tuple[str, ...]] = []
        for start in range(0, len(dataset), BATCH_ROWS):
            batch = arrow[start : start + BATCH_ROWS]
            cells += cells_of(batch[columns.media])
            captions += map(texts, batch[columns.caption].to_pylist()) if columns.caption else [()] * batch.num_rows
            self.check()
        table = dataset.select_columns([columns.media]).with_format("arrow")
        rows = [(cell, words, None) for cell, words in zip(cells, captions, strict=True)]
        return self._list_rows(Rows(fingerprint(dataset), columns, rows), table)

    def _read_stream(self) -> _Listing:
        version = identity(self.wanted, cache=self.cache)
        columns = self.video_column, self.image_column, self.caption_column
        key = repr((str(self.wanted), self.kind, *columns, self.needs_captions))
        stream = Stream(self.cache / "stream" / hashlib.sha256(key.encode()).hexdigest()[:16], self.kind)
        known = stream.known(version)
        return self._list_rows(known if known is not None else self._fill(stream, version))

    def _fill(self, stream: Stream, version: str | None) -> Rows:
        """All rows of the dataset, read now. Raises OSError when it breaks off."""
        dataset = load(self.wanted, streaming=True)
        named = failures()
        try:
            if dataset.features is None:  # files that do not say what is in them
                dataset = dataset._resolve_features()
            columns = self._columns(dataset.features)
            feature = dataset.features[columns.media]
            if hasattr(feature, "decode"):
                dataset = dataset.cast_column(columns.media, type(feature)(decode=False))
            dataset = dataset.select_columns(columns.names)
            return stream.fill(dataset, columns, version, tell=self._teller(dataset))
        except UserError:
            raise
        except named as error:
            text = f"reading it broke off ({error}); a new start goes on from there"
            raise OSError(getattr(error, "errno", None) or errno.EIO, text, self.root) from None

    def _teller(self, dataset: Any) -> Callable[[int], None]:
        """What hears how many rows were read: of how many, where the dataset says that."""
        split = (dataset.info.splits or {}).get(self.wanted.split)
        total = split.num_examples if split is not None else 0
        label = f"Streaming {self.wanted.dataset}"
        said = time.monotonic()

        def tell(count: int) -> None:
            nonlocal said
            self.check()
            if total:
                self.emit(Progress("scan", label, min(count, total), total, "rows"))
            elif time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                self.emit(Notice(f"{label}: row {count}"))

        return tell

    def _list_rows(self, found: Rows, table: Any = None) -> _Listing:
        files: dict[str, _File] = {}
        refused = []
        names = names_of([cell for cell, _, _ in found.rows], self.kind)
        for row, ((cell, captions, written), name) in enumerate(zip(found.rows, names, strict=True)):
            if found.columns.caption is not None and not captions:
                refused.append(Refused(f"row {row}", f"its {found.columns.caption} is empty", "no caption"))
                continue
            place = self._place(cell, written)
            entry = self._entry(name, cell, place, f"{found.version} {row}")
            if entry is not None:
                files[name] = _File(entry, row, place, captions)
            elif place is None:
                refused.append(Refused(f"row {row}", f"its {found.columns.media} is empty", "broken row"))
            else:
                refused.append(Refused(f"row {row}", f"{place} is not there", "missing file"))
        return _Listing(files, found.columns.remarks, tuple(refused), found.columns.caption is not None, table)

    def _place(self, cell: Cell, written: Path | None) -> str | None:
        """Where the file of a row lies; None when its bytes are in the row, or it has none."""
        if written is not None:
            return str(written)
        if cell.size is not None or cell.path is None:
            return None
        revision = f"@{self.wanted.revision}" if self.wanted.revision else ""
        return place_of(cell.path, self.wanted.folder, f"{self.wanted.name}{revision}")

    def _entry(self, name: str, cell: Cell, place: str | None, version: str) -> Entry | None:
        """None when there is no such file."""
        if place is None:
            return None if cell.size is None else Entry(name, cell.size, version)
        if not is_local(place):
            return Entry(name, -1, version)
        try:
            stat = Path(place).stat()
        except OSError:
            return None
        return Entry(name, stat.st_size, stat.st_mtime_ns)


def _head(entry: Entry) -> Head:
    """What stands for the server's answer: a file at an address that a row names is fetched once for each version."""
    return Head(-1, str(entry.stamp), PurePosixPath(entry.path).suffix)
