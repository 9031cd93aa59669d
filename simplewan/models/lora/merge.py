"""Changes added to the weights of a base, from files to files without loading the model.

Files go tensor by tensor, so that a 14B model needs the memory of its largest weight. W + delta is computed in
float32 and cast to the dtype that the weight has (or the one asked for).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simplewan.data.atomic import atomic_folder, atomic_path
from simplewan.headers import weight_files
from simplewan.models.keys import to_diffusers, to_original
from simplewan.models.lora.change import LORA, Change
from simplewan.models.lora.skeleton import Shapes, config_text, shapes_of
from simplewan.models.lora.streaming import Planned, Stored, stored_in, write_planned
from simplewan.recognition import PREFIXES

WEIGHTS = "diffusion_pytorch_model.safetensors"
# float32 rounds a sum of products by this much of its largest value, and of the weight it is added to.
_NOISE = 2.0**-18
# As many rows are compared at a time, for the sake of the memory.
_ROWS = 1024


@dataclass(frozen=True)
class Base:
    """A transformer's weights on disk by diffusers' names. `prefix` stands before the keys of a file of Wan's names.

    `index` is the name of the index of a folder with shards.
    """

    tensors: Mapping[str, Stored]
    prefix: str
    index: str | None = None

    @property
    def shapes(self) -> Shapes:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def dtype(self) -> torch.dtype:
        """What most of it is written as, unless another dtype is asked for."""
        sizes: Counter[torch.dtype] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.dtype] += prod(tensor.shape)
        return sizes.most_common(1)[0][0]

    @property
    def is_fp8(self) -> bool:
        """Whether weights of it are stored in fp8, and are therefore written in another dtype."""
        return any(tensor.is_fp8 for tensor in self.tensors.values())


def open_base(path: Path) -> Base:
    """The weights in a folder or in one file, of either naming. Raises ValueError if it is none."""
    files = [file for file in weight_files(path) if file.suffix == ".safetensors"]
    if not files:
        raise ValueError(f"{path} {'is' if path.is_file() else 'holds'} no .safetensors file")
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{path} lacks {missing[0]}")
    stored = stored_in(*files)
    if not stored:
        raise ValueError(f"{path} holds no weights")
    prefix = next((prefix for prefix in PREFIXES if stored[0].key.startswith(prefix)), "")
    names = [tensor.key.removeprefix(prefix) for tensor in stored]
    original = any(".self_attn." in name for name in names)
    if not original:  # what diffusers passes over, as repositories of I2V hold it
        kept = [not _is_passed_over(name) for name in names]
        stored, names = list(compress(stored, kept)), list(compress(names, kept))
    try:
        ours = [to_diffusers(name if original else to_original(name)) for name in names]
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is no weight of a Wan transformer") from error
    tensors = dict(zip(ours, stored, strict=True))
    if len(tensors) < len(stored):
        raise ValueError(f"{path} holds a weight more than once: name one file of it")
    index = next(iter(sorted(path.glob("*.safetensors.index.json"))), None) if path.is_dir() else None
    return Base(tensors, prefix if original else "", None if index is None else index.name)


def merge_files(
    base: Base,
    changes: Sequence[Change],
    target: Path,
    *,
    config: Mapping[str, Any] | None,
    dtype: torch.dtype | None,
    metadata: Mapping[str, str],
    progress: Callable[[str], None] = lambda _key: None,
) -> None:
    """Write the changed model to `target` and read it back: a diffusers folder with `config`, diffusers' configuration.

    None: one file in Wan's own names. Several changes of a module add up in their order. `progress` is called twice for
    every weight: written, checked. The changes must fit the base. Raises ValueError when what is read back differs;
    nothing is left behind then.
    """
    by_module: dict[str, list[Change]] = {}
    for change in changes:
        by_module.setdefault(change.module, []).append(change)
    changed = {name: _changes_of(name, by_module) for name in base.tensors}
    planned = {
        name: Planned(
            key=name if config is not None else f"{base.prefix}{to_original(name)}",
            shape=tensor.shape,
            dtype=kept,
            load=partial(_load, tensor, changed[name], dtype=kept, progress=progress),
        )
        for name, tensor in base.tensors.items()
        for kept in (tensor.dtype if dtype is None or _stays(name) else dtype,)
    }
    if config is None:
        with atomic_path(target) as temporary:
            write_planned(temporary, list(planned.values()), {"format": "pt", **metadata})
            _read_back(base, changed, stored_in(temporary), planned, progress=progress)
        return
    if base.shapes != shapes_of(config):
        raise ValueError("its weights are not those that its config.json speaks of")
    with atomic_folder(target) as temporary:
        temporary.mkdir()
        (temporary / "config.json").write_text(config_text(config), encoding="utf-8")
        _write_folder(temporary, base, planned, metadata)
        _read_back(base, changed, stored_in(*temporary.glob("*.safetensors")), planned, progress=progress)


def _write_folder(folder: Path, base: Base, planned: Mapping[str, Planned], metadata: Mapping[str, str]) -> None:
    """The base's files again, each with its tensors, and its index."""
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
    (folder / base.index).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _changes_of(name: str, by_module: Mapping[str, Sequence[Change]]) -> list[Change]:
    """What changes the weight (or the bias, or the parameter) `name`."""
    module, _, last = name.rpartition(".")
    if last == "bias":
        return [change for change in by_module.get(module, []) if change.bias is not None]
    return [change for change in by_module.get(module if last == "weight" else name, []) if change.factors]


