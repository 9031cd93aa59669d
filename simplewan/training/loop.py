"""The training loop. Nothing else in the project does backward, clip and step.

A step is one optimiser update of one role, over `accumulation` micro-batches. The loop serves the roles that are due,
seeds each step from where it stands (seeding.py), refuses a loss that is not finite before it reaches the weights,
and calls the hooks; saving and validating are hooks. A stop between two micro-batches drops the unfinished step,
whose draws are the same when it is done again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator

from simplewan.errors import Interrupted, TrainingFailure
from simplewan.events import Emit, Metric
from simplewan.training.roles import Role
from simplewan.training.seeding import seed_step
from simplewan.training.signals import SignalWatch


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs to know. `clip` 0 leaves gradients alone; `clip_method` is "norm" or "value"."""

    seed: int
    total_steps: int
    accumulation: int
    clip: float
    clip_method: str
    rank: int = 0


class Hook(Protocol):
    """Something done between steps. `step` is the number of finished steps of the run."""

    def before_first_step(self, step: int) -> None: ...

    def after_step(self, step: int) -> None: ...

    def at_end(self, step: int, *, finished: bool) -> None: ...


def train(
    roles: Mapping[str, Role],
    *,
    due: Callable[[int], Iterable[str]],
    settings: LoopSettings,
    accelerator: Accelerator,
    hooks: Sequence[Hook],
    signals: SignalWatch,
    emit: Emit,
    start: int = 0,
) -> None:
    """Train from step `start` to `settings.total_steps`.

    `due(step)` names the roles whose turn a step (from 1) is. Raises Interrupted when asked to stop, after the hooks
    have saved, and TrainingFailure when a loss is not finite.
    """
    step = start
    for hook in hooks:
        hook.before_first_step(step)
    longest = 0.0
    try:
        while step < settings.total_steps:
            signals.check(needed_seconds=longest)
            began = time.monotonic()
            for name in due(step + 1):
                _update(
                    roles[name], step=step + 1, settings=settings, accelerator=accelerator, signals=signals, emit=emit
                )
            step += 1
            for hook in hooks:
                hook.after_step(step)
            longest = max(longest, time.monotonic() - began)
    except Interrupted:
        for hook in hooks:
            hook.at_end(step, finished=False)
        raise
    for hook in hooks:
        hook.at_end(step, finished=True)


def _update(
    role: Role, *, step: int, settings: LoopSettings, accelerator: Accelerator, signals: SignalWatch, emit: Emit
) -> None:
    """One optimiser update of one role."""
    began = time.monotonic()
    role.activate()
    generator = seed_step(settings.seed, role.name, role.step + 1, settings.rank)
    lr = role.learning_rate(role.step + 1)
    for group in role.optimizer.param_groups:
        group["lr"] = lr
    losses: list[torch.Tensor] = []
    names: list[str] = []
    metrics: list[Mapping[str, float | torch.Tensor]] = []
    epoch, sampler_state = role.epoch, role.sampler_state
    for place in range(settings.accumulation):
        signals.check()
        batch, draw, sampler_state = role.loader.next()
        epoch = draw.epoch
        names.extend(batch.names)
        with accelerator.accumulate():
            loss = role.loss(batch, generator, role.step * settings.accumulation + place)
            accelerator.backward(loss.value)
        losses.append(loss.value.detach())
        metrics.append(loss.metrics)
    norm = _clip(role, settings=settings, accelerator=accelerator)
    # The one look at the device that waits: until all that was asked for is done. What is read after it is there.
    mean_loss, *norms = torch.stack([torch.stack(losses).mean(), *norm]).tolist()
    _refuse_not_finite("loss", mean_loss, step=step, role=role, names=names)
    values = {key: sum(float(each[key]) for each in metrics) / len(metrics) for key in metrics[0]}
    grad_norm = norms[0] if norms else None
    if grad_norm is not None and accelerator.scaler is None:  # the fp16 scaler skips such a step by itself
        _refuse_not_finite("gradient norm", grad_norm, step=step, role=role, names=names)
    role.optimizer.step()
    role.optimizer.zero_grad()
    role.step += 1
    role.epoch, role.sampler_state = epoch, sampler_state
    if grad_norm is not None and math.isfinite(grad_norm):
        values["grad_norm"] = grad_norm
    emit(
        Metric(
            step=step,
            total_steps=settings.total_steps,
            epoch=epoch,
            role=role.name,
            loss=mean_loss,
            lr=lr,
            seconds=time.monotonic() - began,
            values=values,
            samples=tuple(names),
        )
    )


def _refuse_not_finite(what: str, value: float, *, step: int, role: Role, names: Sequence[str]) -> None:
    if not math.isfinite(value):
        samples = ", ".join(sorted(set(names)))
        raise TrainingFailure(f"the {what} of step {step} ({role.name}) is {value}; the step's samples: {samples}")


def _clip(role: Role, *, settings: LoopSettings, accelerator: Accelerator) -> list[torch.Tensor]:
    """Clip the gradients as set; the global norm before clipping, where it is known."""
    if settings.clip <= 0:
        return []
    if settings.clip_method == "value":
        accelerator.clip_grad_value_(role.parameters, settings.clip)
        return []
    return [accelerator.clip_grad_norm_(role.parameters, settings.clip)]
