"""Progress for people, on stderr: bars on a terminal, plain lines in a pipe or a log file.

Imports events, `bars`, `quiet`, `sentences`. What is said is the same in both cases; only how progress looks differs.
Standard output is left alone: it belongs to commands that print a document.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from simplewan.events import (
    CheckpointSaved,
    EvalLoss,
    Event,
    Metric,
    Progress,
    RunSummary,
    Stage,
    ValidationRendered,
)
from simplewan.reporting.bars import Bars, Lines, Tally
from simplewan.reporting.quiet import silence
from simplewan.reporting.sentences import sentence, summary

TRAINING_KEY = "training"


class Console:
    """The listener. `memory`, when given, returns the device memory in use as a short text, e.g. "11.2 GiB".

    `roles` are those that are trained: where there are several, figures say whose they are.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        memory: Callable[[], str] | None = None,
        roles: Sequence[str] = (),
        interval_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream = sys.stderr if stream is None else stream
        self._memory = memory
        self._roles = tuple(roles) if len(roles) > 1 else ()
        self._view = Bars(stream) if stream.isatty() else Lines(stream, interval_seconds=interval_seconds, clock=clock)
        self._losses: dict[str, float] = {}
        self._weights: list[str] = []
        self._checkpoint: str | None = None
        self._clips: str | None = None

    def __call__(self, event: Event) -> None:
        with self._unread():
            self._show(event)

    def close(self) -> None:
        """Ends all bars, so that what is printed next begins on a line of its own."""
        with self._unread():
            self._view.close_all()

    @contextmanager
    def _unread(self) -> Iterator[None]:
        """Lets a run go on when nobody reads along any more: `| head` has seen enough, Ctrl-C has ended `| tee` too."""
        try:
            yield
        except OSError:
            silence(self._stream)

    def _show(self, event: Event) -> None:
        if isinstance(event, Progress):
            tally = Tally(event.label, event.current, event.total, event.unit)
            self._view.progress(event.key, tally)
        elif isinstance(event, Metric):
            self._training_step(event)
        elif isinstance(event, Stage):
            self._stage(event)
        elif isinstance(event, RunSummary):
            self._view.close_all()
            self._view.say(self._summary(event))
        else:
            self._remember(event)
            if text := self._loss(event) if isinstance(event, EvalLoss) else sentence(event):
                self._view.say(text)

    def _training_step(self, event: Metric) -> None:
        self._losses[event.role] = event.loss
        names = {role: f"loss {role}" for role in self._roles if role in self._losses} or {event.role: "loss"}
        figures = {name: f"{self._losses[role]:.4g}" for role, name in names.items()}
        figures["lr"] = f"{event.lr:.3g}"
        if self._memory is not None:
            figures["memory"] = self._memory()
        # The bar's rate counts validations in between; the step's own time says how fast training is.
        figures["step"] = f"{event.seconds:.2f}s"
        label = f"Training {event.role}" if self._roles else "Training"
        tally = Tally(label, event.step, event.total_steps, "steps", before=event.step - 1, figures=figures)
        self._view.progress(TRAINING_KEY, tally)

    def _stage(self, event: Stage) -> None:
        if event.status == "running":
            self._view.say(f"{event.label} ...")
            return
        self._view.close(event.key)
        if event.status != "completed":
            self._view.say(f"{event.label}: {event.status}" + (f" ({event.message})" if event.message else ""))
        elif event.message:
            self._view.say(f"{event.label}: {event.message}")

    def _remember(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            if event.is_final:
                self._weights.append(event.path)
            else:
                self._checkpoint = event.path
        elif isinstance(event, ValidationRendered):
            self._clips = str(Path(event.video).parent)

    def _loss(self, event: EvalLoss) -> str:
        whose = f", {event.role}" if self._roles else ""
        return f"step {event.step}: loss on fixed samples{whose} {event.loss:.4g}"

    def _summary(self, event: RunSummary) -> str:
        lines = [f"{summary(event)}, {tqdm.format_interval(event.seconds)}"]
        places = {
            "weights": ", ".join(self._weights),
            "newest checkpoint": self._checkpoint,
            "newest clips": self._clips,
        }
        lines.extend(f"  {name}: {place}" for name, place in places.items() if place)
        if event.reason.startswith("SIG"):
            lines.append("  to go on: the same command again")
        return "\n".join(lines)
