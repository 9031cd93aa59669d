"""Stratified draws over the steps of a role: each slice of the distribution once in every cycle, in a new order.

Imports the hashes of `data.draws` and torch. Slices are numbered by equal probability, so that the distribution stays
what it is and only its variance over consecutive steps falls. Nothing is remembered: which slice a draw takes follows
from the seed, the role, and the number of the draw, so that a resumed run goes on exactly.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from simplewan.data.draws import draw


def slices_of(first: int, n: int, *, num_slices: int, seed: int, role: str) -> Tensor:
    """The slices (0 .. num_slices - 1) of the role's draws number `first` to `first + n - 1` (from 0), int64, (n,).

    Draws 0 .. num_slices - 1 are the first cycle, and so on; a cycle's order is a shuffle by hashes.
    """
    orders = {
        cycle: sorted(range(num_slices), key=partial(draw, seed, role, "timestep", cycle))
        for cycle in range(first // num_slices, (first + n - 1) // num_slices + 1)
    }
    return torch.tensor([orders[at // num_slices][at % num_slices] for at in range(first, first + n)])
