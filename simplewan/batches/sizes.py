"""How many: appearances of a sample, batches of an epoch, buckets too small to fill one, and the error that says so.

Pure, imports errors only. Because what does not fill a batch is carried over, the number of batches after n epochs has
a closed form and needs no simulation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import floor

from simplewan.batches.draws import uniform
from simplewan.errors import Problem, UserError


@dataclass(frozen=True)
class SampleRef:
    """A sample as the sampler sees it: seen `(repeats + 1) * weight` times an epoch, on average exactly.

    `bucket` is the shape: only samples of one bucket share a batch. `num_captions` is the number of caption variants.
    """

    name: str
    bucket: str
    repeats: int = 0
    num_captions: int = 1
    weight: float = 1.0

    @property
    def rate(self) -> float:
        """Appearances per epoch."""
        return (self.repeats + 1) * self.weight


@dataclass(frozen=True)
class Pruned:
    """A bucket that is left out: how many samples it has, and how many draws they would give in an epoch."""

    bucket: str
    num_samples: int
    draws_per_epoch: float

    def __str__(self) -> str:
        samples = "1 sample" if self.num_samples == 1 else f"{self.num_samples} samples"
        return (
            f"bucket {self.bucket} ({samples}) is left out: with repeats it holds {self.draws_per_epoch:g} an epoch, "
            "too few for a batch; raise repeats, add clips, lower train_batch_size, or set disable_bucket_pruning"
        )


def appearances_until(ref: SampleRef, epochs: int, *, seed: int, role: str) -> int:
    """How often a sample enters the line in the first `epochs` epochs; fractions come out by a phase of its own."""
    if ref.weight == 1.0:
        return (ref.repeats + 1) * epochs
    return floor(epochs * ref.rate + uniform(seed, role, "phase", ref.name))


def prune(
    samples: Iterable[SampleRef], *, batch_size: int, keep_small_buckets: bool
) -> tuple[list[SampleRef], list[Pruned]]:
    """The samples of buckets that give at least a batch an epoch, sorted by name, and the buckets that do not.

    With `keep_small_buckets` all stay: a small bucket then gives a batch every few epochs.
    """
    buckets: dict[str, list[SampleRef]] = {}
    for ref in sorted(samples, key=lambda ref: ref.name):
        buckets.setdefault(ref.bucket, []).append(ref)
    small = [
        Pruned(bucket, len(refs), sum(ref.rate for ref in refs))
        for bucket, refs in sorted(buckets.items())
        if not keep_small_buckets and sum(ref.rate for ref in refs) < batch_size
    ]
    gone = {pruned.bucket for pruned in small}
    kept = [ref for bucket, refs in buckets.items() if bucket not in gone for ref in refs]
    return sorted(kept, key=lambda ref: ref.name), small


def batches_in_epochs(
    samples: Iterable[SampleRef], epochs: int, *, batch_size: int, world_size: int = 1, seed: int = 0, role: str = ""
) -> int:
    """Micro-batches of one rank in the first `epochs` epochs, exactly; of samples that were not pruned.

    `seed` and `role` matter only where weights are not 1.
    """
    draws: dict[str, int] = {}
    for ref in samples:
        draws[ref.bucket] = draws.get(ref.bucket, 0) + appearances_until(ref, epochs, seed=seed, role=role)
    return sum(count // batch_size for count in draws.values()) // world_size


def require_enough(
    samples: Sequence[SampleRef],
    *,
    batch_size: int,
    gradient_accumulation_steps: int,
    world_size: int,
    keep_small_buckets: bool,
    where: str,
) -> None:
    """`UserError` when an epoch has fewer draws than one optimiser step needs; it names the least `repeats` to do."""
    need = batch_size * gradient_accumulation_steps * world_size
    draws = partial(_draws, samples, batch_size=batch_size, keep_small_buckets=keep_small_buckets)
    have = draws(0)
    if have >= need:
        return
    if not any(ref.rate > 0 for ref in samples):
        raise UserError(
            Problem(where=where, message="there is no sample to train on", fix="see what was left out above")
        )
    buckets: dict[str, int] = {}
    for ref in samples:
        buckets[ref.bucket] = buckets.get(ref.bucket, 0) + 1
    counts = ", ".join(f"{bucket}: {count}" for bucket, count in sorted(buckets.items()))
    factors = f"train_batch_size {batch_size} x gradient_accumulation_steps {gradient_accumulation_steps}"
    factors += f" x {world_size} processes" if world_size > 1 else ""
    message = (
        f"gives {have:g} usable draws an epoch from {len(samples)} samples in {len(buckets)} buckets ({counts}), "
        f"but one step needs {need} ({factors}), and a bucket at least {batch_size} to be used"
    )
    smallest = next(repeats for repeats in range(10**9) if draws(repeats) >= need)
    fix = f"set repeats to {smallest} or more, add clips, or lower train_batch_size"
    fix += " or gradient_accumulation_steps" if gradient_accumulation_steps > 1 else ""
    value = max(ref.repeats for ref in samples)
    raise UserError(Problem(where=where, key="repeats", value=value, message=message, fix=fix))


def _draws(samples: Sequence[SampleRef], repeats: int, *, batch_size: int, keep_small_buckets: bool) -> float:
    """Draws of an epoch in buckets that are not pruned, were every sample repeated at least `repeats` times."""
    buckets: dict[str, float] = {}
    for ref in samples:
        buckets[ref.bucket] = buckets.get(ref.bucket, 0) + (max(ref.repeats, repeats) + 1) * ref.weight
    return sum(count for count in buckets.values() if keep_small_buckets or count >= batch_size)
