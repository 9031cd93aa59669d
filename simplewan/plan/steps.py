"""Steps and epochs: how long a run is, and at which steps it saves, validates and measures.

A step is one optimiser update of one role; it takes `accumulation` micro-batches. Epochs are counted in
micro-batches, since what does not fill a batch is carried over to the next epoch and epochs differ in length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simplewan.errors import Problem, UserError


@dataclass(frozen=True)
class RunPlan:
    """Where a run ends and what happens on the way. All entries are step numbers, 1..total_steps, ascending."""

    total_steps: int
    steps_per_epoch: float
    epochs: float
    checkpoint_steps: tuple[int, ...]
    validation_steps: tuple[int, ...]
    eval_steps: tuple[int, ...]


def multiples(interval: int, total: int) -> set[int]:
    """The multiples of `interval` in 1..total; none when the interval is 0."""
    return set(range(interval, total + 1, interval)) if interval > 0 else set()


def total_steps(
    *,
    max_train_steps: int,
    num_train_epochs: int,
    ignore_final_epochs: bool,
    epoch_end: Callable[[int], int],
    budget_steps: int = 0,
) -> int:
    """The run's length: the smallest of the limits that are set (0 is off).

    `epoch_end(k)` is the last complete step of the first k epochs; `budget_steps` is what the experts' own limits add
    up to. Raises UserError when no limit is set.
    """
    limits = [limit for limit in (max_train_steps, budget_steps) if limit > 0]
    if num_train_epochs > 0 and not (ignore_final_epochs and limits):
        limits.append(epoch_end(num_train_epochs))
    if not limits:
        raise UserError(
            Problem("config", "and num_train_epochs are both 0", key="max_train_steps", fix="set one of them")
        )
    return max(1, min(limits))


def plan_run(
    *,
    max_train_steps: int,
    num_train_epochs: int,
    ignore_final_epochs: bool,
    micro_batches_in_epochs: Callable[[int], int],
    accumulation: int,
    checkpoint_step_interval: int,
    checkpoint_epoch_interval: int,
    validation_step_interval: int,
    eval_steps_interval: int,
    budget_steps: int = 0,
) -> RunPlan:
    """The plan of a run. `micro_batches_in_epochs(k)` counts one role's micro-batches in the first k epochs.

    An epoch has as many steps as one role takes to draw all samples. With several roles these steps are shared: each
    sample is drawn once an epoch on average, by one role or the other, as by a model that is not split in two.
    Validation and evaluation also happen at the end when their interval is set.
    """

    def epoch_end(epochs: int) -> int:
        return micro_batches_in_epochs(epochs) // accumulation

    total = total_steps(
        max_train_steps=max_train_steps,
        num_train_epochs=num_train_epochs,
        ignore_final_epochs=ignore_final_epochs,
        epoch_end=epoch_end,
        budget_steps=budget_steps,
    )
    # Long enough for carried remainders to even out, and not beyond the run: datasets may end with it.
    many = next((epochs for epochs in (1, 2, 4, 8, 16, 32) if epoch_end(epochs) >= total), 64)
    per_epoch = max(epoch_end(many) / many, 1e-9)
    checkpoints = multiples(checkpoint_step_interval, total)
    epoch = checkpoint_epoch_interval
    last = num_train_epochs or total * accumulation  # where no dataset is left, epochs end without a step
    while checkpoint_epoch_interval > 0 and epoch <= last and epoch_end(epoch) <= total:
        checkpoints.add(max(1, epoch_end(epoch)))
        epoch += checkpoint_epoch_interval
    validations = multiples(validation_step_interval, total)
    evaluations = multiples(eval_steps_interval, total)
    return RunPlan(
        total_steps=total,
        steps_per_epoch=per_epoch,
        epochs=total / per_epoch,
        checkpoint_steps=tuple(sorted(checkpoints | {total})),
        validation_steps=tuple(sorted(validations | ({total} if validations or validation_step_interval else set()))),
        eval_steps=tuple(sorted(evaluations | ({total} if eval_steps_interval else set()))),
    )
