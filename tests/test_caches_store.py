"""The store on disk: atomic shards, damage, leftovers, several writers, views that are not copies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from caching import fill_quietly, origin
from safetensors import safe_open
from safetensors.torch import load_file, save

from simplewan.caches import owners
from simplewan.caches.house import verify
from simplewan.caches.keys import Item
from simplewan.caches.store import Store
from simplewan.events import Notice


def records(*names: str, value: float = 1.0) -> dict:
    return {f"key-{name}": (torch.full((3, 5), value), origin(name)) for name in names}


def test_what_is_put_is_read_back_also_by_safetensors(tmp_path):
    store = Store(tmp_path / "new" / "folder")
    embeds = torch.randn(7, 4).to(torch.bfloat16)
    store.put({**records("a", "b"), "t": (embeds, origin("t"))})
    for reader in (store, Store(tmp_path / "new" / "folder")):
        assert reader.keys() == {"key-a", "key-b", "t"} and "t" in reader and len(reader) == 3
        assert reader.get("t").dtype == torch.bfloat16 and torch.equal(reader.get("t"), embeds)
        assert [x.shape for x in reader.get_many(["t", "key-a"])] == [(7, 4), (3, 5)]
        assert reader.newest("t").components == {"content": "t"}
        assert verify(reader) == {}
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert torch.equal(load_file(path)["t"], embeds)
    with pytest.raises(KeyError):
        store.get("absent")


def test_the_same_records_make_the_same_file_and_it_is_what_safetensors_writes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    given = {
        "k": (torch.randn(2, 3, generator=generator).to(torch.bfloat16), origin("k")),
        "ä": (torch.arange(5), origin("ü")),
        "c": (torch.ones(3, dtype=torch.uint8), origin("c")),
        "b": (torch.ones(3, 0, dtype=torch.float32), origin("b")),
        "a": (torch.tensor(2.5), origin("a")),
        "h": (torch.ones(1, 1, dtype=torch.float16), origin("h")),
        "x": (torch.tensor([True, False]), origin("x")),
    }
    for folder, order in (("one", given), ("two", dict(reversed(given.items())))):
        Store(tmp_path / folder).put(order)
    (one,), (two,) = ((tmp_path / folder).iterdir() for folder in ("one", "two"))
    with safe_open(one, framework="pt") as file:
        metadata = file.metadata()
    assert one.name == two.name
    tensors = {key: tensor for key, (tensor, _origin) in given.items()}
    assert one.read_bytes() == two.read_bytes() == save(tensors, metadata=metadata)


def test_reading_maps_the_file_and_copies_nothing(tmp_path):
    store = Store(tmp_path)
    store.put({"big": (torch.zeros(16, 2**20), origin("big"))})  # 64 MiB
    store.close()
    before = psutil.Process().memory_info().rss
    view = store.get("big")
    assert psutil.Process().memory_info().rss - before < 16 * 2**20
    store.close()
    assert float(view[3, 5]) == 0.0, "a view outlives its handle"


def test_few_shards_are_open_at_once(tmp_path):
    store = Store(tmp_path, max_open=2)
    for name in "abcdef":
        store.put(records(name, value=ord(name)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    views = store.get_many([f"key-{name}" for name in "abcdef"])
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 2
    assert [int(view[0, 0]) for view in views] == [ord(name) for name in "abcdef"]


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "longer"])
def test_a_damaged_shard_is_reported_ignored_and_encoded_again(tmp_path, damage):
    items = [Item(name, {"content": name}) for name in "abc"]
    calls: list[str] = []

    def encode(group):
        calls.extend(item.name for item in group)
        return [torch.ones(100) for _item in group]

    def filled(emit):
        store = Store(tmp_path)
        result = fill_quietly(store, items, encode, emit=emit, flush_bytes=1)
        assert [float(store.get(key).sum()) for key in result.keys.values()] == [100.0] * 3

    filled(lambda event: None)
    calls.clear()
    shard = tmp_path / Store(tmp_path).record(items[1].key).shard
    data = shard.read_bytes()
    broken = {"truncated": data[:-7], "header": b"\xff" * 40 + data[40:], "empty": b"", "longer": data + b"x"}
    shard.write_bytes(broken[damage])
    events: list = []
    filled(events.append)
    assert calls == ["b"]
    assert [event for event in events if isinstance(event, Notice) and "damaged" in event.message]
    events.clear()
    filled(events.append)
    assert calls == ["b"] and not events


def test_verify_finds_a_flipped_bit(tmp_path):
    store = Store(tmp_path)
    store.put(records("a", "b"))
    store.close()
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(bytes(data))
    assert len(verify(Store(tmp_path))) == 1


def test_only_ownerless_leftovers_are_removed(tmp_path):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        started = round(psutil.Process(sleeper.pid).create_time())
        host = owners._host()
        alive = tmp_path / f".shard-1.tmp-{host}@{sleeper.pid}@{started}@00"
        reused_pid = tmp_path / f".shard-2.tmp-{host}@{sleeper.pid}@{started - 5000}@00"
        dead = tmp_path / f".shard-3.tmp-{host}@999999999@{started}@00"
        elsewhere = tmp_path / f".shard-4.tmp-other@1@{started}@00"
        old_elsewhere = tmp_path / f".shard-5.tmp-other@1@{started}@00"
        others = tmp_path / "notes.tmp"
        for path in (alive, reused_pid, dead, elsewhere, old_elsewhere, others):
            path.write_bytes(b"x")
        long_ago = time.time() - 2 * 24 * 3600
        os.utime(old_elsewhere, (long_ago, long_ago))
        store = Store(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted([alive, elsewhere, others])
        assert store.removed_leftovers == sorted(path.name for path in (reused_pid, dead, old_elsewhere))
    finally:
        sleeper.kill()
        sleeper.wait()


WRITER = """
import sys, time, torch
from simplewan.caches.fill import fill
from simplewan.caches.keys import Item
from simplewan.caches.store import Store
def encode(items):
    time.sleep(float(sys.argv[3]))
    return [torch.full((50,), float(int(item.key[:4], 16))) for item in items]
