"""Linears and their LoRA in few kernels, PEFT's modules staying the owners of the weights. Imports torch and peft.

PEFT computes W x + b, A x, B A x, the scaling and the sum one after the other, and autograd adds the gradients of each
branch. Here linears that read the same input (query, key, value) are one function: one product with all A's, the
adapter added inside the products' own accumulation, and likewise backward. Whatever this does not cover (several active
adapters, DoRA, dropout, quantised or trainable bases) goes through the modules as they are. Tier: tolerance.

Legend: T tokens of all samples, I inputs, O outputs, R ranks side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn


def linear(module: nn.Module, inputs: Tensor) -> Tensor:
    """`module(inputs)`, adapters included; (..., I) -> (..., O)."""
    return linears((module,), inputs)[0]


def linears(modules: Sequence[nn.Module], inputs: Tensor) -> tuple[Tensor, ...]:
    """Each module's output for the same inputs, adapters included; (..., I) -> (..., O) each."""
    adapters = [plain_adapter(module, inputs) for module in modules]
    if any(adapter is None for adapter in adapters):
        return tuple(module(inputs) for module in modules)
    scales = tuple(adapter.scale for adapter in adapters)
    flat = [weight for adapter in adapters for weight in (adapter.weight, adapter.bias, adapter.down, adapter.up)]
    return _LoraLinears.apply(inputs, scales, *flat)


@dataclass(frozen=True)
class PlainAdapter:
    """A frozen linear and its one LoRA: weight (O, I), bias (O,) or None, down (R, I), up (O, R)."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor
    up: Tensor
    scale: float


def plain_adapter(module: nn.Module, inputs: Tensor) -> PlainAdapter | None:
    """What `_LoraLinears` needs of a PEFT linear; None when the module must compute by itself."""
    if type(module) is not LoraLinear or module.disable_adapters or module.merged or module.lora_variant:
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    base = module.base_layer
    if len(active) != 1 or type(base) is not nn.Linear or base.weight.requires_grad:
        return None
    if base.weight.dtype != inputs.dtype or product_dtype(inputs.device, inputs.dtype) != inputs.dtype:
        return None
    (name,) = active
    if not isinstance(module.lora_dropout[name], nn.Identity) and module.training:
        return None
    down, up = module.lora_A[name], module.lora_B[name]
    if down.bias is not None or up.bias is not None:
        return None
    return PlainAdapter(base.weight, base.bias, down.weight, up.weight, module.scaling[name])


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a product of tensors of `dtype` is computed here, autocast or not."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


class _LoraLinears(torch.autograd.Function):
    """y_n = W_n x + b_n + s_n B_n A_n x for several n. Gradients of x and of each A and B, none of W and b."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, scales: tuple[float, ...], *flat: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases, downs, ups = (flat[start::4] for start in range(4))
        inputs_TI = inputs.reshape(-1, inputs.shape[-1])
        down_RI = torch.cat([down.to(inputs.dtype) for down in downs]) if len(downs) > 1 else downs[0].to(inputs.dtype)
        ups = tuple(up.to(inputs.dtype) for up in ups)
        hidden_TR = inputs_TI @ down_RI.t()
        outputs = []
        for weight, bias, up, scale, hidden in zip(weights, biases, ups, scales, _parts(hidden_TR, ups), strict=True):
            output = F.linear(inputs_TI, weight, bias)
            output.addmm_(hidden, up.t(), alpha=scale)
            outputs.append(output.view(*inputs.shape[:-1], -1))
        ctx.save_for_backward(inputs_TI, hidden_TR, down_RI, *weights, *ups)
        ctx.scales, ctx.shape, ctx.dtypes = scales, inputs.shape, [down.dtype for down in downs]
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs_TI, hidden_TR, down_RI, *rest = ctx.saved_tensors
        weights, ups = rest[: len(gradients)], rest[len(gradients) :]
        flat = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        hidden_gradient_TR = torch.empty_like(hidden_TR)
        up_gradients = []
        parts = zip(
            flat, ups, ctx.scales, _parts(hidden_TR, ups), _parts(hidden_gradient_TR, ups), ctx.dtypes, strict=True
        )
        for gradient, up, scale, hidden, hidden_gradient, dtype in parts:
            hidden_gradient.copy_(_scaled(gradient @ up, scale))
            up_gradients.append(_scaled(gradient.t() @ hidden, scale).to(dtype))
        down_gradient_RI = hidden_gradient_TR.t() @ inputs_TI
        down_gradients = down_gradient_RI.split([up.shape[1] for up in ups])
        inputs_gradient = None
        if ctx.needs_input_grad[0]:
            inputs_gradient = hidden_gradient_TR @ down_RI
            for gradient, weight in zip(flat, weights, strict=True):
                inputs_gradient.addmm_(gradient, weight)
            inputs_gradient = inputs_gradient.view(ctx.shape)
        result: list[Tensor | None] = [inputs_gradient, None]
        for down_gradient, up_gradient, dtype in zip(down_gradients, up_gradients, ctx.dtypes, strict=True):
            result += [None, None, down_gradient.to(dtype), up_gradient]
        return tuple(result)


def _parts(hidden_TR: Tensor, ups: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return hidden_TR.split([up.shape[1] for up in ups], dim=1)


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1 else tensor.mul_(scale)
