"""Trackers record what they are told, read back with the services' own readers, and never stop a run."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simplewan.data.media import write_mp4
from simplewan.errors import UserError
from simplewan.events import EvalLoss, Event, Metric, Notice, PictureDrawn, Stage, ValidationRendered
from simplewan.reporting.trackers import Guarded, TrackerSettings, start_trackers


def _settings(folder: Path, *, resumed_step: int | None = None) -> TrackerSettings:
    return TrackerSettings(
        output_dir=folder,
        run_id="abc123",
        project="simplewan-test",
        run_name="mini",
        config={"learning_rate": 0.005, "lora_targets": ["all"]},
        resumed_step=resumed_step,
    )


def _metric(step: int, loss: float) -> Metric:
    return Metric(step, 10, 1, "high", loss, 5e-3, 0.25, {"grad_norm": 0.5})


def _clip(folder: Path, step: int) -> ValidationRendered:
    frames = np.full((5, 32, 48, 3), 90, np.uint8)
    write_mp4(folder / "clip.mp4", frames, 16)
    Image.fromarray(frames[0]).save(folder / "clip.png")
    return ValidationRendered(step, "ring", "a red ring", str(folder / "clip.mp4"), str(folder / "clip.png"), 1.0)


def _picture(folder: Path) -> PictureDrawn:
    Image.new("RGB", (64, 40)).save(folder / "timesteps.png")
    return PictureDrawn(0, "timesteps", str(folder / "timesteps.png"))


def _track(names: list[str], settings: TrackerSettings, *events: Event) -> list[Event]:
    said: list[Event] = []
    trackers = start_trackers(names, settings, emit=said.append)
    for event in events:
        for tracker in trackers:
            tracker(event)
    for tracker in trackers:
        tracker.close()
    return said


def _read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "logs" / "abc123")).Reload()


def test_tensorboard_has_figures_and_clips(tmp_path: Path) -> None:
    events = [_metric(1, 2.0), _metric(2, math.nan), EvalLoss(2, "high", 1.5, {"0.5": 1.25}), _clip(tmp_path, 2)]
    _track(["tensorboard"], _settings(tmp_path), Stage("training", "Training"), _picture(tmp_path), *events)
    found = _read(tmp_path)
    first, second = found.Scalars("high/loss")
    assert (first.step, first.value, second.step) == (1, 2.0, 2)
    assert math.isnan(second.value)
    assert found.Scalars("high/lr")[0].value == pytest.approx(5e-3)
    assert found.Scalars("high/grad_norm")[1].value == 0.5
    assert found.Scalars("high/eval_loss")[0].value == 1.5
    assert found.Scalars("high/eval_loss_0.5")[0].value == 1.25
    picture = found.Images("validation/ring")[0]
    assert (picture.step, picture.width, picture.height) == (2, 48, 32)
    picture = found.Images("timesteps")[0]
    assert (picture.step, picture.width, picture.height) == (0, 64, 40)
    assert b"learning_rate" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.slow
def test_tensorboard_hides_the_steps_that_a_resume_does_again(tmp_path: Path) -> None:
    _track(["tensorboard"], _settings(tmp_path), *(_metric(step, 1.0) for step in range(1, 8)))
    time.sleep(1.1)  # files are read in the order of their names, which hold the second
    _track(["tensorboard"], _settings(tmp_path, resumed_step=4), *(_metric(step, 3.0) for step in (5, 6)))
    values = [(item.step, item.value) for item in _read(tmp_path).Scalars("high/loss")]
    assert values == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 3.0), (6, 3.0)]


def test_tensorboard_that_cannot_write_names_the_fix(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file in the way")
    with pytest.raises(UserError, match="logging_dir"):
        _track(["tensorboard"], _settings(tmp_path))


def test_names(tmp_path: Path) -> None:
    assert _track([], _settings(tmp_path)) == _track(["none"], _settings(tmp_path)) == []
    with pytest.raises(UserError, match=r"report_to = 'tensorbord' is not one of tensorboard, wandb, none"):
        _track(["tensorbord"], _settings(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_wandb_records_offline_under_the_id_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = tmp_path / "output"
    clip = _clip(tmp_path, 2)
    picture = _picture(tmp_path)
    said = _track(["wandb"], _settings(output), picture, _metric(1, 2.0), EvalLoss(2, "high", 1.5), clip)
    assert isinstance(said[0], Notice)
    assert str(output) in said[0].message
    (folder,) = (output / "wandb").glob("offline-run-*")
    assert folder.name.endswith("-abc123")
    texts = (b"high/loss", b"high/eval_loss", b"high/grad_norm", b"learning_rate", b"a red ring")
    deadline = time.monotonic() + 60
    missing = texts
    while missing and time.monotonic() < deadline:  # a process of wandb's own writes the file, some time after the end
        log = (folder / "run-abc123.wandb").read_bytes()
        missing = tuple(text for text in texts if text not in log)
        time.sleep(0.1)
    assert not missing
    (video,) = (folder / "files" / "media" / "videos" / "validation").iterdir()
    assert video.read_bytes() == Path(clip.video).read_bytes()
    assert list((folder / "files" / "media" / "images" / "validation").iterdir())
    (copy,) = (folder / "files" / "media" / "images").glob("timesteps*.png")
    assert copy.read_bytes() == Path(picture.path).read_bytes()


@pytest.mark.slow
def test_wandb_without_a_login_names_the_fix(tmp_path: Path) -> None:
    # A process of its own, since wandb reads its environment once.
    code = """
from pathlib import Path
from simplewan.reporting.trackers import TrackerSettings, start_trackers
settings = TrackerSettings(output_dir=Path("output"), run_id="abc", project="p", run_name="r", config={})
start_trackers(["wandb"], settings, emit=print)
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    # Nothing listens on port 9: the test needs no network and reaches none.
    environ |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert "UserError: wandb: could not be started" in ended.stderr
    assert "WANDB_MODE=offline" in ended.stderr


class _Failing:
    """A tracker whose disk is full from the second event on."""

    failures = (OSError,)
    place = "nowhere"

    def __init__(self, *, error: Exception) -> None:
        self.events = 0
        self._error = error

    def __call__(self, event: Event) -> None:
        self.events += 1
        if self.events > 1:
            raise self._error

    def close(self) -> None:
        raise AssertionError("a tracker that failed is not touched again")


def test_a_tracker_that_fails_later_is_dropped_and_announced_once() -> None:
    said: list[Event] = []
    failing = _Failing(error=OSError("disk full"))
    tracker = Guarded("tensorboard", failing, emit=lambda event: (said.append(event), tracker(event))[0])
    for step in range(5):
        tracker(_metric(step, 1.0))
    tracker.close()
    assert failing.events == 2
    assert [(event.severity, "disk full" in event.message) for event in said] == [("warning", True)]


def test_a_mistake_in_our_own_code_is_not_swallowed() -> None:
    tracker = Guarded("tensorboard", _Failing(error=KeyError("oops")), emit=lambda event: None)
    tracker(_metric(1, 1.0))
    with pytest.raises(KeyError):
        tracker(_metric(2, 1.0))
