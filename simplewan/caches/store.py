"""Records by key over a shelf of shards, read through mmap: which are there, their tensors, what they were made from.

Imports this room, errors, torch and safetensors. Several processes may write to one shelf at once: shards appear
complete or not at all, and `refresh` finds what others wrote. A damaged shard is reported in `damaged` and otherwise as
if it were not there. Headers are read once (about 50 microseconds a shard in a folder); at most `max_open` shards are
mapped at a time. A store may hold plain and packed records; only those that are plain are views.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from simplewan.caches.packing import PackingError, unpack
from simplewan.caches.shards import Origin, Record, ShardError, Stored, to_store
from simplewan.caches.shelves import FolderShelf, Shelf
from simplewan.data.backends.base import Entry
from simplewan.errors import Problem, UserError

LOOKS = 8  # each fails only if a shard goes between being found and being mapped


@dataclass(frozen=True)
class Shard:
    """A shard that is there, and its records."""

    entry: Entry
    records: Sequence[Record]


@dataclass(frozen=True)
class _Mapped:
    handle: Any
    descriptor: int
    path: Path


class Store:
    """Records by key over a shelf (or a folder, which is made when it is missing); `compress` packs what is put.

    Threads may share a store. A tensor that was handed out stays valid after its shard is closed. Raises UserError when
    the folder cannot be made, and `PlaceError` (an OSError) when a place elsewhere does not answer.
    """

    def __init__(self, shelf: Shelf | Path | str, *, compress: bool = False, max_open: int = 128) -> None:
        self.shelf: Shelf = FolderShelf(shelf) if isinstance(shelf, (str, Path)) else shelf
        self.damaged: dict[str, str] = {}
        self._compress = compress
        self._max_open = max_open
        self._shards: dict[str, Shard] = {}
        self._records: dict[str, Record] = {}
        self._newest: dict[str, Record] = {}
        self._lost: dict[str, Record] = {}
        self._open: OrderedDict[str, _Mapped] = OrderedDict()
        self._lock = threading.RLock()
        self.refresh()

    @property
    def place(self) -> str:
        """Where the shards are, in words."""
        return self.shelf.place

    @property
    def folder(self) -> Path:
        """The folder on this machine: the place of the shards, or its mirror."""
        return self.shelf.folder

    @property
    def removed_leftovers(self) -> list[str]:
        """The names of leftovers of killed processes that were removed when the shelf was opened."""
        return self.shelf.removed_leftovers

    def refresh(self) -> bool:
        """Read the headers of shards that appeared or changed since the last look; whether there were any, or less."""
        with self._lock:
            found = self.shelf.shards()
            lost = [name for name, shard in self._shards.items() if name not in found or _changed(found[name], shard)]
            for name in lost:
                del self._shards[name]
                self._close(name)
            if lost:
                known = self._records
                self._index_anew()
                self._lost.update((key, known[key]) for key in known.keys() - self._records)
            known_damage, self.damaged = self.damaged, {}
            for entry, header in self.shelf.headers(_by_age(found[name] for name in found.keys() - self._shards)):
                if isinstance(header, ShardError):
                    self.damaged[entry.path] = str(header)
                elif header is not None:
                    self._add(Shard(entry, header))
                    lost.append(entry.path)
            return bool(lost) or self.damaged != known_damage

    def keys(self) -> set[str]:
        """The keys of all readable records."""
        with self._lock:
            return set(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __len__(self) -> int:
        return len(self._records)

    def shards(self) -> dict[str, Shard]:
        """The readable shards by name, as of the last look."""
        with self._lock:
            return dict(self._shards)

    def record(self, key: str) -> Record:
        """Where the record lies and what it was made from. KeyError when it is not there."""
        return self._records[key]

    def newest(self, name: str) -> Record | None:
        """The record written last for an item of this name, whatever its components.

        Any of them where the place does not tell when its files were written.
        """
        return self._newest.get(name)

    def get(self, key: str) -> torch.Tensor:
        """The tensor of a record on the CPU: a view of the mapped file, not copied, unless it is packed.

        KeyError when it is not there, `ShardError` when its bytes are damaged, UserError when somebody removed it.
        """
        record, stored = self._read(key)
        if record.packing is None:
            return stored
        try:
            return unpack(stored, record.packing)
        except PackingError as error:
            raise ShardError(f"{record.shard} in {self.place}: {', '.join(record.names)}: {error}") from error

    def get_many(self, keys: Sequence[str]) -> list[torch.Tensor]:
        """The tensors in the order of `keys`, like `get`, after asking the system to read them all ahead."""
        self.will_need(keys)
        return [self.get(key) for key in keys]

    def will_need(self, keys: Iterable[str]) -> None:
        """Ask the system to start reading these records, whole: page faults would fetch them in small pieces.

        Shards that are elsewhere begin to be fetched. KeyError for a record that is not there.
        """
        with self._lock:
            for record in [self._records[key] for key in keys]:
                shard = self._shards[record.shard]
                path = self.shelf.local(shard.entry)
                if path is None:
                    self.shelf.prefetch(shard.entry)
                elif hasattr(os, "posix_fadvise"):
                    try:
                        descriptor = self._map(record.shard, path).descriptor
                    except FileNotFoundError:  # `get` will see to it
                        continue
                    os.posix_fadvise(descriptor, record.start, record.num_bytes, os.POSIX_FADV_WILLNEED)

    def put(self, records: Mapping[str, tuple[torch.Tensor, Origin]]) -> None:
        """Write the records as one shard, atomically; origins are `{"names": [...], "components": {...}}`.

        Raises UserError when the disk does not take it, and OSError, as PlaceError, for a place elsewhere.
        """
        if records:
            self.put_stored(
                {
                    key: to_store(tensor, origin, compress=self._compress)
                    for key, (tensor, origin) in sorted(records.items())
                }
            )

    def stored(self, key: str) -> Stored:
        """A record as it stands in its file, to be put elsewhere by `put_stored`; raises what `get` does."""
        record, stored = self._read(key)
        return stored, record.origin

    def put_stored(self, records: Mapping[str, Stored]) -> str:
        """Write records as they stand in a file, as one shard; returns its name. Raises what `put` does."""
        entry = self.shelf.put(records)
        with self._lock:
            self.damaged.pop(entry.path, None)
            if entry.path in self._shards:
                del self._shards[entry.path]
                self._close(entry.path)
                self._index_anew()
            for _entry, header in self.shelf.headers([entry]):
                if isinstance(header, list):
                    self._add(Shard(entry, header))
        return entry.path

    def set_aside_damaged(self) -> None:
        """Rename damaged shards to `NAME.damaged`, so that they are reported once and their names are free again."""
        with self._lock:
            for name in self.damaged:
                self.shelf.set_aside(name)
            self.damaged = {}

    def close(self) -> None:
        """Unmap all shards; the store opens them again when it is asked."""
        with self._lock:
            for name in list(self._open):
                self._close(name)

    def _read(self, key: str) -> tuple[Record, torch.Tensor]:
        """The record and what its file holds of it, after looking again where somebody moved or removed it."""
        for _look in range(LOOKS):
            with self._lock:
                if key not in self._records and key in self._lost:
                    break
                record = self._records[key]
                shard = self._shards[record.shard]
                path = self.shelf.local(shard.entry)
                if path is None and record.shard in self._open:  # the mirror let it go; what is mapped stays
                    path = self._open[record.shard].path
            try:
                path = path or self.shelf.fetch(shard.entry)
                with self._lock:
                    return record, self._map(record.shard, path).handle.get_tensor(key)
            except FileNotFoundError:
                self.refresh()
            except SafetensorError as error:
                raise ShardError(f"{record.shard} in {self.place}: {error}") from error
        names = ", ".join(self._lost[key].names if key in self._lost else record.names)
        message = f"the record of {names} was removed while it was in use"
        raise UserError(Problem(f"cache {self.place}", message, fix="start again: what is missing is encoded anew"))

    def _add(self, shard: Shard) -> None:
        self._shards[shard.entry.path] = shard
        for record in shard.records:
            self._records.setdefault(record.key, record)
            for item_name in record.names:
                known = self._newest.get(item_name)
                if known is None or known.written_ns <= record.written_ns:
                    self._newest[item_name] = record

    def _index_anew(self) -> None:
        shards, self._shards, self._records, self._newest = self._shards, {}, {}, {}
        for shard in shards.values():
            self._add(shard)

    def _map(self, name: str, path: Path) -> _Mapped:
        """The mapped shard and a descriptor of its file, the least recently used ones being closed."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if self.shelf.is_mirror:
            for lost in [name for name, mapped in self._open.items() if not mapped.path.exists()]:
                self._close(lost)  # or its bytes would stay on the disk
        while len(self._open) >= self._max_open:
            self._close(next(iter(self._open)))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self._open[name] = _Mapped(_map_file(path), descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        return self._open[name]

    def _close(self, name: str) -> None:
        mapped = self._open.pop(name, None)
        if mapped is not None:
            os.close(mapped.descriptor)


def _map_file(path: Path) -> Any:
    """The mapped file. FileNotFoundError also when it goes meanwhile: safetensors opens it twice."""
    try:
        return safe_open(path, framework="pt")
    except RuntimeError as error:  # torch's own word for a file that it cannot open
        if path.exists():
            raise
        raise FileNotFoundError(errno.ENOENT, "removed meanwhile", str(path)) from error


def _changed(entry: Entry, shard: Shard) -> bool:
    return entry.stamp != shard.entry.stamp


def _by_age(entries: Iterable[Entry]) -> list[Entry]:
    """The oldest first, where the place tells; the name decides the rest."""
    return sorted(entries, key=lambda entry: (entry.stamp if isinstance(entry.stamp, int) else 0, entry.path))
