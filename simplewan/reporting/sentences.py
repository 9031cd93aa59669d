"""Events in words, the same on the console and in messages. Imports events alone."""

from __future__ import annotations

from simplewan.events import (
    CheckpointSaved,
    ErrorHappened,
    Event,
    Notice,
    RunSummary,
    SampleRendered,
    ValidationRendered,
)


def sentence(event: Event) -> str | None:
    """What is said of an event that is neither progress, nor a stage, nor a figure; None of all others."""
    if isinstance(event, Notice):
        return event.message if event.severity == "info" else f"{event.severity}: {event.message}"
    if isinstance(event, ErrorHappened):
        return f"error: {event.where}: {event.message}"
    if isinstance(event, CheckpointSaved):
        return f"step {event.step}: saved {event.path}"
    if isinstance(event, (ValidationRendered, SampleRendered)):
        step = f"step {event.step}: " if isinstance(event, ValidationRendered) else ""
        note = f" ({event.note})" if event.note else ""
        return f"{step}rendered {event.video}{note}, {event.seconds:.1f} s"
    return None


def summary(event: RunSummary) -> str:
    """Why a run ended, and how far it came; the number of its steps is not known before its data is."""
    reached = f"step {event.step} of {event.total_steps}" if event.total_steps else "before training began"
    return f"{event.reason}: {reached}"
