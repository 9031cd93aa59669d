"""Changes added to the weights of a base: in a loaded transformer, or from files to files without loading the model.

Files go tensor by tensor, so that a 14B model needs the memory of its largest weight. W + delta is computed in
float32 and cast to the dtype that the weight has (or the one asked for).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simplewan.data.atomic import atomic_folder, atomic_path
from simplewan.models.adapters import attach_lora
from simplewan.models.keys import to_diffusers, to_original
from simplewan.models.lora.change import LORA, Change
from simplewan.models.lora.skeleton import shapes_of
from simplewan.models.lora.streaming import TORCH, Planned, Stored, stored_in, write_planned
from simplewan.models.lora.verify import TOLERANCE

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_CHECKED = 4


@dataclass(frozen=True)
class Base:
    """A transformer's weights on disk by diffusers' names. `prefix` stands before the keys of the file."""

    tensors: Mapping[str, Stored]
    original: bool
    prefix: str
    config: Path | None
    index: Path | None = None


@dataclass(frozen=True)
class Merged:
    """What was written."""

    path: Path
    modules: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.path}: {self.modules} modules merged, {self.bytes / 2**20:.1f} MiB"


def attach_changes(transformer: Any, changes: Sequence[Change], *, strength: float, name: str) -> tuple[str, ...]:
    """Let the changes act on a loaded transformer, times `strength`: plain LoRAs beside its linears, all else in them.

    Returns the modules that the transformer lacks. Raises ValueError when not one matches or a shape does not fit; the
    transformer is of no use then.
    """
    present = dict(transformer.named_modules())
    found = [change for change in changes if _owner(change.module) in present]
    if not found:
        raise ValueError(f"not one of its {len(changes)} modules is in the model (the first is {changes[0].module})")
    pairs: dict[str, Tensor] = {}
    for change in found:
        if change.is_linear_pair and change.bias is None:
            pairs[f"{change.module}.lora_A.weight"], pairs[f"{change.module}.lora_B.weight"] = change.pair()
        else:
            _add(transformer, change.times(strength))
    if pairs:
        attach_lora(transformer, pairs, scale=strength, name=name)
    transformer.requires_grad_(False).eval()
    return tuple(change.module for change in changes if change not in found)


def _owner(module: str) -> str:
    """The module that holds the changed weight: a table of modulation is a parameter of the block."""
    return module.rpartition(".")[0] if module.endswith(("scale_shift_table", "pos_embed")) else module


def _add(transformer: nn.Module, change: Change) -> None:
    module = transformer.get_submodule(_owner(change.module))
    module = getattr(module, "base_layer", module)
    own = change.module.rpartition(".")[2] if _owner(change.module) != change.module else "weight"
    weight = module.get_parameter(own)
    with torch.no_grad():
        weight.copy_(_changed(change, weight))
        if change.bias is not None:
            bias = module.get_parameter("bias")
            bias.copy_(bias.float() + change.bias.float().to(bias.device))


def _changed(change: Change, weight: Tensor) -> Tensor:
    try:
        return change.changed(weight)
    except RuntimeError as error:
        raise ValueError(f"{change.module} is {change.shape}, the model's is {tuple(weight.shape)}") from error


def open_base(path: Path, *, config: Path | None = None) -> Base:
    """The weights in a diffusers folder or in one file of either naming. Raises ValueError if it is none."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    index = None
    if path.is_dir():
        config = path / "config.json"
        index = next(iter(sorted(path.glob("*.safetensors.index.json"))), None)
        if index is not None:
            files = [path / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
    if not files:
        raise ValueError(f"{path} holds no .safetensors file")
    stored = [tensor for file in files for tensor in stored_in(file)]
    strange = next((tensor for tensor in stored if tensor.dtype not in TORCH), None)
    if strange is not None:
        raise ValueError(f"{strange.key} is stored as {strange.dtype}: merge into the unquantised model")
    prefix = next((prefix for prefix in _PREFIXES if stored[0].key.startswith(prefix)), "")
    names = [tensor.key.removeprefix(prefix) for tensor in stored]
    original = any(".self_attn." in name for name in names)
    try:
        ours = [to_diffusers(name) if original else name for name in names]
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is no weight of a Wan transformer") from error
    return Base(dict(zip(ours, stored, strict=True)), original, prefix if original else "", config, index)


def merge_files(
    base: Base,
    changes: Sequence[Change],
    target: Path,
    *,
    original: bool,
    dtype: torch.dtype | None,
    metadata: Mapping[str, str],
    progress: Callable[[str], None] = lambda _key: None,
) -> Merged:
    """Write the changed model to `target`: a diffusers folder, or one file in Wan's own names, and read it back.

    Several changes of a module add up in their order. Raises ValueError when one has no place in the base or what is
    read back differs; nothing is left behind then.
    """
    by_module: dict[str, list[Change]] = {}
    for change in changes:
        by_module.setdefault(change.module, []).append(change)
    _check_places(base, by_module)
    planned = {
        name: _plan(name, tensor, by_module, original=original, prefix=base.prefix, dtype=dtype, progress=progress)
        for name, tensor in base.tensors.items()
    }
    if original:
        with atomic_path(target) as temporary:
            write_planned(temporary, list(planned.values()), {"format": "pt", **metadata})
            _read_back(base, by_module, {tensor.key: tensor for tensor in stored_in(temporary)}, planned)
    else:
        if base.config is None:
            raise ValueError("the base has no config.json")
        with atomic_folder(target) as temporary:
            temporary.mkdir()
            _write_folder(temporary, base, planned, metadata)
            files = sorted(temporary.glob("*.safetensors"))
            written = {tensor.key: tensor for file in files for tensor in stored_in(file)}
            _read_back(base, by_module, written, planned)
            if written.keys() != shapes_of(temporary / "config.json").keys():
                raise ValueError("what was written are not the weights that its config.json speaks of")
    size = target.stat().st_size if original else sum(file.stat().st_size for file in target.iterdir())
    return Merged(target, len(by_module), size)


def _write_folder(folder: Path, base: Base, planned: Mapping[str, Planned], metadata: Mapping[str, str]) -> None:
    """The base's files again, each with its tensors, its configuration and its index."""
    assert base.config is not None, "asked by the caller"
    shutil.copyfile(base.config, folder / "config.json")
    shards: dict[Path, list[Planned]] = {}
    for name, tensor in base.tensors.items():
        shards.setdefault(tensor.file, []).append(planned[name])
    if base.index is None:
        every = [item for items in shards.values() for item in items]
        write_planned(folder / WEIGHTS, every, {"format": "pt", **metadata})
        return
    for file, items in shards.items():
        write_planned(folder / file.name, items, {"format": "pt", **metadata})
    index = {
        "metadata": {"total_size": sum(item.num_bytes for item in planned.values())},
        "weight_map": {item.key: file.name for file, items in shards.items() for item in items},
    }
    (folder / base.index.name).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _plan(
    name: str,
    tensor: Stored,
    by_module: Mapping[str, Sequence[Change]],
    *,
    original: bool,
    prefix: str,
    dtype: torch.dtype | None,
    progress: Callable[[str], None],
) -> Planned:
    module, _, last = name.rpartition(".")
    changes = by_module.get(name, []) if last not in ("weight", "bias") else by_module.get(module, [])
    key = f"{prefix}{to_original(name)}" if original else name
    kept = TORCH[tensor.dtype] if dtype is None or _stays(name) else dtype
    load = partial(_load, tensor, changes, bias=last == "bias", dtype=kept, progress=progress)
    return Planned(key, tensor.shape, kept, load)


def _load(
    tensor: Stored, changes: Sequence[Change], *, bias: bool, dtype: torch.dtype, progress: Callable[[str], None]
) -> Tensor:
    progress(tensor.key)
    value = tensor.read()
    for change in changes:
        if not bias:
            value = _changed(change, value)
        elif change.bias is not None:
            value = value.float() + change.bias.float()
    return value.to(dtype)


def _stays(name: str) -> bool:
    """Whether diffusers keeps the weight in float32 whatever the model's dtype is."""
    from diffusers import WanTransformer3DModel

    return not set(WanTransformer3DModel._keep_in_fp32_modules).isdisjoint(name.split("."))


def _check_places(base: Base, by_module: Mapping[str, Sequence[Change]]) -> None:
    absent = [module for module in by_module if module not in base.tensors and f"{module}.weight" not in base.tensors]
    if absent:
        raise ValueError(f"the base has no {absent[0]}" + (f", and {len(absent) - 1} more" if absent[1:] else ""))
    for module, changes in by_module.items():
        weight = base.tensors.get(f"{module}.weight") or base.tensors[module]
        for change in changes:
            shape, size = change.shape, torch.Size(weight.shape).numel()
            if shape is not None and (torch.Size(shape).numel() != size or shape[0] != weight.shape[0]):
                raise ValueError(f"{module} is {shape}, the base's is {weight.shape}")


def _read_back(
    base: Base,
    by_module: Mapping[str, Sequence[Change]],
    written: Mapping[str, Stored],
    planned: Mapping[str, Planned],
) -> None:
    """That every weight is there, that some changed ones are W + delta (another way), and others the base's.

    Raises ValueError.
    """
    if {key: tensor.shape for key, tensor in written.items()} != {item.key: item.shape for item in planned.values()}:
        raise ValueError("what was written does not hold the weights of the base")
    modules = list(by_module)
    names = [modules[round(index * (len(modules) - 1) / max(_CHECKED - 1, 1))] for index in range(_CHECKED)]
    for module in dict.fromkeys(names):
        name = module if module in base.tensors else f"{module}.weight"
        before, after = base.tensors[name].read().double(), written[planned[name].key].read()
        expected = before
        for change in by_module[module]:
            expected = _again(expected, change)
        error = float((after.double() - expected).norm() / expected.norm().clamp_min(1e-30))
        if not error <= TOLERANCE[after.dtype]:
            raise ValueError(f"{module} reads back {error:.2g} off")
    for name, item in planned.items():
        if name.rpartition(".")[0] not in by_module and name not in by_module:
            if not torch.equal(written[item.key].read(), base.tensors[name].read().to(item.dtype)):
                raise ValueError(f"{name} is not the base's, though nothing changes it")
            return


def _again(weight: Tensor, change: Change) -> Tensor:
    """W + scale B A in double precision, the scale on the other factor; what is no pair as it was merged."""
    if change.kind == LORA and change.dora is None and "mid" not in change.factors:
        down, up = (change.factors[name].double().flatten(1) for name in ("down", "up"))
        return weight + (up @ (down * change.scale)).reshape(weight.shape)
    return change.changed(weight.float()).double()
