"""`heartbeat.json`: a small file that says what the run is doing now, for whoever watches from outside.

Imports events and `records`. It is replaced atomically, so that a reader never sees half of it, but not forced to disk:
after a power cut it is of no use. It is written at most every few seconds, and at once when a stage changes or the run
ends. A heartbeat that is older than the run's slowest step means that the process is gone or stuck.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simplewan.events import Event, Metric, Progress, RunSummary, Stage
from simplewan.reporting.records import to_json

HEARTBEAT_NAME = "heartbeat.json"
# Weight of the newest step in the mean that the ETA is made of.
SMOOTHING = 0.1


class Heartbeat:
    """The listener that writes the file: pid, stage, step, total_steps, eta_seconds, time."""

    def __init__(self, path: Path, *, interval_seconds: float = 3.0, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._interval = interval_seconds
        self._clock = clock
        self._state: dict[str, Any] = {"pid": os.getpid()}
        self._stages: list[Stage] = []
        self._written = float("-inf")
        self._step_seconds: float | None = None
        # Where the present progress began, to tell its rate: key, count, time.
        self._began: tuple[str, int, float] | None = None

    def __call__(self, event: Event) -> None:
        now = self._clock()
        at_once = False
        if isinstance(event, Stage):
            self._enter_or_leave(event)
            at_once = True
        elif isinstance(event, Metric):
            self._take_step(event)
        elif isinstance(event, Progress):
            self._take_progress(event, now)
        elif isinstance(event, RunSummary):
            self._state.update(stage="ended", reason=event.reason, step=event.step, total_steps=event.total_steps)
            self._forget("label", "current", "total", "unit", "eta_seconds")
            at_once = True
        else:
            return
        if at_once or now - self._written >= self._interval:
            self._write(now)

    def _enter_or_leave(self, event: Stage) -> None:
        # Stages nest: a validation happens inside training, which goes on afterwards.
        self._stages = [stage for stage in self._stages if stage.key != event.key]
        if event.status == "running":
            self._stages.append(event)
        self._forget("current", "total", "unit", "eta_seconds")
        if self._stages:
            self._state.update(stage=self._stages[-1].key, label=self._stages[-1].label)
        else:
            self._state.update(stage=event.key, label=f"{event.label}: {event.status}")

    def _take_step(self, event: Metric) -> None:
        before = self._step_seconds
        self._step_seconds = event.seconds if before is None else before + SMOOTHING * (event.seconds - before)
        remaining = (event.total_steps - event.step) * self._step_seconds
        self._state.update(step=event.step, total_steps=event.total_steps, eta_seconds=round(remaining, 1))
        self._forget("current", "total", "unit")

    def _take_progress(self, event: Progress, now: float) -> None:
        if self._began is None or self._began[0] != event.key or event.current < self._began[1]:
            self._began = (event.key, event.current, now)
        _, count, began = self._began
        self._state.update(current=event.current, total=event.total, unit=event.unit)
        self._forget("eta_seconds")
        if event.current > count:
            remaining = (event.total - event.current) * (now - began) / (event.current - count)
            self._state["eta_seconds"] = round(remaining, 1)

    def _forget(self, *names: str) -> None:
        for name in names:
            self._state.pop(name, None)

    def _write(self, now: float) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        temporary.write_text(to_json({**self._state, "time": round(now, 3)}) + "\n", encoding="utf-8")
        temporary.replace(self._path)
        self._written = now
