"""What is trained of a transformer: PEFT LoRA adapters by name, or all weights. Imports torch, peft and the errors.

PEFT's modules own the weights, so every tool that knows PEFT knows ours. Adapter weights are float32 whatever the
base is, and their first values depend on the seed and the module's name alone: not on the global generator, the
device, or what else has been drawn.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from simplewan.errors import Problem, UserError

_ATTENTION = tuple(f"{attn}.{name}" for attn in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0"))
PRESETS: dict[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "all": (*_ATTENTION, "ffn.net.0.proj", "ffn.net.2"),
}
DEFAULT_ADAPTER = "default"


class LoraSettings(Protocol):
    """The options that are read here (the adapter group)."""

    lora_rank: int
    lora_alpha: float | None
    lora_dropout: float
    lora_targets: Sequence[str]
    lora_init_type: str


def add_lora(transformer: Any, options: LoraSettings, *, seed: int, name: str = DEFAULT_ADAPTER) -> tuple[str, ...]:
    """Put a LoRA called `name` beside the targeted linears and make it the active one; arXiv 2106.09685.

    The base is frozen. The scale is alpha / rank, alpha None meaning rank. Returns the names of the modules that got
    it. Raises UserError when a target matches nothing.
    """
    modules = matched_modules(transformer, options.lora_targets)
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=adapter_alpha(options),
        lora_dropout=options.lora_dropout,
        target_modules=list(modules),
        init_lora_weights=True,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        transformer.add_adapter(config, adapter_name=name)
    activate(transformer, name)
    for parameter in adapter_parameters(transformer, name).values():
        parameter.data = parameter.data.float()
    _initialise(transformer, name, gaussian=options.lora_init_type == "gaussian", seed=seed)
    return modules


def adapter_alpha(options: LoraSettings) -> float:
    """alpha, which is the rank unless it was set."""
    return options.lora_rank if options.lora_alpha is None else options.lora_alpha


def linears_of(transformer: nn.Module) -> list[str]:
    """The names of the linears, with or without an adapter, in the model's order."""
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear | LoraLayer) and ".base_layer" not in name and ".lora_" not in name
    ]


def matched_modules(transformer: nn.Module, targets: Sequence[str]) -> tuple[str, ...]:
    """The names of the linears that `targets` (presets, full names, or their ends) mean, in the model's order.

    A preset stands for linears of the blocks. Raises UserError naming every target without a match.
    """
    linears = linears_of(transformer)
    found: set[str] = set()
    problems = []
    for target in targets:
        ends = PRESETS.get(target, (target,))
        matches = {name for name in linears for end in ends if name == end or name.endswith(f".{end}")}
        if target in PRESETS:
            matches = {name for name in matches if name.startswith("blocks.")}
        if not matches:
            problems.append(_unmatched(target, linears))
        found |= matches
    if problems:
        raise UserError(*problems)
    return tuple(name for name in linears if name in found)


def _unmatched(target: str, linears: Sequence[str]) -> Problem:
    ends = {".".join(name.split(".")[start:]) for name in linears for start in range(name.count(".") + 1)}
    ends = {end for end in ends if not end[0].isdigit()}
    close = difflib.get_close_matches(target, [*PRESETS, *sorted(ends)], n=1, cutoff=0.5)
    fix = f'did you mean "{close[0]}"?' if close else 'use "attention", "all" or names such as to_q, ffn.net.2'
    return Problem("adapter", "matches no linear of the model", key="lora_targets", value=target, fix=fix)


def _initialise(transformer: nn.Module, name: str, *, gaussian: bool, seed: int) -> None:
    """A by Kaiming's uniform (or normal, 1 / rank), B zero, each module from a generator of its own."""
    for module_name, layer in lora_layers(transformer, name):
        digest = hashlib.sha256(f"{seed}/{module_name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        down = torch.empty(layer.lora_A[name].weight.shape)
        if gaussian:
            down.normal_(std=1 / layer.r[name], generator=generator)
        else:
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            layer.lora_A[name].weight.copy_(down)
            layer.lora_B[name].weight.zero_()


def lora_layers(transformer: nn.Module, name: str) -> Iterator[tuple[str, LoraLayer]]:
    """The PEFT layers that hold the adapter `name`, with their modules' names."""
    for module_name, module in transformer.named_modules():
        if isinstance(module, LoraLayer) and name in module.lora_A:
            yield module_name, module


def adapter_scale(transformer: nn.Module, name: str = DEFAULT_ADAPTER) -> float:
    """The factor alpha / rank of the adapter, one for all its modules."""
    scales = {layer.scaling[name] for _, layer in lora_layers(transformer, name)}
    assert len(scales) == 1, f"adapter {name} has {len(scales)} scales"
    return scales.pop()


def adapter_parameters(transformer: nn.Module, name: str = DEFAULT_ADAPTER) -> dict[str, nn.Parameter]:
    """The adapter's parameters as `blocks.0.attn1.to_q.lora_A.weight` -> parameter, in the model's order."""
    parameters: dict[str, nn.Parameter] = {}
    for module_name, layer in lora_layers(transformer, name):
        parameters[f"{module_name}.lora_A.weight"] = layer.lora_A[name].weight
        parameters[f"{module_name}.lora_B.weight"] = layer.lora_B[name].weight
    return parameters


def adapter_state(transformer: nn.Module, name: str = DEFAULT_ADAPTER) -> dict[str, Tensor]:
    """Copies of the adapter's weights on the CPU, float32, named as in `adapter_parameters`."""
    parameters = adapter_parameters(transformer, name)
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in parameters.items()}


def load_adapter_state(transformer: nn.Module, state: Mapping[str, Tensor], name: str = DEFAULT_ADAPTER) -> None:
    """Put the weights of `adapter_state` back. Raises ValueError, and changes nothing, when keys or shapes differ."""
    parameters = adapter_parameters(transformer, name)
    missing, surplus = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
    if missing or surplus:
        raise ValueError(
            f"adapter weights do not fit: {len(missing)} missing {missing[:3]}, {len(surplus)} unknown {surplus[:3]}"
        )
    for key, value in state.items():
        if value.shape != parameters[key].shape:
            raise ValueError(f"{key} has shape {tuple(value.shape)}, the model's {tuple(parameters[key].shape)}")
    with torch.no_grad():
        for key, value in state.items():
            parameters[key].copy_(value)


def activate(transformer: nn.Module, name: str) -> None:
    """Let the adapter `name`, and no other, act and be trainable."""
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            module.set_adapter([name] if name in module.lora_A else [])


@contextmanager
def adapters_off(transformer: nn.Module) -> Iterator[None]:
    """The base model alone inside the block. Which parameters are trainable is not touched."""
    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    before = [layer.disable_adapters for layer in layers]
    # PEFT's enable_adapters also freezes the adapters, which a step in progress would notice: only the switch here.
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was_off in zip(layers, before, strict=True):
            layer._disable_adapters = was_off


def cast_for_saving(transformer: Any, dtype: torch.dtype) -> None:
    """All weights in `dtype`, in place, but for the modules that diffusers keeps in float32."""
    kept = set(transformer._keep_in_fp32_modules or ())
    for name, parameter in transformer.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)


def train_fully(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """All weights trainable, as float32 masters (fewer bits are autocast's business), by name."""
    transformer.float().requires_grad_(True)
    return dict(transformer.named_parameters())
