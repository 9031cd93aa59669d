"""Where shards lie: what a store needs of such a place, and the place that is a folder.

Imports this room, errors, the data room's entry of a file, and fcntl. That a folder is in use is a shared lock on the
folder itself, held as long as its shelf lives: nothing is written for it, the system drops it however a process ends,
and housekeeping asks for it alone. Where the system cannot lock a folder (NFS), nobody can tell, and it says so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from simplewan.caches.owners import remove_leftovers
from simplewan.caches.shards import (
    DAMAGED,
    TEMPORARY,
    Record,
    ShardError,
    Stored,
    is_damaged_shard,
    is_shard,
    read_header,
    shard_name,
    write_shard,
)
from simplewan.data.atomic import sync
from simplewan.data.backends.base import Entry
from simplewan.errors import Problem, UserError

Header = list[Record] | ShardError | None  # None: the shard has just gone
PATIENCE_SECONDS = 30.0
ELSEWHERE = "put the caches elsewhere with cache_dir or cache_dir_vae"
STAYS = "what is written stays, and the next start goes on from there"
REFUSALS = {
    errno.ENOSPC: ("cannot be written: the disk is full", f"free some room, or {ELSEWHERE}; {STAYS}"),
    errno.EDQUOT: ("cannot be written: your quota is used up", f"free some room, or {ELSEWHERE}; {STAYS}"),
    errno.EFBIG: ("cannot be written: files of this size are not allowed", f"raise ulimit -f, or {ELSEWHERE}; {STAYS}"),
    errno.EROFS: ("cannot be written: it is on a read-only disk", f"{ELSEWHERE}; {STAYS}"),
    errno.EACCES: ("may not be written or read", f"ask for the right to write there, or {ELSEWHERE}; {STAYS}"),
    errno.EPERM: ("may not be written or read", f"ask for the right to write there, or {ELSEWHERE}; {STAYS}"),
    errno.ENOTDIR: ("is no folder", ELSEWHERE),
    errno.EEXIST: ("is no folder", ELSEWHERE),
}


class Shelf(Protocol):
    """A place that holds shards. A put is all or nothing; several processes may use one place at once."""

    @property
    def place(self) -> str:
        """The place in words: "/data/cache", "s3://bucket/cache"."""
        ...

    @property
    def folder(self) -> Path:
        """The folder on this machine: the place itself, or its mirror."""
        ...

    @property
    def is_mirror(self) -> bool:
        """Whether `folder` holds copies, which may go at any time."""
        ...

    @property
    def removed_leftovers(self) -> list[str]:
        """Names of temporary files that nobody owned when the shelf was opened; they are gone."""
        ...

    def shards(self) -> dict[str, Entry]:
        """The shards that are there, by name."""
        ...

    def damaged(self) -> dict[str, Entry]:
        """The shards that were set aside, by name."""
        ...

    def headers(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Header]]:
        """The records of each, or why they cannot be read."""
        ...

    def fetch(self, entry: Entry) -> Path:
        """Bring the whole shard to this machine, and say where. FileNotFoundError when it went or changed."""
        ...

    def local(self, entry: Entry) -> Path | None:
        """Where it lies on this machine; None where it would have to be fetched. A sign of use."""
        ...

    def prefetch(self, entry: Entry) -> None:
        """Begin to fetch a shard that is not on this machine, in the background; a hint."""
        ...

    def drop_copy(self, entry: Entry) -> bool:
        """Forget this machine's copy of a shard that lies elsewhere; False where there is none but the shard itself."""
        ...

    def put(self, records: Mapping[str, Stored]) -> Entry:
        """Write the records as one shard. Raises UserError, or OSError, when the place does not take it."""
        ...

    def settle(self) -> None:
        """Put what an earlier attempt, of this process or of one that is gone, could not put."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove shards, also those that were set aside; one that is not there is no error."""
        ...

    def set_aside(self, name: str) -> None:
        """Rename a shard to `NAME.damaged`; one that is not there is no error."""
        ...

    def others(self) -> bool:
        """Whether somebody else uses the place now; True where nobody can tell."""
        ...

    @contextmanager
    def alone(self, *, unguarded: bool = False) -> Iterator[None]:
        """While the block runs nobody else begins to use the place.

        Raises UserError when somebody does, or when nobody can tell; `unguarded` takes the caller's word instead.
        """
        ...


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the user can mend (a full disk, a folder that may not be written) into a UserError that says how."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        message, fix = REFUSALS[error.errno]
        raise UserError(Problem(f"cache folder {folder}", message, fix=fix)) from error


