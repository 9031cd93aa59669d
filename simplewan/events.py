"""The records of what happens in a run, and the emitter that hands them on. No listeners live here.

Every room may emit; nobody who emits knows who listens. A record is a frozen dataclass; `as_record` turns it into
the JSON object that stands in `events.jsonl` and goes to webhooks. A field that is None is absent from the record:
a metric that has no value this step is absent, not zero.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar


@dataclass(frozen=True)
class Event:
    """Base of all records; `kind` is the value of the record's "type"."""

    kind: ClassVar[str] = "event"


@dataclass(frozen=True)
class Stage(Event):
    """A stage of the run begins ("running") or ends ("completed", "failed")."""

    kind: ClassVar[str] = "stage"
    key: str
    label: str
    status: str = "running"
    message: str | None = None


@dataclass(frozen=True)
class Progress(Event):
    """Long work inside a stage: `current` of `total` `unit`s are done, `from_cache` of them without work."""

    kind: ClassVar[str] = "progress"
    key: str
    label: str
    current: int
    total: int
    unit: str = "items"


@dataclass(frozen=True)
class Notice(Event):
    """Something a person should read once: an announcement (info) or a warning."""

    kind: ClassVar[str] = "notice"
    message: str
    severity: str = "info"


@dataclass(frozen=True)
class Metric(Event):
    """One optimiser step of one role, and the samples that it was made of (a name each time it was drawn).

    `values` holds further figures under their names (grad_norm, ...).
    """

    kind: ClassVar[str] = "metric"
    step: int
    total_steps: int
    epoch: int
    role: str
    loss: float
    lr: float
    seconds: float
    values: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvalLoss(Event):
    """The loss on fixed samples, noise and timesteps at `step`; `bands` holds it per timestep.

    `measured_on` names the samples and timesteps: losses of a run on the same ones can be compared.
    """

    kind: ClassVar[str] = "eval_loss"
    step: int
    role: str
    loss: float
    bands: Mapping[str, float] = field(default_factory=dict)
    measured_on: str = ""


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint, or the final weights, were written and verified."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    path: str
    is_final: bool = False
    seconds: float | None = None


@dataclass(frozen=True)
class ValidationRendered(Event):
    """One validation clip: the mp4 and the contact sheet of one prompt."""

    kind: ClassVar[str] = "validation"
    step: int
    name: str
    prompt: str
    video: str
    sheet: str
    seconds: float
    note: str | None = None


@dataclass(frozen=True)
class PictureDrawn(Event):
    """A picture of the run as a whole, e.g. the timesteps it draws, when `step` steps were done."""

    kind: ClassVar[str] = "picture"
    step: int
    name: str
    path: str


@dataclass(frozen=True)
class SampleRendered(Event):
    """One clip that `sample` was asked for."""

    kind: ClassVar[str] = "sample"
    name: str
    prompt: str
    seed: int
    video: str
    sheet: str
    seconds: float
    note: str | None = None


@dataclass(frozen=True)
class ErrorHappened(Event):
    """Something failed; `fatal` says whether the run ends with it."""

    kind: ClassVar[str] = "error"
    message: str
    where: str
    fatal: bool = False


@dataclass(frozen=True)
class RunSummary(Event):
    """The last record of an attempt: why it ended and how far it came."""

    kind: ClassVar[str] = "summary"
    reason: str
    step: int
    total_steps: int
    seconds: float


Emit = Callable[[Event], None]


def as_record(event: Event) -> dict[str, Any]:
    """The JSON object of an event: its type, then its fields; None and empty mappings are left out."""
    record: dict[str, Any] = {"type": event.kind}
    for item in fields(event):
        value = getattr(event, item.name)
        if value is None:
            continue
        if isinstance(value, Mapping):
            record.update(value) if item.name == "values" else record.update({item.name: dict(value)} if value else {})
        else:
            record[item.name] = value
    return record


class Emitter:
    """Hands each event to every listener, in the order in which they were added. Threads take turns."""

    def __init__(self) -> None:
        self._listeners: list[Emit] = []
        self._turn = threading.RLock()  # a listener may emit, too

    def add(self, listener: Emit) -> None:
        self._listeners.append(listener)

    def __call__(self, event: Event) -> None:
        self.to(event, *self._listeners)

    def to(self, event: Event, *listeners: Emit) -> None:
        """Hands the event to these alone."""
        with self._turn:
            for listener in listeners:
                listener(event)


def silent(_event: Event) -> None:
    """An `Emit` that drops everything."""
