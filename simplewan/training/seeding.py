"""Random numbers as a function of where training stands, so that nothing has to be remembered to resume exactly.

Before each step the generators are seeded from (seed, role, the role's own step, rank): torch's global one too,
because dropout uses it. Two roles never share a stream, so that one trained beside another draws what it would alone.
"""

from __future__ import annotations

import hashlib
import random

import numpy
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from its parts; the same everywhere and always (BLAKE2b of their text)."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_step(seed: int, role: str, step: int, rank: int = 0) -> torch.Generator:
    """Seed the global generators for one step of one role; returns its own CPU generator for noise and timesteps."""
    derived = derive_seed(seed, role, step, rank)
    random.seed(derived)
    numpy.random.seed(derived % 2**32)
    torch.manual_seed(derived)
    return torch.Generator().manual_seed(derive_seed(derived, "draw"))
