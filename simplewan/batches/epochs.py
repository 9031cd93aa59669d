"""One epoch as a pure function: who stands in line, how the line is cut into batches, which batches form a step.

Imports this room. Every bucket has a line: first what earlier epochs carried over, then the epoch's samples, shuffled,
each repeat in a round of its own. Batches are cut from the front; what does not fill a batch, and batches that do not
fill a step of `world_size` ranks, stand first in the next epoch's line. Nothing is dropped and nothing seen twice to
fill up, so over k epochs each sample is seen k x rate times, give or take what is still waiting.

An epoch in which windows open or close at a step goes on, with another line. At the first micro-batch of that step,
after the share p of the epoch, what has left goes from the lines, carried over or not; what remains of the others
stands first; what has newly come follows with the share 1 - p of its draws (drawn by lot where that is no whole
number); and the rest is cut anew. So the epoch's remainder keeps the proportions that the weights ask for, and the
epoch ends when the lines are used up: sooner when something leaves, at once when nothing else is open; what is open is
never skipped. A window that closes with an epoch takes what was carried over along.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor

from simplewan.batches.sizes import SampleRef, appearances
from simplewan.batches.windows import ALWAYS, Window
from simplewan.data.draws import draw, uniform

Lines = Mapping[str, Sequence[str]]


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


@dataclass(frozen=True)
class Stream:
    """What the stream of all epochs is a function of.

    `samples` are sorted by name, `batch_sizes` knows every bucket. Here an epoch counts from 0, and `taken` is the
    number of micro-batches that each rank has had so far; `accumulation` of them make an optimiser step.
    """

    samples: Sequence[SampleRef]
    batch_sizes: Mapping[str, int]
    seed: int
    role: str
    world_size: int = 1
    accumulation: int = 1

    @cached_property
    def windows(self) -> frozenset[Window]:
        """All windows of the samples."""
        return frozenset({id(ref.window): ref.window for ref in self.samples}.values())  # hashing each takes long

    @cached_property
    def has_windows(self) -> bool:
        """Whether anything ever opens or closes."""
        return not self.windows <= {ALWAYS}

    @cached_property
    def mixed_buckets(self) -> frozenset[str]:
        """The buckets in which a weight is not 1."""
        return frozenset(ref.bucket for ref in self.samples if ref.weight != 1.0)

    @cached_property
    def _of_window(self) -> dict[Window, list[SampleRef]]:
        found: dict[Window, list[SampleRef]] = {}
        for ref in self.samples:
            found.setdefault(ref.window, []).append(ref)
        return found

    @cached_property
    def _windows_by_name(self) -> dict[str, Window]:
        return {ref.name: ref.window for ref in self.samples}

    def step_after(self, taken: int) -> int:
        """The optimiser step (from 1) that the next micro-batch belongs to."""
        return taken // self.accumulation + 1

    def open_at(self, epoch: int, taken: int) -> frozenset[Window]:
        """The windows that are open for the next micro-batch."""
        where = {"epoch": epoch + 1, "step": self.step_after(taken)}
        return frozenset(window for window in self.windows if window.is_open(**where))

    def ends(self, epoch: int, taken: int) -> bool:
        """Whether nothing can be drawn in this epoch or any later one: no step passes that could open a window."""
        where = {"epoch": epoch + 1, "step": self.step_after(taken)}
        return not any(window.may_open(**where) for window in self.windows)

    def samples_of(self, windows: Collection[Window]) -> Sequence[SampleRef]:
        """The samples that have one of these windows."""
        if len(windows) == len(self.windows):
            return self.samples
        return [ref for window, refs in self._of_window.items() if window in windows for ref in refs]

    def kept(self, lines: Lines, windows: Collection[Window]) -> Lines:
        """What remains in line when only these windows are open."""
        if len(windows) == len(self.windows):
            return lines
        of = self._windows_by_name
        return {bucket: [name for name in names if of[name] in windows] for bucket, names in lines.items()}

    def step_changes(self, epoch: int, taken: int) -> list[int]:
        """After how many micro-batches, more than `taken`, windows that have this epoch open or close at a step."""
        found = set()
        for window in self.windows:
            if window.in_epoch(epoch + 1):
                found.add((window.start_step - 1) * self.accumulation)
                found.add((window.end_step or 0) * self.accumulation)
        return sorted(at for at in found if at > taken)


def plan_epoch(stream: Stream, carried: Lines, *, epoch: int, taken: int = 0) -> EpochPlan:
    """The plan of an epoch (from 0), from what the epoch before carried over and the micro-batches before it."""
    windows = stream.open_at(epoch, taken)
    counts: dict[str, dict[str, int]] = {bucket: {} for bucket in stream.batch_sizes}
    seed, role = stream.seed, stream.role
    for ref in stream.samples_of(windows):
        counts[ref.bucket][ref.name] = appearances(ref, epoch, epoch + 1, seed=seed, role=role)
    part = _plan_part(stream, stream.kept(carried, windows), counts, epoch=epoch, about=(epoch,))
    steps: tuple[tuple[PlannedBatch, ...], ...] = ()
    progress = 0.0
    for at in stream.step_changes(epoch, taken) if stream.has_windows else ():
        cut = at - taken - len(steps)
        if cut >= len(part.steps):  # the epoch ends before
            break
        progress += (1 - progress) * cut / len(part.steps)
        steps += part.steps[:cut]
        now = stream.open_at(epoch, at)
        counts = _arrivals(stream, now - windows, epoch=epoch, share=1 - progress)
        windows = now
        lines = stream.kept(_lines_after(part, cut), windows)
        part = _plan_part(stream, lines, counts, epoch=epoch, about=(epoch, "from", at - taken))
    return EpochPlan(steps + part.steps, part.carried)


def _arrivals(stream: Stream, windows: Collection[Window], *, epoch: int, share: float) -> dict[str, dict[str, int]]:
    """How often each sample of windows that open within an epoch appears in the share of it that is left."""
    counts: dict[str, dict[str, int]] = {}
    for ref in stream.samples_of(windows) if windows else ():
        lot = uniform(stream.seed, stream.role, epoch, "arrival", ref.name)
        counts.setdefault(ref.bucket, {})[ref.name] = floor(share * ref.rate + lot)
    return counts


def _lines_after(plan: EpochPlan, cut: int) -> dict[str, list[str]]:
    """What is still in line after `cut` steps of a plan: the batches of the later steps, then what waits anyway."""
    lines: dict[str, list[str]] = {}
    for step in plan.steps[cut:]:
        for batch in step:
            lines.setdefault(batch.bucket, []).extend(batch.names)
    for bucket, names in plan.carried.items():
        lines.setdefault(bucket, []).extend(names)
    return lines


def _plan_part(
    stream: Stream, before: Lines, counts: Mapping[str, Mapping[str, int]], *, epoch: int, about: tuple[str | int, ...]
) -> EpochPlan:
    """Steps from lines: what stood in them `before`, then each sample as often as `counts` says, by bucket.

    Ranks of one step share a bucket where possible, so that they take equally long.
    """
    seed, role, world_size = stream.seed, stream.role, stream.world_size
    steps: list[tuple[PlannedBatch, ...]] = []
    pool: list[tuple[bool, bytes, PlannedBatch]] = []
    waiting: dict[str, tuple[str, ...]] = {}
    for bucket in sorted({*counts, *before}):
        size, first = stream.batch_sizes[bucket], before.get(bucket, ())
        line = _line(stream, bucket, first, counts.get(bucket, {}), epoch=epoch)
        full = len(line) - len(line) % size
        cut = [PlannedBatch(bucket, tuple(line[at : at + size])) for at in range(0, full, size)]
        whole = len(cut) - len(cut) % world_size
        steps += [tuple(cut[at : at + world_size]) for at in range(0, whole, world_size)]
        for number, batch in enumerate(cut[whole:], start=whole):
            is_new = number * size >= len(first)
            pool.append((is_new, draw(seed, role, *about, "mix", bucket, number), batch))
        waiting[bucket] = tuple(line[full:])
    ordered = [batch for _is_new, _order, batch in sorted(pool, key=lambda entry: entry[:2])]
    mixed = len(ordered) - len(ordered) % world_size
    steps += [tuple(ordered[at : at + world_size]) for at in range(0, mixed, world_size)]
    for batch in reversed(ordered[mixed:]):
        waiting[batch.bucket] = batch.names + waiting[batch.bucket]
    order = sorted(range(len(steps)), key=lambda number: draw(seed, role, *about, "step", number))
    return EpochPlan(
        steps=tuple(steps[number] for number in order),
        carried={bucket: names for bucket, names in waiting.items() if names},
    )


def _line(stream: Stream, bucket: str, before: Sequence[str], counts: Mapping[str, int], *, epoch: int) -> list[str]:
    """What stood in line, then the rounds; a sample avoids a batch that it is in already, if it can."""
    line, size = list(before), stream.batch_sizes[bucket]
    for number, names in enumerate(_rounds(stream, counts, epoch=epoch, spread=bucket in stream.mixed_buckets)):
        names.sort(key=lambda name, number=number: draw(stream.seed, stream.role, epoch, "order", number, name))
        in_open_batch = set(line[len(line) - len(line) % size :])
        line += [name for name in names if name not in in_open_batch]
        line += [name for name in names if name in in_open_batch]
    return line


def _rounds(stream: Stream, counts: Mapping[str, int], *, epoch: int, spread: bool) -> Iterator[list[str]]:
    """Each sample in as many rounds as it has draws: in the first ones, or `spread` evenly from a start by lot.

    Only spread does a dataset of few samples and a large weight mix with the others in all batches.
    """
    most = max(counts.values(), default=0)
    if not spread or most <= 1:
        names = list(counts)
        for number in range(most):
            names = [name for name in names if counts[name] > number]
            yield names
        return
    rounds: list[list[str]] = [[] for _ in range(most)]
    for name, count in counts.items():
        lot = uniform(stream.seed, stream.role, epoch, "round", name) if 0 < count < most else 0.0
        for number in range(count):
            rounds[int((number + lot) * most / count)].append(name)
    yield from rounds
