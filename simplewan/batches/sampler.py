"""The endless stream of micro-batches of one role on one rank, resumable at any of them.

Imports this room and errors. The stream is a pure function of the samples, (seed, role, epoch) and what is carried
from epoch to epoch, so its state is small: the epoch, the position in it, the names carried into it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simplewan.batches.draws import uniform
from simplewan.batches.epochs import EpochPlan, plan_epoch
from simplewan.batches.sizes import SampleRef, batches_in_epochs, prune, require_enough

STATE_VERSION = 1
DROPPED = -1


@dataclass(frozen=True)
class BatchSpec:
    """One micro-batch: the samples, the caption variant of each (`DROPPED`, -1: no caption), and where it stands."""

    names: tuple[str, ...]
    captions: tuple[int, ...]
    epoch: int
    bucket: str
    ends_epoch: bool = False


class Sampler(Iterator[BatchSpec]):
    """Iterates micro-batches without end; every rank gets the same number of them, and no draw goes to two ranks.

    `pruned` lists the buckets left out because they hold less than a batch. Raises `UserError` when what remains does
    not make one optimiser step, `ValueError` when two samples share a name.
    """

    def __init__(
        self,
        samples: Sequence[SampleRef],
        batch_size: int,
        seed: int,
        role: str,
        *,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
        caption_dropout_probability: float = 0.0,
        keep_small_buckets: bool = False,
        where: str = "data_backend_config",
    ) -> None:
        assert 0 <= rank < world_size
        twice = [name for name, count in Counter(ref.name for ref in samples).items() if count > 1]
        if twice:
            raise ValueError(f"two samples are called {min(twice)}")
        require_enough(
            samples,
            batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            world_size=world_size,
            keep_small_buckets=keep_small_buckets,
            where=where,
        )
        self.samples, self.pruned = prune(samples, batch_size=batch_size, keep_small_buckets=keep_small_buckets)
        self.batch_size = batch_size
        self._seed, self._role, self._rank, self._world_size = seed, role, rank, world_size
        self._caption_dropout_probability = caption_dropout_probability
        self._num_captions = {ref.name: ref.num_captions for ref in self.samples}
        self._start(epoch=0, position=0, carried={})

    def __next__(self) -> BatchSpec:
        while self._position >= len(self._plan.steps):
            self._start(epoch=self._epoch + 1, position=0, carried=self._plan.carried)
        planned = self._plan.steps[self._position][self._rank]
        first_draw = (self._position * self._world_size + self._rank) * self.batch_size
        self._position += 1
        return BatchSpec(
            names=planned.names,
            captions=tuple(self._caption(name, first_draw + at) for at, name in enumerate(planned.names)),
            epoch=self._epoch,
            bucket=planned.bucket,
            ends_epoch=self._position == len(self._plan.steps),
        )

    @property
    def epoch(self) -> int:
        """The epoch of the batch that was handed out last, counted from 0."""
        return self._epoch

    def batches_in_epochs(self, epochs: int) -> int:
        """This rank's micro-batches in the first `epochs` epochs, exactly."""
        return batches_in_epochs(
            self.samples,
            epochs,
            batch_size=self.batch_size,
            world_size=self._world_size,
            seed=self._seed,
            role=self._role,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the batch handed out last; the same on every rank; goes into JSON."""
        return {
            "version": STATE_VERSION,
            "epoch": self._epoch,
            "position": self._position,
            "carried": {bucket: list(names) for bucket, names in self._carried.items()},
            "fingerprint": dict(self._fingerprint),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Go on where `state` was taken; returns what differs from then, and is empty when the stream is the same.

        When something differs ("samples", "batch_size", "world_size", "seed", "role") the epoch begins anew, with
        what was carried into it as far as it still exists; the caller should announce it.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(f"the sampler's state has version {state.get('version')}, not {STATE_VERSION}")
        theirs = state["fingerprint"]
        changed = tuple(name for name, value in self._fingerprint.items() if theirs.get(name) != value)
        carried = {bucket: tuple(names) for bucket, names in state["carried"].items()}
        if changed:
            known = {(ref.bucket, ref.name) for ref in self.samples}
            carried = {
                bucket: tuple(name for name in names if (bucket, name) in known) for bucket, names in carried.items()
            }
        position = 0 if changed else int(state["position"])
        self._start(epoch=int(state["epoch"]), position=position, carried=carried)
        return changed

    def _start(self, *, epoch: int, position: int, carried: Mapping[str, tuple[str, ...]]) -> None:
        self._epoch, self._position, self._carried = epoch, position, carried
        self._plan: EpochPlan = plan_epoch(
            self.samples,
            carried,
            epoch=epoch,
            seed=self._seed,
            role=self._role,
            batch_size=self.batch_size,
            world_size=self._world_size,
        )

    def _caption(self, name: str, number: int) -> int:
        about = (self._seed, self._role, self._epoch)
        if uniform(*about, "dropout", number) < self._caption_dropout_probability:
            return DROPPED
        return int(uniform(*about, "caption", number) * self._num_captions[name])

    @property
    def _fingerprint(self) -> dict[str, Any]:
        """What decides the stream. Captions do not: they are drawn by position."""
        listed = json.dumps([[ref.name, ref.bucket, ref.repeats, ref.weight] for ref in self.samples])
        return {
            "samples": hashlib.sha256(listed.encode()).hexdigest(),
            "batch_size": self.batch_size,
            "world_size": self._world_size,
            "seed": self._seed,
            "role": self._role,
        }
