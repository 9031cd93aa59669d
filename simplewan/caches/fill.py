"""Filling a store: which encode groups have missing members, encoding them, and saying what changed and why.

Imports this room, errors and events; `encode` is handed in. What is encoded is flushed every 64 MiB, 128 records
or 20 seconds: a kill loses at most that, and because the composition of a group never depends on what is missing, the
records that a resumed fill adds have the same bits that an uninterrupted one would have written. Processes that fill
one store at once share the work: each looks every few seconds for what others wrote (`turns`), so that what they encode
twice is about what they had not flushed.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from simplewan.caches.groups import OTHER_MEMBERS, EncodeGroup, encode_groups
from simplewan.caches.keys import Item, differences
from simplewan.caches.shards import Origin
from simplewan.caches.store import Store
from simplewan.caches.turns import Turns
from simplewan.events import Emit, Notice, Progress

FLUSH_BYTES = 64 * 2**20
FLUSH_SECONDS = 20.0
FLUSH_RECORDS = 128
LOOK_SECONDS = 2.0
LOOKS_PART = 0.05  # the part of the time that looking for others' work may take

Encode = Callable[[Sequence[Item]], Sequence[torch.Tensor]]


class ItemError(ValueError):
    """One item cannot be encoded (its file does not decode, say). `name` is the item's, `reason` is for people."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{name}: {reason}")


@dataclass(frozen=True)
class Filled:
    """What a fill did. `encoded` and `reused` count records; items with equal components share one."""

    keys: Mapping[str, str]
    encoded: int
    reused: int
    changed: Mapping[str, tuple[str, ...]]
    failed: Mapping[str, str]


