"""The index of a dataset's files: what was found in each, so that a second start need not look again.

Imports this room's media records. One SQLite file per dataset; rows are valid while size and mtime of their file are
the same. SQLite's journal makes every commit all or nothing, so a kill loses at most what was found since the last
one. The index can be deleted at any time; it is rebuilt.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from simplewan.data.backends import Entry
from simplewan.data.media import MediaInfo

# Raise it whenever probing finds other things in the same file.
VERSION = "1"
COMMIT_EVERY = 50
LOCK_SECONDS = 60.0

_TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, info BLOB, error TEXT, digest TEXT);
CREATE TABLE IF NOT EXISTS captions (
    path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, content BLOB);
"""


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
        self._database.executescript(_TABLES)
        self._pending = 0
        about = dict(self._database.execute("SELECT key, value FROM about"))
        wanted = {"version": f"{VERSION}, PyAV {version('av')}", "root": root}
        self._database.execute("BEGIN IMMEDIATE")
        if about != wanted:
            for table in ("about", "files", "captions"):
                self._database.execute(f"DELETE FROM {table}")
            self._database.executemany("INSERT INTO about VALUES (?, ?)", wanted.items())
        self._files = {row[0]: row[1:] for row in self._database.execute("SELECT * FROM files")}
        self._captions = {row[0]: row[1:] for row in self._database.execute("SELECT * FROM captions")}

    def __enter__(self) -> Index:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._database.in_transaction:
            self._database.execute("COMMIT")  # what was found is true, whatever interrupted the scan
        self._database.close()

    def media(self, entry: Entry) -> MediaInfo | str | None:
        """What was found in the file, or the reason why it cannot be used; None when it was not looked at yet."""
        row = self._files.get(entry.path)
        if row is None or row[:2] != (entry.size, entry.stamp):
            return None
        return row[3] if row[2] is None else _unpack(row[2])

    def digest(self, entry: Entry) -> str | None:
        """The digest of the file's bytes, if it was computed."""
        row = self._files.get(entry.path)
        return None if row is None or row[:2] != (entry.size, entry.stamp) else row[4]

    def captions(self, entry: Entry) -> bytes | None:
        """The bytes of a caption file."""
        row = self._captions.get(entry.path)
        return None if row is None or row[:2] != (entry.size, entry.stamp) else row[2]

    def put_media(self, entry: Entry, found: MediaInfo | str) -> None:
        """Remember what was found, or why the file cannot be used."""
        info, error = (None, found) if isinstance(found, str) else (_pack(found), None)
        self._files[entry.path] = (entry.size, entry.stamp, info, error, None)
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", (entry.path, *self._files[entry.path]))

    def put_digest(self, entry: Entry, digest: str) -> None:
        """Remember the digest of a file that `put_media` knows."""
        self._files[entry.path] = (*self._files[entry.path][:4], digest)
        self._write("UPDATE files SET digest = ? WHERE path = ?", (digest, entry.path))

    def put_captions(self, entry: Entry, content: bytes) -> None:
        """Remember the bytes of a caption file."""
        self._captions[entry.path] = (entry.size, entry.stamp, content)
        self._write("INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?)", (entry.path, *self._captions[entry.path]))

    def keep_only(self, paths: Iterable[str]) -> None:
        """Forget files that are no longer there."""
        there = set(paths)
        for table, known in (("files", self._files), ("captions", self._captions)):
            gone = [(path,) for path in known if path not in there]
            if gone:
                self._database.executemany(f"DELETE FROM {table} WHERE path = ?", gone)

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        self._database.execute(statement, values)
        self._pending += 1
        if self._pending >= COMMIT_EVERY:
            self._pending = 0
            self._database.execute("COMMIT")
            self._database.execute("BEGIN IMMEDIATE")


def _pack(info: MediaInfo) -> bytes:
    return zlib.compress(json.dumps(asdict(info), separators=(",", ":")).encode())


def _unpack(blob: bytes) -> MediaInfo:
    fields = json.loads(zlib.decompress(blob))
    return MediaInfo(**{**fields, "times": tuple(fields["times"]), "remarks": tuple(fields["remarks"])})
