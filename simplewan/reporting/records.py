"""`events.jsonl`: one JSON object a line, appended while the run goes on and cut back when it resumes.

Imports events alone. Every line carries the run's id, the attempt (one start of the program), a sequence number that
counts within the attempt, and the time. The log is the only place where id and attempt are kept. Lines are flushed as
they are written; they are forced to disk where a stage ends or a checkpoint is saved, so that a power cut may lose
figures, but not the account of what was saved.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplewan.data.atomic import atomic_path
from simplewan.events import CheckpointSaved, ErrorHappened, Event, Progress, RunSummary, Stage, as_record

LOG_NAME = "events.jsonl"
# What a step produced; on resume at step N, those of later steps are undone with the steps themselves.
STEP_RECORDS = frozenset({"metric", "eval_loss", "checkpoint", "validation"})


@dataclass(frozen=True)
class RunIdentity:
    """`run_id` stays for all attempts of a run; `attempt` counts its starts from 1."""

    run_id: str
    attempt: int


def next_identity(path: Path) -> RunIdentity:
    """The identity of the attempt that begins now: the log's run and one attempt more, or a new run."""
    run_id, attempt = "", 0
    for record in read_records(path):
        run_id = str(record.get("run_id", run_id))
        attempt = max(attempt, int(record.get("attempt", 0)))
    return RunIdentity(run_id or secrets.token_hex(5), attempt + 1)


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The log's records in order; lines that are not whole are passed over. None when there is no log."""
    for _, record in _lines(path):
        if record is not None:
            yield record


def cut_back(path: Path, step: int) -> int:
    """Undoes the log after `step`: drops torn lines and what later steps recorded. Returns how many were dropped.

    The file is replaced atomically, and only when something is dropped.
    """

    def keep(record: dict[str, Any]) -> bool:
        return record.get("type") not in STEP_RECORDS or record.get("step", 0) <= step

    return _filter(path, keep)


def recorded_at(path: Path, step: int) -> frozenset[tuple[str, str]]:
    """What the log holds of `step`: (type, name of the clip, or role, or "") of its checkpoint, losses and clips."""
    return frozenset(
        (record["type"], str(record.get("name", record.get("role", ""))))
        for record in read_records(path)
        if record.get("type") in STEP_RECORDS and record.get("step") == step
    )


class EventLog:
    """The listener that appends to the log. Progress is written every few seconds and when it is complete."""

    def __init__(
        self,
        path: Path,
        identity: RunIdentity,
        *,
        clock: Callable[[], float] = time.time,
        progress_interval_seconds: float = 5.0,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _filter(path, lambda record: True)
        self._file = path.open("a", encoding="utf-8")
        self._head = {"run_id": identity.run_id, "attempt": identity.attempt}
        self._sequence = 0
        self._clock = clock
        self._paced = Paced(progress_interval_seconds)

    def __call__(self, event: Event) -> None:
        now = self._clock()
        if isinstance(event, Progress) and not self._paced(event, now):
            return
        self._sequence += 1
        record = {**self._head, "sequence": self._sequence, "time": round(now, 3), **as_record(event)}
        self._file.write(to_json(record) + "\n")
        self._file.flush()
        if _is_milestone(event):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Paced:
    """Tells which reports of progress are worth passing on: the first and last of each kind, and one now and then."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval = interval_seconds
        self._times: dict[str, float] = {}

    def __call__(self, event: Progress, now: float) -> bool:
        last = self._times.get(event.key)
        if event.current < event.total and last is not None and now - last < self._interval:
            return False
        self._times[event.key] = now
        return True


def to_json(record: Mapping[str, Any]) -> str:
    """`record` as one line of JSON. NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(record), ensure_ascii=False, allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _is_milestone(event: Event) -> bool:
    if isinstance(event, Stage):
        return event.status != "running"
    return isinstance(event, (CheckpointSaved, ErrorHappened, RunSummary))


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line with its record, or with None when it is torn: cut short, or not a JSON object."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            yield line, _parse(line) if line.endswith(b"\n") else None


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _filter(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    lines = list(_lines(path))
    kept = [line for line, record in lines if record is not None and keep(record)]
    if len(kept) < len(lines):
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"".join(kept))
    return len(lines) - len(kept)
