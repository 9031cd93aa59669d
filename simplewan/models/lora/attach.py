"""Changes that act in a loaded transformer: plain LoRAs beside its linears, all else added to its weights.

Imports torch. What is added cannot be taken off again: a transformer is loaded anew for other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simplewan.models.adapters import attach_lora
from simplewan.models.keys import is_parameter
from simplewan.models.lora.change import Change, changed_weight, refuse_misfit


def attach_changes(transformer: Any, changes: Sequence[Change], *, strength: float, name: str) -> tuple[str, ...]:
    """Let the changes act on a loaded transformer, times `strength`: plain LoRAs beside its linears, all else in them.

    Returns the modules that the transformer lacks. Raises ValueError when not one matches or a shape does not fit; the
    transformer is of no use then.
    """
    modules = {change.module: _holder(transformer, change) for change in changes}
    found = [change for change in changes if modules[change.module] is not None]
    if not found:
        raise ValueError(f"not one of its {len(changes)} modules is in the model (the first is {changes[0].module})")
    pairs: dict[str, Tensor] = {}
    for change in found:
        holder = modules[change.module]
        assert holder is not None, "it was found"
        if change.is_linear_pair and change.bias is None and isinstance(holder, nn.Linear):
            pairs[f"{change.module}.lora_A.weight"], pairs[f"{change.module}.lora_B.weight"] = change.pair()
        else:
            _add(holder, change.times(strength))
    unused = attach_lora(transformer, pairs, scale=strength, name=name) if pairs else ()
    transformer.requires_grad_(False).eval()
    return (*(change.module for change in changes if change not in found), *unused)


def _own(change: Change) -> tuple[str, str]:
    """The module that holds the changed weight, and the weight's name: a modulation is a parameter of the block."""
    holder, _, last = change.module.rpartition(".")
    return (holder, last) if is_parameter(change.module) else (change.module, "weight")


def _holder(transformer: nn.Module, change: Change) -> nn.Module | None:
    """The module with the parameter that is changed; None if the transformer has no such one."""
    name, own = _own(change)
    try:
        module = transformer.get_submodule(name)
    except AttributeError:
        return None
    module = getattr(module, "base_layer", module)
    return module if dict(module.named_parameters(recurse=False)).keys() >= {own} else None


def _add(holder: nn.Module, change: Change) -> None:
    parameters = dict(holder.named_parameters(recurse=False))
    weight, bias = parameters[_own(change)[1]], parameters.get("bias")
    refuse_misfit(change, tuple(weight.shape), None if bias is None else tuple(bias.shape), "model")
    with torch.no_grad():
        weight.copy_(changed_weight(change, weight))
        if change.bias is not None and bias is not None:
            bias.copy_(bias.float() + change.bias.float().to(bias.device))