items = [Item(f"i{n}", {"content": n}) for n in range(int(sys.argv[2]))]
fill(Store(sys.argv[1]), items, encode, batch_size=3, label="L", key="k", emit=lambda event: None,
     check=lambda: None, flush_bytes=600)
"""


def writer(folder: Path, count: int, seconds: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(count), str(seconds)])


def contents(folder: Path) -> dict[str, bytes]:
    store = Store(folder)
    assert store.damaged == {} and verify(store) == {}
    return {key: store.get(key).numpy().tobytes() for key in sorted(store.keys())}


@pytest.mark.slow
def test_killed_writers_leave_a_good_cache_and_two_may_write_at_once(tmp_path):
    folder = tmp_path / "killed"
    victim = writer(folder, 30, 0.05)
    deadline = time.time() + 60
    while not list(folder.glob("*.safetensors")) and time.time() < deadline:
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    left = contents(folder)
    assert 0 < len(left) < 30
    both = [writer(folder, 30, 0.01), writer(folder, 30, 0)]
    assert [process.wait(60) for process in both] == [0, 0]
    items = [Item(f"i{number}", {"content": number}) for number in range(30)]
    quiet = Store(tmp_path / "quiet")
    fill_quietly(
        quiet, items, lambda group: [torch.full((50,), float(int(item.key[:4], 16))) for item in group], batch_size=3
    )
    assert contents(folder) == contents(quiet.folder) and len(quiet) == 30


def test_refresh_sees_what_others_wrote_and_took_away(tmp_path):
    reader, other = Store(tmp_path), Store(tmp_path)
    other.put(records("a"))
    other.put(records("b"))
    assert reader.keys() == set()
    reader.refresh()
    assert reader.keys() == {"key-a", "key-b"}
    (tmp_path / reader.record("key-a").shard).unlink()
    reader.refresh()
    assert reader.keys() == {"key-b"} and reader.newest("a") is None