def fill(
    store: Store,
    items: Sequence[Item],
    encode: Encode,
    *,
    batch_size: int,
    label: str,
    key: str,
    emit: Emit,
    check: Callable[[], None],
    flush_bytes: int = FLUSH_BYTES,
    flush_seconds: float = FLUSH_SECONDS,
    flush_records: int = FLUSH_RECORDS,
    look_seconds: float = LOOK_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Filled:
    """Encode what the store lacks of `items`, whole encode groups at a time, and return every item's key.

    `encode` gets the items of one group and returns one tensor each, in order. `label` ("VAE latents") and `key` name
    the work in progress events; `check` is called between groups and may raise `Interrupted`, after which, as after any
    other exception, what is encoded is on disk. An item that fails (`ItemError`, or a result with NaN or infinity) is
    left out and reported. Failing is a property of the item's content, so the groups are planned anew as if it did not
    exist: whoever was to be encoded with it, and perhaps their neighbours, get new keys and are encoded without it, in
    every run alike. Other processes may fill the store at the same time; what they have written is not encoded here,
    and not counted in `encoded`. `ValueError` when two items of one name differ, UserError when the disk takes no more,
    `PlaceError` when a place elsewhere does not.
    """
    _refuse_ambiguous(items)
    store.shelf.settle()
    alone = not store.shelf.others()
    store.refresh()
    _report_damage(store, label=label, emit=emit)
    work = _Work(
        store,
        items,
        turns=Turns(f"{socket.gethostname()} {os.getpid()}", alone=alone),
        batch_size=batch_size,
        flush_bytes=flush_bytes,
        flush_seconds=flush_seconds,
        flush_records=flush_records,
        look_seconds=look_seconds,
        clock=clock,
    )
    _report_changes(work.changed, total=len(items), label=label, emit=emit)
    total = work.left
    try:
        while work.left:
            check()
            work.look()
            if not work.left:
                break
            emit(Progress(key=key, label=label, current=total - work.left, total=total))
            group = work.next()
            try:
                work.add(group, encode(group.items))
            except ItemError as error:
                done = total - work.left
                work.leave_out(error)
                emit(Notice(f"{label}: {error.name} is left out: {error.reason}", severity="warning"))
                total = done + work.left
    finally:
        work.flush()
    if total:
        emit(Progress(key=key, label=label, current=total, total=total))
    return work.result()


@dataclass
class _Work:
    """The state of one fill: the plan without what failed, and what is encoded but not yet written."""

    store: Store
    items: Sequence[Item]
    turns: Turns
    batch_size: int
    flush_bytes: int
    flush_seconds: float
    flush_records: int
    look_seconds: float
    clock: Callable[[], float]
    encoded: int = 0
    left: int = 0  # items of the pending groups
    failed: dict[str, str] = field(default_factory=dict)
    changed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _pending: dict[int, EncodeGroup] = field(default_factory=dict)
    _position: int = 0
    _buffer: dict[str, tuple[torch.Tensor, Origin]] = field(default_factory=dict)
    _buffered_bytes: int = 0
    _names: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for item in self.items:
            self._names.setdefault(item.key, []).append(item.name)
        self._last_flush = self.clock()
        self._next_look = self._last_flush + self.look_seconds
        self._plan()
        for group in self._pending.values():
            for item, record_key in zip(group.items, group.keys, strict=True):
                if record_key not in self.store:
                    self._explain(item)

    def next(self) -> EncodeGroup:
        """A group with a member that is neither in the store nor waiting to be written."""
        self._position = self.turns.next(self._pending)
        return self._pending[self._position]

    def look(self) -> None:
        """Now and then, find what others wrote meanwhile, and leave it to them."""
        now = self.clock()
        if now < self._next_look:
            return
        changed = self.store.refresh()
        self._next_look = now + max(self.look_seconds, (self.clock() - now) / LOOKS_PART)
        if not changed:
            return
        twice = self._buffer.keys() & self.store.keys()
        for record_key in twice:
            self._buffered_bytes -= self._buffer.pop(record_key)[0].nbytes
        self.turns.meet(here=bool(twice))
        self._find_pending()

    def add(self, group: EncodeGroup, tensors: Sequence[torch.Tensor]) -> None:
        """Take a group's results; `ItemError` for one that is not finite, and then none of them is kept."""
        if len(tensors) != len(group.items):
            raise ValueError(f"{len(group.items)} items were to be encoded, {len(tensors)} tensors came back")
        for item, tensor in zip(group.items, tensors, strict=True):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ItemError(item.name, "its encoding holds NaN or infinity")
        for item, record_key, tensor in zip(group.items, group.keys, tensors, strict=True):
            if record_key in self.store:
                continue
            origin = {"names": sorted(set(self._names[item.key])), "components": dict(item.components)}
            own = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            self._buffer[record_key] = (own, origin)
            self._buffered_bytes += own.nbytes
            self.encoded += 1
        del self._pending[self._position]
        self.left -= len(group.items)
        full = self._buffered_bytes >= self.flush_bytes or len(self._buffer) >= self.flush_records
        if full or self.clock() - self._last_flush >= self.flush_seconds:
            self.flush()

    def leave_out(self, error: ItemError) -> None:
        """Plan anew without the item, and without those that have the same content under another name."""
        bad = next((item for item in self.items if item.name == error.name and item.name not in self.failed), None)
        if bad is None:
            raise ValueError(f"{error.name} failed, but is not among the items to encode") from error
        for name in self._names[bad.key]:
            self.failed[name] = error.reason
        self.turns.plan_anew()
        self._plan()

    def flush(self) -> None:
        """Write what is encoded as one shard. Refused, it is not tried again: the fill ends with that."""
        buffer, bytes_before = self._buffer, self._buffered_bytes
        self._buffer, self._buffered_bytes = {}, 0
        try:
            self.store.put(buffer)
        except KeyboardInterrupt:
            self._buffer, self._buffered_bytes = buffer, bytes_before
            raise
        self._last_flush = self.clock()

    def result(self) -> Filled:
        """Every item's key by its name, and the counts. The buffer is empty by now."""
        by_item = {item.key: key for group in self.plan for item, key in zip(group.items, group.keys, strict=True)}
        keys = {item.name: by_item[item.key] for item in self.items if item.name not in self.failed}
        reused = len(set(keys.values())) - self.encoded
        return Filled(keys=keys, encoded=self.encoded, reused=max(reused, 0), changed=self.changed, failed=self.failed)

    def _plan(self) -> None:
        usable = (item for item in self.items if item.name not in self.failed)
        self.plan = encode_groups(usable, batch_size=self.batch_size)
        self._find_pending()

    def _find_pending(self) -> None:
        there = self.store.keys() | self._buffer.keys()
        self._pending = {at: group for at, group in enumerate(self.plan) if not there.issuperset(group.keys)}
        self.left = sum(len(group.items) for group in self._pending.values())

    def _explain(self, item: Item) -> None:
        for name in self._names[item.key]:
            known = self.store.newest(name)
            if known is not None:
                self.changed[name] = differences(known.components, item.components) or (OTHER_MEMBERS,)


def _refuse_ambiguous(items: Sequence[Item]) -> None:
    seen: dict[str, str] = {}
    for item in items:
        if seen.setdefault(item.name, item.key) != item.key:
            raise ValueError(f"two different items are called {item.name}")


def _report_damage(store: Store, *, label: str, emit: Emit) -> None:
    for name, reason in sorted(store.damaged.items()):
        then = f"it is renamed to {name}.damaged and its records are encoded again"
        emit(Notice(f"{label}: {store.place}/{name} is damaged: {reason}; {then}", severity="warning"))
    store.set_aside_damaged()


def _report_changes(changed: Mapping[str, tuple[str, ...]], *, total: int, label: str, emit: Emit) -> None:
    if not changed:
        return
    reasons = Counter(", ".join(names) for names in changed.values())
    why = "; ".join(f"{names} changed ({count})" for names, count in sorted(reasons.items()))
    first = min(changed)
    which = first if len(changed) == 1 else f"{first} and {len(changed) - 1} more"
    emit(Notice(f"{label}: {len(changed)} of {total} are encoded again, because {why}: {which}"))
