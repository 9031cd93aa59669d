"""What a training step sees: which samples (`Sampler`), their tensors (`Batch`, `collate`), ready in time (`Loader`).

The room imports errors only (and torch): where tensors come from is handed in.
"""

from simplewan.batches.batch import Batch, collate
from simplewan.batches.loader import Loader
from simplewan.batches.sampler import BatchSpec, Sampler
from simplewan.batches.sizes import SampleRef, batches_in_epochs, batches_per_epoch, prune, steps_in_epochs

__all__ = [
    "Batch",
    "BatchSpec",
    "Loader",
    "SampleRef",
    "Sampler",
    "batches_in_epochs",
    "batches_per_epoch",
    "collate",
    "prune",
    "steps_in_epochs",
]
