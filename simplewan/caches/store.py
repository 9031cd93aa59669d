"""A folder of shards, read through mmap: which keys are there, their tensors, what they were made from.

Imports this room, torch and safetensors. Several processes may write to one folder at once: shards appear complete or
not at all, and `refresh` finds what others wrote. A damaged shard is reported in `damaged` and otherwise as if it were
not there. Headers are read once (about 50 microseconds a shard); at most `max_open` shards are mapped at a time.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from simplewan.caches.shards import SUFFIX, Record, ShardError, digest, read_header, remove_leftovers, write_shard

Origin = Mapping[str, Any]


class Store:
    """Records by key over a folder of safetensors shards; the folder is made when it is missing.

    Threads may share a store. A tensor that was handed out stays valid after its shard is closed.
    """

    def __init__(self, folder: Path | str, *, max_open: int = 128) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.damaged: dict[str, str] = {}
        self.removed_leftovers = remove_leftovers(self.folder)
        self._max_open = max_open
        self._records: dict[str, Record] = {}
        self._newest: dict[str, Record] = {}
        self._shards: dict[str, int] = {}
        self._open: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._lock = threading.RLock()
        self.refresh()

    def refresh(self) -> None:
        """Read the headers of shards that appeared since the last look; of all shards when one changed or went away."""
        with self._lock:
            with os.scandir(self.folder) as entries:
                found = {entry.name: entry.stat().st_mtime_ns for entry in entries if _is_shard(entry.name)}
            if any(found.get(name) != written_ns for name, written_ns in self._shards.items()):
                self._forget()
            self.damaged = {}
            for name, written_ns in sorted(found.items(), key=lambda pair: (pair[1], pair[0])):
                if name not in self._shards:
                    self._read(name, written_ns)

    def keys(self) -> set[str]:
        """The keys of all readable records."""
        with self._lock:
            return set(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def __len__(self) -> int:
        return len(self._records)

    def record(self, key: str) -> Record:
        """Where the record lies and what it was made from. KeyError when it is not there."""
        return self._records[key]

    def newest(self, name: str) -> Record | None:
        """The record written last for an item of this name, whatever its components."""
        return self._newest.get(name)

    def get(self, key: str) -> torch.Tensor:
        """The tensor of a record: a view of the mapped file on the CPU, not copied. KeyError when it is not there."""
        with self._lock:
            handle, _descriptor = self._handle(self._records[key].shard)
            return handle.get_tensor(key)

    def get_many(self, keys: Sequence[str]) -> list[torch.Tensor]:
        """The tensors in the order of `keys`, like `get`, after asking the system to read them all ahead."""
        self.will_need(keys)
        return [self.get(key) for key in keys]

    def will_need(self, keys: Iterable[str]) -> None:
        """Ask the system to start reading these records, whole: page faults would fetch them in small pieces."""
        if not hasattr(os, "posix_fadvise"):
            return
        with self._lock:
            for record in (self._records[key] for key in keys):
                _handle, descriptor = self._handle(record.shard)
                length = record.end - record.start
                os.posix_fadvise(descriptor, record.start, length, os.POSIX_FADV_WILLNEED)

    def put(self, records: Mapping[str, tuple[torch.Tensor, Origin]]) -> None:
        """Write the records as one shard, atomically; origins are `{"names": [...], "components": {...}}`."""
        if not records:
            return
        tensors = {key: tensor for key, (tensor, _origin) in records.items()}
        path = write_shard(self.folder, tensors, {key: origin for key, (_tensor, origin) in records.items()})
        with self._lock:
            if path.name in self._shards:
                self._forget()
                self.refresh()
            else:
                self._read(path.name, path.stat().st_mtime_ns)

    def verify(self) -> dict[str, str]:
        """Read every record and compare it with its checksum: the damaged keys with the reason."""
        bad = {}
        for key in sorted(self.keys()):
            record = self.record(key)
            if record.sha256 is not None and digest(self.get(key)) != record.sha256:
                bad[key] = f"{record.shard}: the bytes of {', '.join(record.names)} are not those that were written"
        return bad

    def set_aside_damaged(self) -> None:
        """Rename damaged shards to `NAME.damaged`, so that they are reported once and their names are free again."""
        with self._lock:
            for name in self.damaged:
                path = self.folder / name
                if path.exists():
                    path.replace(path.with_name(f"{name}.damaged"))
            self.damaged = {}

    def close(self) -> None:
        """Unmap all shards; the store opens them again when it is asked."""
        with self._lock:
            while self._open:
                self._close_oldest()

    def _read(self, name: str, written_ns: int) -> None:
        try:
            records = read_header(self.folder / name)
        except ShardError as error:
            self.damaged[name] = str(error)
            return
        except FileNotFoundError:
            return
        self._shards[name] = written_ns
        for record in records:
            self._records.setdefault(record.key, record)
            for item_name in record.names:
                known = self._newest.get(item_name)
                if known is None or known.written_ns <= record.written_ns:
                    self._newest[item_name] = record

    def _forget(self) -> None:
        self.close()
        self._shards, self._records, self._newest = {}, {}, {}

    def _handle(self, name: str) -> tuple[Any, int]:
        """The mapped shard and a descriptor of its file, the least recently used ones being closed."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        while len(self._open) >= self._max_open:
            self._close_oldest()
        path = self.folder / name
        self._open[name] = (safe_open(path, framework="pt"), os.open(path, os.O_RDONLY))
        return self._open[name]

    def _close_oldest(self) -> None:
        _name, (_handle, descriptor) = self._open.popitem(last=False)
        os.close(descriptor)


def _is_shard(name: str) -> bool:
    return name.startswith("shard-") and name.endswith(SUFFIX)