class FolderShelf:
    """A folder on this machine, or one that is mounted; it is made when it is missing.

    Raises UserError when that cannot be done, or when another process is tidying up there for too long.
    """

    is_mirror = False

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.folder, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self._hold()
        self.removed_leftovers = remove_leftovers(self.folder, TEMPORARY)

    @property
    def place(self) -> str:
        return str(self.folder)

    def shards(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self._entries() if is_shard(entry.path)}

    def damaged(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self._entries() if is_damaged_shard(entry.path)}

    def headers(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Header]]:
        for entry in entries:
            yield entry, header_of(self.folder / entry.path)

    def fetch(self, entry: Entry) -> Path:
        return self.folder / entry.path

    def local(self, entry: Entry) -> Path | None:
        return self.folder / entry.path

    def prefetch(self, entry: Entry) -> None:
        pass

    def drop_copy(self, entry: Entry) -> bool:
        return False

    def put(self, records: Mapping[str, Stored]) -> Entry:
        target = self.folder / shard_name(records)
        with writing(self.folder):
            write_shard(target, records)
        status = target.stat()
        return Entry(target.name, status.st_size, status.st_mtime_ns)

    def settle(self) -> None:
        pass

    def remove(self, names: Iterable[str]) -> None:
        with writing(self.folder):
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
            sync(self.folder)

    def set_aside(self, name: str) -> None:
        with writing(self.folder):
            try:
                (self.folder / name).replace(self.folder / f"{name}{DAMAGED}")
            except FileNotFoundError:  # another process was first
                return

    def others(self) -> bool:
        refusal = self._lock(fcntl.LOCK_EX)
        self._hold()
        return refusal is not None

    @contextmanager
    def alone(self, *, unguarded: bool = False) -> Iterator[None]:
        refusal = self._lock(fcntl.LOCK_EX)
        try:
            if refusal is not None and not unguarded:
                raise UserError(in_use(self.place, refusal))
            yield
        finally:
            self._hold()

    def _hold(self) -> None:
        """Say that the folder is in use; also after asking for it alone, which may have cost the lock that was held."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while isinstance(self._lock(fcntl.LOCK_SH), BlockingIOError):
            if time.monotonic() > deadline:
                fix = "wait until it is done, then start again"
                raise UserError(Problem(f"cache folder {self.folder}", "another process is tidying up there", fix=fix))
            time.sleep(0.1)

    def _lock(self, kind: int) -> OSError | None:
        """Take the lock if that can be done at once, or say why not."""
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            return error
        return None

    def _entries(self) -> Iterator[Entry]:
        with os.scandir(self.folder) as found:
            for item in found:
                try:
                    status = item.stat()
                except FileNotFoundError:  # removed since it was listed
                    continue
                yield Entry(item.name, status.st_size, status.st_mtime_ns)


def header_of(path: Path) -> Header:
    """The records of a shard on this machine, or why they cannot be read."""
    try:
        return read_header(path)
    except ShardError as error:
        return error
    except FileNotFoundError:
        return None


def in_use(place: str, refusal: OSError | None) -> Problem:
    """Why a place is not tidied up: it is in use, or (no `BlockingIOError`) nobody can tell."""
    if isinstance(refusal, BlockingIOError):
        return Problem(f"cache {place}", "is in use", fix="wait until that is done or stop it, then try again")
    message = "cannot tell whether other processes use it"
    return Problem(f"cache {place}", message, fix="make sure that none does, then force it")
