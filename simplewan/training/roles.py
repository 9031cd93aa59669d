"""A role: what is trained, with everything that belongs to it alone.

A supervised run of one stage has one role; both experts of Wan 2.2 are two; distillation has student and critic.
A role owns its parameters, optimiser, learning rate, draw of samples, random stream and step counter, so that it
trains to the same bits alone or beside others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.nn import Parameter


class LossLike(Protocol):
    """What an objective returns: a scalar tensor with its graph, and figures to report: what the device made of
    them is read once, at the step's end."""

    value: torch.Tensor
    metrics: Mapping[str, float | torch.Tensor]


class BatchLike(Protocol):
    """What the loop knows of a batch: the names of its samples."""

    names: Sequence[str]


class LoaderLike(Protocol):
    """Hands out (batch, draw, sampler state after this batch); the state is what a checkpoint stores."""

    def next(self) -> tuple[BatchLike, Any, Mapping[str, Any]]: ...

    def close(self) -> None: ...


@dataclass
class Role:
    """One trained network or adapter.

    `activate` is called before each step: whoever shares the device may have to be moved. `loss(batch, generator,
    number)` computes the loss of the role's micro-batch `number` (from 0). `weights` and `load_weights` read and write
    what is trained. `learning_rate(step)` is the rate of the role's own update `step` (from 1).
    """

    name: str
    parameters: Sequence[Parameter]
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    loader: LoaderLike
    loss: Callable[[BatchLike, torch.Generator, int], LossLike]
    weights: Callable[[], Mapping[str, torch.Tensor]]
    load_weights: Callable[[Mapping[str, torch.Tensor]], None]
    activate: Callable[[], None] = lambda: None
    step: int = 0
    epoch: int = 0
    sampler_state: Mapping[str, Any] = field(default_factory=dict)

    def states(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Named state dicts of everything that resuming needs, as of the last finished step."""
        yield f"{self.name}.weights", self.weights()
        yield f"{self.name}.optimizer", self.optimizer.state_dict()
        yield f"{self.name}.position", {"step": self.step, "epoch": self.epoch, "sampler": dict(self.sampler_state)}

    def load_states(self, read: Callable[[str], Mapping[str, Any]]) -> None:
        """Put back what `states` gave, but for the sampler: its loader is built from `sampler_state` beforehand."""
        self.load_weights(read(f"{self.name}.weights"))
        self.optimizer.load_state_dict(read(f"{self.name}.optimizer"))  # type: ignore[arg-type]
        position = read(f"{self.name}.position")
        self.step, self.epoch, self.sampler_state = position["step"], position["epoch"], position["sampler"]
