"""Does a training step ever wait for its batch? The loader's rate, and its stall share at 10 steps a second.

Cached latents of 480x832x81 and text embeddings come from shards in the page cache; a step is simulated by sleeping,
as it would wait for a GPU. Asked for: less than 1% of the time waiting in `next`.
"""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.timing import Row, row
from simplewan.batches.batch import Batch, collate
from simplewan.batches.loader import Loader
from simplewan.batches.sampler import BatchSpec, Sampler
from simplewan.batches.sizes import SampleRef
from simplewan.caches.store import Store

LATENTS_CFHW = (16, 21, 60, 104)
TEXT_TOKENS, TEXT_WIDTH = 512, 4096
NUM_SAMPLES = 48
NUM_PER_SHARD = 16
STEPS_PER_SECOND = 10
ASKED_PERCENT = 1
LONG_LIST = 100_000
EPOCHS = 6


def run() -> list[Row]:
    """Batches a second with nobody else at work, the stall share at 10 steps/s, memory gained, planning an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        store = _filled(Store(folder))
        rates, stalls, growths = [], [], []
        for _ in range(5):
            with _loader(store, batch_size=1) as loader:
                rates.append(_rate(loader, batches=150))
            with _loader(store, batch_size=1) as loader:
                stalls.append(_stall_percent(loader, steps=40))
            with _loader(store, batch_size=1) as loader:
                growths.append(_growth_mib(loader, batches=EPOCHS * NUM_SAMPLES))
    return [
        row("loader: 480x832x81, batch 1", rates, "batches/s"),
        row(f"loader: stall share at {STEPS_PER_SECOND} steps/s", stalls, "%", f"asked for: < {ASKED_PERCENT}"),
        row(f"loader: memory gained in {EPOCHS} epochs", growths, "MiB", "asked for: flat; anonymous memory"),
        row(f"sampler: plan an epoch of {LONG_LIST:,} samples", [_planning() for _ in range(3)], "s"),
    ]


def _filled(store: Store) -> Store:
    for start in range(0, NUM_SAMPLES, NUM_PER_SHARD):
        numbers = range(start, start + NUM_PER_SHARD)
        latents = {f"latents{n:03d}": torch.randn(LATENTS_CFHW).to(torch.bfloat16) for n in numbers}
        texts = {f"text{n:03d}": torch.randn(24 + 5 * n, TEXT_WIDTH).to(torch.bfloat16) for n in numbers}
        store.put({key: (x, {"names": [key], "components": {}}) for key, x in {**latents, **texts}.items()})
    return store


def _loader(store: Store, *, batch_size: int) -> Loader:
    samples = [SampleRef(f"{number:03d}", "832x480@81") for number in range(NUM_SAMPLES)]

    def fetch(spec: BatchSpec) -> Batch:
        latents = store.get_many([f"latents{name}" for name in spec.names])
        texts = store.get_many([f"text{name}" for name in spec.names])
        return collate(latents, texts, names=spec.names, text_tokens=TEXT_TOKENS)

    return Loader(Sampler(samples, batch_size, 0, "transformer"), fetch)


def _rate(loader: Loader, *, batches: int) -> float:
    start = time.perf_counter()
    for _ in range(batches):
        loader.next()
    return batches / (time.perf_counter() - start)


def _stall_percent(loader: Loader, *, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        loader.next()
        time.sleep(1 / STEPS_PER_SECOND)
    return 100 * loader.waited_seconds / (time.perf_counter() - start)


def _growth_mib(loader: Loader, *, batches: int) -> float:
    """MiB of anonymous memory gained after the first epoch; pages of mapped files belong to the system's cache."""
    for _ in range(NUM_SAMPLES):
        loader.next()
    before = _anonymous_bytes()
    for _ in range(batches - NUM_SAMPLES):
        loader.next()
    return (_anonymous_bytes() - before) / 2**20


def _anonymous_bytes() -> int:
    """What this process has allocated, by Linux' own count."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def _planning() -> float:
    samples = [SampleRef(f"dataset/{number:06d}.mp4", f"bucket{number % 5}") for number in range(LONG_LIST)]
    start = time.perf_counter()
    Sampler(samples, 4, 0, "transformer")
    return time.perf_counter() - start
