"""The index of a dataset's files: what was found in each, so that a second start need not look again.

Imports this room's media records. One SQLite file per dataset; what it holds of a file is valid while size and stamp
of the file are the same. `update` compares a whole listing at once and opens no file: headers, digests, captions,
scene cuts and faces are looked for when somebody asks, and remembered. What was found is written in short
transactions, so several processes may scan one dataset at once, and a kill loses the last two seconds at most. The
index can be deleted at any time.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from simplewan.data.backends import Entry
from simplewan.data.mediainfo import MediaInfo

# Raise it whenever probing finds other things in the same file.
VERSION = "3"
WRITE_FACTS, WRITE_SECONDS = 1000, 2.0
LOCK_SECONDS = 60.0
EVEN = 1e-9  # frame times this near to index / rate are stored as the rate
FACTS = ("info", "error", "digest", "content", "cuts", "face", "problem")

_TABLES_ANEW = f"""
BEGIN IMMEDIATE;
DROP TABLE IF EXISTS about;
DROP TABLE IF EXISTS files;
DROP TABLE IF EXISTS captions;
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, stamp, {", ".join(FACTS)}) WITHOUT ROWID;
COMMIT;
"""
_INSERT = "INSERT OR REPLACE INTO files (path, size, stamp) VALUES (?, ?, ?)"
_COLUMN = {fact: at for at, fact in enumerate(FACTS, start=3)}


@dataclass(frozen=True)
class Changes:
    """How a listing differs from the one before: paths that are new, edited and gone."""

    new: tuple[str, ...]
    edited: tuple[str, ...]
    gone: tuple[str, ...]


class Index:
    """What is known of the files of `dataset` below `root`. Use as a context; leaving it commits and closes."""

    def __init__(self, folder: Path, *, dataset: str, root: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{quote(dataset, safe='')}.sqlite"
        try:
            self._open(root)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._database.close()
            for name in (self.path, *self.path.parent.glob(f"{self.path.name}-*")):  # not a database: make it anew
                name.unlink(missing_ok=True)
            self._open(root)

    def _open(self, root: str) -> None:
        self._database = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None)
        self._unwritten: dict[str, list[tuple[Any, ...]]] = {}  # statement -> values
        self._count = 0
        self._written_at = time.monotonic()
        wanted = {"version": f"{VERSION}, PyAV {version('av')}", "root": root}
        if self._about() != wanted:
            self._database.executescript(_TABLES_ANEW)
            self._database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", wanted.items())
        self._rows: dict[str, tuple[Any, ...]] = {row[0]: row for row in self._database.execute("SELECT * FROM files")}

    def _about(self) -> dict[str, str]:
        tables = {row[0] for row in self._database.execute("SELECT name FROM sqlite_master")}
        return dict(self._database.execute("SELECT key, value FROM about")) if "about" in tables else {}

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._write()  # what was found is true, whatever interrupted the scan
        finally:
            self._database.close()

    def update(self, entries: Sequence[Entry]) -> Changes:
        """Take in a listing: what was known of files that changed or went is forgotten."""
        rows = self._rows
        changed = [entry for entry in entries if (row := rows.get(entry[0])) is None or row[1:3] != entry[1:]]
        new = tuple(entry.path for entry in changed if entry.path not in rows)
        edited = tuple(entry.path for entry in changed if entry.path in rows)
        gone: tuple[str, ...] = ()
        if len(rows) + len(new) != len(entries):
            there = {entry.path for entry in entries}
            gone = tuple(path for path in rows if path not in there)
        if changed or gone:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany(_INSERT, changed)
            self._database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in gone])
            self._database.execute("COMMIT")
        nothing = (None,) * len(FACTS)
        rows.update((entry.path, (*entry, *nothing)) for entry in changed)
        for path in gone:
            del rows[path]
        return Changes(new, edited, gone)

    def media(self, path: str) -> MediaInfo | str | None:
        """What was found in the file, or the reason why it cannot be used; None when it was not looked at yet."""
        error, info = self._get(path, "error"), self._get(path, "info")
        if error is not None:
            return str(error)
        return None if info is None else _unpack(info)

    def put_media(self, path: str, found: MediaInfo | str) -> None:
        """Remember what was found, or why the file cannot be used."""
        if isinstance(found, str):
            self._put(path, "error", found)
        else:
            self._put(path, "info", _pack(found))

    def problems(self) -> dict[str, str]:
        """The files that failed while they were encoded, and why."""
        return {path: str(reason) for path in sorted(self._rows) if (reason := self._get(path, "problem")) is not None}

    def put_problem(self, path: str, reason: str) -> None:
        self._put(path, "problem", reason)

    def digest(self, path: str) -> str | None:
        """The digest of the file's bytes, if it was computed."""
        found: str | None = self._get(path, "digest")
        return found

    def put_digest(self, path: str, digest: str) -> None:
        self._put(path, "digest", digest)

    def content(self, path: str) -> bytes | None:
        """The bytes of a caption file, if it was read."""
        found: bytes | None = self._get(path, "content")
        return found

    def put_content(self, path: str, content: bytes) -> None:
        self._put(path, "content", content)

    def cuts(self, path: str) -> tuple[float, ...] | None:
        """Seconds at which new scenes begin, if they were looked for."""
        found = self._get(path, "cuts")
        return None if found is None else tuple(json.loads(found))

    def put_cuts(self, path: str, cuts: Sequence[float]) -> None:
        self._put(path, "cuts", json.dumps(list(cuts)))

    def face(self, path: str) -> tuple[()] | tuple[float, float] | None:
        """Where the largest face is, () when there is none; None when nobody looked."""
        found = self._get(path, "face")
        return None if found is None else tuple(json.loads(found))

    def put_face(self, path: str, face: tuple[float, float] | None) -> None:
        self._put(path, "face", json.dumps(face or ()))

    def _get(self, path: str, fact: str) -> Any:
        return self._rows[path][_COLUMN[fact]]

    def _put(self, path: str, fact: str, value: Any) -> None:
        row = self._rows[path]
        at = _COLUMN[fact]
        self._rows[path] = (*row[:at], value, *row[at + 1 :])
        # Another process may have seen the file in another state: only what was found in this one is written.
        statement = f"UPDATE files SET {fact} = ? WHERE path = ? AND size = ? AND stamp = ?"
        self._unwritten.setdefault(statement, []).append((value, *row[:3]))
        self._count += 1
        if self._count >= WRITE_FACTS or time.monotonic() - self._written_at >= WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._unwritten:
            self._database.execute("BEGIN IMMEDIATE")
            for statement, values in self._unwritten.items():
                self._database.executemany(statement, values)
            self._database.execute("COMMIT")
        self._unwritten, self._count = {}, 0
        self._written_at = time.monotonic()


def _pack(info: MediaInfo) -> bytes:
    """JSON, then, compressed, the times of the frames as float64, unless they are spaced evenly.

    What is unpacked may differ by a nanosecond, so what was found is used as the index has it, the first time too.
    """
    times = array("d", info.times)
    even = info.fps > 0 and all(abs(moment - at / info.fps) < EVEN for at, moment in enumerate(times))
    fields = {**asdict(info), "times": "even" if even else "listed"}
    text = json.dumps(fields, separators=(",", ":")).encode()
    return text + b"\n" + (b"" if even else zlib.compress(times.tobytes()))


def _unpack(blob: bytes) -> MediaInfo:
    text, _, packed = blob.partition(b"\n")
    fields = json.loads(text)
    if fields["times"] == "even":
        times = _even_times(fields["num_frames"], fields["fps"])
    else:
        times = tuple(array("d", zlib.decompress(packed)))
    return MediaInfo(**{**fields, "times": times, "remarks": tuple(fields["remarks"])})


@lru_cache(maxsize=1024)
def _even_times(count: int, fps: float) -> tuple[float, ...]:
    return tuple(at / fps for at in range(count))
