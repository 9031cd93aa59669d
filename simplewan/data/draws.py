"""Random choices as hashes of what they are about: the same on every machine, in every order, with every library.

Pure, standard library only. A generator's stream would depend on how often it was asked before; a hash of (seed, role,
epoch, purpose, thing) depends on nothing else, at about a microsecond a draw.
"""

from __future__ import annotations

from hashlib import blake2b


def draw(seed: int, role: str, *about: str | int) -> bytes:
    """16 uniformly distributed bytes; sorting things by theirs shuffles them."""
    text = "\x1f".join(map(str, (seed, role, *about)))
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def uniform(seed: int, role: str, *about: str | int) -> float:
    """A number in [0, 1), a multiple of 2**-32."""
    return int.from_bytes(draw(seed, role, *about)[:4], "big") / 2**32
