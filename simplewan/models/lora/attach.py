"""Changes that act in a loaded transformer: plain LoRAs beside its linears, all else added to its weights.

Imports torch. What is added cannot be taken off again: a transformer is loaded anew for other weights.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from simplewan.models.adapters import lora_layers
from simplewan.models.keys import is_parameter
from simplewan.models.lora.change import Change
from simplewan.models.lora.fit import Fit, fit

# Where PEFT keeps the linear itself once a LoRA is beside it.
_BASE_LAYER = ".base_layer"


def attach_changes(transformer: Any, changes: Sequence[Change], *, strength: float, name: str) -> Fit:
    """Let the changes act on a loaded transformer, times `strength`: plain LoRAs beside its linears, all else in them.

    Returns how they fit: what the transformer has no place for has no effect. Raises Misfit, and changes nothing, when
    it has a place for none or a shape does not fit; ValueError, too, for a strength that a DoRA cannot have.
    """
    shapes = {
        name.replace(_BASE_LAYER, ""): tuple(value.shape)
        for name, value in transformer.named_parameters()
        if ".lora_" not in name
    }
    found = fit(changes, shapes)
    pairs: list[Change] = []
    added: list[tuple[nn.Module, Change]] = []
    for change in found.kept:
        holder = _holder(transformer, change)
        if change.is_linear_pair and change.bias is None and isinstance(holder, nn.Linear):
            pairs.append(change)
        else:
            added.append((holder, change.times(strength)))
    for holder, change in added:  # what could be refused has been
        _add(holder, change)
    if pairs:
        _put_beside(transformer, pairs, strength=strength, name=name)
    transformer.requires_grad_(False).eval()
    return found


def _put_beside(transformer: Any, pairs: Sequence[Change], *, strength: float, name: str) -> None:
    """LoRAs beside their linears: ranks may differ, and several files, each with a name of its own, add up."""
    ranks = {change.module: change.factors["down"].shape[0] for change in pairs}
    rank = max(ranks.values())
    pattern = {} if set(ranks.values()) == {rank} else {re.escape(module): own for module, own in ranks.items()}
    config = LoraConfig(r=rank, lora_alpha=rank, rank_pattern=pattern, target_modules=list(ranks))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        transformer.add_adapter(config, adapter_name=name)
    layers = dict(lora_layers(transformer, name))
    for change in pairs:
        layer = layers[change.module]
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = change.pair()
        layer.scaling[name] = strength
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter(list(module.lora_A))


def _holder(transformer: nn.Module, change: Change) -> nn.Module:
    """The module with the parameter that is changed: of a modulation table, which is one itself, the block."""
    name = change.module.rpartition(".")[0] if is_parameter(change.module) else change.module
    module = transformer.get_submodule(name)
    return getattr(module, "base_layer", module)


def _add(holder: nn.Module, change: Change) -> None:
    own = change.module.rpartition(".")[2] if is_parameter(change.module) else "weight"
    parameters = dict(holder.named_parameters(recurse=False))
    with torch.no_grad():
        parameters[own].copy_(change.changed(parameters[own]))
        if change.bias is not None:
            bias = parameters["bias"]
            bias.copy_(bias.float() + change.bias.float().to(bias.device))
