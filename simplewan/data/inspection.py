"""Looking into files: what they hold, their digests, scene cuts and faces. Each file once; the index remembers.

Imports events and this room; no torch. Files are opened by a few threads (PyAV and hashing release the interpreter's
lock), more where a place answers slowly; the index is written by one.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from simplewan.data.backends import Backend, Entry, Source
from simplewan.data.faces import find_face
from simplewan.data.index import Index
from simplewan.data.media import MediaError, MediaInfo, decode_frames, probe
from simplewan.data.scenes import find_cuts
from simplewan.events import Emit, Progress

Result = TypeVar("Result")

MAX_WORKERS = 8
READ_BYTES = 1 << 20
TELL_SECONDS = 0.1


@dataclass(frozen=True)
class Inspector:
    """Answers from the index where it can, else from the files, a few at a time, telling how far it is."""

    dataset: str
    backend: Backend
    index: Index
    emit: Emit
    check: Callable[[], None]

    def media(self, entries: Sequence[Entry]) -> dict[str, MediaInfo | str]:
        """What each file holds, or the reason why it cannot be used, by path."""
        found = {entry.path: self.index.media(entry.path) for entry in entries}
        for entry, result in self._work(entries, found, self._probe, "Reading"):
            if not isinstance(result, MediaError):
                self.index.put_media(entry.path, result)
            elif result.lasting:
                self.index.put_media(entry.path, result.reason)
            else:
                found[entry.path] = result.reason
                continue
            found[entry.path] = self.index.media(entry.path)  # as the next scan will read it
        return {path: result for path, result in found.items() if result is not None}

    def digests(self, entries: Sequence[Entry]) -> dict[str, str]:
        """What names each file's bytes; of those that cannot be read there is none."""
        found = {entry.path: self.backend.identity(entry) or self.index.digest(entry.path) for entry in entries}
        for entry, result in self._work(entries, found, self._digest, "Hashing"):
            found[entry.path] = result
            if result is not None:
                self.index.put_digest(entry.path, result)
        return {path: result for path, result in found.items() if result is not None}

    def contents(self, entries: Sequence[Entry]) -> dict[str, bytes | str]:
        """The bytes of each (small) file, or the reason why it cannot be read."""
        found: dict[str, bytes | str | None] = {entry.path: self.index.content(entry.path) for entry in entries}
        for entry, result in self._work(entries, found, self._read, "Reading captions of"):
            found[entry.path] = result
            if isinstance(result, bytes):
                self.index.put_content(entry.path, result)
        return {path: result for path, result in found.items() if result is not None}

    def cuts(self, entries: Sequence[Entry]) -> dict[str, tuple[float, ...] | str]:
        """Seconds at which new scenes begin, or the reason why a file does not decode."""
        found: dict[str, tuple[float, ...] | str | None] = {e.path: self.index.cuts(e.path) for e in entries}
        for entry, result in self._work(entries, found, self._cuts, "Finding scenes of"):
            found[entry.path] = result.reason if isinstance(result, MediaError) else result
            if not isinstance(result, MediaError):
                self.index.put_cuts(entry.path, result)
        return {path: result for path, result in found.items() if result is not None}

    def faces(self, entries: Sequence[Entry]) -> dict[str, tuple[float, float] | None]:
        """Where the largest face of each file's middle frame is, (x, y) in 0..1; None where there is none."""
        found = {entry.path: self.index.face(entry.path) for entry in entries}
        for entry, result in self._work(entries, found, self._face, "Finding faces in"):
            self.index.put_face(entry.path, result)
            found[entry.path] = result or ()
        return {path: result or None for path, result in found.items()}

    def _probe(self, entry: Entry) -> MediaInfo | MediaError:
        try:
            return probe(Source(self.backend, entry.path))
        except MediaError as error:
            return error

    def _digest(self, entry: Entry) -> str | None:
        digest = hashlib.sha256()
        try:
            with self.backend.open(entry.path) as file:
                while block := file.read(READ_BYTES):
                    digest.update(block)
        except OSError:
            return None
        return digest.hexdigest()

    def _read(self, entry: Entry) -> bytes | str:
        try:
            return self.backend.read(entry.path)
        except OSError as error:
            return error.strerror or str(error)

    def _cuts(self, entry: Entry) -> tuple[float, ...] | MediaError:
        try:
            return find_cuts(Source(self.backend, entry.path))
        except MediaError as error:
            return error

    def _face(self, entry: Entry) -> tuple[float, float] | None:
        info = self.index.media(entry.path)
        assert isinstance(info, MediaInfo), "only files that decode are looked at"
        try:
            middle = info.times[len(info.times) // 2]
            frames = decode_frames(Source(self.backend, entry.path), num_frames=1, start_seconds=middle)
        except MediaError:
            return None  # the encoder meets the same damage, and reports it
        return find_face(frames[0])

    def _work(
        self, entries: Sequence[Entry], found: dict[str, object], do: Callable[[Entry], Result], verb: str
    ) -> Iterator[tuple[Entry, Result]]:
        """`do` for every entry of which nothing is found yet, a few at a time, in order."""
        entries = [entry for entry in entries if found[entry.path] is None]
        if not entries:
            return
        label = f"{verb} {self.dataset}"
        local = self.backend.local_path(entries[0].path) is not None
        workers = min(MAX_WORKERS, (os.cpu_count() or 1) if local else MAX_WORKERS, len(entries))
        pool = ThreadPoolExecutor(workers)
        # Reading a small local file takes less time than handing it to a thread.
        results = map(do, entries) if local and do == self._read else pool.map(do, entries)
        told = time.monotonic()
        try:
            for count, (entry, result) in enumerate(zip(entries, results, strict=True), start=1):
                yield entry, result
                if count == len(entries) or time.monotonic() - told >= TELL_SECONDS:
                    told = time.monotonic()
                    self.emit(Progress("scan", label, count, len(entries), "files"))
                self.check()
        finally:
            pool.shutdown(cancel_futures=True)
