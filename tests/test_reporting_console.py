"""On a terminal people see bars, in a pipe plain lines; the text is the same."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from simplewan.events import (
    CheckpointSaved,
    EvalLoss,
    Event,
    Metric,
    Notice,
    Progress,
    RunSummary,
    Stage,
    ValidationRendered,
)
from simplewan.reporting.console import Console


def _run(steps: int) -> Iterable[Event]:
    yield Stage("vae", "Caching latents")
    for current in range(1, 5):
        yield Progress("vae", "Caching latents", current, 4, "videos")
    yield Stage("vae", "Caching latents", "completed")
    yield Notice("cropped 2 videos", "warning")
    yield Stage("training", "Training")
    for step in range(1, steps + 1):
        yield Metric(step, steps, 1, "high", 1.25, 5e-3, 0.25)
        if step == 2:
            yield Stage("validation", "Validation of step 2")
            yield Progress("validation", "two_shapes", 1, 2, "steps")
            yield Progress("validation", "two_shapes", 2, 2, "steps")
            yield ValidationRendered(2, "two_shapes", "p", "out/validation/step-2/a.mp4", "a.png", 1.0)
            yield Stage("validation", "Validation of step 2", "completed")
    yield EvalLoss(steps, "high", 1.5)
    yield CheckpointSaved(steps, "out/checkpoint-4")
    yield CheckpointSaved(steps, "out/pytorch_lora_weights.safetensors", is_final=True)
    yield RunSummary("completed", steps, steps, 75.0)


def _on_a_terminal(events: Iterable[Event], *, columns: int = 120) -> str:
    """What a real pseudo-terminal receives."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    received: list[bytes] = []

    def drain() -> None:
        while True:
            try:
                chunk = os.read(reader, 4096)
            except OSError:  # Linux says so when the other end is closed
                return
            if not chunk:
                return
            received.append(chunk)

    thread = threading.Thread(target=drain)
    thread.start()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        console = Console(stream, memory=lambda: "1.5 GiB")
        for event in events:
            console(event)
        console.close()
    thread.join(timeout=10)
    os.close(reader)
    return b"".join(received).decode()


def _in_a_pipe(events: Iterable[Event]) -> str:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        console = Console(stream)
        for event in events:
            console(event)
    with os.fdopen(reader, encoding="utf-8") as stream:
        return stream.read()


@pytest.mark.parametrize("columns", [0, 120])
def test_a_terminal_gets_bars(columns: int) -> None:
    text = _on_a_terminal(_run(4), columns=columns)
    assert re.search(r"\rCaching latents: 100%\|.*4/4 \[", text)
    last = [part for part in re.split(r"[\r\n]+", text) if part.startswith("Training:")][-1]
    assert re.search(r"4/4 \[\d\d:\d\d<.*loss=1.25, lr=0.005, memory=1.5 GiB, step=0.25s", last)
    assert "warning: cropped 2 videos\r\n" in text


def test_text_begins_on_a_line_of_its_own_beside_a_bar() -> None:
    text = _on_a_terminal(_run(4))
    screen = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    for sentence in ("step 2: rendered out/validation/step-2/a.mp4, 1.0 s", "completed: step 4 of 4, 01:15"):
        assert re.search(rf"[\r\n]{re.escape(sentence)}\r\n", screen), sentence


def test_a_pipe_gets_plain_lines() -> None:
    text = _in_a_pipe(_run(4))
    assert "\r" not in text
    assert "\x1b" not in text
    assert text.splitlines() == [
        "Caching latents ...",
        "Caching latents: 4/4 videos",
        "warning: cropped 2 videos",
        "Training ...",
        "Validation of step 2 ...",
        "two_shapes: 2/2 steps",
        "step 2: rendered out/validation/step-2/a.mp4, 1.0 s",
        "Training: 4/4 steps, loss 1.25, lr 0.005, step 0.25s",
        "step 4: loss on fixed samples 1.5",
        "step 4: saved out/checkpoint-4",
        "step 4: saved out/pytorch_lora_weights.safetensors",
        "completed: step 4 of 4, 01:15",
        "  weights: out/pytorch_lora_weights.safetensors",
        "  newest checkpoint: out/checkpoint-4",
        f"  newest clips: {Path('out/validation/step-2')}",
    ]


def test_a_run_that_was_stopped_says_how_it_goes_on() -> None:
    text = _in_a_pipe([RunSummary("SIGINT", 2, 4, 1.0)])
    assert _in_a_pipe([RunSummary("SIGINT", 0, 0, 1.0)]).startswith("SIGINT: before training began, 00:01")
    assert text.splitlines() == ["SIGINT: step 2 of 4, 00:01", "  to go on: the same command again"]


def test_plain_lines_come_at_intervals_with_an_eta() -> None:
    now = 0.0
    stream = io.StringIO()
    console = Console(stream, interval_seconds=10, clock=lambda: now)
    for step in range(101, 201):  # resumed at 100
        console(Metric(step, 200, 1, "high", 1.0, 1e-4, 1.0))
        now += 1.0
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("Training: 111/200 steps")
    assert lines[-1].startswith("Training: 200/200 steps")
    # 89 steps remain; 11 were done in the 10 seconds since the first was reported.
    assert lines[0].endswith("ETA 01:20")


def test_long_runs_write_fewer_lines() -> None:
    now = 0.0
    stream = io.StringIO()
    console = Console(stream, interval_seconds=10, clock=lambda: now)
    for step in range(1, 86_401):
        console(Metric(step, 86_400, 1, "high", 1.0, 1e-4, 1.0))
        now += 1.0
    assert 100 < len(stream.getvalue().splitlines()) < 500


def test_a_failed_stage_says_why() -> None:
    stream = io.StringIO()
    Console(stream)(Stage("validation", "Validation of step 2", "failed", "1 of 3 clips failed"))
    assert stream.getvalue() == "Validation of step 2: failed (1 of 3 clips failed)\n"


@pytest.mark.parametrize("buffering", [1, -1])
def test_a_run_goes_on_when_nobody_reads_along(buffering: int) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", buffering=buffering) as stream:
        console = Console(stream, interval_seconds=0.0)
        console(Notice("read", "info"))
        os.close(reader)
        for event in _run(4):
            console(event)
        console.close()


def test_with_two_experts_figures_say_whose_they_are() -> None:
    stream = io.StringIO()
    console = Console(stream, roles=("high", "low"), interval_seconds=0)
    console(EvalLoss(0, "high", 1.5))
    for step, role in enumerate(("low", "high", "low"), 1):
        console(Metric(step, 3, 1, role, step / 10, 5e-3, 0.25))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 0: loss on fixed samples, high 1.5"
    assert lines[1].startswith("Training low: 1/3 steps, loss low 0.1, lr")
    assert lines[2].startswith("Training high: 2/3 steps, loss high 0.2, loss low 0.1, lr")
