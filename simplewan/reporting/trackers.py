"""Trackers: TensorBoard and Weights & Biases, as listeners of events.

Imports errors and events; torch's TensorBoard writer and wandb only when they are asked for. A tracker that cannot
start is a mistake to mend before hours of training go unrecorded; one that fails later is announced and dropped, and
training goes on. A figure's name is ROLE/NAME, e.g. "high/loss".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from simplewan.errors import Problem, UserError
from simplewan.events import (
    CheckpointSaved,
    Emit,
    EvalLoss,
    Event,
    Metric,
    Notice,
    PictureDrawn,
    Stage,
    ValidationRendered,
)


@dataclass(frozen=True)
class TrackerSettings:
    """What trackers need. `config` has no secrets in it. `resumed_step` is None for a run that starts afresh.

    `run_id` is the run's over all its attempts, so that a resumed run goes on in the same place.
    """

    output_dir: Path
    run_id: str
    project: str
    run_name: str
    config: Mapping[str, Any]
    resumed_step: int | None = None
    logging_dir: Path | None = None


class Tracker(Protocol):
    """A listener that can be closed. `failures` are the exceptions that its service may raise at any time; `place` says
    where the run can be seen: an address or a folder."""

    failures: tuple[type[Exception], ...]
    place: str

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def figures(event: Event) -> dict[str, float]:
    """The numbers of an event by their tracker names; empty when it has none."""
    if isinstance(event, Metric):
        values = {"loss": event.loss, "lr": event.lr, "seconds": event.seconds, "epoch": event.epoch, **event.values}
        return {f"{event.role}/{name}": value for name, value in values.items()}
    if isinstance(event, EvalLoss):
        bands = {f"{event.role}/eval_loss_{name}": value for name, value in event.bands.items()}
        return {f"{event.role}/eval_loss": event.loss, **bands}
    return {}


class TensorBoard:
    """Writes event files below `logging_dir` (default output_dir/logs); clips appear as their contact sheets."""

    failures: tuple[type[Exception], ...] = (OSError,)

    def __init__(self, settings: TrackerSettings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = (settings.logging_dir or settings.output_dir / "logs") / settings.run_id
        self.place = str(folder)
        # What an earlier attempt wrote from this step on is hidden: those steps are done again.
        purge = 0 if settings.resumed_step is None else settings.resumed_step + 1
        try:
            self._writer = SummaryWriter(str(folder), purge_step=purge)
        except OSError as error:
            raise UserError(
                Problem(
                    where="tensorboard",
                    message=f"cannot write to {folder}: {error.strerror or error}",
                    fix="set logging_dir to a folder that can be written, or report_to=none",
                )
            ) from error
        rows = "\n".join(f"| {name} | {value} |" for name, value in sorted(settings.config.items()))
        self._writer.add_text("config", f"| option | value |\n|---|---|\n{rows}", settings.resumed_step or 0)

    def __call__(self, event: Event) -> None:
        if isinstance(event, (Metric, EvalLoss)):
            for name, value in figures(event).items():
                self._writer.add_scalar(name, value, event.step)
        elif isinstance(event, ValidationRendered):
            self._add_picture(f"validation/{event.name}", event.sheet, event.step)
            self._writer.add_text(f"validation/{event.name}", f"{event.prompt}\n\n`{event.video}`", event.step)
        elif isinstance(event, PictureDrawn):
            self._add_picture(event.name, event.path, event.step)
        elif isinstance(event, (CheckpointSaved, Stage)):
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _add_picture(self, name: str, path: str, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")


class WeightsAndBiases:
    """Sends to wandb, or records below output_dir/wandb when WANDB_MODE=offline. Steps are an axis of their own
    ("step"), since wandb's counter cannot go back when a run resumes at an earlier checkpoint."""

    def __init__(self, settings: TrackerSettings) -> None:
        import wandb
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        self._wandb = wandb
        self.failures: tuple[type[Exception], ...] = (wandb.Error, MailboxClosedError, HandleAbandonedError, OSError)
        settings.output_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=settings.project,
                name=settings.run_name,
                id=settings.run_id,
                resume="allow",
                dir=str(settings.output_dir),
                config=dict(settings.config),
                allow_val_change=True,
                # Standard output and error stay as they are: capturing them garbles progress bars.
                settings=wandb.Settings(console="off", quiet=True),
            )
        except self.failures as error:
            raise UserError(
                Problem(
                    where="wandb",
                    message=f"could not be started: {error}",
                    fix="log in with `wandb login`, or set WANDB_MODE=offline in the environment to record here and "
                    "upload later, or report_to=none",
                )
            ) from error
        self.place = (None if self._run.offline else self._run.url) or str(Path(self._run.dir).parent)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def __call__(self, event: Event) -> None:
        if isinstance(event, (Metric, EvalLoss)):
            self._run.log({"step": event.step, **figures(event)})
        elif isinstance(event, ValidationRendered):
            caption = f"step {event.step}: {event.prompt}"
            self._run.log(
                {
                    "step": event.step,
                    f"validation/{event.name}": self._wandb.Video(event.video, caption=caption, format="mp4"),
                    f"validation/{event.name}_sheet": self._wandb.Image(event.sheet, caption=caption),
                }
            )
        elif isinstance(event, PictureDrawn):
            self._run.log({"step": event.step, event.name: self._wandb.Image(event.path)})

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[TrackerSettings], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


class Guarded:
    """A tracker whose failures end the tracking, not the training; the end is announced once."""

    def __init__(self, name: str, tracker: Tracker, *, emit: Emit) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker
        self._emit = emit

    def __call__(self, event: Event) -> None:
        if (tracker := self._tracker) is None:
            return
        try:
            tracker(event)
        except tracker.failures as error:
            self._tracker = None  # first, since the notice comes back here
            self._give_up(error)

    def close(self) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return
        try:
            tracker.close()
        except tracker.failures as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._emit(Notice(f"{self._name} failed and gets no more reports; training goes on: {error}", "warning"))


def start_trackers(names: Sequence[str], settings: TrackerSettings, *, emit: Emit) -> list[Guarded]:
    """Starts the named trackers ("none" is none of them). Raises UserError when one is unknown or cannot start."""
    wanted = [name for name in dict.fromkeys(names) if name != "none"]
    unknown = [name for name in wanted if name not in TRACKERS]
    if unknown:
        known = ", ".join((*TRACKERS, "none"))
        raise UserError(
            *(Problem("options", f"is not one of {known}", key="report_to", value=name) for name in unknown)
        )
    started: list[Guarded] = []
    for name in wanted:
        try:
            tracker = TRACKERS[name](settings)
        except UserError:
            for other in started:
                other.close()
            raise
        emit(Notice(f"{name} records this run at {tracker.place}"))
        started.append(Guarded(name, tracker, emit=emit))
    return started
