"""Shards in a place elsewhere: what travels, what is kept here, failing servers, several writers."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import pytest
import torch
from caching import fill_quietly

from simplewan.caches import remote
from simplewan.caches import store as store_module
from simplewan.caches.house import compact, prune, set_aside, sizes, verify
from simplewan.caches.keys import Item
from simplewan.caches.owners import owner_tag
from simplewan.caches.remote import PlaceError, RemoteShelf
from simplewan.caches.store import Store
from simplewan.data.backends import Entry, LocalBackend
from simplewan.errors import UserError


class CountingStream(BufferedReader):
    """Adds what is read to a counter."""

    def __init__(self, stream: BinaryIO, count: Callable[[int], None]) -> None:
        super().__init__(stream)
        self._count = count

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._count(len(data))
        return data


@dataclass
class Far:
    """A folder behind the protocol of an object store: no local paths, stamps that are words, calls that may fail."""

    local: LocalBackend
    calls: Counter = field(default_factory=Counter)
    bytes_read: int = 0
    fail: Callable[[str, str, int], Exception | None] = lambda name, path, call: None

    def _called(self, name: str, path: str = "") -> None:
        self.calls[name] += 1
        error = self.fail(name, path, self.calls[name])
        if error is not None:
            raise error

    def _etag(self, entry: Entry) -> Entry:
        return entry._replace(stamp=hashlib.md5(f"{entry.stamp}{entry.size}".encode()).hexdigest())

    def _count(self, size: int) -> None:
        self.bytes_read += size

    @property
    def root(self) -> str:
        return f"far://bucket{self.local.root}"

    def list(self) -> Iterator[Entry]:
        self._called("list")
        yield from map(self._etag, self.local.list())

    def stat(self, path: str) -> Entry:
        self._called("stat", path)
        return self._etag(self.local.stat(path))

    def open(self, path: str) -> BinaryIO:
        self._called("open", path)
        return CountingStream(self.local.open(path), self._count)

    def read(self, path: str) -> bytes:
        raise AssertionError("shards are not read whole into memory")

    def local_path(self, path: str) -> Path | None:
        return None

    def identity(self, entry: Entry) -> str | None:
        return None

    def write(self, path: str, content: bytes | Path) -> None:
        self._called("write", path)
        self.local.write(path, content)

    def delete(self, path: str) -> None:
        self._called("delete", path)
        self.local.delete(path)


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(LocalBackend(tmp_path / "far"))


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
def open_store(far: Far, tmp_path: Path, slept: list[float]) -> Callable[..., Store]:
    def opened(*, mirror: str = "mirror", compress: bool = False, max_open: int = 128, **settings: Any) -> Store:
        shelf = RemoteShelf(far, tmp_path / mirror, sleep=slept.append, **settings)
        return Store(shelf, compress=compress, max_open=max_open)

    return opened


def value(key: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, key)))
    return torch.randn(5000, generator=generator)


def put(store: Store, *names: str) -> None:
    store.put({name: (value(name), {"names": [name], "components": {"content": name}}) for name in names})


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def once(*names: str, error: type[OSError] = OSError, path: str = "") -> Callable[[str, str, int], Exception | None]:
    """A failure at the next call of each of these."""
    left = Counter(names)

    def fail(name: str, asked: str, _call: int) -> Exception | None:
        if left[name] and path in asked:
            left[name] -= 1
            return error(5, "the line is down")
        return None

    return fail


def always(name: str, error: type[OSError] = OSError) -> Callable[[str, str, int], Exception | None]:
    return lambda called, _path, _call: error(5, "the line is down") if called == name else None


def test_what_is_put_here_is_read_there_and_only_headers_travel_until_a_record_is_needed(far, open_store):
    writer = open_store()
    put(writer, "a", "b")
    put(writer, "c")
    assert all(torch.equal(writer.get(key), value(key)) for key in "abc")
    assert far.calls["write"] == 2 and far.bytes_read == 0, "what was put is mirrored already"
    reader = open_store(mirror="other")
    assert reader.keys() == {"a", "b", "c"} and reader.place == far.root
    assert far.bytes_read < 5000 and copies(reader.folder) == []
    assert torch.equal(reader.get("a"), value("a")) and torch.equal(reader.get("b"), value("b"))
    assert len(copies(reader.folder)) == 1 and far.calls["open"] == 3
    assert reader.newest("c").components == {"content": "c"}
    opened = far.calls["open"]
    again = open_store(mirror="other")
    assert torch.equal(again.get("a"), value("a"))
    assert far.calls["open"] == opened + 1, "the header of the shard that is not mirrored"
    assert open_store(mirror="third").refresh() is False


def test_a_fill_finds_all_there_and_encodes_nothing(far, open_store):
    items, calls = [Item(name, {"content": name}) for name in "abcdef"], []

    def run(store: Store) -> int:
        def encode(group):
            calls.extend(item.name for item in group)
            return [value(item.name) for item in group]

        filled = fill_quietly(store, items, encode, flush_records=2)
        return filled.encoded

    assert run(open_store(compress=True)) == 6 and far.calls["write"] == 3
    assert run(open_store(mirror="other")) == 0
    store = open_store(mirror="third")
    assert verify(store) == {} and sizes(store).packed_records == 6


def test_the_mirror_keeps_what_was_used_last_within_its_bytes(far, tmp_path, open_store):
    writer = open_store()
    for name in "abcd":
        put(writer, name)
    one = max(path.stat().st_size for path in (tmp_path / "far").iterdir())
    store = open_store(mirror="small", mirror_bytes=2 * one)

    def kept() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "small").rglob("*") if path.is_file())

    views = {}
    for name in "abacada":
        views[name] = store.get(name)
        time.sleep(0.01)
        assert kept() <= 2 * one
    assert far.calls["open"] == 4 + 4, "headers; then a, which was always used last, was fetched once"
    assert all(torch.equal(view, value(name)) for name, view in views.items()), "what is mapped stays readable"
    assert len(store._open) <= 2, "what the mirror let go is let go here"
    tiny = open_store(mirror="tiny", mirror_bytes=1)
    assert [torch.equal(tiny.get(name), value(name)) for name in "abcd"] == [True] * 4
    assert len(copies(tmp_path / "tiny")) == 1


def test_a_copy_that_another_process_removed_is_fetched_again(far, open_store):
    put(open_store(), "a", "b")
    store = open_store(mirror="other", max_open=1)
    view = store.get("a")
    for path in store.folder.iterdir():
        path.unlink()
    fetched = far.calls["open"]
    assert torch.equal(store.get("b"), value("b")) and far.calls["open"] == fetched, "it is still mapped"
    store.close()
    assert torch.equal(store.get("b"), value("b")) and far.calls["open"] == fetched + 1
    assert torch.equal(view, value("a"))


def test_a_shard_that_changed_there_is_fetched_again(far, tmp_path, open_store):
    put(open_store(), "a")
    store = open_store(mirror="other")
    assert torch.equal(store.get("a"), value("a"))
    changed = torch.zeros(5000)
    open_store(mirror="third").put({"a": (changed, {"names": ["a"], "components": {"content": "a"}})})
    assert torch.equal(store.get("a"), value("a")), "until it looks again"
    assert store.refresh() and torch.equal(store.get("a"), changed)
    unaware = open_store(mirror="fourth")
    open_store(mirror="third").put({"a": (value("z"), {"names": ["a"], "components": {"content": "a"}})})
    assert torch.equal(unaware.get("a"), value("z")), "found out when fetching"


@pytest.mark.parametrize("operation", ["list", "open", "stat"])
def test_reading_tries_again_then_names_the_place(far, open_store, slept, operation):
    put(open_store(), "a")
    far.fail = once(operation, operation)
    assert torch.equal(open_store(mirror="other").get("a"), value("a"))
    assert sum(slept) >= 1
    slept.clear()
    far.fail = always(operation)
    with pytest.raises(PlaceError, match=r"far://bucket.* failed 6 times: the line is down") as caught:
        open_store(mirror="third").get("a")
    assert slept == [1.0, 2.0, 4.0, 8.0, 16.0] and caught.value.place == far.root
    slept.clear()
    far.fail = always(operation, PermissionError)
    with pytest.raises(PlaceError, match="the line is down"):
        open_store(mirror="third").get("a")
    assert slept == [], "a refusal is not asked again"


def test_a_copy_that_came_incomplete_is_not_kept(far, open_store, monkeypatch):
    put(open_store(), "a")
    store = open_store(mirror="other")
    whole, cut = far.open, [2]

    def cutting(path: str) -> BinaryIO:
        stream = whole(path)
        if cut[0]:
            cut[0] -= 1
            stream.seek(-100, os.SEEK_END)
        return stream

    monkeypatch.setattr(far, "open", cutting)
    assert torch.equal(store.get("a"), value("a")) and cut == [0]
    assert len(copies(store.folder)) == 1


@pytest.mark.parametrize("operation", ["write", "stat"])
def test_a_failing_server_loses_nothing_that_was_encoded(far, tmp_path, open_store, slept, operation):
    store = open_store()
    put(store, "a")
    far.fail = once(operation, operation)
    put(store, "b")
    assert store.keys() == {"a", "b"} and slept == [1.0, 2.0]
    far.fail = always(operation)
    with pytest.raises(PlaceError, match=r"failed 6 times: the line is down; it is kept in .* next start") as caught:
        put(store, "c")
    assert str(store.folder) in str(caught.value)
    assert store.keys() == {"a", "b"}, "it does not count as there"
    (waiting,) = [path for path in store.folder.iterdir() if "waiting" in path.name]
    far.fail = lambda *_call: None
    # The process is gone: another start puts what it left.
    waiting.rename(waiting.with_name(waiting.name.replace(f"@{os.getpid()}@", "@999999999@")))
    encoded: list[str] = []

    def encode(group):
        encoded.extend(item.name for item in group)
        return [value(item.name) for item in group]

    items = [Item("c", {"content": "c"}), Item("d", {"content": "d"})]
    next_start = open_store()
    fill_quietly(next_start, items, encode)
    assert torch.equal(next_start.get("c"), value("c"))
    assert not [name for name in copies(tmp_path / "mirror") if "waiting" in name]
    assert "c" in open_store(mirror="other").keys()  # noqa: SIM118  a store is no dict


def test_a_fill_that_a_server_stopped_goes_on_without_encoding_twice(far, open_store):
    items, encoded = [Item(f"i{n}", {"content": n}) for n in range(12)], []

    def run() -> int:
        def encode(group):
            encoded.extend(item.name for item in group)
            return [value(item.name) for item in group]

        return fill_quietly(open_store(attempts=2), items, encode, batch_size=2, flush_records=3).encoded

    far.fail = lambda name, _path, call: OSError(5, "down") if name == "write" and call in (2, 3) else None
    with pytest.raises(PlaceError):
        run()
    assert len(open_store(mirror="other")) < len(encoded) < 12
    run()
    assert sorted(encoded) == sorted({item.name for item in items}), "each once"
    assert verify(open_store(mirror="other")) == {} and len(open_store(mirror="other")) == 12


def test_others_that_are_alive_put_their_own(far, open_store, tmp_path):
    store = open_store()
    far.fail = always("write")
    with pytest.raises(PlaceError):
        put(store, "a")
    (waiting,) = [path for path in store.folder.iterdir() if "waiting" in path.name]
    words = waiting.name.split("@")
    words[1:3] = [str(os.getppid()), str(round(psutil.Process(os.getppid()).create_time()))]
    waiting.rename(waiting.with_name("@".join(words)))
    far.fail = lambda *_call: None
    open_store().shelf.settle()
    assert [name for name in copies(store.folder) if "waiting" in name] and len(open_store()) == 0


def test_a_place_that_was_never_written_to_is_empty_and_other_files_are_left_alone(far, open_store, tmp_path):
    assert len(open_store()) == 0
    (tmp_path / "far" / "deeper").mkdir(parents=True)
    put(open_store(), "a")
    (shard,) = (tmp_path / "far").glob("*.safetensors")
    (tmp_path / "far" / "deeper" / shard.name).write_bytes(b"not a shard of this store")
    (tmp_path / "far" / "shard-old").mkdir()
    (tmp_path / "far" / "shard-old" / "x.safetensors").write_bytes(b"not a shard at all")
    (tmp_path / "far" / "notes.txt").write_bytes(b"x")
    store = open_store()
    assert store.damaged == {} and store.keys() == {"a"}
    prune(store, set(), unguarded=True)
    assert copies(tmp_path / "far") == ["notes.txt", shard.name, "x.safetensors"]


def test_keeping_house_elsewhere(far, open_store, tmp_path):
    store = open_store(mirror_bytes=1)
    for pair in ("ab", "cd", "ef"):
        put(store, *pair)
    with pytest.raises(UserError, match=r"far://bucket.*cannot tell"):
        prune(store, {"a"})
    pruned = prune(store, {"a", "c", "d"}, unguarded=True)
    assert (pruned.records, pruned.shards, pruned.rewritten_shards) == (3, 1, 1) and pruned.bytes_freed > 0
    assert compact(store, unguarded=True) == 1
    store = open_store(mirror="other")
    assert store.keys() == {"a", "c", "d"} and verify(store) == {}
    assert sizes(store).shards == 1 and sizes(store).num_bytes > 60000


def test_damage_is_in_the_copy_or_there(far, open_store, tmp_path):
    put(open_store(), "a", "b")
    store = open_store(mirror="other")
    record = store.record("a")
    store.get("a")
    store.close()
    (copy,) = store.folder.iterdir()

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[record.end - 1] ^= 8
        path.write_bytes(bytes(data))

    flip(copy)
    assert not torch.equal(store.get("a"), value("a"))
    assert verify(store) == {} and torch.equal(store.get("a"), value("a")), "the copy is fetched again"
    flip(tmp_path / "far" / record.shard)
    (tmp_path / "far" / f"shard-{'1' * 32}.safetensors").write_bytes(b"\xff" * 50)
    store = open_store(mirror="third")
    faults = verify(store)
    assert faults.keys() == {"a", f"shard-{'1' * 32}.safetensors"}
    assert set_aside(store, faults) == 1
    assert store.keys() == {"b"} and torch.equal(store.get("b"), value("b"))
    assert len(list((tmp_path / "far").glob("*.damaged"))) == 2
    assert verify(open_store(mirror="fourth")) == {}
    assert prune(store, {"b"}, unguarded=True).damaged_shards == 2
    assert len(copies(tmp_path / "far")) == 1


def test_what_will_be_needed_is_fetched_meanwhile(far, open_store):
    writer = open_store()
    for name in "abcde":
        put(writer, name)
    store = open_store(mirror="other")
    headers = far.calls["open"]
    store.will_need("abcde")
    deadline = time.time() + 20
    while len(copies(store.folder)) < 5 and time.time() < deadline:
        time.sleep(0.01)
    assert far.calls["open"] == headers + 5
    assert [torch.equal(store.get(name), value(name)) for name in "abcde"] == [True] * 5
    assert far.calls["open"] == headers + 5
    assert [torch.equal(tensor, value(name)) for name, tensor in zip("ab", store.get_many("ab"), strict=True)]


def test_a_copy_that_goes_while_it_is_being_mapped_is_fetched_again(far, open_store, monkeypatch):
    put(open_store(), "a")
    store = open_store(mirror="other")
    original, left = store_module.safe_open, [3]

    def late(path: Path, framework: str) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            path.unlink()
            if left[0]:
                raise RuntimeError(f"unable to open file <{path}> in read-only mode: No such file or directory (2)")
        return original(path, framework=framework)

    monkeypatch.setattr(store_module, "safe_open", late)
    assert torch.equal(store.get("a"), value("a"))


def test_threads_fetch_a_shard_once(far, open_store):
    from concurrent.futures import ThreadPoolExecutor

    writer = open_store()
    for name in "abcd":
        put(writer, name)
    store = open_store(mirror="other", max_open=2)
    headers = far.calls["open"]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda name: torch.equal(store.get(name), value(name)), "abcd" * 40))
    assert far.calls["open"] == headers + 4


def test_another_process_that_fetches_is_waited_for_unless_it_stalls(far, open_store, monkeypatch):
    put(open_store(), "a")
    store = open_store(mirror="other")
    (entry,) = store.shelf.shards().values()
    target = store.shelf._mirrored(entry)
    others = target.with_name(f".{target.stem}.tmp-elsewhere@1@1@00")
    others.write_bytes(b"half")
    monkeypatch.setattr(remote, "STALLED_SECONDS", 0.3)
    start = time.time()
    assert torch.equal(store.get("a"), value("a"))
    assert 0.2 < time.time() - start < 5


def test_leftovers_of_killed_processes_go(far, open_store):
    store = open_store()
    put(store, "a")
    host = owner_tag().split("@")[0]
    leftover = store.folder / f".shard-1.tmp-{host}@999999999@1@00"
    leftover.write_bytes(b"half")
    assert open_store().removed_leftovers == [leftover.name] and not leftover.exists()


def share(folder: str, mirror: str, number: int, results: Any) -> None:
    far = Far(LocalBackend(Path(folder)))
    fails = [0]

    def fail(name: str, _path: str, _call: int) -> Exception | None:
        fails[0] += 1
        return OSError(5, "down") if fails[0] % 7 == number else None

    far.fail = fail
    store = Store(RemoteShelf(far, mirror, mirror_bytes=200_000, first_delay_seconds=0.01))
    encoded = []

    def encode(group):
        time.sleep(0.05)
        encoded.extend(item.name for item in group)
        return [value(item.name) for item in group]

    filled = fill_quietly(
        store, [Item(f"i{n}", {"content": n}) for n in range(60)], encode, flush_records=4, look_seconds=0.02
    )
    places = sorted((store.record(key).shard, key, name) for name, key in filled.keys.items())
    good = all(torch.equal(store.get(key), value(name)) for _shard, key, name in places)
    results.put((len(filled.keys), len(encoded), good))


@pytest.mark.slow
def test_processes_fill_and_read_one_place_through_one_mirror(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = (str(tmp_path / "far"), str(tmp_path / "mirror"))
    processes = [context.Process(target=share, args=(*arguments, number, results)) for number in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _process in processes]
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert all(keys == 60 and good for keys, _encoded, good in found)
    assert sum(encoded for _keys, encoded, _good in found) < 1.6 * 60
    store = Store(RemoteShelf(Far(LocalBackend(tmp_path / "far")), tmp_path / "third"))
    assert len(store) == 60 and verify(store) == {}
    assert not [name for name in copies(tmp_path) if "tmp" in name or "waiting" in name]
