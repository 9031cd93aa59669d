"""Learning-rate schedules as pure functions of the step: nothing to save, and a changed rate acts from the next step.

`step` counts from 1 (the first update). Warm-up is linear from lr/warmup_steps to lr. Names are those of diffusers
and transformers; so are the curves (cosine: Loshchilov and Hutter, arXiv 1608.03983, half a period).
"""

from __future__ import annotations

import math
from collections.abc import Callable

Curve = Callable[[float], float]  # share of the run after warm-up, 0..1 -> factor before the end value is mixed in


def _constant(_share: float) -> float:
    return 1.0


def _linear(share: float) -> float:
    return 1.0 - share


def _cosine(share: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * share))


CURVES: dict[str, Curve] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "polynomial": _linear,
}


def learning_rate(
    step: int,
    *,
    name: str,
    base: float,
    end: float,
    power: float,
    warmup_steps: int,
    total_steps: int,
) -> float:
    """The learning rate of update `step` (1..total_steps).

    "constant" has no warm-up unless warmup_steps is set. "polynomial" falls from `base` to `end` with `power`;
    "linear" and "cosine" fall to `end` too.
    """
    if step <= warmup_steps:
        return base * step / max(1, warmup_steps)
    if CURVES[name] is _constant:
        return base
    share = min(1.0, (step - warmup_steps - 1) / max(1, total_steps - warmup_steps))
    factor = CURVES[name](share)
    if name == "polynomial":
        factor **= power
    return end + (base - end) * factor