def _load(tensor: Stored, changes: Sequence[Change], *, dtype: torch.dtype, progress: Callable[[str], None]) -> Tensor:
    progress(tensor.key)
    value = tensor.read()
    for change in changes:
        value = _with_bias(value.float(), change) if _is_bias(tensor.key) else change.changed(value)
    return value.to(dtype)


def _is_bias(name: str) -> bool:
    return name.endswith(".bias")


def _with_bias(value: Tensor, change: Change) -> Tensor:
    assert change.bias is not None, "it changes this bias"
    return value + change.bias.to(value.dtype)


def _is_passed_over(name: str) -> bool:
    """Whether diffusers passes over a weight of that name, for which its model has no place."""
    from diffusers import WanTransformer3DModel

    return any(word in name for word in WanTransformer3DModel._keys_to_ignore_on_load_unexpected)


def _stays(name: str) -> bool:
    """Whether diffusers keeps the weight in float32 whatever the model's dtype is."""
    from diffusers import WanTransformer3DModel

    return not set(WanTransformer3DModel._keep_in_fp32_modules).isdisjoint(name.split("."))


def _read_back(
    base: Base,
    changed: Mapping[str, Sequence[Change]],
    written: Sequence[Stored],
    planned: Mapping[str, Planned],
    *,
    progress: Callable[[str], None],
) -> None:
    """That every weight is there: the changed ones W + delta (made another way), the others the base's to the byte.

    Raises ValueError.
    """
    stored = {tensor.key: tensor for tensor in written}
    if {key: tensor.shape for key, tensor in stored.items()} != {item.key: item.shape for item in planned.values()}:
        raise ValueError("what was written does not hold the weights of the base")
    for name, item in planned.items():
        progress(item.key)
        before, after = base.tensors[name].read(), stored[item.key].read()
        if after.dtype != item.dtype:
            raise ValueError(f"{name} reads back as {after.dtype}")
        if changed[name]:
            _refuse_inexact(name, before, after, changed[name])
        elif not torch.equal(*(value.contiguous().view(torch.uint8) for value in (after, before.to(item.dtype)))):
            raise ValueError(f"{name} is not the base's, though nothing changes it")


def _refuse_inexact(name: str, before: Tensor, after: Tensor, changes: Sequence[Change]) -> None:
    """Raise ValueError unless every value is one of the nearest that its dtype has to W + delta.

    A share of the norm would not do: a LoRA changes weights by less than bf16 rounds.
    """
    if not torch.isfinite(after).all():
        raise ValueError(f"{name} is not finite in {after.dtype}")
    exact = before.double()
    for change in changes:
        exact = _with_bias(exact, change) if _is_bias(name) else _again(exact, change)
    rows = list(zip(exact.split(_ROWS), before.split(_ROWS), after.split(_ROWS), strict=True))
    largest = max(float((meant - old).abs().max()) for meant, old, _ in rows)
    wrong = 0
    for meant, _, new in rows:
        off = meant.float().to(new.dtype) != new
        if off.any():
            new, meant = new[off].double(), meant[off]
            best = (meant.to(after.dtype).double() - meant).abs()
            wrong += int(((new - meant).abs() > best + _NOISE * (largest + meant.abs() / 4)).sum())
    if wrong:
        raise ValueError(f"{name} reads back otherwise: {wrong} of {after.numel()} values are not W + delta")


def _again(weight: Tensor, change: Change) -> Tensor:
    """W + scale B A in double precision, the scale on the other factor; what is no pair as it was merged."""
    if change.kind == LORA and change.dora is None and "mid" not in change.factors:
        down, up = (change.factors[name].double().flatten(1) for name in ("down", "up"))
        return weight + (up @ (down * change.scale)).reshape(weight.shape)
    return change.changed(weight.float()).double()
