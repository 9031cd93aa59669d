"""Batches ready before the step asks for them: one thread draws, fetches and collates ahead, in order.

Imports this room. One thread is enough: copying a cached latent takes a fraction of a millisecond, and the copy runs
without the interpreter lock; more threads would need an order to be restored.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from simplewan.batches.batch import Batch
from simplewan.batches.sampler import BatchSpec, Sampler

Loaded = tuple[Batch, BatchSpec, dict[str, Any]]


class Loader:
    """Hands out `(batch, spec, sampler state after it)`; the state belongs to this batch, not to the prefetched ones.

    From now on the sampler belongs to the loader's thread. An exception of `fetch` is raised by `next`, in its turn and
    by every later call. `waited_seconds` is the time that `next` has spent waiting. With `prefetch` 0 a batch is loaded
    when it is asked for.
    """

    def __init__(self, sampler: Sampler, fetch: Callable[[BatchSpec], Batch], *, prefetch: int = 2) -> None:
        assert prefetch >= 0
        self.waited_seconds = 0.0
        self._sampler = sampler
        self._fetch = fetch
        self._failed = False
        self._closed = False
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._pending: deque[Future[Loaded]] = deque(self._executor.submit(self._load) for _ in range(prefetch))

    def next(self) -> Loaded:
        """The next batch. Raises what `fetch` raised, `RuntimeError` after `close`."""
        if self._closed:
            raise RuntimeError("the loader is closed")
        future = self._pending[0] if self._pending else self._executor.submit(self._load)
        start = time.perf_counter()
        result = future.result()
        self.waited_seconds += time.perf_counter() - start
        if self._pending:
            self._pending.append(self._executor.submit(self._load))
            self._pending.popleft()
        return result

    def close(self) -> None:
        """Stop, and wait for the fetch that is under way."""
        self._closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _load(self) -> Loaded:
        if self._failed:
            raise RuntimeError("an earlier batch could not be loaded")
        self._failed = True
        spec = next(self._sampler)
        result = self._fetch(spec), spec, self._sampler.state_dict()
        self._failed = False
        return result
