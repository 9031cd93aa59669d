"""Rotary position tables of a latent grid, kept per shape. Imports torch only.

The table comes from the transformer's own `rope` module, as complex numbers: one complex product replaces the strided
reads and writes of the real form, forward and backward. The cache is an object that its user owns.

Legend: B batch, S tokens, N heads, E head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

KEPT_SHAPES = 16


class Rotary:
    """The tables of one transformer, made when a shape is first seen; the oldest is dropped beyond `KEPT_SHAPES`."""

    def __init__(self, rope: nn.Module) -> None:
        self._rope = rope
        self._tables: dict[tuple[object, ...], Tensor] = {}

    def table(self, hidden_states_BCFHW: Tensor) -> Tensor:
        """exp(i * angle) of every token, complex64 (1, S, 1, E/2), on the device of `hidden_states_BCFHW`."""
        device = hidden_states_BCFHW.device
        key = (*hidden_states_BCFHW.shape[2:], device)
        if key not in self._tables:
            if len(self._tables) >= KEPT_SHAPES:
                del self._tables[next(iter(self._tables))]
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                cos, sin = self._rope(hidden_states_BCFHW)
                self._tables[key] = torch.complex(cos[..., 0::2].float(), sin[..., 1::2].float()).to(device)
        return self._tables[key]


def rotate(x_BSNE: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs of the last axis by the table's angles; float32 inside, same shape and dtype.

    RoFormer, arXiv 2104.09864, interleaved pairs as Wan has them.
    """
    pairs = torch.view_as_complex(x_BSNE.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).type_as(x_BSNE)
