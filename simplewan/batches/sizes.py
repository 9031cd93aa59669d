"""How many: appearances of a sample, the batch size of a bucket, batches of epochs, buckets too small to fill one.

Imports this room's draws and windows. Because what does not fill a batch is carried over, the number of batches after
n epochs has a closed form as long as no window closes and none opens at a step; `course` counts in the other cases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from operator import attrgetter
from types import MappingProxyType

from simplewan.batches.windows import ALWAYS, Window, corners
from simplewan.data.draws import uniform

NO_SIZES: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class SampleRef:
    """A sample as the sampler sees it: seen `(repeats + 1) * weight` times an epoch, on average exactly.

    `bucket` is what may share a batch: the shape ("832x480@81"), and after a space what else keeps samples apart
    ("832x480@81 regularisation"). `num_captions` is the number of caption variants. `weight` comes from `mixing`.
    `dataset` serves messages only. Outside its `window` a sample is not drawn.
    """

    name: str
    bucket: str
    repeats: int = 0
    num_captions: int = 1
    weight: float = 1.0
    dataset: str = ""
    window: Window = ALWAYS

    @property
    def rate(self) -> float:
        """Appearances per epoch."""
        return (self.repeats + 1) * self.weight


@dataclass(frozen=True)
class Group:
    """Samples that are alike to this arithmetic: how many there are, and what they have in common."""

    bucket: str
    dataset: str
    repeats: int
    weight: float
    window: Window
    num_samples: int

    @property
    def draws(self) -> float:
        """Draws per epoch, without the rounding errors of weights that are no binary fractions."""
        return round(self.num_samples * (self.repeats + 1) * self.weight, 9)

    @property
    def label(self) -> str:
        """The dataset in words."""
        return f'dataset "{self.dataset}"' if self.dataset else "the dataset"


@dataclass(frozen=True)
class Pruned:
    """A bucket that is left out: how many samples it has, the draws of an epoch, and what a batch needs."""

    bucket: str
    num_samples: int
    draws_per_epoch: float
    batch_size: int

    def __str__(self) -> str:
        samples = "1 sample" if self.num_samples == 1 else f"{self.num_samples} samples"
        return (
            f"bucket {self.bucket} ({samples}) is left out: with repeats it holds {self.draws_per_epoch:g} an epoch, "
            f"too few for a batch of {self.batch_size}; raise repeats, add clips, lower train_batch_size (or the "
            "bucket's own batch size), or set disable_bucket_pruning"
        )


@dataclass(frozen=True)
class NeverDrawn:
    """A dataset of which the run sees nothing, and why."""

    label: str
    num_samples: int
    reason: str

    def __str__(self) -> str:
        samples = "1 sample" if self.num_samples == 1 else f"{self.num_samples} samples"
        return f"{self.label} ({samples}) is never drawn: {self.reason}"


def appearances(ref: SampleRef, first: int, last: int, *, seed: int, role: str) -> int:
    """How often a sample enters the line in the epochs `first`..`last` - 1 (from 0), its window's epochs only.

    Fractions come out by a phase of its own.
    """
    if ref.window is not ALWAYS:
        first = max(first, ref.window.start_epoch - 1)
        last = last if ref.window.end_epoch is None else min(last, ref.window.end_epoch)
        if last <= first:
            return 0
    if ref.weight == 1.0:
        return (ref.repeats + 1) * (last - first)
    phase = uniform(seed, role, "phase", ref.name)
    return floor(last * ref.rate + phase) - floor(first * ref.rate + phase)


def patterns(bucket: str) -> tuple[str, ...]:
    """What may name a bucket, the most specific first: "832x480@81", "832x480", "@81".

    What follows a space in the bucket's name does not count.
    """
    shape = bucket.partition(" ")[0]
    size, at, frames = shape.partition("@")
    return (shape, size, at + frames) if at else (shape,)


def batch_size_of(bucket: str, *, batch_size: int, bucket_batch_sizes: Mapping[str, int] = NO_SIZES) -> int:
    """The batch size of a bucket: that of the most specific of its `patterns`, else `batch_size`."""
    named = (bucket_batch_sizes[pattern] for pattern in patterns(bucket) if pattern in bucket_batch_sizes)
    return next(named, batch_size)


def unmatched(bucket_batch_sizes: Mapping[str, int], buckets: Iterable[str]) -> list[str]:
    """The patterns that name none of the buckets, in order."""
    known = {pattern for bucket in set(buckets) for pattern in patterns(bucket)}
    return [pattern for pattern in bucket_batch_sizes if pattern not in known]


def groups_of(samples: Sequence[SampleRef]) -> list[Group]:
    """The samples counted by what matters here, in the order of their first samples."""
    windows = [ref.window for ref in samples]
    by_id = {id(window): window for window in windows}  # hashing a window for each sample takes too long
    common = map(attrgetter("bucket", "dataset", "repeats", "weight"), samples)
    counts = Counter(zip(common, map(id, windows), strict=True))
    return [Group(*key, window=by_id[window], num_samples=count) for (key, window), count in counts.items()]


def highest_draws(groups: Iterable[Group]) -> dict[str, float]:
    """Of each bucket, the draws of an epoch while the windows are open that give most."""
    found: dict[str, float] = {}
    drawn = tuple(groups)
    for epoch, step in corners({group.window for group in drawn}):
        draws = open_draws(drawn, epoch=epoch, step=step)
        for bucket in draws:
            found[bucket] = max(found.get(bucket, 0.0), draws[bucket])
    return found


def open_draws(groups: Iterable[Group], *, epoch: int, step: int) -> dict[str, float]:
    """Of each bucket, the draws of an epoch with what is open at a step of an epoch (both from 1)."""
    draws: dict[str, float] = {}
    for group in groups:
        if group.window.is_open(epoch=epoch, step=step):
            draws[group.bucket] = draws.get(group.bucket, 0.0) + group.draws
    return draws


def prune(
    samples: Iterable[SampleRef],
    *,
    batch_size: int,
    keep_small_buckets: bool,
    bucket_batch_sizes: Mapping[str, int] = NO_SIZES,
    groups: Sequence[Group] | None = None,
) -> tuple[list[SampleRef], list[Pruned]]:
    """The samples of buckets that give at least a batch an epoch, sorted by name, and the buckets that do not.

    With windows a bucket stays if it gives a batch an epoch while any of them are open. With `keep_small_buckets` all
    stay: a small bucket then gives a batch every few epochs. Samples that are never drawn (of weight 0, or with an
    empty window) go in any case, and a bucket that has no others is not listed. `groups` are those of the samples, if
    they are known already.
    """
    ordered = sorted(samples, key=lambda ref: ref.name)
    groups = groups_of(ordered) if groups is None else groups
    drawn = [group for group in groups if group.weight > 0 and not group.window.is_empty]
    small = []
    for bucket, draws in sorted(highest_draws(drawn).items()):
        size = batch_size_of(bucket, batch_size=batch_size, bucket_batch_sizes=bucket_batch_sizes)
        if draws < size and not keep_small_buckets:
            count = sum(group.num_samples for group in drawn if group.bucket == bucket)
            small.append(Pruned(bucket, count, draws, size))
    gone = {pruned.bucket for pruned in small}
    if gone:
        ordered = [ref for ref in ordered if ref.bucket not in gone]
    if len(drawn) < len(groups):
        ordered = [ref for ref in ordered if ref.weight > 0 and not ref.window.is_empty]
    return ordered, small


def never_drawn(groups: Iterable[Group], *, max_steps: int | None, max_epochs: int | None) -> list[NeverDrawn]:
    """The datasets that a run of so many steps and epochs (None or 0: no limit) sees nothing of."""
    found: dict[tuple[str, str], int] = {}
    for group in groups:
        window, reason = group.window, ""
        if group.weight <= 0:
            reason = "its probability is 0"
        elif window.is_empty:
            reason = "its end_epoch or end_step comes before its start_epoch or start_step"
        elif max_steps and window.start_step > max_steps:
            reason = f"it begins with start_step {window.start_step}, but the run ends with step {max_steps}"
        elif max_epochs and window.start_epoch > max_epochs:
            reason = f"it begins with start_epoch {window.start_epoch}, but the run ends with epoch {max_epochs}"
        if reason:
            key = (group.label, reason)
            found[key] = found.get(key, 0) + group.num_samples
    return [NeverDrawn(label, count, reason) for (label, reason), count in found.items()]


def count_batches(
    samples: Iterable[SampleRef],
    first: int,
    last: int,
    *,
    batch_sizes: Mapping[str, int],
    waiting: Mapping[str, int],
    world_size: int,
    seed: int,
    role: str,
) -> int:
    """Micro-batches of one rank in the epochs `first`..`last` - 1 (from 0), exactly, in closed form.

    `waiting` counts what was carried into epoch `first`, by bucket. Nothing else enters or leaves a line than the
    samples do, in the epochs of their windows.
    """
    draws = dict(waiting)
    for ref in samples:
        draws[ref.bucket] = draws.get(ref.bucket, 0) + appearances(ref, first, last, seed=seed, role=role)
    return sum(count // batch_sizes[bucket] for bucket, count in draws.items()) // world_size
