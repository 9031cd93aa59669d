"""When a dataset is drawn from: a window of epochs and one of optimiser steps, both ends included.

Pure, standard library only. Epochs and steps count from 1 here, as they do in the options; a step is one of the role's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Open in epochs `start_epoch`..`end_epoch` and there in steps `start_step`..`end_step`.

    An end of None is open; a start of 0 is the same as 1.
    """

    start_epoch: int = 1
    end_epoch: int | None = None
    start_step: int = 1
    end_step: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "start_epoch", max(1, self.start_epoch))
        object.__setattr__(self, "start_step", max(1, self.start_step))

    def in_epoch(self, epoch: int) -> bool:
        """Whether `epoch` is one of its epochs."""
        return self.start_epoch <= epoch and (self.end_epoch is None or epoch <= self.end_epoch)

    def in_step(self, step: int) -> bool:
        """Whether `step` is one of its steps."""
        return self.start_step <= step and (self.end_step is None or step <= self.end_step)

    def is_open(self, *, epoch: int, step: int) -> bool:
        """Whether a step of an epoch may draw from it."""
        return self.in_epoch(epoch) and self.in_step(step)

    def may_open(self, *, epoch: int, step: int) -> bool:
        """Whether it is open at `step` in this epoch or in a later one."""
        return self.in_step(step) and (self.end_epoch is None or epoch <= self.end_epoch)

    @property
    def is_empty(self) -> bool:
        """Whether it ends before it begins."""
        ends = ((self.start_epoch, self.end_epoch), (self.start_step, self.end_step))
        return any(end is not None and end < start for start, end in ends)

    @property
    def has_steps(self) -> bool:
        """Whether it opens or closes at a step."""
        return self.start_step > 1 or self.end_step is not None

    def why_closed(self, *, epoch: int, step: int) -> str:
        """In words, the option that keeps it closed."""
        assert not self.is_open(epoch=epoch, step=step)
        if self.end_step is not None and step > self.end_step:
            return f"ends with end_step {self.end_step}"
        if self.end_epoch is not None and epoch > self.end_epoch:
            return f"ends with end_epoch {self.end_epoch}"
        if step < self.start_step:
            return f"begins with start_step {self.start_step}"
        return f"begins with start_epoch {self.start_epoch}"


ALWAYS = Window()


def corners(windows: Iterable[Window]) -> list[tuple[int, int]]:
    """The first (epoch, step) of every combination of open windows that there can be, in order.

    Not every one need occur: how epochs and steps lie to each other is known to `course` only.
    """
    all_windows = tuple(windows)
    epochs = {1, *(w.start_epoch for w in all_windows), *(w.end_epoch + 1 for w in all_windows if w.end_epoch)}
    steps = {1, *(w.start_step for w in all_windows), *(w.end_step + 1 for w in all_windows if w.end_step)}
    return [(epoch, step) for epoch in sorted(epochs) for step in sorted(steps)]
