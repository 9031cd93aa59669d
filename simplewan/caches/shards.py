"""One file of a store: written atomically, its header read without touching the data.

Imports this room, torch and the atomic writes of the data room. A shard is an ordinary safetensors file, named after
the keys in it, with the records' origins in `__metadata__["records"]`; the time of writing is the file's own, so that
the same records give the same bytes. The price of never appending to a file is a file per flush. The file is written
here and not by safetensors, which would use a temporary name of its own that nobody could tell from others' after a
kill, and which says in words alone why a disk did not take it; a test compares the bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from simplewan.caches.owners import TAG, owner_tag
from simplewan.caches.packing import DTYPE_WORDS, Packing, pack
from simplewan.data.atomic import share_with_folder, sync

PREFIX = "shard-"
SUFFIX = ".safetensors"
DAMAGED = ".damaged"
TEMPORARY = re.compile(rf"^\.{PREFIX}.*\.tmp-{TAG}")
LARGEST_HEADER_BYTES = 100_000_000
DTYPE_ORDER = {dtype: place for place, dtype in enumerate(DTYPE_WORDS)}

Origin = Mapping[str, Any]
Stored = tuple[torch.Tensor, Origin]  # as it stands in a file: the plain tensor or the packed bytes, and the origin


class ShardError(ValueError):
    """A shard or a record that cannot be read: cut off, overwritten, or not a safetensors file."""


@dataclass(frozen=True)
class Record:
    """Where a cached tensor lies (bytes `start` to `end` of `shard`) and what it was made from.

    `sha256` is of the content, whether it is packed or not. `written_ns` is 0 where the place does not tell.
    """

    key: str
    shard: str
    start: int
    end: int
    names: tuple[str, ...]
    components: Mapping[str, Any]
    sha256: str | None
    written_ns: int
    packing: Packing | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of the file that the record takes."""
        return self.end - self.start

    @property
    def origin(self) -> dict[str, Any]:
        """What stands of it in the header: to write the record elsewhere as it is."""
        origin: dict[str, Any] = {"names": list(self.names), "components": dict(self.components)}
        if self.sha256 is not None:
            origin["sha256"] = self.sha256
        if self.packing is not None:
            origin["packed"] = self.packing.as_dict()
        return origin


def is_shard(name: str) -> bool:
    """Whether a file of this name is a shard."""
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


def is_damaged_shard(name: str) -> bool:
    """Whether a file of this name is a shard that was set aside."""
    return name.endswith(DAMAGED) and is_shard(name.removesuffix(DAMAGED))


def to_store(tensor: torch.Tensor, origin: Origin, *, compress: bool) -> Stored:
    """What stands in a file for a CPU tensor of this origin (`names` and `components`)."""
    tensor = tensor.detach().contiguous()
    origin = {**origin, "sha256": digest(tensor)}
    packed = pack(tensor) if compress else None
    if packed is None:
        return tensor, origin
    return packed[0], {**origin, "packed": packed[1].as_dict()}


def shard_name(records: Mapping[str, Stored]) -> str:
    """The name of the file that holds these records; other ways of packing are other names."""
    words = [
        f"{key} {origin['packed']['method']}" if "packed" in origin else key
        for key, (_tensor, origin) in sorted(records.items())
    ]
    return f"{PREFIX}{hashlib.sha256(chr(10).join(words).encode()).hexdigest()[:32]}{SUFFIX}"


def write_shard(target: Path, records: Mapping[str, Stored]) -> None:
    """Write the records as one shard: a temporary name in the same folder, fsync, rename, fsync of the folder.

    Raises OSError when the disk does not take it; no half-written file stays behind, whatever happens.
    """
    temporary = temporary_beside(target)
    try:
        with temporary.open("wb") as file:
            _write(file, records)
        share_with_folder(temporary)
        sync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync(target.parent)


def temporary_beside(target: Path) -> Path:
    """A name in the folder of `target` that is known for a leftover when this process is gone."""
    return target.with_name(f".{target.name.removesuffix(SUFFIX)}.tmp-{owner_tag()}")


def read_header(path: Path) -> list[Record]:
    """The records of a shard. Raises `ShardError` with the reason, FileNotFoundError when it has just gone."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        return parse_header(file, shard=path.name, size=status.st_size, written_ns=status.st_mtime_ns)


def parse_header(file: BinaryIO, *, shard: str, size: int, written_ns: int) -> list[Record]:
    """The records of the shard of `size` bytes (-1: unknown) at whose start `file` stands. Raises `ShardError`."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ShardError(f"{len(prefix)} bytes are too few for a header")
    (header_bytes,) = struct.unpack("<Q", prefix)
    if header_bytes > LARGEST_HEADER_BYTES or (size >= 0 and header_bytes > size - 8):
        raise ShardError(f"its header would be {header_bytes} bytes long, the file has {size}")
    try:
        header = json.loads(file.read(header_bytes))
        origins = json.loads(header.pop("__metadata__")["records"])
        records = [
            Record(
                key=key,
                shard=shard,
                start=8 + header_bytes + entry["data_offsets"][0],
                end=8 + header_bytes + entry["data_offsets"][1],
                names=tuple(origins[key]["names"]),
                components=origins[key]["components"],
                sha256=origins[key].get("sha256"),
                written_ns=written_ns,
                packing=Packing.from_dict(origins[key]["packed"]) if "packed" in origins[key] else None,
            )
            for key, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ShardError(f"its header cannot be read ({error})") from error
    expected = max((record.end for record in records), default=8 + header_bytes)
    if size >= 0 and expected != size:
        raise ShardError(f"it has {size} bytes, its header promises {expected}")
    return records


def digest(tensor: torch.Tensor) -> str:
    """sha256 (hex) of a contiguous CPU tensor's bytes."""
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _write(file: BinaryIO, records: Mapping[str, Stored]) -> None:
    """The bytes that safetensors would write: header length, header, tensors by type and name.

    The format: https://github.com/huggingface/safetensors, README, "Format".
    """
    origins = {key: origin for key, (_tensor, origin) in records.items()}
    # One entry only: safetensors writes several in an order that varies.
    words = json.dumps(origins, sort_keys=True, separators=(",", ":"))
    header: dict[str, Any] = {"__metadata__": {"records": words}}
    tensors = sorted(
        ((key, tensor) for key, (tensor, _origin) in records.items()),
        key=lambda pair: (-DTYPE_ORDER[pair[1].dtype], pair[0]),
    )
    end = 0
    for key, tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": DTYPE_WORDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _key, tensor in tensors:
        file.write(_bytes(tensor))


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
