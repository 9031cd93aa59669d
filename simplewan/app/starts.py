"""What training starts from: that adapters fit the model, told before anything long starts, and their first weights.

A target that matches nothing, or a LoRA of another rank or model, would else be told where the model is loaded, after
hours of caching. The model's shapes are those of an empty one, made from its configuration.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from simplewan.errors import Problem, UserError, some
from simplewan.flavours import Flavour
from simplewan.models.adapters import (
    PRESETS,
    adapter_parameters,
    adapter_scale,
    linears_of,
    load_adapter_state,
    matched_modules,
)
from simplewan.models.lora.read import read_lora, shapes_in
from simplewan.models.lora.skeleton import Shapes, empty_model
from simplewan.models.lora.write import unwritable
from simplewan.models.wan.loading import transformer_configuration
from simplewan.options import Options
from simplewan.options.experts import adapter_of, key_of


def check_adapters(options: Options, flavour: Flavour) -> None:
    """That every trained expert has the linears that are targeted, and that the LoRA it starts from fits them.

    Raises UserError with all problems. What is not on this machine and tells no configuration is not looked at.
    """
    if options.model.model_type != "lora":
        return
    problems: dict[str, Problem] = {}
    for expert in flavour.trained_experts:
        try:
            config = transformer_configuration(options.model, flavour, expert)
            if config is not None:
                _check_adapter(empty_model(config), options, flavour, expert)
        except UserError as error:
            problems |= {str(problem): problem for problem in error.problems}
    if problems:
        raise UserError(*problems.values())


def _check_adapter(model: nn.Module, options: Options, flavour: Flavour, expert: str) -> None:
    adapter = adapter_of(options, flavour, expert)
    modules = matched_modules(model, adapter.lora_targets)
    if odd := unwritable(modules):
        message = f"make a LoRA that diffusers does not read: {some(odd)}"
        fix = "add linears of the blocks, and k beside v of the image tokens"
        raise UserError(Problem("config", message, "lora_targets", ",".join(adapter.lora_targets), fix))
    if adapter.init_lora is None:
        return
    wanted: dict[str, tuple[int, ...]] = {}
    for module in modules:
        rows, columns = model.get_submodule(module).weight.shape
        wanted[f"{module}.lora_A.weight"] = adapter.lora_rank, columns
        wanted[f"{module}.lora_B.weight"] = rows, adapter.lora_rank
    key, rank_key = (key_of(options, flavour, expert, name) for name in ("init_lora", "lora_rank"))
    if key != "init_lora":  # a rank for this expert alone is meant
        rank_key = f"lora_rank_{expert}"
    given = shapes_in(adapter.init_lora)
    _refuse_misfit(wanted, given, linears_of(model), adapter.init_lora, key=key, rank_key=rank_key)


def start_from_lora(transformer: nn.Module, path: Path) -> str | None:
    """Put a LoRA file's weights into the adapter; returns what to say if it is of T2V and the base of I2V, or so.

    Raises UserError when rank, targets or model differ.
    """
    parameters, state, linears = adapter_parameters(transformer), read_lora(path)[0], linears_of(transformer)
    _refuse_misfit(_shapes(parameters), _shapes(state), linears, path)
    missing, unused, remark = _across_tasks(parameters, state, linears)
    scale = adapter_scale(transformer)  # the file's alpha is folded in, the adapter's is not
    start = {name: value / scale if ".lora_B." in name else value for name, value in state.items()}
    start |= {name: parameters[name].detach().to("cpu", copy=True) for name in missing}
    load_adapter_state(transformer, {name: value for name, value in start.items() if name not in unused})
    return remark


def _shapes(tensors: Mapping[str, torch.Tensor]) -> Shapes:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _refuse_misfit(
    wanted: Shapes,
    given: Shapes,
    linears: Collection[str],
    path: Path,
    *,
    key: str = "init_lora",
    rank_key: str = "lora_rank",
) -> None:
    """Raise UserError, with all reasons, if a LoRA of the shapes `given` cannot start the one that is trained.

    `linears` are those of the model; `key` is the option that names the file, `rank_key` the one that says the rank.
    """
    missing, unused, _ = _across_tasks(wanted, given, linears)
    wanted = {name: shape for name, shape in wanted.items() if name not in missing}
    given = {name: shape for name, shape in given.items() if name not in unused}
    if not given:
        faults = [("changes linears for image tokens alone, which the model lacks", "name another LoRA")]
    elif (other := _other_model(wanted, given, linears)) is not None:
        faults = [other]
    else:
        both = _other_targets(wanted, given), _other_rank(wanted, given, rank_key)
        faults = [fault for fault in both if fault is not None]
    if faults:
        raise UserError(*(Problem("config", message, key, str(path), fix) for message, fix in faults))


def _across_tasks(
    wanted: Collection[str], given: Collection[str], linears: Collection[str]
) -> tuple[list[str], list[str], str | None]:
    """What a LoRA of the names `given` may lack of `wanted`, and have besides, being of another task; what to say.

    Wan 2.1 I2V alone has linears for CLIP's image tokens: an adapter of T2V leaves them as they begin, and one of I2V
    loses its own on a model without them. `linears` are those of the model.
    """
    missing = [name for name in wanted if name not in given and _is_of_image(name)]
    unused = [name for name in given if _is_of_image(name) and _module(name) not in linears]
    remark = f"{len(unused) // 2} of its linears, for image tokens, are not trained here" if unused else None
    if missing:
        remark = f"{len(missing) // 2} linears for image tokens are not in it and begin at nothing"
    return missing, unused, remark


def _is_of_image(name: str) -> bool:
    return any(word in name for word in (".add_k_proj.", ".add_v_proj.", ".image_embedder."))


def _other_model(wanted: Shapes, given: Shapes, linears: Collection[str]) -> tuple[str, str] | None:
    """That a linear is of another size than the model's, or not in it."""
    fix = "name a LoRA of this model"
    absent = list(dict.fromkeys(module for module in map(_module, given) if module not in linears))
    if absent:
        return f"is of another model: it changes {some(absent)}, which this one lacks", fix
    for name in given:
        # The side of a matrix that is not the rank: the inputs of A, the outputs of B.
        side = 1 if ".lora_A." in name else 0
        if name in wanted and given[name][side] != wanted[name][side]:
            has = f"{_module(name)} has {given[name][side]} {'inputs' if side else 'outputs'}"
            return f"is of another model: {has} there, and {wanted[name][side]} here", fix
    return None


