"""Everyone who listens to a run: console, events.jsonl, heartbeat, trackers; and the resolved configuration on disk."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from simplewan.app.device import memory_gib
from simplewan.checkpoints.files import write_json
from simplewan.events import Emitter, Event, Metric, Notice, RunSummary
from simplewan.options import Loaded
from simplewan.reporting.console import Console
from simplewan.reporting.heartbeat import Heartbeat
from simplewan.reporting.records import EventLog, cut_back
from simplewan.reporting.trackers import make_trackers


class Reports:
    """A context manager around a run's listeners. `emit` is what the run is handed."""

    def __init__(self, loaded: Loaded, output: Path) -> None:
        self._loaded, self._output = loaded, output
        self.emit = Emitter()
