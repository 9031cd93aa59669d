"""The zero padding behind a prompt as a few weighted tokens instead of hundreds of equal ones. Imports torch only.

Wan pads text embeddings with zeros to 512 tokens and attends to them. All padding tokens have the same key and value,
so n of them count like one whose score is raised by log(n): softmax and its gradients are the same, and the
projections and scores of the rest are saved. Tier: tolerance. Not for LoRA dropout, which draws for each token.

Legend: B batch, L text tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A token's bias is rounded down to the dtype; the next token carries what is missing.
COPIES = {torch.float32: 1, torch.bfloat16: 3, torch.float16: 3}
# Above this share of real tokens nothing is gained.
WORTHWHILE = 0.8


def merge_padding(
    embeds_BLD: Tensor, lengths: Sequence[int] | None, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The embeddings without most of their padding, and the score bias (B, 1, 1, L') that makes up for it.

    `lengths` are the prompts' lengths in tokens; behind them the embeddings must be zero. Without lengths, or when the
    prompts nearly fill L, the embeddings come back as they are and the bias is None. `dtype` is that of the scores,
    which under autocast need not be the embeddings'.
    """
    total = embeds_BLD.shape[1]
    copies = COPIES[dtype]
    if lengths is None or max(lengths) + copies > WORTHWHILE * total:
        return embeds_BLD, None
    kept = max(lengths) + copies
    rows = []
    for length in lengths:
        weights = padding_bias(total - length, copies=copies, dtype=dtype)
        rows.append([0.0] * length + weights + [-math.inf] * (kept - length - copies))
    bias = torch.tensor(rows, dtype=dtype)[:, None, None].to(embeds_BLD.device, non_blocking=True)
    return embeds_BLD[:, :kept], bias


def padding_bias(count: int, *, copies: int, dtype: torch.dtype) -> list[float]:
    """Score biases of `copies` tokens, each a number of `dtype`, whose exponentials sum to `count`."""
    biases, missing = [], float(count)
    for _ in range(copies):
        bias = torch.tensor(math.log(missing) if missing > 0 else -math.inf, dtype=dtype)
        if missing > 0 and math.exp(bias.item()) > missing and len(biases) + 1 < copies:
            bias = torch.nextafter(bias, torch.tensor(-math.inf, dtype=dtype))
        biases.append(bias.item())
        missing -= math.exp(bias.item())
    return biases
