"""One file of a store: written atomically, its header read without touching the data, leftovers recognised.

Imports torch and safetensors, nothing of this project. A shard is an ordinary safetensors file, named after the keys
in it, with the records' origins in `__metadata__["records"]`; the time of writing is the file's own, so that the same
records give the same bytes. The price of never appending to a file is a file per flush.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from simplewan.data.atomic import share_with_folder, sync

SUFFIX = ".safetensors"
TEMPORARY = re.compile(r"^\.shard-.*\.tmp-(?P<host>[^@]+)@(?P<pid>\d+)@(?P<started>\d+)@[0-9a-f]+$")
FOREIGN_LEFTOVER_SECONDS = 24 * 3600
CLOCK_SLACK_SECONDS = 10
LARGEST_HEADER_BYTES = 100_000_000


class ShardError(ValueError):
    """A shard whose header or length is wrong: cut off, overwritten, or not a safetensors file."""


@dataclass(frozen=True)
class Record:
    """Where a cached tensor lies (bytes `start` to `end` of `shard`) and what it was made from."""

    key: str
    shard: str
    start: int
    end: int
    names: tuple[str, ...]
    components: Mapping[str, Any]
    sha256: str | None
    written_ns: int


def write_shard(folder: Path, tensors: Mapping[str, torch.Tensor], origins: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write CPU tensors as one shard: a temporary name in `folder`, fsync, rename, fsync of the folder.

    `origins` holds each record's `names` and `components`. Raises OSError when the disk does not take it; no
    half-written file stays behind under a shard's name, whatever happens.
    """
    tensors = {key: tensor.detach().contiguous() for key, tensor in sorted(tensors.items())}
    records = {key: {**origins[key], "sha256": digest(tensor)} for key, tensor in tensors.items()}
    # One entry only: safetensors writes several in an order that varies.
    metadata = {"records": json.dumps(records, sort_keys=True, separators=(",", ":"))}
    name = f"shard-{hashlib.sha256(chr(10).join(tensors).encode()).hexdigest()[:32]}"
    temporary = folder / f".{name}.tmp-{_host()}@{os.getpid()}@{_started(os.getpid())}@{secrets.token_hex(4)}"
    target = folder / f"{name}{SUFFIX}"
    try:
        save_file(tensors, temporary, metadata=metadata)
        share_with_folder(temporary)
        sync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync(folder)
    return target


def read_header(path: Path) -> list[Record]:
    """The records of a shard. Raises `ShardError` with the reason, FileNotFoundError when it has just gone."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ShardError(f"{status.st_size} bytes are too few for a header")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > min(LARGEST_HEADER_BYTES, status.st_size - 8):
            raise ShardError(f"its header would be {header_bytes} bytes long, the file has {status.st_size}")
        text = file.read(header_bytes)
    try:
        header = json.loads(text)
        origins = json.loads(header.pop("__metadata__")["records"])
        records = [
            Record(
                key=key,
                shard=path.name,
                start=8 + header_bytes + entry["data_offsets"][0],
                end=8 + header_bytes + entry["data_offsets"][1],
                names=tuple(origins[key]["names"]),
                components=origins[key]["components"],
                sha256=origins[key].get("sha256"),
                written_ns=status.st_mtime_ns,
            )
            for key, entry in header.items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ShardError(f"its header cannot be read ({error})") from error
    expected = max((record.end for record in records), default=8 + header_bytes)
    if expected != status.st_size:
        raise ShardError(f"it has {status.st_size} bytes, its header promises {expected}")
    return records


def digest(tensor: torch.Tensor) -> str:
    """sha256 (hex) of a contiguous CPU tensor's bytes."""
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def remove_leftovers(folder: Path) -> list[str]:
    """Remove temporary files that no live process owns, and return their names.

    A file of this host is alive while the process with its pid and start time is. Of another host (a shared folder)
    nothing can be known, so its files are left alone for a day.
    """
    removed = []
    for path in folder.glob(".shard-*"):
        match = TEMPORARY.match(path.name)
        if match is None or _alive(path, match):
            continue
        path.unlink(missing_ok=True)
        removed.append(path.name)
    return sorted(removed)


def _alive(path: Path, match: re.Match[str]) -> bool:
    if match["host"] != _host():
        try:
            return time.time() - path.stat().st_mtime < FOREIGN_LEFTOVER_SECONDS
        except FileNotFoundError:
            return True
    try:
        started = _started(int(match["pid"]))
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return abs(started - int(match["started"])) <= CLOCK_SLACK_SECONDS


def _started(pid: int) -> int:
    """When a process started, in seconds since 1970; it moves a little when the system's clock is set."""
    return round(psutil.Process(pid).create_time())


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname()) or "localhost"
