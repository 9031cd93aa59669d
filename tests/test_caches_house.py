"""Keeping house: what is stale and why, pruning that loses nothing at any moment, compaction, damage set aside."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from caching import fill_quietly, origin
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import user

from simplewan.caches import house, shards, shelves
from simplewan.caches.fill import ItemError
from simplewan.caches.groups import encode_groups
from simplewan.caches.house import Stale, compact, prune, set_aside, sizes, stale, verify
from simplewan.caches.keys import Item
from simplewan.caches.store import Store
from simplewan.errors import Interrupted, UserError


def value(key: str) -> torch.Tensor:
    return torch.full((40,), float(sum(map(ord, key))))


def put(store: Store, *names: str) -> None:
    store.put({name: (value(name), origin(name)) for name in names})


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def stale_of(store: Store, items: list[Item], batch_size: int) -> list[Stale]:
    return stale(store, items, encode_groups(items, batch_size=batch_size))


def run(store: Store, items: list[Item], *, batch_size: int = 1, bad: str = "", encoded: list | None = None):
    def encode(group):
        if any(item.name == bad for item in group):
            raise ItemError(bad, "it does not decode")
        if encoded is not None:
            encoded.extend(item.name for item in group)
        return [torch.full((60,), float(int(item.key[:5], 16) % 1000)) for item in group]

    return fill_quietly(store, items, encode, batch_size=batch_size, flush_records=3)


def items_of(count: int, **changes: object) -> list[Item]:
    return [Item(f"clip{i:02d}", {"content": f"c{i}", "crop_left": 0, "fps": 16, **changes}) for i in range(count)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_is_stale_and_why(tmp_path, batch_size):
    items = items_of(9)
    run(Store(tmp_path), items, batch_size=batch_size)
    assert stale_of(Store(tmp_path), items, batch_size) == []
    now = [replace(items[0], components={**items[0].components, "crop_left": 8, "fps": 24}), *items[2:]]
    found = {record.names[0]: record for record in stale_of(Store(tmp_path), now, batch_size)}
    if batch_size == 1:
        assert found.keys() == {"clip00", "clip01"}
    store = Store(tmp_path)
    assert found["clip01"].reason == house.GONE and found["clip01"].differences == ()
    run(store, now, batch_size=batch_size)
    found = {record.names[0]: record for record in stale_of(store, now, batch_size)}
    assert found["clip00"].differences == ("crop_left", "fps")
    assert found["clip00"].reason == "crop_left, fps changed"
    assert all(record.num_bytes == 240 for record in found.values())
    others = {name: record.reason for name, record in found.items() if name not in ("clip00", "clip01")}
    assert set(others.values()) == (set() if batch_size == 1 else {"encode group changed"})


def test_a_renamed_source_is_not_stale_and_neighbours_of_a_failure_still_serve(tmp_path):
    items = items_of(12)
    group = next(group for group in encode_groups(items, batch_size=3) if len(group.items) > 1)
    bad = group.items[0].name
    filled = run(Store(tmp_path), items, batch_size=3, bad=bad)
    store = Store(tmp_path)
    assert not {record.key for record in stale_of(store, items, 3)} & set(filled.keys.values())
    renamed = [replace(item, name=f"new/{item.name}") for item in items]
    assert not {record.key for record in stale_of(store, renamed, 3)} & set(filled.keys.values())
    prune(store, store.keys() - {record.key for record in stale_of(store, items, 3)})
    encoded: list[str] = []
    assert run(store, items, batch_size=3, bad=bad, encoded=encoded).keys == filled.keys
    assert encoded == []


def test_pruning_removes_what_is_not_kept_and_nothing_else(tmp_path):
    store = Store(tmp_path)
    put(store, "a", "b")
    put(store, "c", "d", "e")
    put(store, "f")
    (tmp_path / "index.sqlite").write_bytes(b"precious")
    (tmp_path / "shard-of-pottery.txt").write_bytes(b"precious")
    (tmp_path / f"shard-{'0' * 32}.safetensors.damaged").write_bytes(b"x" * 100)
    before, size = sizes(store), sum(path.stat().st_size for path in tmp_path.glob("*.safetensors*"))
    assert (before.records, before.shards, before.damaged_bytes, before.damaged_shards) == (6, 3, 100, 1)
    done: list[tuple[int, int]] = []
    pruned = prune(store, {"d", "f", "never heard of"}, progress=lambda *counts: done.append(counts))
    assert store.keys() == Store(tmp_path).keys() == {"d", "f"}
    assert (pruned.records, pruned.shards, pruned.rewritten_shards, pruned.damaged_shards) == (4, 1, 1, 1)
    assert pruned.bytes_freed == size - sizes(store).num_bytes > 0
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".safetensors"} == {
        "index.sqlite",
        "shard-of-pottery.txt",
    }
    assert done[-1] == (1, 1)
    assert all(torch.equal(store.get(key), value(key)) for key in "df")
    assert store.record("d").names == ("d",) and verify(store) == {}
    untouched = files(tmp_path)
    assert prune(store, {"d", "f"}) == house.Pruned(0, 0, 0, 0, 0)
    assert files(tmp_path) == untouched


def test_a_damaged_record_is_not_declared_good_by_moving_it(tmp_path):
    for compress in (False, True):
        store = Store(tmp_path / str(compress), compress=compress)
        put(store, "a", "b", "c")
        record = store.record("b")
        store.close()
        path = store.folder / record.shard
        data = bytearray(path.read_bytes())
        data[record.end - 2] ^= 1
        path.write_bytes(bytes(data))
        prune(store, {"a", "b"})
        assert verify(store).keys() == {"b"}
        assert (store.record("b").packing is not None) == compress


def test_what_appeared_since_the_last_look_is_left_alone(tmp_path):
    store, other = Store(tmp_path), Store(tmp_path)
    put(store, "a", "b")
    keep = store.keys() - {"b"}
    put(other, "new")
    del other
    prune(store, keep)
    assert Store(tmp_path).keys() == {"a", "new"}


def test_nothing_is_pruned_while_another_uses_the_folder_or_nobody_can_tell(tmp_path, monkeypatch):
    store = Store(tmp_path)
    put(store, "a", "b")
    reader = Store(tmp_path)
    for tidy in (lambda: prune(store, {"a"}), lambda: compact(store)):
        with pytest.raises(UserError, match=f"{tmp_path}: is in use"):
            tidy()
    assert store.keys() == {"a", "b"}
    prune(store, {"a"}, unguarded=True)
    assert torch.equal(reader.get("a"), value("a")), "a reader looks again for what was moved"
    with pytest.raises(UserError, match=r"record of b was removed .* start again"):
        reader.get("b")
    del reader
    put(store, "b")

    def cannot(_descriptor, _kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(shelves.fcntl, "flock", cannot)
    with pytest.raises(UserError, match="cannot tell"):
        prune(Store(tmp_path), {"a"})
    prune(Store(tmp_path), {"a"}, unguarded=True)
    assert Store(tmp_path).keys() == {"a"}


def test_a_folder_that_is_tidied_up_is_waited_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(shelves, "PATIENCE_SECONDS", 0.2)
    store = Store(tmp_path)
    with store.shelf.alone(), pytest.raises(UserError, match="tidying up"):
        Store(tmp_path)
    Store(tmp_path)


def test_a_killed_user_keeps_nobody_out(tmp_path):
    store = Store(tmp_path)
    put(store, "a", "b")
    with user(lambda: Store(tmp_path)), pytest.raises(UserError, match="in use"):
        prune(store, {"a"})
    prune(store, {"a"})
    assert len(files(tmp_path)) == 1


class Killed(BaseException):
    """Stands for a kill: nothing after it happens, for every clean-up is refused, too."""


class Disk:
    """Counts what changes the disk, and dies at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, dies_at: int) -> None:
        self.calls, self._dies_at = 0, dies_at
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, self._dying(getattr(Path, name)))
        patch.setattr(shards, "sync", self._dying(shards.sync))

    def _dying(self, original):
        def dying(*arguments, **keywords):
            self.calls += 1
            if self.calls >= self._dies_at:
                raise Killed
            return original(*arguments, **keywords)

        return dying


