"""The stream of micro-batches of one role on one rank, resumable at any of them; endless unless all windows close.

Imports this room. The stream is a pure function of the samples, (seed, role, epoch), what is carried from epoch to
epoch and, where windows open or close at steps, of the micro-batches so far. So its state is small: the epoch, the
position in it, the names carried into it, and that number.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from simplewan.batches.course import Course, Mark
from simplewan.batches.enough import Demand, Reweigh, require_enough
from simplewan.batches.epochs import EpochPlan, Stream, plan_epoch
from simplewan.batches.sizes import NO_SIZES, NeverDrawn, Pruned, SampleRef, groups_of, never_drawn, prune
from simplewan.batches.windows import ALWAYS
from simplewan.data.draws import uniform

STATE_VERSION = 1
DROPPED = -1


@dataclass(frozen=True)
class BatchSpec:
    """One micro-batch: the samples, the caption variant of each (`DROPPED`, -1: no caption), and where it stands."""

    names: tuple[str, ...]
    captions: tuple[int, ...]
    epoch: int
    bucket: str


class Sampler(Iterator[BatchSpec]):
    """Iterates micro-batches; every rank gets the same number of them, and no draw goes to two ranks.

    - `bucket_batch_sizes`: batch sizes of buckets, by the patterns of `sizes.patterns`; `batch_size` for the others.
    - `max_steps`, `max_epochs`: the run ends with this step of the role or this epoch, whichever comes first (None or
      0: no limit). They do not end the stream; they say how long some window must be open.
    - `reweigh`: see `enough.Reweigh`; needed only where weights depend on repeats ("uniform" mixing of several
      datasets), and there only for the error that names them.

    Datasets appear and disappear exactly at the ends of their windows, on all ranks at once; step n takes the micro-
    batches (n - 1) x gradient_accumulation_steps and on of each rank. An epoch is over when what is open has been
    drawn, see `epochs`. When no window can open any more the iteration stops.

    `pruned` lists, ready to be shown, the datasets that are never drawn and the buckets left out because they hold
    less than a batch. Raises `UserError` when before the run's end nothing is open, or what remains does not make one
    optimiser step an epoch; `ValueError` when two samples share a name.
    """

    def __init__(
        self,
        samples: Sequence[SampleRef],
        batch_size: int,
        seed: int,
        role: str,
        *,
        bucket_batch_sizes: Mapping[str, int] = NO_SIZES,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
        caption_dropout_probability: float = 0.0,
        keep_small_buckets: bool = False,
        max_steps: int | None = None,
        max_epochs: int | None = None,
        reweigh: Reweigh | None = None,
        where: str = "data_backend_config",
    ) -> None:
        assert 0 <= rank < world_size and min([batch_size, *bucket_batch_sizes.values()]) > 0
        twice = [name for name, count in Counter(ref.name for ref in samples).items() if count > 1]
        if twice:
            raise ValueError(f"two samples are called {min(twice)}")
        self._demand = demand = Demand(
            batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            world_size=world_size,
            bucket_batch_sizes=dict(bucket_batch_sizes),
            keep_small_buckets=keep_small_buckets,
            max_steps=max_steps,
            max_epochs=max_epochs,
            reweigh=reweigh,
            where=where,
        )
        groups = groups_of(samples)
        self.samples, small = prune(
            samples,
            batch_size=batch_size,
            keep_small_buckets=keep_small_buckets,
            bucket_batch_sizes=bucket_batch_sizes,
            groups=groups,
        )
        unseen = never_drawn(groups, max_steps=max_steps, max_epochs=max_epochs)
        self.pruned: list[NeverDrawn | Pruned] = [*unseen, *small]
        self.batch_size, self._rank = batch_size, rank
        self._largest_batch = max([batch_size, *bucket_batch_sizes.values()])
        self._stream = Stream(
            samples=self.samples,
            batch_sizes={bucket: demand.size_of(bucket) for bucket in {ref.bucket for ref in self.samples}},
            seed=seed,
            role=role,
            world_size=world_size,
            accumulation=gradient_accumulation_steps,
        )
        self._course = Course(self._stream)
        require_enough(groups, self._course, demand)
        self._caption_dropout_probability = caption_dropout_probability
        self._num_captions = {ref.name: ref.num_captions for ref in self.samples}
        self._start(Mark())

    def __next__(self) -> BatchSpec:
        while self._position >= len(self._plan.steps):
            taken = self._mark.taken + len(self._plan.steps)
            if self._stream.ends(self._mark.epoch + 1, taken):
                raise StopIteration
            self._start(Mark(self._mark.epoch + 1, taken, self._plan.carried))
        planned = self._plan.steps[self._position][self._rank]
        first_draw = (self._position * self._stream.world_size + self._rank) * self._largest_batch
        self._position += 1
        return BatchSpec(
            names=planned.names,
            captions=tuple(self._caption(name, first_draw + at) for at, name in enumerate(planned.names)),
            epoch=self._mark.epoch,
            bucket=planned.bucket,
        )

    @property
    def epoch(self) -> int:
        """The epoch of the batch that was handed out last, counted from 0."""
        return self._mark.epoch

    def batches_in_epochs(self, epochs: int) -> int:
        """This rank's micro-batches in the first `epochs` epochs, exactly; epochs after the last batch add none.

        In closed form, unless windows close or open at steps: then the epochs before that are planned, once.
        """
        return self._course.batches_in_epochs(epochs)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the batch handed out last; the same on every rank; goes into JSON."""
        return {
            "version": STATE_VERSION,
            "epoch": self._mark.epoch,
            "position": self._position,
            "micro_batches": self._mark.taken + self._position,
            "gradient_accumulation_steps": self._stream.accumulation,
            "carried": {bucket: list(names) for bucket, names in self._mark.carried.items()},
            "fingerprint": dict(self._fingerprint),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Go on where `state` was taken; returns what differs from then, and is empty when the stream is the same.

        When something differs ("samples", "batch_size", "bucket_batch_sizes", "world_size", "seed", "role",
        "gradient_accumulation_steps" where windows open or close at steps) the epoch begins anew, with what was
        carried into it as far as it still exists, and the optimiser steps go on counting; the caller should announce
        it. Raises `UserError`, as the constructor does, when the windows leave a gap from there on.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"the sampler's state has version {state.get('version')}, not {STATE_VERSION}")
        epoch, position = int(state["epoch"]), int(state["position"])
        ours, theirs = self._fingerprint, state["fingerprint"]
        changed = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        taken = state.get("micro_batches")
        if taken is None:  # a state from before there were windows
            taken = self.batches_in_epochs(epoch) + position
        accumulation = state.get("gradient_accumulation_steps", self._stream.accumulation)
        if accumulation != self._stream.accumulation:
            taken = taken // accumulation * self._stream.accumulation
            if any(window.has_steps for window in self._stream.windows):
                changed.append("gradient_accumulation_steps")
        carried = {bucket: tuple(names) for bucket, names in state["carried"].items()}
        if not changed:
            self._start(Mark(epoch, taken - position, carried), position)
            return ()
        known = {(ref.bucket, ref.name) for ref in self.samples}
        kept = {bucket: tuple(name for name in names if (bucket, name) in known) for bucket, names in carried.items()}
        mark = Mark(epoch, taken, {bucket: names for bucket, names in kept.items() if names})
        require_enough(groups_of(self.samples), Course(self._stream, mark), self._demand)
        self._start(mark)
        return tuple(changed)

    def _start(self, mark: Mark, position: int = 0) -> None:
        """Plan the epoch after `mark`, and go to a position in it."""
        self._mark, self._position = mark, position
        self._plan: EpochPlan = plan_epoch(self._stream, mark.carried, epoch=mark.epoch, taken=mark.taken)

    def _caption(self, name: str, number: int) -> int:
        about = (self._stream.seed, self._stream.role, self._mark.epoch)
        if uniform(*about, "dropout", number) < self._caption_dropout_probability:
            return DROPPED
        return int(uniform(*about, "caption", number) * self._num_captions[name])

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """What decides the stream. Captions do not: they are drawn by position.

        What a run does not use is not in it, so that states of runs before there were windows still fit.
        """
        windows = {
            window: (window.start_epoch, window.end_epoch, window.start_step, window.end_step)
            for window in self._stream.windows
            if window != ALWAYS
        }
        listed = [
            [ref.name, ref.bucket, ref.repeats, ref.weight, *(windows.get(ref.window, ()) if windows else ())]
            for ref in self.samples
        ]
        found = {
            "samples": hashlib.sha256(json.dumps(listed).encode()).hexdigest(),
            "batch_size": self.batch_size,
            "world_size": self._stream.world_size,
            "seed": self._stream.seed,
            "role": self._stream.role,
        }
        if self._demand.bucket_batch_sizes:
            found["bucket_batch_sizes"] = dict(sorted(self._demand.bucket_batch_sizes.items()))
        return found
