"""The log is valid JSON at every moment, and agrees with the checkpoint after a resume."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from simplewan.events import (
    CheckpointSaved,
    ErrorHappened,
    EvalLoss,
    Event,
    Metric,
    Notice,
    Progress,
    RunSummary,
    Stage,
    ValidationRendered,
)
from simplewan.reporting.heartbeat import Heartbeat
from simplewan.reporting.records import EventLog, RunIdentity, cut_back, next_identity, read_records


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _metric(step: int, *, loss: float = 1.0, seconds: float = 0.5, **values: float) -> Metric:
    return Metric(step, 40, 1, "high", loss, 1e-4, seconds, values)


def _write(path: Path, *events: Event, attempt: int = 1) -> None:
    log = EventLog(path, RunIdentity("abc", attempt), clock=Clock())
    for event in events:
        log(event)
    log.close()


def test_every_line_has_its_place(tmp_path: Path) -> None:
    path = tmp_path / "run" / "events.jsonl"
    _write(path, Stage("training", "Training"), _metric(1, grad_norm=2.5))
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {
        "run_id": "abc",
        "attempt": 1,
        "sequence": 1,
        "time": 1000.0,
        "type": "stage",
        "key": "training",
        "label": "Training",
        "status": "running",
    }
    assert (second["sequence"], second["step"], second["grad_norm"]) == (2, 1, 2.5)


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    _write(path, _metric(1, loss=math.nan, grad_norm=math.inf), EvalLoss(1, "high", 1.0, {"0.5": -math.inf}))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    metric, evaluation = (json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines())
    assert metric["loss"] is None
    assert metric["grad_norm"] is None
    assert evaluation["bands"] == {"0.5": None}


def test_cutting_back_undoes_later_steps_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    kept = [
        Stage("training", "Training"),
        _metric(10),
        CheckpointSaved(10, "checkpoint-10"),
        EvalLoss(10, "high", 1.0),
        ErrorHappened("a clip failed", "validation of step 11"),
        Notice("Bänder und Ü"),
        RunSummary("stopped by SIGTERM", 12, 40, 3.0),
    ]
    undone = [
        _metric(11),
        CheckpointSaved(12, "checkpoint-12"),
        EvalLoss(12, "high", 1.0),
        ValidationRendered(11, "a", "prompt", "a.mp4", "a.png", 1.0),
    ]
    _write(path, *kept[:4], *undone, *kept[4:])
    with path.open("a") as file:
        file.write('{"type": "metric", "step": 9, "lo')
    assert cut_back(path, 10) == 5
    assert [record["type"] for record in read_records(path)] == [event.kind for event in kept]
    assert path.read_bytes().endswith(b"\n")
    before = path.stat().st_ino
    assert cut_back(path, 10) == 0
    assert path.stat().st_ino == before, "nothing to drop, nothing written"
    assert [item.name for item in tmp_path.iterdir()] == ["events.jsonl"]


def test_cutting_back_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert cut_back(tmp_path / "events.jsonl", 0) == 0
    assert not list(tmp_path.iterdir())


def test_a_torn_end_is_dropped_before_the_next_attempt_appends(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    _write(path, _metric(1), _metric(2))
    path.write_bytes(path.read_bytes()[:-20])
    _write(path, _metric(2), attempt=2)
    assert [(record["attempt"], record["sequence"]) for record in read_records(path)] == [(1, 1), (2, 1)]
    assert len(path.read_text().splitlines()) == 2


def test_the_run_keeps_its_id_and_counts_its_attempts(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = next_identity(path)
    assert first.attempt == 1
    assert first != next_identity(path), "ids are random"
    for attempt in (1, 2, 3):
        identity = next_identity(path)
        identity = first if attempt == 1 else identity
        assert identity == RunIdentity(first.run_id, attempt)
        log = EventLog(path, identity)
        log(Stage("training", "Training"))
        log(_metric(50))
        log.close()
        cut_back(path, 0)


def test_progress_is_written_now_and_then_and_at_its_end(tmp_path: Path) -> None:
    clock = Clock()
    log = EventLog(tmp_path / "events.jsonl", RunIdentity("abc", 1), clock=clock, progress_interval_seconds=5)
    for current in range(1, 101):
        log(Progress("vae", "Caching latents", current, 100, "videos"))
        clock.now += 0.1
    assert [record["current"] for record in read_records(tmp_path / "events.jsonl")] == [1, 51, 100]


def _read(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def test_the_heartbeat_says_what_goes_on(tmp_path: Path) -> None:
    path, clock = tmp_path / "heartbeat.json", Clock()
    beat = Heartbeat(path, interval_seconds=3, clock=clock)
    beat(Stage("caching", "Caching latents"))
    assert _read(path) == {"pid": os.getpid(), "stage": "caching", "label": "Caching latents", "time": 1000.0}
    for current in range(5):
        beat(Progress("caching", "Caching latents", current, 10, "videos"))
        clock.now += 2
    state = _read(path)
    assert (state["current"], state["total"], state["unit"], state["time"]) == (4, 10, "videos", 1008.0)
    assert state["eta_seconds"] == 12.0
    beat(Stage("caching", "Caching latents", "completed"))
    assert "current" not in _read(path)


def test_the_heartbeat_is_throttled_and_knows_the_eta(tmp_path: Path) -> None:
    path, clock = tmp_path / "heartbeat.json", Clock()
    beat = Heartbeat(path, interval_seconds=3, clock=clock)
    beat(Stage("training", "Training"))
    clock.now += 1
    beat(_metric(1))
    assert "step" not in _read(path), "too soon"
    clock.now += 3
    beat(_metric(2, seconds=0.5))
    state = _read(path)
    assert (state["step"], state["total_steps"], state["eta_seconds"], state["time"]) == (2, 40, 19.0, 1004.0)
    beat(Stage("validation", "Validation of step 2"))
    assert _read(path)["stage"] == "validation"
    beat(Stage("validation", "Validation of step 2", "completed"))
    assert _read(path)["stage"] == "training", "training goes on after a validation"
    beat(RunSummary("completed", 40, 40, 20.0))
    state = _read(path)
    assert (state["stage"], state["reason"], state["step"]) == ("ended", "completed", 40)
    assert "eta_seconds" not in state
    assert [item.name for item in tmp_path.iterdir()] == ["heartbeat.json"]
