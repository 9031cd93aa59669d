"""Scanning a dataset: from its folder to samples, dropped files with their reasons, and announcements.

Imports errors, events, flavours, options for their types alone, and this room; no torch. Files are probed and hashed by
a few threads (PyAV and hashing release the interpreter's lock); the index is written by one.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from simplewan.data.backends import Backend, Entry, Source
from simplewan.data.backends.opening import open_backend
from simplewan.data.captions import CaptionError, caption_files, missing_caption, parse_captions, stem
from simplewan.data.index import Index
from simplewan.data.media import MediaError, MediaInfo, is_media_name, probe
from simplewan.data.notices import make_notices
from simplewan.data.rules import Fitted, Rules, fit, make_rules
from simplewan.data.samples import Dropped, Sample, Scan
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Progress
from simplewan.flavours import Flavour

if TYPE_CHECKING:
    from simplewan.options.datasets import DatasetOptions

Result = TypeVar("Result")

MAX_WORKERS = 8
READ_BYTES = 1 << 20


def scan(
    dataset: DatasetOptions, *, flavour: Flavour, index_folder: Path, emit: Emit, check: Callable[[], None]
) -> Scan:
    """The samples of a dataset. Files that did not change since the last scan are not opened.

    Raises UserError when the folder is missing or the index cannot be used. Whatever `check` raises passes through;
    what was found until then is kept in the index.
    """
    backend = open_backend(dataset, cache=index_folder, emit=emit, check=check)
    rules = make_rules(dataset, flavour)
    try:
        with Index(index_folder, dataset=dataset.id, root=backend.root) as index:
            return _Scanner(dataset, backend, index, emit, check).run(rules)
    except sqlite3.OperationalError as error:
        raise UserError(
            Problem(
                f'dataset "{dataset.id}"',
                f"the index of its files in {index_folder} cannot be used: {error}",
                fix="is another run scanning the same dataset, or the disk full or read-only?",
            )
        ) from None


@dataclass(frozen=True)
class _Scanner:
    """One scan: what it reads, what it remembers, whom it tells."""

    dataset: DatasetOptions
    backend: Backend
    index: Index
    emit: Emit
    check: Callable[[], None]

    def run(self, rules: Rules) -> Scan:
        listed = self._list()
        entries = [entry for entry in listed if _is_text(entry.path)]
        media = [entry for entry in entries if is_media_name(entry.path)]
        self.index.keep_only(entry.path for entry in entries)
        dropped = [_odd_name(entry.path) for entry in listed if not _is_text(entry.path) and is_media_name(entry.path)]
        fitted: list[tuple[Entry, Fitted]] = []
        for entry, info in zip(media, self._probe_all(media), strict=True):
            found = Dropped(entry.path, info, "broken file") if isinstance(info, str) else fit(entry.path, info, rules)
            dropped.append(found) if isinstance(found, Dropped) else fitted.append((entry, found))
        captioned, without = self._captions([entry for entry, _ in fitted], caption_files(entries))
        dropped += without
        fitted = [(entry, found) for entry, found in fitted if entry.path in captioned]
        digests = self._digest_all([entry for entry, _ in fitted])
        samples = []
        for (entry, found), digest in zip(fitted, digests, strict=True):
            if digest is None:
                dropped.append(Dropped(entry.path, "cannot be read to its end", "broken file"))
            else:
                samples.append(self._sample(entry, found, digest, captioned[entry.path]))
        names = {sample.name for sample in samples}
        kept = {entry.path: found for entry, found in fitted if entry.path in names}
        return Scan(
            samples=tuple(sorted(samples, key=lambda sample: sample.id)),
            dropped=tuple(sorted(dropped, key=lambda item: item.name)),
            notices=make_notices(self.dataset, rules, kept, [entry.path for entry in entries]),
            dataset=self.dataset.id,
            folder=str(self.dataset.instance_data_dir),
        )

    def _list(self) -> list[Entry]:
        try:
            return list(self.backend.list())
        except OSError as error:
            raise UserError(
                Problem(
                    f'dataset "{self.dataset.id}"',
                    f"{error.filename} cannot be read: {error.strerror}",
                    fix="make it readable, or move it out of the dataset's folder",
                )
            ) from None

    def _sample(self, entry: Entry, found: Fitted, digest: str, captions: tuple[str, ...]) -> Sample:
        return Sample(
            id=f"{self.dataset.id}/{entry.path}",
            dataset=self.dataset.id,
            source=Source(self.backend, entry.path),
            content=digest,
            captions=captions,
            clip=found.clip,
        )

    def _probe_all(self, media: Sequence[Entry]) -> list[MediaInfo | str]:
        """What each file holds, or the reason why it cannot be used."""
        known = [self.index.media(entry) for entry in media]
        new = [entry for entry, found in zip(media, known, strict=True) if found is None]
        results: dict[str, MediaInfo | str] = {}
        for entry, found in self._work(new, self._probe, "Reading"):
            results[entry.path] = found.reason if isinstance(found, MediaError) else found
            if not isinstance(found, MediaError):
                self.index.put_media(entry, found)
            elif found.lasting:
                self.index.put_media(entry, found.reason)
        return [results[entry.path] if found is None else found for entry, found in zip(media, known, strict=True)]

    def _probe(self, entry: Entry) -> MediaInfo | MediaError:
        path = self.backend.local_path(entry.path)
        assert path is not None, "only local files are scanned"
        try:
            return probe(path)
        except MediaError as error:
            return error

    def _digest_all(self, media: Sequence[Entry]) -> list[str | None]:
        """SHA-256 of each file's bytes; None where it cannot be read."""
        known = {entry.path: self.index.digest(entry) for entry in media}
        for entry, digest in self._work(
            [entry for entry in media if known[entry.path] is None], self._digest, "Hashing"
        ):
            known[entry.path] = digest
            if digest is not None:
                self.index.put_digest(entry, digest)
        return [known[entry.path] for entry in media]

    def _digest(self, entry: Entry) -> str | None:
        digest = hashlib.sha256()
        try:
            with self.backend.open(entry.path) as file:
                while block := file.read(READ_BYTES):
                    digest.update(block)
        except OSError:
            return None
        return digest.hexdigest()

    def _captions(
        self, media: Sequence[Entry], files: dict[str, Entry]
    ) -> tuple[dict[str, tuple[str, ...]], list[Dropped]]:
        captions: dict[str, tuple[str, ...]] = {}
        dropped = []
        for entry in media:
            self.check()
            try:
                file = files.get(stem(entry.path))
                if file is None:
                    raise missing_caption(entry.path, files)
                captions[entry.path] = parse_captions(self._caption_bytes(file), Path(file.path).name)
            except CaptionError as error:
                dropped.append(Dropped(entry.path, str(error), error.kind))
        return captions, dropped

    def _caption_bytes(self, file: Entry) -> bytes:
        content = self.index.captions(file)
        if content is None:
            try:
                content = self.backend.read(file.path)
            except OSError as error:
                raise CaptionError(
                    "broken caption", f"its caption {file.path} cannot be read: {error.strerror}"
                ) from None
            self.index.put_captions(file, content)
        return content

    def _work(
        self, entries: Sequence[Entry], do: Callable[[Entry], Result], verb: str
    ) -> Iterator[tuple[Entry, Result]]:
        """`do` for every entry, a few at a time, in order; tells how far it came."""
        if not entries:
            return
        label = f"{verb} {self.dataset.id}"
        pool = ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1, len(entries)))
        try:
            for count, (entry, result) in enumerate(zip(entries, pool.map(do, entries), strict=True), start=1):
                yield entry, result
                self.emit(Progress("scan", label, count, len(entries), "files"))
                self.check()
        finally:
            pool.shutdown(cancel_futures=True)


def _is_text(name: str) -> bool:
    """Whether a file's name is valid text (names from other systems may hold stray bytes)."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _odd_name(path: str) -> Dropped:
    name = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return Dropped(name, "its name is not valid UTF-8; rename it", "unreadable name")
