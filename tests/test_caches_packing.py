"""Packed records: the same content, the same bytes, beside plain ones, and damage that is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from caching import fill_quietly, origin
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from simplewan.caches.house import sizes, verify
from simplewan.caches.keys import Item
from simplewan.caches.packing import DTYPES, PackingError, pack, unpack
from simplewan.caches.shards import ShardError, digest
from simplewan.caches.store import Store


def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 1, *(max(1, size // 4) for size in shape), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[0, 0]
    return (fine + 0.05 * torch.randn(shape, generator=generator)).to(torch.bfloat16)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit, NaN included."""
    return one.dtype == other.dtype and one.shape == other.shape and digest(one) == digest(other)


@given(
    st.binary(max_size=512),
    st.sampled_from(sorted(DTYPES)),
    st.integers(1, 400),
)
@settings(max_examples=150, deadline=None)
def test_any_bits_come_back(data, dtype, times):
    itemsize = DTYPES[dtype].itemsize
    data = data[: len(data) // itemsize * itemsize] * times
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    if dtype == "BOOL":
        raw = raw % 2
    tensor = raw.view(DTYPES[dtype])
    packed = pack(tensor)
    if packed is None:
        return
    assert packed[0].nbytes < tensor.nbytes
    assert same(unpack(*packed), tensor)
    assert torch.equal(pack(tensor)[0], packed[0]), "the same record, the same bytes"


@pytest.mark.parametrize("shape", [(), (1,), (0, 4), (3, 1, 64), (16, 5, 24, 40)])
def test_shapes_come_back(shape):
    tensor = torch.zeros(shape, dtype=torch.float32)
    packed = pack(tensor)
    assert (packed is None) == (tensor.nbytes < 20), "packing that saves nothing is left out"
    if packed is not None:
        assert same(unpack(*packed), tensor)


def test_the_store_reads_both_kinds_and_the_file_is_an_ordinary_one(tmp_path):
    latents, noise = smooth(16, 24, 40), torch.randint(0, 256, (4096,), dtype=torch.uint8)
    Store(tmp_path).put({"plain": (latents, origin("plain"))})
    Store(tmp_path, compress=True).put({"packed": (latents, origin("packed")), "noise": (noise, origin("noise"))})
    store = Store(tmp_path)
    assert same(store.get("plain"), latents) and same(store.get("packed"), latents) and same(store.get("noise"), noise)
    plain, packed = store.record("plain"), store.record("packed")
    assert plain.sha256 == packed.sha256 == digest(latents)
    assert packed.num_bytes < plain.num_bytes / 1.4 and store.record("noise").packing is None
    assert (sizes(store).records, sizes(store).packed_records, sizes(store).shards) == (3, 1, 2)
    assert verify(store) == {}
    path = tmp_path / packed.shard
    assert load_file(path)["packed"].dtype == torch.uint8
    with safe_open(path, framework="pt") as file:
        words = json.loads(file.metadata()["records"])["packed"]["packed"]
    assert words == {"method": "planes+zstd", "dtype": "BF16", "shape": [16, 24, 40]}
    assert float(store.get("packed").add_(1).sum()) != float(latents.sum()), "what was unpacked may be written to"


def test_splitting_the_bytes_pays(tmp_path):
    import zstandard

    latents = smooth(16, 24, 40)
    together = zstandard.ZstdCompressor(level=1).compress(latents.view(torch.uint8).numpy().tobytes())
    assert pack(latents)[0].nbytes < 0.9 * len(together)


def test_a_cache_filled_without_is_read_with_and_the_other_way_round(tmp_path):
    def run(folder: Path, names: str, *, compress: bool) -> tuple[int, dict[str, torch.Tensor]]:
        store = Store(folder, compress=compress)
        items = [Item(name, {"content": name}) for name in names]
        filled = fill_quietly(store, items, lambda group: [smooth(4, 16, 16, seed=ord(item.name)) for item in group])
        return filled.encoded, {name: store.get(key) for name, key in filled.keys.items()}

    for first in (False, True):
        folder = tmp_path / str(first)
        assert run(folder, "ab", compress=first)[0] == 2
        encoded, tensors = run(folder, "abc", compress=not first)
        assert encoded == 1
        assert all(same(tensor, smooth(4, 16, 16, seed=ord(name))) for name, tensor in tensors.items())


def test_the_same_records_make_the_same_packed_file(tmp_path):
    for folder in ("one", "two"):
        Store(tmp_path / folder, compress=True).put({name: (smooth(8, 16, 16), origin(name)) for name in "ab"})
    (one,), (two,) = (list((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert (one.name, one.read_bytes()) == (two.name, two.read_bytes())
    Store(tmp_path / "one").put({name: (smooth(8, 16, 16), origin(name)) for name in "ab"})
    assert len(list((tmp_path / "one").iterdir())) == 2, "plain records do not replace a packed file that others map"


@pytest.mark.parametrize("at", ["frame", "middle", "end"])
def test_damage_is_noticed_when_read_and_when_verified(tmp_path, at):
    Store(tmp_path, compress=True).put({"a": (smooth(8, 16, 16), origin("a"))})
    record = Store(tmp_path).record("a")
    path = tmp_path / record.shard
    data = bytearray(path.read_bytes())
    data[{"frame": record.start + 5, "middle": (record.start + record.end) // 2, "end": record.end - 1}[at]] ^= 16
    path.write_bytes(bytes(data))
    with pytest.raises(ShardError, match=r"shard-.*: a: its compressed bytes"):
        Store(tmp_path).get("a")
    ((key, reason),) = verify(Store(tmp_path)).items()
    assert key == "a" and "compressed" in reason


def test_a_method_of_a_later_version_is_named():
    packed, packing = pack(smooth(8, 16, 16))
    with pytest.raises(PackingError, match="brotli"):
        unpack(packed, type(packing)("brotli", packing.dtype, packing.shape))
    with pytest.raises(PackingError, match="bytes"):
        unpack(packed, type(packing)(packing.method, packing.dtype, (10**12,)))
