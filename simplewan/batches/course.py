"""Where the epochs of a stream begin, and where its windows open and close, in micro-batches of one rank.

Imports this room. A stream is a chain of stretches in which nothing leaves and nothing opens at a step. Within one,
the count has a closed form; to get from one to the next its epochs are planned, because it matters who was still
waiting. That takes as long as planning does, once, and only as far as somebody asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from simplewan.batches.epochs import Lines, Stream, plan_epoch
from simplewan.batches.sizes import SampleRef, count_batches


@dataclass(frozen=True)
class Mark:
    """Before an epoch (from 0): the micro-batches that each rank has had so far, and what is carried into it."""

    epoch: int = 0
    taken: int = 0
    carried: Lines = field(default_factory=dict)


@dataclass(frozen=True)
class _Stretch:
    """From a mark to epoch `end` (None: without end). The epoch `end` has a change within it, after `change` micro-
    batches; with None the next stretch begins with it."""

    mark: Mark
    samples: Sequence[SampleRef]
    waiting: Mapping[str, int]
    end: int | None
    change: int | None


class Course:
    """The stretches of a stream from a mark on, found when they are needed."""

    def __init__(self, stream: Stream, start: Mark | None = None) -> None:
        self._stream = stream
        self._stretches = [self._stretch(start or Mark())]

    def batches_in_epochs(self, epochs: int) -> int:
        """Micro-batches of one rank before epoch `epochs` (from 0), exactly, those before the start included."""
        number = 0
        while (end := self._stretches[number].end) is not None and epochs > end:
            number += 1
            self._need(number)
        return self._taken(self._stretches[number], epochs)

    def changes(self, *, max_epochs: int | None, max_taken: int | None) -> Iterator[tuple[int, int]]:
        """The start and all places (epoch, taken) at which windows close or open at a step, in order, within limits."""
        number = 0
        while True:
            stretch = self._stretches[number]
            yield stretch.mark.epoch, stretch.mark.taken
            if stretch.end is None or (max_epochs and stretch.end >= max_epochs):
                return
            begun = self._taken(stretch, stretch.end)
            if max_taken and (begun if stretch.change is None else stretch.change) >= max_taken:
                return
            number += 1
            self._need(number)
            if stretch.change is not None:
                for at in self._stream.step_changes(stretch.end, begun):
                    if at < min(self._stretches[number].mark.taken, max_taken or at + 1):
                        yield stretch.end, at
            mark = self._stretches[number].mark
            if (max_epochs and mark.epoch >= max_epochs) or (max_taken and mark.taken >= max_taken):
                return

    def _need(self, number: int) -> None:
        """Have the stretch of this number."""
        if number == len(self._stretches):
            self._stretches.append(self._stretch(self._mark_after(self._stretches[-1])))

    def _stretch(self, mark: Mark) -> _Stretch:
        stream = self._stream
        epoch, step = mark.epoch + 1, stream.step_after(mark.taken)
        present = [w for w in stream.windows if w.may_open(epoch=epoch, step=step)]
        samples = stream.samples_of(present)
        kept = stream.kept(mark.carried, stream.open_at(mark.epoch, mark.taken))
        waiting = {bucket: len(names) for bucket, names in kept.items()}
        closing = min((w.end_epoch for w in present if w.end_epoch is not None), default=None)
        to_come = [w for w in stream.windows if w.end_epoch is None or w.end_epoch > mark.epoch]
        steps = {n * stream.accumulation for w in to_come for n in (w.start_step - 1, w.end_step or 0)}
        change = min((at for at in steps if at > mark.taken), default=None)
        stretch = _Stretch(mark, samples, waiting, closing, None)
        if change is None or not present:
            return stretch
        reached = self._epoch_reaching(stretch, change)
        if reached is None or self._taken(stretch, reached) == change:
            return stretch if reached is None else _Stretch(mark, samples, waiting, reached, None)
        return _Stretch(mark, samples, waiting, reached - 1, change)

    def _taken(self, stretch: _Stretch, epoch: int) -> int:
        """Micro-batches before an epoch of the stretch."""
        stream, mark = self._stream, stretch.mark
        if epoch <= mark.epoch:
            return mark.taken
        return mark.taken + count_batches(
            stretch.samples,
            mark.epoch,
            epoch,
            batch_sizes=stream.batch_sizes,
            waiting=stretch.waiting,
            world_size=stream.world_size,
            seed=stream.seed,
            role=stream.role,
        )

    def _epoch_reaching(self, stretch: _Stretch, taken: int) -> int | None:
        """The first epoch of the stretch before which there are so many micro-batches, if there is one."""
        below, reach = stretch.mark.epoch, 1
        above = below + reach if stretch.end is None else stretch.end
        while self._taken(stretch, above) < taken:
            if stretch.end is not None:
                return None
            reach *= 2
            below, above = above, above + reach
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if self._taken(stretch, middle) < taken else (below, middle)
        return above

    def _mark_after(self, stretch: _Stretch) -> Mark:
        """Where the next stretch begins: all epochs of this one are planned."""
        assert stretch.end is not None
        epoch, taken, carried = stretch.mark.epoch, stretch.mark.taken, stretch.mark.carried
        while epoch < stretch.end + (stretch.change is not None):
            plan = plan_epoch(self._stream, carried, epoch=epoch, taken=taken)
            epoch, taken, carried = epoch + 1, taken + len(plan.steps), plan.carried
        return Mark(epoch, taken, carried)
