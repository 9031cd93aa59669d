"""Weights from files, tensor by tensor, as plain numbers: shards, pickles, and fp8 with its scales. Imports headers.

Instead of its numbers a file may be described: tensors of its names, shapes and number formats without memory (on the
meta device), of which a model is built as of the real ones; so what does not fit is found in well under a second.

A tensor is read when it is asked for, so that a model is built without a second copy of it in memory. fp8 files keep
scales beside the weights: ComfyUI's `X.scale_weight` (with a marker `scaled_fp8`) or the newer `X.weight_scale`, one
for a tensor, or one for each row or block of a row. The weight is the product, taken in float32. In a file with scales
a matrix in fp8 without one is refused: without its scale it would be far off, and nothing would tell.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from simplewan.headers import PICKLED, Info, read_header, weight_files

SCALES = ("scale_weight", "weight_scale")
# What stands beside the weights for those who compute in fp8.
_MARKER = "scaled_fp8"
_BESIDE = (*SCALES, "scale_input", "input_scale", "comfy_quant", _MARKER)
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# What safetensors calls number formats.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# What torch raises, too, of bytes that are none of its own.
_NO_PICKLE = (EOFError, LookupError, TypeError, AttributeError, OverflowError, struct.error)
Readers = Mapping[str, Callable[[], Tensor]]


class UnsafeFile(ValueError):
    """A pickle with more in it than tensors, which is not read: it may be code."""


class Weights:
    """The tensors of a model's files by name, without what belongs to fp8 alone."""

    def __init__(self, readers: Readers, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._readers = readers
        self._is_scaled = has_scales(readers)
        self.names = tuple(name for name in readers if not is_beside(name))
        self.shapes = {name: shapes[name] for name in self.names}

    def __getitem__(self, name: str) -> Tensor:
        """The tensor, scaled if it has a scale. Raises ValueError for a scale that is missing or does not fit."""
        value = self._readers[name]()
        module = name.removesuffix(".weight")
        for scale in SCALES:
            if name.endswith(".weight") and f"{module}.{scale}" in self._readers:
                return scaled(value.float(), self._readers[f"{module}.{scale}"]().float(), name)
        if self._is_scaled and value.dtype in _FP8:
            refuse_unscaled(name, value.shape)
        return value


def is_beside(name: str) -> bool:
    """Whether a tensor is no weight, but belongs to those that are stored in fp8."""
    return name.rpartition(".")[2] in _BESIDE


def has_scales(names: Iterable[str]) -> bool:
    """Whether some of the weights with these names are stored with scales."""
    return any(name.rpartition(".")[2] in (*SCALES, _MARKER) for name in names)


def refuse_unscaled(name: str, shape: Sequence[int]) -> None:
    """Raise ValueError for an fp8 tensor without a scale in a file with scales, if it is of the kind that has one."""
    if len(shape) == 2 and name.endswith(".weight"):  # scales are those of linear layers
        raise ValueError(f"{name} is fp8 and has no scale, which other weights there have")


def scaled(value: Tensor, scale: Tensor, name: str) -> Tensor:
    """The weight that an fp8 tensor and its scale stand for, both float32. Raises ValueError if they do not fit."""
    if scale.numel() == 1:
        return value * scale.reshape(())
    if scale.ndim in (1, 2) and scale.numel() == value.shape[0]:
        return value * scale.reshape(-1, 1)
    if scale.ndim == 3 and value.ndim == 2 and value.shape[1] % scale.shape[1] == 0:
        return (value.unflatten(1, (scale.shape[1], -1)) * scale).flatten(1)
    raise ValueError(f"{name} has shape {list(value.shape)} and scales of shape {list(scale.shape)}")


def described(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of a model's files as their headers describe them, on the meta device. Raises ValueError."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix in PICKLED:  # what torch refuses, it refuses here; what it reads stays in the file
            tensors |= {name: value.to("meta") for name, value in _unpickled(file).items()}
        elif (header := read_header(file)) is not None:
            tensors |= {name: _empty(name, info) for name, info in header.tensors.items()}
    return tensors


def _empty(name: str, info: Info) -> Tensor:
    if is_beside(name) and info.dtype not in _DTYPES:  # nothing is made of it
        return torch.empty(info.shape, dtype=torch.uint8, device="meta")
    if info.dtype not in _DTYPES:
        raise ValueError(f"{name} is stored as {info.dtype}, which is not read")
    return torch.empty(info.shape, dtype=_DTYPES[info.dtype], device="meta")


def described_weights(files: Iterable[Path]) -> Weights:
    """The same as the weights that a model would be built of. Raises ValueError."""
    tensors = described(files)
    return Weights(
        {name: partial(_same, value) for name, value in tensors.items()},
        {name: tuple(value.shape) for name, value in tensors.items()},
    )


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
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch's own words advise to run it
        what = f"refers to {named[1]}, which is no part of a tensor" if named else "is no pickle of tensors alone"
        raise UnsafeFile(f"{file.name} {what}, and it is not run") from error
    except _NO_PICKLE as error:
        raise ValueError(f"{file.name} is no file of PyTorch's, or damaged") from error
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds no tensors by name")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
