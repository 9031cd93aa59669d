"""All who listen to a run: console, heartbeat, events.jsonl, trackers, webhooks; the resolved configuration on disk."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from simplewan.app.device import memory_text
from simplewan.checkpoints.files import write_json
from simplewan.checkpoints.store import RESOLVED
from simplewan.events import Emitter, ErrorHappened, Event, Metric, Notice, RunSummary
from simplewan.options import Loaded
from simplewan.reporting.console import Console
from simplewan.reporting.heartbeat import HEARTBEAT_NAME, Heartbeat
from simplewan.reporting.records import LOG_NAME, EventLog, cut_back, next_identity, recorded_at
from simplewan.reporting.trackers import Guarded, TrackerSettings, start_trackers
from simplewan.reporting.webhooks import Webhook, close_webhooks, open_webhooks


class Reports:
    """A context manager around a run's listeners. `emit` is what the run is handed.

    The log can only be opened once it is known where the run resumes (`begin`), since it is cut back to that step;
    what happens before is kept and written then.
    """

    def __init__(self, loaded: Loaded, output: Path) -> None:
        self._loaded, self._output = loaded, output
        self._early: list[Event] = []
        self._log: EventLog | None = None
        self._trackers: list[Guarded] = []
        self._webhooks: list[Webhook] = []
        self._step, self._total_steps = 0, 0
        self._console = Console(memory=memory_text(), roles=loaded.flavour.trained_experts)
        self.emit = Emitter()
        self.emit.add(self._console)
        self.emit.add(Heartbeat(output / HEARTBEAT_NAME))
        self.emit.add(self._remember)

    def __enter__(self) -> Reports:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._console.close()
        if value is not None and self._log is not None:
            # The console has it from whoever ends the program.
            error = ErrorHappened(f"{type(value).__name__}: {value}", where="run", fatal=True)
            self.emit.to(error, self._log, *self._webhooks)
        for tracker in self._trackers:
            tracker.close()
        close_webhooks(self._webhooks)
        if self._log is not None:
            self._log.close()

    def begin(self, *, step: int) -> frozenset[tuple[str, str]]:
        """The run goes on from `step`: cut the log back to it, open it, start trackers, webhooks. May raise UserError.

        Returns what the log holds of `step` itself (`recorded_at`): a stop may have come between saving it and
        measuring, rendering and recording what belongs to it.
        """
        options, path = self._loaded.options.reporting, self._output / LOG_NAME
        cut_back(path, step)
        recorded = recorded_at(path, step)
        identity = next_identity(path)
        self._step = step
        self._log = EventLog(path, identity)
        for event in self._early:
            self._log(event)
        self.emit.add(self._log)
        write_json(self._output / RESOLVED, self._loaded.resolved)
        settings = TrackerSettings(
            output_dir=self._output,
            run_id=identity.run_id,
            project=options.tracker_project_name,
            run_name=options.tracker_run_name or self._output.name,
            config=self._loaded.resolved,
            resumed_step=step or None,
            logging_dir=options.logging_dir,
        )
        self._trackers = start_trackers(options.report_to, settings, emit=self.emit)
        for tracker in self._trackers:
            self.emit.add(tracker)
        self._webhooks = open_webhooks(
            self._loaded.webhooks,
            run_id=identity.run_id,
            run_name=settings.run_name,
            about=f"{self._loaded.flavour.name}, {self._loaded.options.model.model_type}",
            step=step,
            attempt=identity.attempt,
            interval_steps=options.webhook_reporting_interval,
            emit=self.emit,
        )
        for webhook in self._webhooks:
            self.emit.add(webhook)
        for event in self._early:
            if isinstance(event, Notice):
                self.emit.to(event, *self._webhooks)
        return recorded

    def set_total(self, total_steps: int) -> None:
        """How long the run is, for its summary."""
        self._total_steps = total_steps

    def summarise(self, reason: str, *, seconds: float) -> None:
        """The last record of this attempt."""
        self.emit(RunSummary(reason=reason, step=self._step, total_steps=self._total_steps, seconds=seconds))

    def _remember(self, event: Event) -> None:
        if self._log is None:
            self._early.append(event)
        if isinstance(event, Metric):
            self._step = event.step
