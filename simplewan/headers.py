"""What a weight file says of itself, without its weights: names, shapes and number formats. Standard library alone.

Two formats: safetensors, whose header is JSON behind eight bytes of length, and PyTorch's zip files (.pth, .pt, .bin),
whose names and shapes stand in a pickle. That pickle is read by an unpickler which knows a handful of names and builds
nothing but descriptions: a file from a stranger can do no harm here. PyTorch's files from before 2020 are no zip files;
they tell nothing (None).
"""

from __future__ import annotations

import errno
import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

PICKLED = (".pth", ".pt", ".bin")
WEIGHT_ENDINGS = (".safetensors", *PICKLED)
# The length of a header that is none, but the first bytes of something else.
_LONGEST_HEADER = 2**28
# What is often taken for weights, by how it begins.
_BEGINNINGS = {
    b"PK\x03\x04": "as PyTorch's .pt files do",
    b"GGUF": "as GGUF files do",
    b"\x89PNG": "as PNG pictures do",
    b"\xff\xd8\xff": "as JPEG pictures do",
    b"version https://git-lfs": "as Git LFS's pointers do, which stand for a file that was not fetched",
    b"<": "as web pages do",
}


class Info(NamedTuple):
    """A tensor as its file describes it; `dtype` in safetensors' words ("BF16", "F8_E4M3")."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The tensors of a file (or of all shards of one model) by name, and its metadata."""

    tensors: Mapping[str, Info]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; () where there is none of that name."""
        return self.tensors[name].shape if name in self.tensors else ()


def read_header(file: Path) -> Header | None:
    """The header of a weight file; None of one that cannot tell. Raises ValueError for a damaged file, OSError."""
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    if file.suffix not in PICKLED:
        return None
    if _is_zip(file):
        return _read_pickle(file)
    with file.open("rb") as stream:
        if stream.read(4) == b"PK\x03\x04":  # a zip file's beginning, whose directory at the end is missing
            raise ValueError(f"{file.name} is cut off, or damaged at its end")
    return None


def read_headers(files: list[Path]) -> Header | None:
    """The headers of the shards of one model as one; None when one of them cannot tell. Raises as `read_header`."""
    tensors: dict[str, Info] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header = read_header(file)
        if header is None:
            return None
        tensors.update(header.tensors)
        metadata.update(header.metadata)
    return Header(tensors, metadata) if files else None


def weight_files(path: Path) -> list[Path]:
    """The weight files of a model: `path` itself if it is one, or those in it: what an index names, else all.

    Of a folder with safetensors and others (as some repositories hold both), the safetensors. Raises ValueError for an
    index that is damaged.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        return []
    indexes = sorted(path.glob("*.index.json")) + sorted(path.glob("*.index.*.json"))
    if indexes:
        return indexed_files(indexes[0])
    for ending in (".safetensors", *PICKLED):
        if files := sorted(file for file in path.glob(f"*{ending}") if file.stat().st_size):
            return files
    return []


def indexed_files(index: Path) -> list[Path]:
    """The files that an index names. Raises ValueError for one that is damaged."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"has a {index.name} that is no JSON ({error})") from error
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise ValueError(f"has a {index.name} without a weight_map, which says where each tensor lies")
    return [index.with_name(name) for name in sorted(set(files.values()))]


def read_safetensors(file: Path) -> Header:
    """The header of a safetensors file, whatever its name. Raises ValueError, in people's words, and OSError."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(24)
        length = int.from_bytes(start[:8], "little")
        if size < 9 or length > _LONGEST_HEADER or start[8:9] != b"{":
            raise ValueError(f"{file.name} is no safetensors file: it {_beginning(start)}")
        if 8 + length > size:
            raise ValueError(f"{file.name} is cut off: it has {size} bytes, and its header alone {8 + length}")
        stream.seek(8)
        try:
            header = json.loads(stream.read(length))
            metadata = header.pop("__metadata__", None)
            tensors = {key: Info(entry["dtype"], tuple(map(int, entry["shape"]))) for key, entry in header.items()}
            end = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{file.name} is damaged: its header is no list of tensors") from error
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{file.name} is damaged: its metadata are no texts by name")
    if size < end:
        raise ValueError(f"{file.name} is cut off: it has {size} bytes of {end}")
    if size > end:  # the library refuses such a file, too, but only when weights are read
        raise ValueError(f"{file.name} is damaged: it has {size - end} bytes after its end")
    return Header(tensors, metadata)


def _beginning(start: bytes) -> str:
    """How a file that is something else begins, for people."""
    if not start:
        return "is empty"
    known = next((what for mark, what in _BEGINNINGS.items() if start.startswith(mark)), None)
    text = start.decode("ascii", errors="replace").partition("\n")[0].strip()
    words = f'"{text}"' if text.isascii() and text.isprintable() else f"the bytes {start[:8].hex(' ')}"
    return f"begins with {words}" + (f", {known}" if known else "")


_DTYPES = {
    "FloatStorage": "F32",
    "DoubleStorage": "F64",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


def _is_zip(file: Path) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{file.name} is damaged ({error})") from error


def _read_pickle(file: Path) -> Header | None:
    pickled = _pickle_in(file)
    if pickled is None:
        return None
    try:
        content = _Describing(io.BytesIO(pickled)).load()
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, ValueError, AttributeError):
        return None  # something else than tensors: torch, which reads it with weights_only, will say what
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        return None
    if "param_groups" in content and isinstance(content.get("state"), dict):  # an optimizer's, a dict a parameter
        content = {
            f"state.{number}.{key}": value
            for number, state in content["state"].items()
            if isinstance(state, dict)
            for key, value in state.items()
        }
    return Header({str(key): value for key, value in content.items() if isinstance(value, Info)})


def _pickle_in(file: Path) -> bytes | None:
    """The pickle of a PyTorch file; None of another zip file. Raises ValueError for one that is damaged."""
    try:
        with zipfile.ZipFile(file) as archive:
            name = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            return None if name is None else archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
        # A bit that has flipped may also make of it an encrypted file, or one whose parts lie before its beginning.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{file.name} is damaged ({error})") from error


# What storages without a type of their own are typed by.
_NAMED = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


class _Dict(dict[str, Any]):
    """An OrderedDict, which may have attributes (`_metadata` of a state_dict)."""


def _tensor(storage: str, _offset: int, shape: tuple[int, ...], *_rest: object) -> Info:
    return Info(storage, tuple(shape))


def _typed_tensor(
    _storage: str, _offset: int, shape: tuple[int, ...], _stride: object, _grad: object, _hooks: object, dtype: str
) -> Info:
    return Info(dtype, tuple(shape))


def _parameter(data: Info, *_rest: object) -> Info:
    return data


class _Describing(pickle.Unpickler):
    """Reads PyTorch's pickles of tensors as their descriptions; every name that is not listed here is refused."""

    _known: Mapping[tuple[str, str], Any] = {
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("collections", "OrderedDict"): _Dict,
        ("torch.storage", "UntypedStorage"): "U8",
        **{("torch", name): dtype for name, dtype in (_DTYPES | _NAMED).items()},
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a tensor")
        return self._known[module, name]

    def persistent_load(self, pid: Any) -> str:
        """A storage: ("storage", its class, its file in the archive, where it was, its length)."""
        return str(pid[1])
