"""Everyone who listens to a run: console, events.jsonl, heartbeat, trackers; and the resolved configuration on disk."""

from __future__ import annotations

from pathlib import Path

from simplewan.events import Emitter
from simplewan.options import Loaded


class Reports:
    """A context manager around a run's listeners. `emit` is what the run is handed."""

    def __init__(self, loaded: Loaded, output: Path) -> None:
        self._loaded, self._output = loaded, output
        self.emit = Emitter()
        self.emit.add(lambda e: print(e, flush=True))

    def __enter__(self):
        return self

    def __exit__(self, *a):
        pass

    def begin(self, *, step, total_steps):
        pass

    def summarise(self, reason, *, seconds):
        print(reason, seconds)
