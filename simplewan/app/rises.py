"""Telling that the loss on fixed samples has risen, as it does when a learning rate destroys what was learned.

Imports checkpoints and reporting: the losses of earlier attempts are those of the log, so that a run that goes on with
too high a learning rate is compared with what it was before.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simplewan.checkpoints import CheckpointStore
from simplewan.events import EvalLoss
from simplewan.flavours import Flavour
from simplewan.reporting.records import LOG_NAME, read_records

# Against the lowest loss so far. Noise, timesteps and samples are fixed, so sound training does not come near the
# factor; the difference spares losses so small that overfitting may double them.
RISE_FACTOR = 2.0
RISE_AT_LEAST = 0.1


def fingerprint(samples: Sequence[str], timesteps: Mapping[str, float]) -> str:
    """16 hex digits that name what a loss is measured on."""
    return hashlib.sha256(json.dumps([list(samples), dict(timesteps)]).encode()).hexdigest()[:16]


def watch_rises(output: Path, flavour: Flavour, roles: Iterable[str]) -> dict[str, Rises]:
    """One for each role of the run in `output`; the log is read once for all."""
    logged = [record for record in read_records(output / LOG_NAME) if record.get("type") == EvalLoss.kind]
    return {role: Rises(output, flavour, role, logged) for role in roles}


class Rises:
    """The losses of one role, in the order of the steps, from those of the log on. Tells of a rise once."""

    def __init__(self, output: Path, flavour: Flavour, role: str, logged: Iterable[Mapping[str, Any]]) -> None:
        self._output, self._flavour, self._role = output, flavour, role
        self._measured_on, self._lowest, self._sound_step = "", math.inf, 0
        self._told = False
        for record in logged:
            if record["role"] == role:
                loss = math.nan if record["loss"] is None else record["loss"]
                self._is_sound(record["step"], loss, record.get("measured_on", ""))

    def add(self, measured: EvalLoss) -> str | None:
        """What to say of a loss, if it has risen."""
        if self._is_sound(measured.step, measured.loss, measured.measured_on) or self._told:
            return None
        self._told = True
        store = CheckpointStore(self._output, limit=0, emit=lambda _event: None, read_only=True)
        before = [step for step in store.steps() if step <= self._sound_step]
        last = f"checkpoint-{before[-1]} is the last before" if before else "there is no checkpoint from before"
        whose = "" if self._flavour.boundary is None else f" of the {self._flavour.called(self._role)}"
        return (
            f"the loss on fixed samples{whose} has risen from {self._lowest:.2g} to {measured.loss:.3g}: the learning "
            f"rate may be too high; {last}"
        )

    def _is_sound(self, step: int, loss: float, measured_on: str) -> bool:
        """Whether a loss is near the lowest on the same samples, which is remembered."""
        if measured_on != self._measured_on:
            self._measured_on, self._lowest = measured_on, math.inf
        if math.isfinite(self._lowest) and not loss <= max(RISE_FACTOR * self._lowest, self._lowest + RISE_AT_LEAST):
            return False
        if loss < self._lowest:
            self._lowest = loss
        self._sound_step = step
        return True
