"""Safetensors files read and written one tensor at a time, so that a model of any size can be changed on its way.

The format: eight bytes of length, a JSON header (names, dtypes, shapes, offsets), the bytes of all tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from simplewan.headers import read_header

DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
TORCH = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, told by the header alone."""

    key: str
    file: Path
    shape: tuple[int, ...]
    dtype: str

    def read(self) -> Tensor:
        with safe_open(self.file, framework="pt") as file:
            return file.get_tensor(self.key)


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


def stored_in(file: Path) -> list[Stored]:
    """The tensors of a file. Raises ValueError for what is no safetensors file."""
    header = read_header(file) if file.suffix == ".safetensors" else None
    if header is None:
        raise ValueError(f"{file} is no safetensors file")
    return [Stored(key, file, info.shape, info.dtype) for key, info in header.tensors.items()]


def write_planned(path: Path, planned: Sequence[Planned], metadata: Mapping[str, str]) -> None:
    """Write the tensors in their order; only one is held at a time."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for item in planned:
        end = offset + item.num_bytes
        header[item.key] = {"dtype": DTYPES[item.dtype], "shape": list(item.shape), "data_offsets": [offset, end]}
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