SHARDS = st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1, max_size=4), min_size=1, max_size=5)


@given(SHARDS, st.sets(st.sampled_from("abcdefgh")), st.integers(1, 30), st.sampled_from(["prune", "compact"]))
@settings(max_examples=60, deadline=None)
def test_a_kill_at_any_moment_loses_no_kept_record(layout, keep, dies_at, what):
    def tidy(store: Store) -> None:
        prune(store, keep) if what == "prune" else compact(store)

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(house, "SHARD_BYTES", 300)  # so that there are several new shards
        folder = Path(name)
        store = Store(folder)
        for keys in layout:
            put(store, *keys)
        there = set().union(*layout)
        safe = there & keep if what == "prune" else there
        with pytest.MonkeyPatch.context() as dying:
            Disk(dying, dies_at)
            with contextlib.suppress(Killed):
                tidy(store)
        del store
        left = Store(folder)
        assert safe <= left.keys() <= there and left.damaged == {} and verify(left) == {}
        tidy(left)
        assert left.keys() == Store(folder).keys() == safe
        assert all(torch.equal(left.get(key), value(key)) for key in safe)
        held = sorted(record.key for shard in left.shards().values() for record in shard.records)
        assert held == sorted(safe), "nothing is there twice"
        for path in folder.iterdir():
            assert path.suffix == ".safetensors" or shards.TEMPORARY.match(path.name)


