"""What was seen in a dataset's files, kept beside its index, so that the next report need not decode them again.

Imports this package's records. One SQLite file; a record is named by the file's content and by what was looked at, so
nothing in it can be stale; what belongs to files that are gone is forgotten. It can be deleted at any time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from simplewan.data.buckets import Clip
from simplewan.data.report.pictures import Grid, Look, Strip

# Raise it whenever other things are seen in the same file.
VERSION = 1
LOCK_SECONDS = 60.0
WRITE_SECONDS = 2.0

_TABLES = f"""
BEGIN IMMEDIATE;
DROP TABLE IF EXISTS looks;
DROP TABLE IF EXISTS strips;
CREATE TABLE looks (key TEXT PRIMARY KEY, content TEXT, facts TEXT, cells BLOB, picture BLOB);
CREATE TABLE strips (key TEXT PRIMARY KEY, content TEXT, facts TEXT, frames BLOB, source BLOB);
PRAGMA user_version = {VERSION};
COMMIT;
"""


def cache_path(folder: Path, dataset: str) -> Path:
    """The file for a dataset whose index is in `folder`."""
    return folder / f"{quote(dataset, safe='')}.report"


class PictureCache:
    """Looks and strips by content. Use as a context; leaving it writes what is new and closes."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            self._database.close()  # not a database: make it anew
            path.unlink(missing_ok=True)
            self._open()
        self._unwritten: list[tuple[str, tuple[Any, ...]]] = []
        self._written_at = time.monotonic()

    def _open(self) -> None:
        self._database = sqlite3.connect(self._path, timeout=LOCK_SECONDS, isolation_level=None)
        if self._database.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            self._database.executescript(_TABLES)

    def __enter__(self) -> PictureCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._write()  # what was seen is true, whatever came in between
        finally:
            self._database.close()

    def look(self, content: str, grid: Grid) -> Look | str | None:
        """What was seen in a file, or why it does not decode; None when nobody looked."""
        row = self._row("looks", _look_key(content, grid))
        if row is None:
            return None
        facts, cells, picture = json.loads(row[2]), row[3], row[4]
        if "error" in facts:
            return str(facts["error"])
        return Look(
            hashes=tuple(facts["hashes"]),
            cells=cells,
            brightness=facts["brightness"],
            motion=facts["motion"],
            picture=picture,
            picture_size=tuple(facts["size"]),
        )

    def put_look(self, content: str, grid: Grid, seen: Look | str) -> None:
        """Remember what was seen, or why the file does not decode."""
        key = _look_key(content, grid)
        if isinstance(seen, str):
            self._put("looks", (key, content, json.dumps({"error": seen}), None, None))
            return
        facts = {
            "hashes": seen.hashes,
            "brightness": seen.brightness,
            "motion": seen.motion,
            "size": seen.picture_size,
        }
        self._put("looks", (key, content, json.dumps(facts), seen.cells, seen.picture))

    def strip(self, content: str, clip: Clip) -> Strip | None:
        """The pictures of a clip, if they were made."""
        row = self._row("strips", _clip_key(content, clip))
        if row is None:
            return None
        facts = json.loads(row[2])
        return Strip(row[3], tuple(facts["frame_size"]), facts["num_frames"], row[4], tuple(facts["source_size"]))

    def put_strip(self, content: str, clip: Clip, strip: Strip) -> None:
        """Remember the pictures of a clip."""
        facts = {
            "frame_size": strip.frame_size,
            "num_frames": strip.num_frames,
            "source_size": strip.source_size,
        }
        self._put("strips", (_clip_key(content, clip), content, json.dumps(facts), strip.frames, strip.source))

    def keep_only(self, contents: Collection[str]) -> None:
        """Forget what belongs to other files."""
        self._write()
        kept = set(contents)
        for table in ("looks", "strips"):
            known = {row[0] for row in self._database.execute(f"SELECT DISTINCT content FROM {table}")}
            gone = [(content,) for content in known - kept]
            if gone:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.executemany(f"DELETE FROM {table} WHERE content = ?", gone)
                self._database.execute("COMMIT")

    def _row(self, table: str, key: str) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._database.execute(
            f"SELECT * FROM {table} WHERE key = ?", (key,)
        ).fetchone()
        return found

    def _put(self, table: str, values: tuple[Any, ...]) -> None:
        self._unwritten.append((table, values))
        if time.monotonic() - self._written_at >= WRITE_SECONDS:
            self._write()

    def _write(self) -> None:
        if self._unwritten:
            self._database.execute("BEGIN IMMEDIATE")
            for table, values in self._unwritten:
                self._database.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?)", values)
            self._database.execute("COMMIT")
        self._unwritten = []
        self._written_at = time.monotonic()


def _look_key(content: str, grid: Grid) -> str:
    return json.dumps([content, *astuple(grid)])


def _clip_key(content: str, clip: Clip) -> str:
    return json.dumps([content, *astuple(clip)])
