"""What training starts from: that adapters fit the model, told before anything long starts, and their first weights.

A target that matches nothing, or a LoRA of another rank or model, would else be told where the model is loaded, after
hours of caching. The model's shapes are those of an empty one, made from its configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from simplewan.errors import Problem, UserError
from simplewan.flavours import Flavour
from simplewan.models.adapters import (
    PRESETS,
    across_tasks,
    adapter_parameters,
    adapter_scale,
    load_adapter_state,
    matched_modules,
)
from simplewan.models.lora.read import read_lora, some
from simplewan.models.lora.skeleton import empty_model
from simplewan.models.wan.loading import transformer_configuration
from simplewan.options import Options
from simplewan.options.experts import adapter_of, has_own
from simplewan.options.groups.adapter import AdapterOptions

Shapes = Mapping[str, tuple[int, ...]]


def check_adapters(options: Options, flavour: Flavour) -> None:
    """That every trained expert has the linears that are targeted, and that the LoRA it starts from fits them.

    Raises UserError with all problems. What is not on this machine and tells no configuration is not looked at.
    """
    if options.model.model_type != "lora":
        return
    problems: dict[str, Problem] = {}
    for expert in flavour.trained_experts:
        config = transformer_configuration(options.model, flavour, expert)
        try:
            if config is not None:
                _check_adapter(
                    empty_model(config), adapter_of(options, flavour, expert), start_key(options, flavour, expert)
                )
        except UserError as error:
            problems |= {str(problem): problem for problem in error.problems}
    if problems:
        raise UserError(*problems.values())


def start_key(options: Options, flavour: Flavour, expert: str) -> str:
    """The option that names the LoRA which `expert` starts from."""
    own = f"init_lora_{expert}"
    return own if has_own(flavour, expert) and getattr(options.experts, own) is not None else "init_lora"


def _check_adapter(model: nn.Module, adapter: AdapterOptions, key: str) -> None:
    modules = matched_modules(model, adapter.lora_targets)
    if adapter.init_lora is None:
        return
    wanted: dict[str, tuple[int, ...]] = {}
    for module in modules:
        rows, columns = model.get_submodule(module).weight.shape
        wanted[f"{module}.lora_A.weight"] = adapter.lora_rank, columns
        wanted[f"{module}.lora_B.weight"] = rows, adapter.lora_rank
    given = {name: tuple(value.shape) for name, value in read_lora(adapter.init_lora)[0].items()}
    _refuse_misfit(wanted, given, adapter.init_lora, key)


def start_from_lora(transformer: nn.Module, path: Path, key: str = "init_lora") -> str | None:
    """Put a LoRA file's weights into the adapter; returns what to say if it is of T2V and the base of I2V, or so.

    Raises UserError when rank, targets or model differ.
    """
    parameters, state = adapter_parameters(transformer), read_lora(path)[0]
    _refuse_misfit(_shapes(parameters), _shapes(state), path, key)
    missing, unused, remark = across_tasks(parameters, state)
    scale = adapter_scale(transformer)  # the file's alpha is folded in, the adapter's is not
    start = {name: value / scale if ".lora_B." in name else value for name, value in state.items()}
    start |= {name: parameters[name].detach().to("cpu", copy=True) for name in missing}
    load_adapter_state(transformer, {name: value for name, value in start.items() if name not in unused})
    return remark


def _shapes(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _refuse_misfit(wanted: Shapes, given: Shapes, path: Path, key: str) -> None:
    """Raise UserError if a LoRA of the shapes `given` is not one of the shapes that are trained."""
    missing, unused, _ = across_tasks(wanted, given)
    wanted = {name: shape for name, shape in wanted.items() if name not in missing}
    given = {name: shape for name, shape in given.items() if name not in unused}
    fault = _other_model(wanted, given) or _other_targets(wanted, given) or _other_rank(wanted, given, key)
    if fault is not None:
        raise UserError(Problem("config", fault[0], key, str(path), fault[1]))


def _other_model(wanted: Shapes, given: Shapes) -> tuple[str, str] | None:
    """That the linears are of other sizes, or of another number of blocks."""
    fix = "name a LoRA of this model"
    for name in given:
        # The side of a matrix that is not the rank: the inputs of A, the outputs of B.
        side = 1 if ".lora_A." in name else 0
        if name in wanted and given[name][side] != wanted[name][side]:
            what, module = ("inputs", "outputs")[1 - side], _module(name)
            return (
                f"is of another model: {module} has {given[name][side]} {what} there, and {wanted[name][side]} here",
                fix,
            )
    here, there = _blocks(wanted), _blocks(given)
    if here and there and here != there and _kinds(wanted) == _kinds(given):
        return f"is of another model: it changes {len(there)} blocks, and {len(here)} are trained", fix
    return None


def _other_targets(wanted: Shapes, given: Shapes) -> tuple[str, str] | None:
    """That other linears are changed than are trained."""
    if wanted.keys() == given.keys():
        return None
    here, there = _kinds(wanted), _kinds(given)
    if here == there:
        lacking = sorted({_module(name) for name in wanted.keys() ^ given.keys()})
        return f"is of other linears: {some(lacking)} are changed by one and not by the other", "name another LoRA"
    only = [
        f"{what} {some(sorted(names))}" for what, names in (("it has", there - here), ("lacks", here - there)) if names
    ]
    preset = next((name for name, kinds in PRESETS.items() if set(kinds) == there), None)
    targets = preset or ", ".join(sorted(there))
    return f"is of other linears than lora_targets: {' and '.join(only)}", f"set lora_targets to {targets}"


def _other_rank(wanted: Shapes, given: Shapes, key: str) -> tuple[str, str] | None:
    """That the ranks differ."""
    trained = {shape[0] for name, shape in wanted.items() if ".lora_A." in name}
    ranks = sorted({shape[0] for name, shape in given.items() if ".lora_A." in name})
    if set(ranks) == trained:
        return None
    option = key.replace("init_lora", "lora_rank")
    if len(ranks) == 1:
        return f"has rank {ranks[0]}, and {max(trained)} is trained", f"set {option} to {ranks[0]}"
    fix = f"`simpletuner export FILE --as-lora {max(ranks)}` makes it one rank"
    return f"has modules of ranks {ranks[0]} to {ranks[-1]}, and one rank is trained", fix


def _module(name: str) -> str:
    return name.rsplit(".", 2)[0]


def _kinds(names: Iterable[str]) -> set[str]:
    """The linears without their blocks' numbers: attn1.to_q."""
    return {
        ".".join(words[2:] if words[0] == "blocks" else words) for words in (_module(name).split(".") for name in names)
    }


def _blocks(names: Iterable[str]) -> set[str]:
    return {words[1] for words in (name.split(".") for name in names) if words[0] == "blocks"}
