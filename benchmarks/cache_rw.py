"""Cached latents and text embeddings copied into a batch: mmapped shards against one .pt file a sample.

The latents have the shape of 81 frames at 480x832 in bf16, 4.2 MB. Everything is in the page cache; both ways end with
the same batch tensor, because a view that nobody touches costs nothing. Asked for: at least 2.5 times torch.load.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.timing import Row, alternate, ratios, row
from simplewan.batches.batch import collate
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
    """Reads per second both ways, their ratio, the same for text, and the rate of writing."""
    with tempfile.TemporaryDirectory() as folder:
        return _latents(Path(folder) / "latents") + _texts(Path(folder) / "texts") + _writing(Path(folder) / "writing")


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
