"""What webhooks are sent: an event as the JSON object of a raw webhook, and as a message in a chat.

Imports events, `records`, `sentences`. The trade-off: the
raw object holds the record of `events.jsonl` besides SimpleTuner's fields, so that a receiver of either kind finds what
it knows, at the price of some values standing there twice.
"""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from simplewan.events import (
    CheckpointSaved,
    ErrorHappened,
    EvalLoss,
    Event,
    Metric,
    Notice,
    PictureDrawn,
    Progress,
    RunSummary,
    Stage,
    ValidationRendered,
    as_record,
)
from simplewan.reporting.sentences import sentence, summary

# Larger files are named, not sent: base64 makes them a third larger still.
LARGEST_FILE_BYTES = 24 * 2**20
LONGEST_CHAT = 2000  # characters of a message at Discord
VALIDATION = "validation.video"


@dataclass(frozen=True)
class Message:
    """One event for people and programs. `body` has the fields of its kind, `files` what goes with it, `record` what
    `events.jsonl` holds of it.

    `is_figure` marks what comes so often that a newer one makes it stale; that, and what is not `for_chat`, would be
    noise in a chat.
    """

    kind: str
    title: str
    text: str
    severity: str = "info"
    body: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    is_figure: bool = False
    for_chat: bool = True
    record: Mapping[str, Any] = field(default_factory=dict)


def message_of(event: Event) -> Message | None:
    """The message of an event; None for one that webhooks are not sent."""
    describe = _DESCRIBE.get(type(event))
    return replace(describe(event), record=as_record(event)) if describe else None


def started(*, run_name: str, about: str, step: int, attempt: int) -> Message:
    """The first message of an attempt; `about` says what is trained."""
    text = f"{run_name} ({about}) {'goes on from step ' + str(step) if step else 'begins'}"
    return Message("training.status", "Training", text, body={"status": "running", "step": step, "attempt": attempt})


def _stage(event: Stage) -> Message:
    text = event.label if event.status == "running" else f"{event.label}: {event.message or event.status}"
    has_failed = event.status == "failed"
    stage = {"key": event.key, "label": event.label, "status": event.status}
    severity = "warning" if has_failed else "info"
    return Message("lifecycle.stage", event.label, text, severity, {"stage": stage}, for_chat=has_failed)


def _progress(event: Progress) -> Message:
    done = _done(event.label, event.current, event.total) | {"unit": event.unit}
    stage = {"key": event.key, "label": event.label, "status": "running", "progress": done}
    text = f"{event.label}: {event.current} of {event.total} {event.unit}"
    return Message("lifecycle.stage", event.label, text, body={"stage": stage, "progress": done}, is_figure=True)


def _metric(event: Metric) -> Message:
    figures = {"role": event.role, "epoch": event.epoch, "loss": event.loss, "lr": event.lr, "seconds": event.seconds}
    progress = _done("Training", event.step, event.total_steps) | {"metrics": {**figures, **event.values}}
    text = f"step {event.step} of {event.total_steps}, {event.role}: loss {event.loss:.4g}"
    return Message("training.progress", "Training", text, body={"progress": progress}, is_figure=True)


def _eval_loss(event: EvalLoss) -> Message:
    text = f"step {event.step}, {event.role}: loss on fixed samples {event.loss:.4g}"
    metrics = {"step": event.step, "role": event.role, "eval_loss": event.loss, "bands": dict(event.bands)}
    return Message("training.metric", "Loss on fixed samples", text, body={"metrics": metrics})


def _checkpoint(event: CheckpointSaved) -> Message:
    name = Path(event.path).name
    checkpoint = {"path": event.path, "label": name, "is_final": event.is_final}
    text = sentence(event) or name
    title = "Final weights" if event.is_final else name
    return Message("training.checkpoint", title, text, body={"checkpoint": checkpoint}, for_chat=event.is_final)


def _validation(event: ValidationRendered) -> Message:
    note = f" ({event.note})" if event.note else ""
    text = f"step {event.step}, {event.name}{note}: {event.prompt}"
    title = f"Validation of step {event.step}{note}"
    return Message(VALIDATION, title, text, files=(Path(event.sheet), Path(event.video)))


