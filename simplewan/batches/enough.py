"""Whether there is enough to train on, all the way to the end of the run, and the errors that say what is missing.

Imports this room and errors. A run must give at least one optimiser step an epoch with whatever is open at the time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm

from simplewan.batches.course import Course
from simplewan.batches.sizes import (
    Group,
    batch_size_of,
    highest_draws,
    open_draws,
)
from simplewan.batches.windows import ALWAYS, corners
from simplewan.errors import Problem, UserError

# From the repeats of some datasets the weights of all of them: `mixing.dataset_weights`, all but its last argument set.
Reweigh = Callable[[Mapping[str, int]], Mapping[str, float]]


@dataclass(frozen=True)
class Demand:
    """What a run needs. It ends with the role's step `max_steps` or with epoch `max_epochs`, whichever comes first;
    None or 0 is no limit. `where` is the file that an error names."""

    batch_size: int
    bucket_batch_sizes: Mapping[str, int]
    gradient_accumulation_steps: int
    world_size: int
    keep_small_buckets: bool
    max_steps: int | None
    max_epochs: int | None
    reweigh: Reweigh | None
    where: str

    @property
    def batches(self) -> int:
        """Micro-batches of one optimiser step, of all ranks."""
        return self.gradient_accumulation_steps * self.world_size

    def size_of(self, bucket: str) -> int:
        """The batch size of a bucket."""
        return batch_size_of(bucket, batch_size=self.batch_size, bucket_batch_sizes=self.bucket_batch_sizes)


def require_enough(groups: Sequence[Group], course: Course, demand: Demand) -> None:
    """`UserError` when, before the run ends, nothing is open, or an epoch has fewer draws than an optimiser step needs.

    The first names the step, the epoch and the windows, the second the least `repeats` that do. `groups` are those of
    all samples, `course` is that of the samples that were not pruned. Whatever the windows allow for is checked first;
    only if something fails there are epochs planned, to see whether the run gets there.
    """
    fix = "give a dataset a probability above 0 and a window that does not end before it begins"
    fix = fix if groups else "see what was left out above"
    groups = [group for group in groups if group.weight > 0 and not group.window.is_empty]
    if not groups:
        raise UserError(Problem(where=demand.where, message="there is no sample to train on", fix=fix))
    within = [
        (epoch, step)
        for epoch, step in corners({group.window for group in groups})
        if epoch <= (demand.max_epochs or epoch) and step <= (demand.max_steps or step)
    ]
    used = _used_buckets(groups, demand)
    if all(_suffices(open_draws(groups, epoch=epoch, step=step), used, demand) for epoch, step in within):
        return
    accumulation = demand.gradient_accumulation_steps
    max_taken = demand.max_steps * accumulation if demand.max_steps else None
    for epoch, taken in course.changes(max_epochs=demand.max_epochs, max_taken=max_taken):
        at = {"epoch": epoch + 1, "step": taken // accumulation + 1}
        draws = open_draws(groups, **at)
        if not draws:
            raise UserError(_nothing_open(groups, demand, **at))
        if not _suffices(draws, used, demand):
            raise UserError(_too_few(groups, used, demand, **at))


def _used_buckets(groups: Sequence[Group], demand: Demand) -> frozenset[str]:
    """The buckets that are not pruned."""
    most = highest_draws(groups)
    return frozenset(
        bucket for bucket, draws in most.items() if demand.keep_small_buckets or draws >= demand.size_of(bucket)
    )


def _suffices(draws: Mapping[str, float], used: Collection[str], demand: Demand) -> bool:
    """Whether the draws of an epoch, by bucket, make the batches of an optimiser step."""
    unit = lcm(*(demand.size_of(bucket) for bucket in draws))
    shares = (count * (unit // demand.size_of(bucket)) for bucket, count in draws.items() if bucket in used)
    return sum(shares) >= demand.batches * unit


def _nothing_open(groups: Iterable[Group], demand: Demand, *, epoch: int, step: int) -> Problem:
    reasons = {group.label: group.window.why_closed(epoch=epoch, step=step) for group in groups}
    listed = ", ".join(f"{label} {reason}" for label, reason in reasons.items())
    message = f"no dataset is open at step {step} (epoch {epoch}): {listed}"
    fix = "let the windows of datasets meet, or let the run end before, with max_train_steps or num_train_epochs"
    return Problem(where=demand.where, message=message, fix=fix)


def _too_few(groups: Sequence[Group], used: Collection[str], demand: Demand, *, epoch: int, step: int) -> Problem:
    present = [group for group in groups if group.window.is_open(epoch=epoch, step=step)]
    draws = {bucket: n for bucket, n in open_draws(present, epoch=epoch, step=step).items() if bucket in used}
    buckets: dict[str, int] = {}
    for group in present:
        buckets[group.bucket] = buckets.get(group.bucket, 0) + group.num_samples
    counts = ", ".join(f"{bucket}: {count}" for bucket, count in sorted(buckets.items()))
    when = f" from step {step} (epoch {epoch}) on" if any(group.window != ALWAYS for group in groups) else ""
    need, lower = _need(buckets, draws, demand)
    message = (
        f"gives {sum(draws.values()):g} usable draws an epoch{when} from {sum(buckets.values())} samples in "
        f"{len(buckets)} buckets ({counts}), {need}"
    )
    smallest = _smallest_repeats(groups, demand, epoch=epoch, step=step)
    names = sorted({group.label for group in present if group.dataset and group.repeats < smallest})
    fix = (
        f"set repeats to {smallest} or more{' in ' if names else ''}{' and '.join(names)}, add clips, or lower {lower}"
    )
    fix += " or gradient_accumulation_steps" if demand.gradient_accumulation_steps > 1 else ""
    value = max(group.repeats for group in present)
    return Problem(where=demand.where, key="repeats", value=value, message=message, fix=fix)


def _need(buckets: Iterable[str], draws: Mapping[str, float], demand: Demand) -> tuple[str, str]:
    """In words, what a step needs, and which batch sizes could be lower."""
    factors = f"gradient_accumulation_steps {demand.gradient_accumulation_steps}"
    factors += f" x {demand.world_size} processes" if demand.world_size > 1 else ""
    sizes = {bucket: demand.size_of(bucket) for bucket in sorted(buckets)}
    if set(sizes.values()) == {demand.batch_size}:
        need = demand.batch_size * demand.batches
        return (
            f"but one step needs {need} (train_batch_size {demand.batch_size} x {factors}), and a bucket at least "
            f"{demand.batch_size} to be used",
            "train_batch_size",
        )
    full = sum(count / demand.size_of(bucket) for bucket, count in draws.items())
    listed = ", ".join(f"{bucket}: {size}" for bucket, size in sizes.items())
    return (
        f"which make {full:.3g} batches of the buckets' own sizes ({listed}), but one step needs {demand.batches} "
        f"({factors}), and a bucket at least one batch to be used",
        "the batch sizes of buckets",
    )


def _smallest_repeats(groups: Sequence[Group], demand: Demand, *, epoch: int, step: int) -> int:
    """The least `repeats` that make an epoch long enough, were every dataset open now repeated as often at least."""

    def suffices(repeats: int) -> bool:
        raised = _repeated(groups, demand, repeats, epoch=epoch, step=step)
        return _suffices(open_draws(raised, epoch=epoch, step=step), _used_buckets(raised, demand), demand)

    above = 1
    while not suffices(above):
        above *= 2
    below = above // 2
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if suffices(middle) else (middle, above)
    return above


def _repeated(groups: Sequence[Group], demand: Demand, repeats: int, *, epoch: int, step: int) -> list[Group]:
    """The groups with at least so many repeats where they are open, and the weights that follow from that."""
    raised = [
        replace(group, repeats=max(group.repeats, repeats)) if group.window.is_open(epoch=epoch, step=step) else group
        for group in groups
    ]
    if demand.reweigh is None:
        return raised
    weights = demand.reweigh({group.dataset: group.repeats for group in raised})
    return [replace(group, weight=weights[group.dataset]) for group in raised]
