"""One epoch as a pure function: who stands in line, how the line is cut into batches, which batches form a step.

Imports this room. Every bucket has a line: first what earlier epochs carried over, then the epoch's samples, shuffled,
each repeat in a round of its own. Batches are cut from the front; what does not fill a batch, and batches that do not
fill a step of `world_size` ranks, stand first in the next epoch's line. Nothing is dropped and nothing seen twice to
fill up, so over k epochs each sample is seen k times, give or take what is still waiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simplewan.batches.draws import draw
from simplewan.batches.sizes import SampleRef, appearances_until


@dataclass(frozen=True)
class PlannedBatch:
    """The samples of one micro-batch of one rank, all of one bucket."""

    bucket: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class EpochPlan:
    """The steps in order, each with one batch for every rank, and what waits for the next epoch, by bucket."""

    steps: tuple[tuple[PlannedBatch, ...], ...]
    carried: Mapping[str, tuple[str, ...]]


def plan_epoch(
    samples: Sequence[SampleRef],
    carried: Mapping[str, Sequence[str]],
    *,
    epoch: int,
    seed: int,
    role: str,
    batch_size: int,
    world_size: int,
) -> EpochPlan:
    """The plan of an epoch, from the samples (sorted by name) and what the epoch before carried over.

    Ranks of one step share a bucket where possible, so that they take equally long.
    """
    buckets: dict[str, list[SampleRef]] = {}
    for ref in samples:
        buckets.setdefault(ref.bucket, []).append(ref)
    steps: list[tuple[PlannedBatch, ...]] = []
    pool: list[tuple[bool, bytes, PlannedBatch]] = []
    waiting: dict[str, tuple[str, ...]] = {}
    for bucket, refs in sorted(buckets.items()):
        before = carried.get(bucket, ())
        line = _line(refs, before, epoch=epoch, seed=seed, role=role, batch_size=batch_size)
        full = len(line) - len(line) % batch_size
        cut = [PlannedBatch(bucket, tuple(line[at : at + batch_size])) for at in range(0, full, batch_size)]
        whole = len(cut) - len(cut) % world_size
        steps += [tuple(cut[at : at + world_size]) for at in range(0, whole, world_size)]
        for number, batch in enumerate(cut[whole:], start=whole):
            is_new = number * batch_size >= len(before)
            pool.append((is_new, draw(seed, role, epoch, "mix", bucket, number), batch))
        waiting[bucket] = tuple(line[full:])
    ordered = [batch for _is_new, _order, batch in sorted(pool, key=lambda entry: entry[:2])]
    mixed = len(ordered) - len(ordered) % world_size
    steps += [tuple(ordered[at : at + world_size]) for at in range(0, mixed, world_size)]
    for batch in reversed(ordered[mixed:]):
        waiting[batch.bucket] = batch.names + waiting[batch.bucket]
    order = sorted(range(len(steps)), key=lambda number: draw(seed, role, epoch, "step", number))
    return EpochPlan(
        steps=tuple(steps[number] for number in order),
        carried={bucket: names for bucket, names in waiting.items() if names},
    )


def _line(
    refs: Sequence[SampleRef], before: Sequence[str], *, epoch: int, seed: int, role: str, batch_size: int
) -> list[str]:
    """What was carried over, then the epoch's rounds; a sample avoids a batch that it is in already, if it can."""
    line = list(before)
    times = {
        ref.name: appearances_until(ref, epoch + 1, seed=seed, role=role)
        - appearances_until(ref, epoch, seed=seed, role=role)
        for ref in refs
    }
    for number in range(max(times.values(), default=0)):
        names = [name for name, count in times.items() if count > number]
        names.sort(key=lambda name, number=number: draw(seed, role, epoch, "order", number, name))
        in_open_batch = set(line[len(line) - len(line) % batch_size :])
        line += [name for name in names if name not in in_open_batch]
        line += [name for name in names if name in in_open_batch]
    return line