def _other_targets(wanted: Shapes, given: Shapes) -> tuple[str, str] | None:
    """That other linears are changed than are trained."""
    here, there = _kinds(wanted), _kinds(given)
    if here != there:
        differences = {"it has": there - here, "lacks": here - there}
        only = [f"{what} {some(sorted(names))}" for what, names in differences.items() if names]
        return f"is of other linears than lora_targets: {' and '.join(only)}", f"set lora_targets to {_targets(there)}"
    if wanted.keys() != given.keys():
        sides = {"changes": given.keys() - wanted.keys(), "does not change": wanted.keys() - given.keys()}
        only = [f"{what} {some(sorted({_module(name) for name in names}))}" for what, names in sides.items() if names]
        return f"is of other linears than are trained: it {' and '.join(only)}", "name another LoRA"
    return None


def _targets(kinds: set[str]) -> str:
    """The lora_targets that mean these linears in every block."""
    fitting = [name for name, ends in PRESETS.items() if set(ends) <= kinds]
    preset = fitting[-1:]  # the largest
    return ",".join([*preset, *sorted(kinds.difference(*(PRESETS[name] for name in preset)))])


def _other_rank(wanted: Shapes, given: Shapes, rank_key: str) -> tuple[str, str] | None:
    """That the ranks differ."""
    trained = {shape[0] for name, shape in wanted.items() if ".lora_A." in name}
    ranks = sorted({shape[0] for name, shape in given.items() if ".lora_A." in name})
    if set(ranks) == trained:
        return None
    if len(ranks) == 1:
        return f"has rank {ranks[0]}, and {max(trained)} is trained", f"set {rank_key} to {ranks[0]}"
    fix = f"`simpletuner export FILE --as-lora {max(ranks)}` makes it one rank"
    return f"has modules of ranks {ranks[0]} to {ranks[-1]}, and one rank is trained", fix


def _module(name: str) -> str:
    return name.rsplit(".", 2)[0]


def _kinds(names: Iterable[str]) -> set[str]:
    """The linears without their blocks' numbers: attn1.to_q."""
    modules = (_module(name).split(".") for name in names)
    return {".".join(words[2:] if words[0] == "blocks" else words) for words in modules}
