"""Disks that are full or may not be written: what people are told, and that nothing is lost or left behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from caching import fill_quietly

from simplewan.caches import shards
from simplewan.caches.house import prune, verify
from simplewan.caches.keys import Item
from simplewan.caches.remote import RemoteShelf
from simplewan.caches.store import Store
from simplewan.data.backends import LocalBackend
from simplewan.errors import UserError

ITEMS = [Item(f"i{n}", {"content": n}) for n in range(8)]


def run(store: Store, *, size: int = 100, encoded: list[str] | None = None):
    def encode(group):
        if encoded is not None:
            encoded.extend(item.name for item in group)
        return [torch.full((size,), float(item.components["content"])) for item in group]

    return fill_quietly(store, ITEMS, encode, flush_records=2)


@pytest.mark.parametrize("call", ["write", "sync", "replace"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full; free some room, or put the caches elsewhere with cache_dir"),
        (errno.EDQUOT, "your quota is used up"),
        (errno.EROFS, "read-only disk; put the caches elsewhere"),
        (errno.EACCES, "may not be written or read; ask for the right to write there"),
    ],
)
def test_a_refusal_is_told_and_the_next_start_goes_on(tmp_path, monkeypatch, call, number, words):
    owner, name = {"write": (shards, "_write"), "sync": (shards, "sync"), "replace": (Path, "replace")}[call]
    original, calls = getattr(owner, name), [0]

    def refusing(*arguments):
        calls[0] += 1
        if calls[0] >= 4:
            if call == "write":
                arguments[0].write(b"half a shard")
            raise OSError(number, os.strerror(number))
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refusing)
        with pytest.raises(UserError, match=words) as caught:
            run(Store(tmp_path))
    assert str(tmp_path) in str(caught.value) and "the next start goes on" in str(caught.value)
    assert calls[0] == 4, "what is refused is not tried again"
    left = Store(tmp_path)
    assert left.removed_leftovers == [] and verify(left) == {}
    assert len(left) == {"write": 6, "sync": 4, "replace": 6}[call]
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())
    encoded: list[str] = []
    filled = run(left, encoded=encoded)
    assert len(encoded) == 8 - {"write": 6, "sync": 4, "replace": 6}[call] and len(filled.keys) == 8


def test_another_error_of_the_disk_is_not_explained_away(tmp_path, monkeypatch):
    def broken(*_arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shards, "_write", broken)
    with pytest.raises(OSError, match="Input/output"):
        run(Store(tmp_path))
    assert list(tmp_path.iterdir()) == []


def fill_with_a_limit(small: Path, large: Path, said) -> None:
    torch.set_num_threads(1)  # a fork has no other threads
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    run(Store(small), size=10_000)
    try:
        run(Store(large), size=100_000)
    except UserError as error:
        said.put(str(error))


def test_a_write_that_stops_short_is_told(tmp_path):
    """The real thing, but for the number of the error: the system takes a part of the bytes."""
    small, large = tmp_path / "small", tmp_path / "large"
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    process = context.Process(target=fill_with_a_limit, args=(small, large, said))
    process.start()
    process.join(60)
    assert not said.empty()
    assert f"cache folder {large}: cannot be written: files of this size are not allowed" in said.get()
    assert list(large.iterdir()) == [] and len(Store(small)) == 8
    assert len(run(Store(large), size=100_000).keys) == 8


@contextmanager
def tiny_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mounting, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a disk cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    with tiny_disk(disk, "1m"):
        store = Store(disk / "cache")
        with pytest.raises(UserError, match="the disk is full"):
            run(store, size=50_000)
        written = len(store)
        assert 0 < written < 8
        assert [path.suffix for path in (disk / "cache").iterdir()] == [".safetensors"] * (written // 2)
        assert verify(Store(disk / "cache")) == {}
        # There is room again for what was wanted once nobody wants the first ones any more.
        store.close()
        keep = store.keys() - {ITEMS[0].key, ITEMS[2].key}
        prune(store, keep)
        assert verify(store) == {} and store.keys() == keep
        # A mirror that is full is not a failure of the far place.
        far = LocalBackend(tmp_path / "far")
        run(Store(RemoteShelf(far, tmp_path / "mirror")), size=200_000)
        reader = Store(RemoteShelf(far, disk / "mirror"))
        with pytest.raises(UserError, match=f"{disk}.*the disk is full"):
            reader.get(ITEMS[0].key)
        assert [path for path in (disk / "mirror").rglob("*") if path.is_file()] == []


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Without the rights of root, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_is_only_readable_is_read_and_otherwise_named():
    with tempfile.TemporaryDirectory() as name:  # where an ordinary user may look
        folder = Path(name)
        keys = run(Store(folder / "cache")).keys
        (folder / "cache" / ".shard-1.tmp-nohost@1@1@00").write_bytes(b"old")
        os.utime(folder / "cache" / ".shard-1.tmp-nohost@1@1@00", (1, 1))
        for path in (folder, folder / "cache"):
            path.chmod(0o555)
        try:
            with ordinary_user():
                store = Store(folder / "cache")
                assert run(store).keys == keys and float(store.get(keys["i3"])[0]) == 3.0
                more = Item("more", {"content": 99})
                with pytest.raises(UserError, match=f"{folder}/cache: may not be written or read"):
                    store.put({more.key: (torch.zeros(3), {"names": ["more"], "components": {}})})
                with pytest.raises(UserError, match="may not be written"):
                    Store(folder / "other")
        finally:
            for path in (folder, folder / "cache"):
                path.chmod(0o755)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    for folder in (tmp_path / "cache", tmp_path / "cache" / "deeper"):
        with pytest.raises(UserError, match="is no folder"):
            Store(folder)
