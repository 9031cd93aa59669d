"""What a training step sees: which samples (`sampler`), their tensors (`batch`), ready in time (`loader`).

The room imports errors only (and torch, in `batch` and `loader`): where tensors come from is handed in. Nothing is
imported here, so that `sizes` and `sampler` serve planning without torch.
"""
