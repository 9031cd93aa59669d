"""What a training step sees: which samples (`sampler`), their tensors (`batch`), ready in time (`loader`).

The sampler's parts: `sizes` (how many), `mixing` (weights of datasets), `windows` (when a dataset is drawn from),
`epochs` (the plan of one), `course` (where epochs begin), `enough` (what is refused). The room imports errors only (and
torch, in `batch` and `loader`): where tensors come from is handed in. Nothing is imported here, so that all but those
two serve planning without torch.
"""
