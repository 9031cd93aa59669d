"""Shards in a place elsewhere (S3 ...), with a folder on this machine that mirrors those in use.

Imports this room, errors and the protocol of places. One put per shard, whole or not at all; listing and headers come
from the place, whole shards only when a record of them is needed. What could not be put waits in the mirror's folder
and is put by the next start. The trade-offs: a shard is fetched whole, because its records are needed one after the
other anyway; and nobody can tell who else uses the place, so tidying up there needs the user's word.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from simplewan.caches.owners import TAG, in_use, is_own, owner_tag, remove_leftovers
from simplewan.caches.shards import (
    DAMAGED,
    PREFIX,
    SUFFIX,
    TEMPORARY,
    Record,
    ShardError,
    Stored,
    is_damaged_shard,
    is_shard,
    parse_header,
    read_header,
    shard_name,
    temporary_beside,
    write_shard,
)
from simplewan.caches.shelves import Header, writing
from simplewan.caches.shelves import in_use as in_use_problem
from simplewan.data.backends.base import Entry, WritableBackend
from simplewan.errors import UserError

MIRROR_BYTES = 50 * 2**30
ATTEMPTS = 6
FIRST_DELAY_SECONDS = 1.0  # 1 + 2 + 4 + 8 + 16 seconds between six attempts
CHUNK_BYTES = 4 * 2**20
HEADER_THREADS = 16
PREFETCH_THREADS = 4
MOST_PREFETCHES = 8
STALLED_SECONDS = 10.0
WAITING = re.compile(rf"^(?P<stem>{PREFIX}[0-9a-f]+)\.waiting-{TAG}")

T = TypeVar("T")


class PlaceError(OSError):
    """A place elsewhere did not do what was asked, again and again. The text is for people and names the place."""

    def __init__(self, place: str, text: str) -> None:
        super().__init__(errno.EIO, f"{place}: {text}")
        self.place = place

    def __str__(self) -> str:
        return str(self.strerror)


class RemoteShelf:
    """The shards at the root of `backend`, mirrored below `mirror`. Threads and processes may share both.

    `mirror` may serve many places: together they keep at most `mirror_bytes` there (the shard fetched last stays in any
    case), those used longest ago being removed. What fails is tried `attempts` times, the pauses doubling from
    `first_delay_seconds`; then `PlaceError`. Raises UserError when the mirror's folder cannot be written.
    """

    is_mirror = True

    def __init__(
        self,
        backend: WritableBackend,
        mirror: Path | str,
        *,
        mirror_bytes: int = MIRROR_BYTES,
        attempts: int = ATTEMPTS,
        first_delay_seconds: float = FIRST_DELAY_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._backend = backend
        self._mirror = Path(mirror)
        self.folder = self._mirror / hashlib.sha256(backend.root.encode()).hexdigest()[:16]
        self._make_folder()
        self.removed_leftovers = remove_leftovers(self.folder, TEMPORARY)
        self._mirror_bytes = mirror_bytes
        self._attempts = attempts
        self._first_delay_seconds = first_delay_seconds
        self._sleep = sleep
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._guard = threading.Lock()
        self._prefetching: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None

    @property
    def place(self) -> str:
        return self._backend.root

    def shards(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self._list() if is_shard(entry.path)}

    def damaged(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self._list() if is_damaged_shard(entry.path)}

    def headers(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, Header]]:
        """Some at once, because each costs a journey; only headers travel."""
        entries = list(entries)
        if entries:
            with ThreadPoolExecutor(min(HEADER_THREADS, len(entries))) as pool:
                yield from zip(entries, pool.map(self._header, entries), strict=True)

    def fetch(self, entry: Entry) -> Path:
        target = self._mirrored(entry)
        with self._guard:
            turn = self._turns[target.name]
        with turn:
            while not target.exists() and self._others_fetch(target):
                time.sleep(0.1)
            if not target.exists():
                self._patiently(f"reading {entry.path}", lambda: self._download(entry, target))
                self._make_room(target)
        return target

    def local(self, entry: Entry) -> Path | None:
        path = self._mirrored(entry)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def prefetch(self, entry: Entry) -> None:
        with self._guard:
            if entry.path in self._prefetching or len(self._prefetching) >= MOST_PREFETCHES:
                return
            self._prefetching.add(entry.path)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(PREFETCH_THREADS, thread_name_prefix="prefetch")
            self._pool.submit(self._prefetch, entry)

    def drop_copy(self, entry: Entry) -> bool:
        self._mirrored(entry).unlink(missing_ok=True)
        return True

    def put(self, records: Mapping[str, Stored]) -> Entry:
        """Written into the mirror first, so that nothing is lost when the place does not take it."""
        name = shard_name(records)
        waiting = self.folder / f"{name.removesuffix(SUFFIX)}.waiting-{owner_tag()}"
        self._make_folder()
        with writing(self.folder):
            write_shard(waiting, records)
        return self._upload(waiting, name)

    def settle(self) -> None:
        for path in sorted(self.folder.glob(f"{PREFIX}*.waiting-*")):
            match = WAITING.match(path.name)
            if match is None or (in_use(path, match) and not is_own(match)):
                continue
            with suppress(FileNotFoundError):  # another process was first
                self._upload(path, f"{match['stem']}{SUFFIX}")

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            self._patiently(f"deleting {name}", partial(self._backend.delete, name))

    def set_aside(self, name: str) -> None:
        """Copied and deleted, because a place may have no renaming."""
        copy = temporary_beside(self.folder / name)
        try:
            self._patiently(f"reading {name}", lambda: self._copy(name, copy))
            self._patiently(f"writing {name}{DAMAGED}", lambda: self._backend.write(f"{name}{DAMAGED}", copy))
            self.remove([name])
        except FileNotFoundError:  # another process was first
            return
        finally:
            copy.unlink(missing_ok=True)

    def others(self) -> bool:
        return True

    @contextmanager
    def alone(self, *, unguarded: bool = False) -> Iterator[None]:
        if not unguarded:
            raise UserError(in_use_problem(self.place, None))
        yield

    def _make_folder(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def _list(self) -> list[Entry]:
        """What lies at the root itself; nothing, when the place was never written to."""
        try:
            found = self._patiently("listing it", lambda: list(self._backend.list()))
        except FileNotFoundError:
            return []
        return [entry for entry in found if "/" not in entry.path]

    def _header(self, entry: Entry) -> Header:
        copy = self._mirrored(entry)
        if copy.exists():
            with suppress(ShardError, FileNotFoundError), copy.open("rb") as file:
                return _parse(file, entry)
        try:
            return self._patiently(f"reading {entry.path}", lambda: self._remote_header(entry))
        except ShardError as error:
            return error
        except FileNotFoundError:
            return None

    def _remote_header(self, entry: Entry) -> list[Record]:
        """Read twice before it is called damaged: an answer may have been cut short."""
        with suppress(ShardError), self._backend.open(entry.path) as stream:
            return _parse(stream, entry)
        with self._backend.open(entry.path) as stream:
            return _parse(stream, entry)

    def _download(self, entry: Entry, target: Path) -> None:
        temporary = temporary_beside(target)
        try:
            self._make_folder()
            self._copy(entry.path, temporary)
            if self._backend.stat(entry.path).stamp != entry.stamp:
                raise FileNotFoundError(errno.ENOENT, "it changed", entry.path)
            try:
                read_header(temporary)
            except ShardError as error:
                raise OSError(errno.EIO, f"it came incomplete ({error})") from error
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _copy(self, name: str, target: Path) -> None:
        """Bring the bytes of a file here; what this disk refuses is no failure of the place."""
        with self._backend.open(name) as source:
            with writing(self.folder):
                file = target.open("wb")
            with file:
                while chunk := source.read(CHUNK_BYTES):
                    with writing(self.folder):
                        file.write(chunk)
                with writing(self.folder):
                    file.flush()
                    os.fsync(file.fileno())

    def _upload(self, waiting: Path, name: str) -> Entry:
        try:
            self._patiently(f"writing {name}", lambda: self._backend.write(name, waiting), kept=True)
        except FileNotFoundError as error:
            if not waiting.exists():
                raise
            raise PlaceError(self.place, f"writing {name} failed: there is no such place") from error
        entry = self._patiently(f"looking at {name}", lambda: self._backend.stat(name), kept=True)
        target = self._mirrored(entry)
        with suppress(FileNotFoundError):  # another part of this process settled it meanwhile
            waiting.replace(target)
        self._make_room(target)
        return entry

    def _prefetch(self, entry: Entry) -> None:
        try:
            self.fetch(entry)
        except (OSError, UserError):  # whoever needs the shard meets it again, and says so
            return
        finally:
            with self._guard:
                self._prefetching.discard(entry.path)

    def _patiently(self, doing: str, action: Callable[[], T], *, kept: bool = False) -> T:
        """Do it again and again; `kept` says that what was to be put waits in the mirror meanwhile."""
        attempt = 1
        while True:
            try:
                return action()
            except FileNotFoundError:
                raise
            except OSError as error:
                if attempt == self._attempts or isinstance(error, PermissionError):
                    times = "" if attempt == 1 else f" {attempt} times"
                    later = f"; it is kept in {self.folder} and is put by the next start" if kept else ""
                    reason = error.strerror or str(error) or type(error).__name__
                    raise PlaceError(self.place, f"{doing} failed{times}: {reason}{later}") from error
            self._sleep(self._first_delay_seconds * 2 ** (attempt - 1))
            attempt += 1

    def _mirrored(self, entry: Entry) -> Path:
        """The name of the copy; a shard that changed is another one."""
        stamp = hashlib.sha256(repr(entry.stamp).encode()).hexdigest()[:16]
        return self.folder / f"{entry.path.removesuffix(SUFFIX)}.{stamp}{SUFFIX}"

    def _others_fetch(self, target: Path) -> bool:
        """Whether another process is bringing this shard here: a temporary file of it grew a moment ago."""
        for path in self.folder.glob(f".{target.name.removesuffix(SUFFIX)}.tmp-*"):
            try:
                if time.time() - path.stat().st_mtime < STALLED_SECONDS:
                    return True
            except FileNotFoundError:
                continue
        return False

    def _make_room(self, newest: Path) -> None:
        """Remove the copies used longest ago; on Linux what is mapped stays readable until it is let go."""
        found = []
        for path in self._mirror.glob(f"*/{PREFIX}*{SUFFIX}"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _used_ns, size, _path in found)
        for _used_ns, size, path in sorted(found):
            if total <= self._mirror_bytes:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                total -= size


def _parse(file: BinaryIO, entry: Entry) -> list[Record]:
    written_ns = entry.stamp if isinstance(entry.stamp, int) else 0
    return parse_header(file, shard=entry.path, size=entry.size, written_ns=written_ns)
