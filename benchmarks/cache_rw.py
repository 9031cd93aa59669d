"""Cached latents and text embeddings copied into a batch: mmapped shards against one .pt file a sample.

The latents have the shape of 81 frames at 480x832 in bf16, 4.2 MB. Everything is in the page cache; both ways end with
the same batch tensor, because a view that nobody touches costs nothing. Asked for: at least 2.5 times torch.load.

What compression does depends on the content. The latents here are coarse noise (an eighth of the height and width, four
frames), stretched over the clip, plus a fifth of fine noise that stays the same from frame to frame and a fiftieth that
does not: neighbours resemble each other, and frames do. Clips with still or plain parts shrink more.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import zstandard

from benchmarks.timing import Row, alternate, ratios, row
from simplewan.batches.batch import collate
from simplewan.caches import packing
from simplewan.caches.store import Store

LATENTS_CFHW = (16, 21, 60, 104)
TEXT_TOKENS, TEXT_WIDTH = 512, 4096
NUM_SAMPLES = 48
NUM_PER_SHARD = 16
BATCH_SIZE = 4
ROUNDS = 21
WARMUP = 5  # the first turns also wait for memory that was never used before
ASKED = 2.5


def run() -> list[Row]:
    """Reads per second both ways, their ratio, the same for text, the rate of writing, and what compression does."""
    with tempfile.TemporaryDirectory() as folder:
        return (
            _latents(Path(folder) / "latents")
            + _texts(Path(folder) / "texts")
            + _writing(Path(folder) / "writing")
            + _compression(Path(folder) / "packed")
        )


def _latents(folder: Path) -> list[Row]:
    names = [f"sample{number:03d}" for number in range(NUM_SAMPLES)]
    text = torch.zeros(1, 1)
    store = _write_both(folder, {name: torch.randn(LATENTS_CFHW).to(torch.bfloat16) for name in names})
    batches = [names[at : at + BATCH_SIZE] for at in range(0, NUM_SAMPLES, BATCH_SIZE)]

    def shards() -> None:
        for batch in batches:
            collate(store.get_many(batch), [text] * BATCH_SIZE, names=batch, text_tokens=1)

    def files() -> None:
        for batch in batches:
            torch.stack([torch.load(folder / f"{name}.pt") for name in batch])

    return _compare("4.2 MB latents", {"shards": shards, "files": files}, note=f"asked for: >= {ASKED}")


def _texts(folder: Path) -> list[Row]:
    names = [f"caption{number:03d}" for number in range(NUM_SAMPLES)]
    lengths = [24 + 5 * number for number in range(NUM_SAMPLES)]
    records = {
        name: torch.randn(length, TEXT_WIDTH).to(torch.bfloat16) for name, length in zip(names, lengths, strict=True)
    }
    store = _write_both(folder, records)
    latents = torch.zeros(1, 1, 1, 1)
    batches = [names[at : at + BATCH_SIZE] for at in range(0, NUM_SAMPLES, BATCH_SIZE)]

    def shards() -> None:
        for batch in batches:
            collate([latents] * BATCH_SIZE, store.get_many(batch), names=batch, text_tokens=TEXT_TOKENS)

    def files() -> None:
        for batch in batches:
            collate(
                [latents] * BATCH_SIZE,
                [torch.load(folder / f"{name}.pt") for name in batch],
                names=batch,
                text_tokens=TEXT_TOKENS,
            )

    return _compare("text embeddings", {"shards": shards, "files": files}, note="24 to 259 tokens, padded to 512")


def _writing(folder: Path) -> list[Row]:
    store = Store(folder)
    latents = [torch.randn(LATENTS_CFHW).to(torch.bfloat16) for _ in range(NUM_PER_SHARD)]

    def write(turn: list[int]) -> None:
        turn[0] += 1
        store.put({f"{turn[0]}-{number}": (latent, _origin("x")) for number, latent in enumerate(latents)})

    counter = [0]
    seconds = alternate({"write": lambda: write(counter)}, rounds=5)["write"]
    megabytes = sum(latent.nbytes for latent in latents) / 1e6
    return [row("write a shard, checksums and fsync included", [megabytes / s for s in seconds], "MB/s")]


def _compression(folder: Path) -> list[Row]:
    """Plain and packed in turns: written, and read whole (a view is copied once, as into a batch)."""
    latents = [_smooth_latents(number) for number in range(NUM_PER_SHARD)]
    megabytes = sum(latent.nbytes for latent in latents) / 1e6
    stores = {name: Store(folder / name, compress=name == "packed") for name in ("plain", "packed")}
    counts = dict.fromkeys(stores, 0)

    def write(name: str) -> None:
        counts[name] += 1
        first = counts[name] * NUM_PER_SHARD
        stores[name].put({f"{first + number:06d}": (x, _origin("x")) for number, x in enumerate(latents)})

    def read(name: str) -> None:
        for number in range(NUM_PER_SHARD):
            stores[name].get(f"{NUM_PER_SHARD + number:06d}").clone()

    written = alternate({name: partial(write, name) for name in stores}, rounds=5)
    was_read = alternate({name: partial(read, name) for name in stores}, rounds=ROUNDS)
    rows = [
        row(f"smooth latents, {name}: {what}", [megabytes / s for s in seconds[name]], "MB/s", "of unpacked latents")
        for what, seconds in (("written, checksums and fsync included", written), ("read", was_read))
        for name in stores
    ]
    note = "filtered noise, see benchmarks/cache_rw.py"
    rows.append(row("smooth latents: ratio", [_ratio(latents, packing.LEVEL)], "x", note))
    rows.append(row("smooth latents: ratio at level 9", [_ratio(latents, 9)], "x", note))
    together = [zstandard.ZstdCompressor(level=packing.LEVEL).compress(_plain_bytes(x)) for x in latents]
    rows.append(
        row("smooth latents: ratio, bytes not sorted", [megabytes * 1e6 / sum(map(len, together))], "x", "zstd alone")
    )
    texts = [torch.randn(256, TEXT_WIDTH).to(torch.bfloat16) for _ in range(4)]
    return [*rows, row("text embeddings: ratio", [_ratio(texts, packing.LEVEL)], "x", "of noise, the worst case")]


def _ratio(tensors: list[torch.Tensor], level: int) -> float:
    """Bytes before by bytes after, packed at this level of zstd."""
    with mock.patch.object(packing, "LEVEL", level):
        packed = [packing.pack(tensor) for tensor in tensors]
    return sum(x.nbytes for x in tensors) / sum(found[0].nbytes for found in packed if found is not None)


def _smooth_latents(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    channels, frames, height, width = LATENTS_CFHW
    coarse = torch.randn(1, channels, 4, height // 8, width // 8, generator=generator)
    stretched = torch.nn.functional.interpolate(coarse, size=LATENTS_CFHW[1:], mode="trilinear")[0]
    still = 0.2 * torch.randn(channels, 1, height, width, generator=generator)
    moving = 0.02 * torch.randn(channels, frames, height, width, generator=generator)
    return (stretched + still + moving).to(torch.bfloat16)


def _plain_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def _write_both(folder: Path, records: dict[str, torch.Tensor]) -> Store:
    store = Store(folder)
    names = list(records)
    for at in range(0, len(names), NUM_PER_SHARD):
        store.put({name: (records[name], _origin(name)) for name in names[at : at + NUM_PER_SHARD]})
    for name, tensor in records.items():
        torch.save(tensor, folder / f"{name}.pt")
    return store


def _compare(what: str, ways: dict, *, note: str) -> list[Row]:
    seconds = alternate(ways, rounds=ROUNDS, warmup=WARMUP)
    rates = {name: [NUM_SAMPLES / s for s in values] for name, values in seconds.items()}
    return [
        row(f"{what}: mmapped shards, copied into a batch", rates["shards"], "records/s"),
        row(f"{what}: torch.load of .pt files, into a batch", rates["files"], "records/s"),
        row(f"{what}: ratio", ratios(seconds["files"], seconds["shards"]), "x", note),
    ]


def _origin(name: str) -> dict:
    return {"names": [name], "components": {"content": name}}
