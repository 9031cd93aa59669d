"""Keeping house: how large a store is, which records nobody wants and why, removing those, and finding damaged ones.

Imports this room and errors. Nothing but shards, those that were set aside among them, is ever touched. What removes or
moves records writes the new shard before the old one goes, so a kill at any moment loses no record that is to stay; at
worst it is there twice, which the next tidying up mends. Others are safe because of three things: `prune` and `compact`
begin only when nobody else uses the place (or on the caller's word, `unguarded`); they leave alone whatever appeared
since the store looked last; and a reader whose record moved looks again and finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from simplewan.caches.groups import OTHER_MEMBERS, EncodeGroup
from simplewan.caches.keys import Item, differences
from simplewan.caches.shards import Record, ShardError, digest
from simplewan.caches.store import Shard, Store
from simplewan.errors import UserError

SHARD_BYTES = 64 * 2**20
SMALL_BYTES = 16 * 2**20
GONE = "its source is gone from the dataset"

Check = Callable[[], None]
ReportDone = Callable[[int, int], None]  # done, of


@dataclass(frozen=True)
class Sizes:
    """What a store takes: bytes of its shards; records, how many of them packed; and what was set aside as damaged."""

    num_bytes: int
    shards: int
    records: int
    packed_records: int
    damaged_bytes: int
    damaged_shards: int


@dataclass(frozen=True)
class Stale:
    """A record that nobody wants, the bytes it takes, and why: `differences` names the components that changed."""

    key: str
    names: tuple[str, ...]
    reason: str
    differences: tuple[str, ...]
    num_bytes: int


@dataclass(frozen=True)
class Pruned:
    """What went: records, shards (those written anew are not among them), files set aside as damaged, bytes in all."""

    records: int
    shards: int
    rewritten_shards: int
    damaged_shards: int
    bytes_freed: int


def nothing() -> None:
    """A `check` that never interrupts."""


def untold(_done: int, _total: int) -> None:
    """A `progress` that nobody sees."""


def sizes(store: Store) -> Sizes:
    """What the store takes, as of now."""
    store.refresh()
    records = [store.record(key) for key in store.keys()]  # noqa: SIM118  a store is no dict
    shards, damaged = store.shelf.shards(), store.shelf.damaged()
    return Sizes(
        num_bytes=sum(max(entry.size, 0) for entry in shards.values()),
        shards=len(shards),
        records=len(records),
        packed_records=sum(record.packing is not None for record in records),
        damaged_bytes=sum(max(entry.size, 0) for entry in damaged.values()),
        damaged_shards=len(damaged),
    )


def stale(store: Store, items: Iterable[Item], groups: Iterable[EncodeGroup]) -> list[Stale]:
    """The records that filling the store with `items`, encoded in `groups`, would neither use nor make, by name.

    `items` are all that is wanted of this store, by every dataset that shares it. A record of an item whose planned
    record is not there still serves, and is not stale: somebody that was to be encoded with it may have failed.
    """
    planned = {key: item for group in groups for item, key in zip(group.items, group.keys, strict=True)}
    not_there = {item.key for key, item in planned.items() if key not in store}
    by_name = {item.name: item for item in items}
    found = []
    for key in store.keys() - planned.keys():
        record = store.record(key)
        if Item("", record.components).key in not_there:
            continue
        item = next((by_name[name] for name in record.names if name in by_name), None)
        changed = () if item is None else differences(record.components, item.components) or (OTHER_MEMBERS,)
        reason = f"{', '.join(changed)} changed" if changed else GONE
        found.append(Stale(key, record.names, reason, changed, record.num_bytes))
    return sorted(found, key=lambda record: (record.names, record.key))


def prune(
    store: Store,
    keep: Set[str],
    *,
    unguarded: bool = False,
    check: Check = nothing,
    progress: ReportDone = untold,
) -> Pruned:
    """Remove the records whose keys are not in `keep`, and what was set aside as damaged.

    Only what the store knew before the call is removed. `check` is called between shards and may raise; what is done
    by then stays done. Raises UserError when somebody else uses the place or nobody can tell (unless `unguarded`: then
    records that others read may go), and when the disk does not take a shard that is written anew.
    """
    with store.shelf.alone(unguarded=unguarded):
        shards = store.shards()
        before = _bytes(store)
        needed = {
            name: [record for record in _served(store, shard) if record.key in keep] for name, shard in shards.items()
        }
        whole = [name for name, records in needed.items() if not records]
        partly = [name for name, records in needed.items() if 0 < len(records) < len(shards[name].records)]
        gone = store.keys() - keep
        damaged = store.shelf.damaged()
        # First what needs no room: the disk may be full.
        store.shelf.remove([*damaged, *whole])
        store.refresh()
        _rewrite(store, {name: needed[name] for name in partly}, check=check, progress=progress)
        return Pruned(
            records=len(gone),
            shards=len(whole),
            rewritten_shards=len(partly),
            damaged_shards=len(damaged),
            bytes_freed=before - _bytes(store),
        )


def compact(
    store: Store,
    *,
    small_bytes: int = SMALL_BYTES,
    unguarded: bool = False,
    check: Check = nothing,
    progress: ReportDone = untold,
) -> int:
    """Write shards smaller than `small_bytes` together into larger ones; returns how many shards fewer there are.

    Raises what `prune` does.
    """
    with store.shelf.alone(unguarded=unguarded):
        shards = store.shards()
        small = {name: _served(store, shard) for name, shard in shards.items() if 0 <= shard.entry.size < small_bytes}
        if len(small) > 1:
            _rewrite(store, small, check=check, progress=progress)
        return len(shards) - len(store.shards())


def verify(store: Store, *, check: Check = nothing, progress: ReportDone = untold) -> dict[str, str]:
    """Read every record and compare it with its checksum; what is wrong, by the record's key or the shard's name.

    `progress` is told of records. A copy that is wrong, of a shard that is right elsewhere, is fetched again and is no
    fault. Raises OSError when a place elsewhere does not answer.
    """
    store.refresh()
    bad = dict(store.damaged)
    records = sorted(map(store.record, store.keys()), key=lambda record: (record.shard, record.start))
    for done, record in enumerate(records):
        check()
        progress(done, len(records))
        reason = _fault(store, record)
        if reason is not None:
            bad[record.key] = f"{record.shard}: {reason}"
    progress(len(records), len(records))
    return bad


def set_aside(store: Store, bad: Iterable[str]) -> int:
    """Rename the shards that hold bad records to `NAME.damaged`; returns how many records the next fill makes anew.

    `bad` are keys of records and names of shards, as `verify` returns them. The good records of those shards are
    written anew first. Others may use the store meanwhile. Raises what `Store.put` does.
    """
    bad = set(bad)
    before = store.keys()
    shards = store.shards()
    names = {store.record(key).shard for key in bad & before}
    for name in sorted(names):
        good = {
            record.key: store.stored(record.key) for record in _served(store, shards[name]) if record.key not in bad
        }
        if good:
            store.put_stored(good)
        store.shelf.set_aside(name)
    for name in sorted(bad & store.damaged.keys()):
        store.shelf.set_aside(name)
    store.refresh()
    return len(before - store.keys())


def _fault(store: Store, record: Record) -> str | None:
    """Why a record cannot be used, or None."""
    reason = _difference(store, record)
    if reason is None:
        return None
    shard = store.shards().get(record.shard)
    if shard is None or not store.shelf.drop_copy(shard.entry):
        return reason
    store.close()
    return _difference(store, record)


def _difference(store: Store, record: Record) -> str | None:
    try:
        tensor = store.get(record.key)
    except ShardError as error:
        return str(error)
    except UserError:
        if record.key in store:
            raise
        return None  # removed since the records were listed
    if record.sha256 is None or digest(tensor) == record.sha256:
        return None
    return f"the bytes of {', '.join(record.names)} are not those that were written"


def _served(store: Store, shard: Shard) -> list[Record]:
    """The records of a shard that are read from it; others have the same keys as those of another shard."""
    return [record for record in shard.records if store.record(record.key).shard == record.shard]


def _rewrite(store: Store, going: Mapping[str, Sequence[Record]], *, check: Check, progress: ReportDone) -> None:
    """Write these records of shards that go (by name) into new ones, the old ones going as soon as that is done."""
    done = 0
    written: set[str] = set()  # names come from keys, so a new shard may have the name of one that was to go
    for names in _batches(going):
        check()
        progress(done, len(going))
        records = {record.key: store.stored(record.key) for name in names for record in going[name]}
        if records:
            written.add(store.put_stored(records))
        store.shelf.remove(set(names) - written)
        store.refresh()
        done += len(names)
    progress(done, len(going))


def _batches(going: Mapping[str, Sequence[Record]]) -> Iterator[list[str]]:
    """The names of shards in runs whose records fill about one new shard."""
    names: list[str] = []
    num_bytes = 0
    for name, records in going.items():
        size = sum(record.num_bytes for record in records)
        if names and num_bytes + size > SHARD_BYTES:
            yield names
            names, num_bytes = [], 0
        names.append(name)
        num_bytes += size
    if names:
        yield names


def _bytes(store: Store) -> int:
    entries = [*store.shelf.shards().values(), *store.shelf.damaged().values()]
    return sum(max(entry.size, 0) for entry in entries)
