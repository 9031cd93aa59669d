"""Safetensors files read and written one tensor at a time, so that a model of any size can be changed on its way.

The format: eight bytes of length, a JSON header (names, dtypes, shapes, offsets), the bytes of all tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simplewan.headers import read_safetensors
from simplewan.models.wan.weights import SCALES, has_scales, is_beside, refuse_unscaled, scaled

_WRITTEN = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
# What a tensor is written as; fp8 is made up to the next that holds a sum.
_KEPT = {name: dtype for dtype, name in _WRITTEN.items()} | dict.fromkeys(("F8_E4M3", "F8_E5M2"), torch.bfloat16)


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, told by the header alone. `scale` is that of an fp8 tensor, if it has one."""

    key: str
    file: Path
    shape: tuple[int, ...]
    stored_as: str
    scale: Stored | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What it is written as, unless another dtype is asked for."""
        return _KEPT[self.stored_as]

    @property
    def is_fp8(self) -> bool:
        return self.stored_as not in _WRITTEN.values()

    def read(self) -> Tensor:
        """The tensor; one of fp8 in float32, times its scale.

        Raises ValueError for a damaged file, and for a scale that does not fit.
        """
        try:
            with safe_open(self.file, framework="pt") as file:
                value = file.get_tensor(self.key)
        except SafetensorError as error:
            raise ValueError(f"{self.file.name} is damaged ({error})") from error
        if self.scale is not None:
            return scaled(value.float(), self.scale.read().float(), self.key)
        return value.float() if self.is_fp8 else value


@dataclass(frozen=True)
class Planned:
    """A tensor to be written; `load` is called when its turn comes."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def stored_in(*files: Path) -> list[Stored]:
    """The weights in files. Raises ValueError for what is no safetensors file, or holds numbers that are not read."""
    every = [(key, file, info) for file in files for key, info in read_safetensors(file).tensors.items()]
    beside = {key: Stored(key, file, info.shape, info.dtype) for key, file, info in every if is_beside(key)}
    stored, are_scaled = [], has_scales(beside)
    for key, file, info in every:
        if key in beside:
            continue
        if info.dtype not in _KEPT:
            raise ValueError(f"{key} is stored as {info.dtype}: merge into bf16, fp16, fp32 or fp8 weights")
        scales = (f"{key.removesuffix('.weight')}.{scale}" for scale in SCALES)
        scale = next((beside[name] for name in scales if name in beside), None)
        stored.append(Stored(key, file, info.shape, info.dtype, scale))
        if are_scaled and scale is None and stored[-1].is_fp8:
            refuse_unscaled(key, info.shape)
    return stored


def write_planned(path: Path, planned: Sequence[Planned], metadata: Mapping[str, str]) -> None:
    """Write the tensors in their order; only one is held at a time."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for item in planned:
        end = offset + item.num_bytes
        header[item.key] = {"dtype": _WRITTEN[item.dtype], "shape": list(item.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for item in planned:
            value = item.load()
            assert (tuple(value.shape), value.dtype) == (item.shape, item.dtype), item.key
            stream.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
