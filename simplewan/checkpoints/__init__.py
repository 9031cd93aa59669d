"""Checkpoints: written atomically, verified by hashes, rotated, and found again. See store.py."""

from simplewan.checkpoints.lock import OutputLock
from simplewan.checkpoints.store import CheckpointStore, DamagedCheckpoint

__all__ = ["CheckpointStore", "DamagedCheckpoint", "OutputLock"]