def _picture(event: PictureDrawn) -> Message:
    text = f"step {event.step}: {event.name}"
    return Message("notification", event.name, text, files=(Path(event.path),), for_chat=False)


def _notice(event: Notice) -> Message:
    title = event.severity.capitalize()
    return Message("notification", title, event.message, event.severity, for_chat=event.severity != "info")


def _error(event: ErrorHappened) -> Message:
    severity = "critical" if event.fatal else "error"
    return Message("error", "Error", f"{event.where}: {event.message}", severity)


def _summary(event: RunSummary) -> Message:
    text = f"{summary(event)}, {event.seconds:.0f} s"
    severity = "error" if event.reason == "failed" else "info"
    return Message("training.summary", "Training has ended", text, severity, {"status": event.reason})


_DESCRIBE: dict[type[Event], Callable[[Any], Message]] = {
    Stage: _stage,
    Progress: _progress,
    Metric: _metric,
    EvalLoss: _eval_loss,
    CheckpointSaved: _checkpoint,
    ValidationRendered: _validation,
    PictureDrawn: _picture,
    Notice: _notice,
    ErrorHappened: _error,
    RunSummary: _summary,
}


def _done(label: str, current: int, total: int) -> dict[str, Any]:
    percent = round(100 * current / total, 2) if total else 0.0
    return {"label": label, "current": current, "total": total, "percent": percent}


def bundle(clips: Sequence[Message]) -> Message:
    """The clips of one validation as one message."""
    first, *others = clips
    if not others:
        return first
    names = [clip.text.partition(", ")[2] for clip in clips]
    text = "\n".join([first.title, *(f"- {name}" for name in names)])
    return replace(first, text=text, files=tuple(path for clip in clips for path in clip.files))


def read_files(message: Message) -> dict[Path, bytes]:
    """The files of a message that can be read and are small enough to be sent."""
    found = {}
    for path in message.files:
        try:
            if path.stat().st_size <= LARGEST_FILE_BYTES:
                found[path] = path.read_bytes()
        except OSError:  # removed meanwhile, or out of reach: the message names it
            continue
    return found


def raw_object(
    message: Message, files: Mapping[Path, bytes], *, job_id: str, sequence: int, time: float, prefix: str
) -> dict[str, Any]:
    """The JSON object of a raw webhook. `time` in seconds since 1970.

    Pictures of `files` stand in `images` as base64, clips in `videos` as {"src": a data URI, "mime_type": ...}.
    """
    kinds = {path: mimetypes.guess_type(path.name)[0] or "" for path in files}
    images = [_base64(files[path]) for path, kind in kinds.items() if kind.startswith("image/")]
    videos = [
        {"src": f"data:{kind};base64,{_base64(files[path])}", "mime_type": kind}
        for path, kind in kinds.items()
        if kind.startswith("video/")
    ]
    return {
        "type": message.kind,
        "severity": message.severity,
        "job_id": job_id,
        "sequence": sequence,
        "timestamp": datetime.fromtimestamp(time, timezone.utc).isoformat(timespec="milliseconds"),
        "title": message.title,
        "message": prefix + _with_names(message, files),
        **message.body,
        **({"images": images} if images else {}),
        **({"videos": videos} if videos else {}),
        **({"record": dict(message.record)} if message.record else {}),
    }


def chat_text(message: Message, files: Collection[Path], *, prefix: str) -> str:
    """The text of a message in a chat."""
    mark = f"**{message.severity}** " if message.severity != "info" else ""
    text = f"{prefix}{mark}{_with_names(message, files)}"
    return text if len(text) <= LONGEST_CHAT else f"{text[: LONGEST_CHAT - 1]}…"


def _with_names(message: Message, files: Collection[Path]) -> str:
    """The text, with the names of the files that do not go with it."""
    missing = [str(path) for path in message.files if path not in files]
    return f"{message.text} (not sent: {', '.join(missing)})" if missing else message.text


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
