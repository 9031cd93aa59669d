"""Query and key norms with the rotary turn, as one step. Imports torch only.

On the CPU torch has no fused RMSNorm: autograd walks through a dozen passes over the tokens. There, in float32,
norm and turn are one function with its gradient in closed form. Elsewhere the module does its work. Tier: tolerance.

Legend: B batch, S tokens, N heads, E head width, D = N E.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from simplewan.models.wan.rotary import rotate


def normed_heads(norm: nn.RMSNorm, hidden_BSD: Tensor, heads: int, rotary: Tensor | None = None) -> Tensor:
    """RMSNorm across all heads, then heads apart, then turned by `rotary` if given; (B, S, D) -> (B, S, N, E)."""
    shape = (heads, -1)
    if type(norm) is nn.RMSNorm and hidden_BSD.device.type == "cpu" and hidden_BSD.dtype == torch.float32:
        return _NormTurn.apply(hidden_BSD, norm.weight, norm.eps, rotary, heads)
    normed = norm(hidden_BSD).unflatten(2, shape)
    return normed if rotary is None else rotate(normed, rotary)


class _NormTurn(torch.autograd.Function):
    """turn(x * r * w) with r = (mean(x^2) + eps)^(-1/2). RMSNorm: arXiv 1910.07467; the turn is a complex factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, rotary: Tensor | None, heads: int) -> Tensor:
        rate = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        result = (x * rate).mul_(weight.to(x.dtype)).unflatten(2, (heads, -1))
        if rotary is not None:
            _as_complex(result).mul_(rotary)
        ctx.save_for_backward(x, rate, weight, rotary)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, rate, weight, rotary = ctx.saved_tensors
        if rotary is not None:
            gradient = torch.view_as_real(_as_complex(gradient.contiguous()) * rotary.conj()).flatten(-2)
        gradient = gradient.flatten(2)
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = (gradient * x * rate).sum((0, 1)).to(weight.dtype)
        gradient = gradient * weight.to(x.dtype)
        # d/dx of x r: r g - x r^3 mean(g x)
        shared = torch.linalg.vecdot(gradient, x).unsqueeze(-1).mul_(rate.pow(3)).div_(x.shape[-1])
        return gradient.mul_(rate).addcmul_(x, shared, value=-1), weight_gradient, None, None, None


def _as_complex(x_BSNE: Tensor) -> Tensor:
    return torch.view_as_complex(x_BSNE.unflatten(-1, (-1, 2)))
