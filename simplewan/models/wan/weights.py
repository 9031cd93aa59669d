"""Weights from files, tensor by tensor, as plain numbers: shards, pickles, and fp8 with its scales. Imports headers.

A tensor is read when it is asked for, so that a model is built without a second copy of it in memory. fp8 files keep
scales beside the weights: ComfyUI's `X.scale_weight` (with a marker `scaled_fp8`) or the newer `X.weight_scale`, one
for a tensor, or one for each row or block of a row. The weight is the product, taken in float32.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from simplewan.headers import PICKLED, weight_files

SCALES = ("scale_weight", "weight_scale")
# What stands beside the weights for those who compute in fp8.
_BESIDE = (*SCALES, "scale_input", "input_scale", "comfy_quant", "scaled_fp8")


class Weights:
    """The tensors of a model's files by name, without what belongs to fp8 alone."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._readers = readers
        self.names = tuple(name for name in readers if not is_beside(name))
        self.shapes = {name: shapes[name] for name in self.names}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, scaled if it has a scale. Raises ValueError for a scale that does not fit, KeyError."""
        value = self._readers[name]()
        module = name.removesuffix(".weight")
        for scale in SCALES:
            if name.endswith(".weight") and f"{module}.{scale}" in self._readers:
                return scaled(value.float(), self._readers[f"{module}.{scale}"]().float(), name)
        return value


def is_beside(name: str) -> bool:
    """Whether a tensor is no weight, but belongs to those that are stored in fp8."""
    return name.rpartition(".")[2] in _BESIDE


def scaled(value: Tensor, scale: Tensor, name: str) -> Tensor:
    """The weight that an fp8 tensor and its scale stand for, both float32. Raises ValueError if they do not fit."""
    if scale.numel() == 1:
        return value * scale.reshape(())
    if scale.ndim in (1, 2) and scale.numel() == value.shape[0]:
        return value * scale.reshape(-1, 1)
    if scale.ndim == 3 and value.ndim == 2 and value.shape[1] % scale.shape[1] == 0:
        return (value.unflatten(1, (scale.shape[1], -1)) * scale).flatten(1)
    raise ValueError(f"{name} has shape {list(value.shape)} and scales of shape {list(scale.shape)}")


@contextmanager
def open_weights(path: Path) -> Iterator[Weights]:
    """The weights of a file, or of all shards in a folder. Pickles are read with weights_only.

    Raises what safetensors and torch raise of a damaged file.
    """
    readers: dict[str, Callable[[], Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    with ExitStack() as stack:
        for file in weight_files(path):
            if file.suffix in PICKLED:
                for name, value in _unpickled(file).items():
                    readers[name], shapes[name] = partial(_same, value), tuple(value.shape)
                continue
            opened = stack.enter_context(safe_open(file, framework="pt"))
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                readers[name], shapes[name] = (
                    partial(opened.get_tensor, name),
                    tuple(opened.get_slice(name).get_shape()),
                )
        yield Weights(readers, shapes)


def _same(value: Tensor) -> Tensor:
    return value


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of a pickle, which stay in the file until they are used if it is a zip file."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except RuntimeError as error:  # torch's word for archives that are damaged, or older than weights_only
        raise ValueError(str(error).splitlines()[0]) from error
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds no tensors by name")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
