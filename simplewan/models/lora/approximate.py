"""The nearest LoRA of a rank: the truncated singular value decomposition of a change (Eckart and Young, 1936).

A LoRA's is exact and cheap, from its two factors; of other changes the difference is made, and where it is large the
decomposition is by random projections (Halko, Martinsson and Tropp, arXiv 0909.4061), seeded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simplewan.models.lora.change import LORA, Change

_EXACT = 1024
_OVERSAMPLE, _ITERATIONS = 16, 6


def as_lora(change: Change, rank: int) -> tuple[Change, float]:
    """`change` as a LoRA of at most `rank`, scale 1, and the relative error (Frobenius) that this makes.

    Raises ValueError for what is no matrix, or has no difference of its own (DoRA).
    """
    if change.dora is not None:
        raise ValueError(f"{change.module} has a dora_scale, which depends on the base: merge it instead")
    if change.is_linear_pair:
        if change.factors["down"].shape[0] <= rank:
            return change, 0.0
        left, values, right = _svd_of_pair(*change.pair())
        near = _lora(change, left, values, right, rank)
        return near, float(values[rank:].norm() / values.norm().clamp_min(1e-30))
    delta = change.delta()
    if delta is None or delta.ndim != 2:
        raise ValueError(f"the change of {change.module} is no matrix")
    near = _lora(change, *_svd(delta, rank), rank)
    # By the difference itself: what is left of the singular values is less than they round.
    return near, float((delta - near.factors["up"] @ near.factors["down"]).norm() / delta.norm().clamp_min(1e-30))


def _lora(change: Change, left: Tensor, values: Tensor, right: Tensor, rank: int) -> Change:
    rank = min(rank, len(values))
    root = values[:rank].clamp_min(0).sqrt()
    factors = {"down": (root[:, None] * right[:rank]).contiguous(), "up": (left[:, :rank] * root).contiguous()}
    return Change(change.module, LORA, factors, alpha=float(rank), bias=change.bias)


def _svd_of_pair(down_RI: Tensor, up_OR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(O, R), (R), (R, I) of up @ down, by way of the small matrix between two orthogonal bases."""
    basis_out, small_out = torch.linalg.qr(up_OR)
    basis_in, small_in = torch.linalg.qr(down_RI.T)
    left, values, right = torch.linalg.svd(small_out @ small_in.T)
    return basis_out @ left, values, right @ basis_in.T


def _svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    if min(matrix.shape) <= _EXACT:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wanted = min(rank + _OVERSAMPLE, *matrix.shape)
        left, values, right = torch.svd_lowrank(matrix, q=wanted, niter=_ITERATIONS)
    return left, values, right.T
