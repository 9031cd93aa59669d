"""The optimisers, by name. Adding one: a function, an entry in OPTIMIZERS, a choice of the option, a test.

The learning rate is set before each step from `schedules.learning_rate`; the optimiser's own value is a placeholder.
Weight decay is decoupled in all of them. Sources: AdamW arXiv 1711.05101; 8-bit states arXiv 2110.02861 (bitsandbytes);
Lion arXiv 2302.06675 (torch-optimi); Muon arXiv 2502.16982.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch.nn import Parameter

LION_BETAS = (0.9, 0.99)
MUON_BETAS = (0.95, 0.95)


@dataclass(frozen=True)
class OptimizerSettings:
    """What an optimiser is made of. `betas` and `eps` None: the optimiser's own defaults."""

    name: str
    lr: float
    betas: tuple[float, float] | None
    eps: float | None
    weight_decay: float


def _adamw(parameters: Sequence[Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters,
        lr=settings.lr,
        betas=settings.betas or (0.9, 0.999),
        eps=settings.eps if settings.eps is not None else 1e-8,
        weight_decay=settings.weight_decay,
        fused=_can_fuse(parameters) or None,
    )


def _can_fuse(parameters: Sequence[Parameter]) -> bool:
    """Whether torch has one kernel for all of a step: on CUDA and, for plain floating point, on the CPU."""
    return all(parameter.device.type in ("cuda", "cpu") and parameter.is_floating_point() for parameter in parameters)


def _bnb_adamw8bit(parameters: Sequence[Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(
        parameters,
        lr=settings.lr,
        betas=settings.betas or (0.9, 0.999),
        eps=settings.eps if settings.eps is not None else 1e-8,
        weight_decay=settings.weight_decay,
    )


def _optimi_lion(parameters: Sequence[Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    import optimi

    return optimi.Lion(
        parameters,
        lr=settings.lr,
        betas=settings.betas or LION_BETAS,
        weight_decay=settings.weight_decay,
        triton=None if all(parameter.is_cuda for parameter in parameters) else False,
    )


class Joined(torch.optim.Optimizer):
    """Optimisers over different parameters that act as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self._parts = parts
        super().__init__([parameter for group in self._groups() for parameter in group["params"]], {})
        self.param_groups = self._groups()

    def _groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of every part."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The parts' own, in order."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()


def _muon(parameters: Sequence[Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Muon for the matrices, in steps as large as AdamW's, and AdamW for all else: one learning rate suits both."""
    betas = settings.betas or MUON_BETAS
    matrices = [parameter for parameter in parameters if parameter.ndim == 2]
    others = [parameter for parameter in parameters if parameter.ndim != 2]
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        how = {"momentum": betas[0], "weight_decay": settings.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        parts.append(torch.optim.Muon(matrices, lr=settings.lr, **how))
    if others:
        parts.append(_adamw(others, replace(settings, betas=betas)))
    return Joined(*parts)


OPTIMIZERS: dict[str, Callable[[Sequence[Parameter], OptimizerSettings], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "bnb-adamw8bit": _bnb_adamw8bit,
    "muon": _muon,
    "optimi-lion": _optimi_lion,
}


def optimizer_states(optimizer: torch.optim.Optimizer) -> Iterator[dict[str, Any]]:
    """The state of each parameter, to be read or changed; accelerate's wrapper and joined optimisers are opened."""
    inner = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
    for part in inner._parts if isinstance(inner, Joined) else (inner,):
        yield from part.state.values()


def make_optimizer(parameters: Sequence[Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """The optimiser called `settings.name` over `parameters` (already on their device)."""
    assert parameters, "an optimiser needs parameters"
    return OPTIMIZERS[settings.name](parameters, settings)