def test_a_kill_after_writing_anew_and_before_removing_is_mended(tmp_path):
    store = Store(tmp_path)
    put(store, "a", "b")
    put(store, "c")
    put(store, "a", "b", "c")
    for limit in (1, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(house, "SHARD_BYTES", limit)
            compact(store)
        assert store.keys() == Store(tmp_path).keys() == {"a", "b", "c"}
    assert len(files(tmp_path)) == 1


def test_small_shards_become_few(tmp_path):
    store = Store(tmp_path)
    for number in range(30):
        put(store, f"key{number:02d}")
    big = {"big": (torch.zeros(10**6), origin("big"))}
    store.put(big)
    view = store.get("key03")
    assert compact(store, small_bytes=10**6) == 29
    assert len(files(tmp_path)) == 2 and len(Store(tmp_path)) == 31
    assert torch.equal(view, value("key03")), "a view outlives its file"
    assert all(torch.equal(store.get(f"key{n:02d}"), value(f"key{n:02d}")) for n in range(30))
    assert verify(store) == {} and compact(store, small_bytes=10**6) == 0


@pytest.mark.parametrize("compress", [False, True])
def test_bad_records_are_found_set_aside_and_made_anew(tmp_path, compress):
    items = items_of(8)
    filled = run(Store(tmp_path, compress=compress), items)
    store = Store(tmp_path)
    assert len(store.shards()) == 3
    bad, cut = items[1], store.record(items[7].key)
    record = store.record(bad.key)
    data = bytearray((tmp_path / record.shard).read_bytes())
    data[record.end - 1] ^= 64
    (tmp_path / record.shard).write_bytes(bytes(data))
    with (tmp_path / cut.shard).open("r+b") as file:
        file.truncate(cut.end - 1)
    in_cut = {r.names[0] for r in store.shards()[cut.shard].records}
    del store
    told: list[tuple[int, int]] = []
    store = Store(tmp_path)
    faults = verify(store, progress=lambda *counts: told.append(counts))
    assert faults.keys() == {bad.key, cut.shard}
    assert bad.name in faults[bad.key] or "compressed" in faults[bad.key]
    assert told[0] == (0, 8 - len(in_cut)) and told[-1] == (8 - len(in_cut),) * 2
    assert set_aside(store, faults) == 1
    assert sorted(path.name for path in tmp_path.glob("*.damaged")) == sorted(
        f"{name}.damaged" for name in (record.shard, cut.shard)
    )
    assert verify(Store(tmp_path)) == {}
    encoded: list[str] = []
    again = run(Store(tmp_path), items, encoded=encoded)
    assert sorted(encoded) == sorted({bad.name} | in_cut) and again.keys == filled.keys
    assert verify(Store(tmp_path)) == {}


def test_what_is_moved_may_take_the_name_of_a_damaged_shard(tmp_path):
    store = Store(tmp_path)
    put(store, "a", "b")
    record = store.record("a")
    data = bytearray((tmp_path / record.shard).read_bytes())
    data[record.end - 1] ^= 64
    put(store, "b")
    (other,) = store.shards().keys() - {record.shard}
    (tmp_path / record.shard).write_bytes(bytes(data))
    (tmp_path / other).write_bytes(b"not a shard")
    store = Store(tmp_path)
    faults = verify(store)
    assert faults.keys() == {"a", other}
    assert set_aside(store, faults) == 1
    assert Store(tmp_path).keys() == {"b"} and torch.equal(store.get("b"), value("b"))


def test_verifying_and_pruning_can_be_interrupted(tmp_path):
    store = Store(tmp_path)
    for name in "abcdef":
        put(store, name, f"{name}2")
    left = [3]

    def check():
        left[0] -= 1
        if left[0] < 0:
            raise Interrupted("SIGINT", 130)

    with pytest.raises(Interrupted):
        verify(store, check=check)
    left[0] = 0
    with pytest.raises(Interrupted):
        prune(store, set("abcdef"), check=check)
    assert set("abcdef") <= Store(tmp_path).keys()
    prune(store, set("abcdef"))
    assert Store(tmp_path).keys() == set("abcdef")
