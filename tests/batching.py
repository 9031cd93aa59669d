"""Counting batches in closed form, for the tests of the sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simplewan.batches.sizes import NO_SIZES, SampleRef, batch_size_of, count_batches


def batches_in_epochs(
    samples: Sequence[SampleRef],
    epochs: int,
    *,
    batch_size: int,
    bucket_batch_sizes: Mapping[str, int] = NO_SIZES,
    world_size: int = 1,
    seed: int = 0,
    role: str = "",
) -> int:
    """Micro-batches of one rank in the first `epochs` epochs, exactly; of samples that were not pruned.

    `seed` and `role` matter only where weights are not 1. Windows must not close, nor open at a step; ask the
    `Sampler` where they do.
    """
    sizes = {
        bucket: batch_size_of(bucket, batch_size=batch_size, bucket_batch_sizes=bucket_batch_sizes)
        for bucket in {ref.bucket for ref in samples}
    }
    return count_batches(samples, 0, epochs, batch_sizes=sizes, waiting={}, world_size=world_size, seed=seed, role=role)
