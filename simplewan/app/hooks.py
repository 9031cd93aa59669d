"""What happens between steps: saving, measuring, validating, finishing. The loop calls; nothing here trains."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from simplewan.app.context import Context
from simplewan.app.export import export_loras, export_transformers
from simplewan.app.idle import IdleExperts
from simplewan.app.resume import mark_finished
from simplewan.app.rises import Rises, fingerprint
from simplewan.app.roles import Expert
from simplewan.app.scaling import LossScales
from simplewan.app.settled import SETTLED
from simplewan.batches.batch import Batch
from simplewan.checkpoints import CheckpointStore
from simplewan.errors import TrainingFailure
from simplewan.events import CheckpointSaved, EvalLoss, ValidationRendered
from simplewan.objectives.supervised import eval_loss, timestep_bands
from simplewan.training.roles import Role
from simplewan.validation.runner import Validator

Recorded = Collection[tuple[str, str]]  # what the log holds of the step that the run starts from: (type, name or role)


class SaveHook:
    """Checkpoints at the planned steps, on SIGUSR1, when interrupted, and at the end."""

    def __init__(
        self,
        context: Context,
        checkpoints: CheckpointStore,
        *,
        roles: Mapping[str, Role],
        experts: Mapping[str, Expert],
        planned: Sequence[int],
        saved: int,
        recorded: Recorded,
        idle: IdleExperts,
        scales: LossScales,
        settled: Mapping[str, Any],
    ) -> None:
        self._settled = settled
        self._context, self._checkpoints, self._idle, self._scales = context, checkpoints, idle, scales
        self._roles, self._experts = roles, experts
        self._planned = frozenset(planned)
        self._recorded = recorded
        self.saved = saved

    def before_first_step(self, step: int) -> None:
        if step and (CheckpointSaved.kind, "") not in self._recorded:  # killed between the saving and its record
            self._context.emit(CheckpointSaved(step=step, path=str(self._checkpoints.path(step))))

    def after_step(self, step: int) -> None:
        if step in self._planned or self._context.signals.save_requested:
            self._save(step)

    def at_end(self, step: int, *, finished: bool) -> None:
        del finished
        if step != self.saved:
            self._save(step)

    def _save(self, step: int) -> None:
        began = time.monotonic()
        parts = {name: state for role in self._roles.values() for name, state in role.states()}
        for name in self._roles:
            _refuse_not_finite(name, parts[f"{name}.weights"], step)
        parts |= self._scales.parts()
        parts["run"] = {"step": step} | ({"idle_expert": self._idle.place} if self._idle.place else {})

        parts[SETTLED] = self._settled

        def add_loras(folder: Path) -> None:
            export_loras(self._context, self._experts, folder, step=step)

        full = self._context.options.model.model_type == "full"
        record = self._context.loaded.resolved
        try:
            path = self._checkpoints.save(step, parts, record=record, extra=None if full else add_loras)
        except (OSError, SafetensorError) as error:
            raise TrainingFailure(f"checkpoint-{step} was not written: {error}") from error
        self.saved = step
        self._context.signals.save_requested = False
        self._context.emit(CheckpointSaved(step=step, path=str(path), seconds=time.monotonic() - began))


def _refuse_not_finite(role: str, weights: Mapping[str, torch.Tensor], step: int) -> None:
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise TrainingFailure(f"the weights of step {step} are not finite (first {role} {name}); not saved")


class EvalHook:
    """The loss on fixed samples, noise and timesteps: at the start and at the planned steps; what is missing on resume.

    The last step is planned too.
    """

    def __init__(
        self,
        context: Context,
        *,
        experts: Mapping[str, Expert],
        batches: Sequence[Batch],
        planned: Sequence[int],
        recorded: Recorded,
        idle: IdleExperts,
        rises: Mapping[str, Rises],
    ) -> None:
        self._context, self._experts, self._batches, self._idle = context, experts, batches, idle
        self._rises = rises
        self._planned = frozenset(planned)
        self._recorded = recorded

    def before_first_step(self, step: int) -> None:
        if self._planned and (step == 0 or step in self._planned):
            self._measure(step, [name for name in self._experts if (EvalLoss.kind, name) not in self._recorded])

    def after_step(self, step: int) -> None:
        if step in self._planned:
            self._measure(step, list(self._experts))

    def at_end(self, step: int, *, finished: bool) -> None:
        pass

    def _measure(self, step: int, roles: Sequence[str]) -> None:
        options = self._context.options
        for role in roles:
            expert = self._experts[role]
            bands = timestep_bands(options.validation.eval_timesteps, expert.sigma_bounds)
            self._idle.activate(role)
            expert.transformer.eval()
            batches = (batch.to(self._context.device) for batch in self._batches)
            result = eval_loss(expert.predict, batches, bands, options.run.seed, check=self._context.check)
            expert.transformer.train()
            on = fingerprint([name for batch in self._batches for name in batch.names], bands)
            event = EvalLoss(step=step, role=role, loss=result.loss, bands=result.bands, measured_on=on)
            self._context.emit(event)
            if (told := self._rises[role].add(event)) is not None:
                self._context.say(told, warning=True)


class ValidationHook:
    """Clips before the first step (unless switched off), at the planned steps, on SIGUSR2; those missing on resume."""

    def __init__(
        self, context: Context, validator: Validator, *, planned: Sequence[int], benchmark: bool, recorded: Recorded
    ) -> None:
        self._context, self._validator = context, validator
        self._planned = frozenset(planned)
        self._benchmark = benchmark
        self._recorded = recorded

    def before_first_step(self, step: int) -> None:
        due = step in self._planned if step else self._benchmark and bool(self._planned)
        announced = {name for kind, name in self._recorded if kind == ValidationRendered.kind}
        if due and (missing := self._validator.missing(step, announced=announced)):
            self._run(step, only=missing)

    def after_step(self, step: int) -> None:
        if step in self._planned or self._context.signals.validate_requested:
            self._run(step)

    def at_end(self, step: int, *, finished: bool) -> None:
        pass

    def _run(self, step: int, only: Collection[str] | None = None) -> None:
        self._context.signals.validate_requested = False
        self._validator.run(step, only=only)


class NoValidationHook:
    """Answers SIGUSR2, once, where validation is switched off."""

    def __init__(self, context: Context) -> None:
        self._context, self._told = context, False

    def before_first_step(self, step: int) -> None:
        pass

    def after_step(self, step: int) -> None:
        signals = self._context.signals
        if signals.validate_requested and not self._told:
            self._context.say("validation is switched off (validation_disable), nothing is rendered")
            self._told = True
        signals.validate_requested = False

    def at_end(self, step: int, *, finished: bool) -> None:
        pass


class FinishHook:
    """The final weights, and the mark that the run is done."""

    def __init__(self, context: Context, *, experts: Mapping[str, Expert]) -> None:
        self._context, self._experts = context, experts

    def before_first_step(self, step: int) -> None:
        pass

    def after_step(self, step: int) -> None:
        pass

    def at_end(self, step: int, *, finished: bool) -> None:
        if not finished:
            return
        context, output = self._context, self._context.output
        if context.options.model.model_type == "full":
            paths = export_transformers(context, self._experts, output)
        else:
            paths = export_loras(context, self._experts, output, step=step, announce=True)
        for path in paths:
            self._context.emit(CheckpointSaved(step=step, path=str(path), is_final=True))
        mark_finished(self._context.output, step)
