"""The rows of a dataset of the `datasets` library as files: what a cell holds, and what the file is called.

Imports the kinds of media of the room; pyarrow when rows are read, fsspec when a file lies elsewhere. The sizes of
files in Arrow tables are read from their offsets alone, so that listing does not read the files.
"""

from __future__ import annotations

import posixpath
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplewan.data.atomic import atomic_path
from simplewan.data.media import is_media_name

BATCH_ROWS = 1000
HEAD_BYTES = 16
# The first bytes of formats: (offset, bytes) -> ending.
SIGNATURES = {
    (4, b"ftypqt"): ".mov",
    (4, b"ftyp"): ".mp4",
    (0, b"\x1aE\xdf\xa3"): ".webm",
    (8, b"AVI "): ".avi",
    (8, b"WEBP"): ".webp",
    (0, b"GIF8"): ".gif",
    (0, b"\x89PNG"): ".png",
    (0, b"\xff\xd8\xff"): ".jpg",
    (0, b"BM"): ".bmp",
    (0, b"II*\x00"): ".tif",
    (0, b"MM\x00*"): ".tif",
}


@dataclass(frozen=True)
class Cell:
    """What a row holds of its file: how many bytes (None: they are elsewhere), the path, and the first bytes."""

    size: int | None
    path: str | None
    head: bytes = b""


def cells_of(column: Any) -> Iterator[Cell]:
    """The cells of a chunked Arrow column of bytes, of paths, or of pairs of both."""
    import pyarrow
    from pyarrow import compute

    for chunk in column.chunks:
        names = [field.name for field in chunk.type] if pyarrow.types.is_struct(chunk.type) else []
        nothing = [None] * len(chunk)
        content = compute.struct_field(chunk, "bytes") if "bytes" in names else None
        paths = compute.struct_field(chunk, "path").to_pylist() if "path" in names else nothing
        if pyarrow.types.is_string(chunk.type) or pyarrow.types.is_large_string(chunk.type):
            paths = chunk.to_pylist()
        elif not names:
            content = chunk
        if content is None or pyarrow.types.is_null(content.type):
            sizes, heads = nothing, nothing
        else:
            sizes = compute.binary_length(content).to_pylist()
            heads = compute.binary_slice(content, 0, HEAD_BYTES).to_pylist()
        for size, path, head in zip(sizes, paths, heads, strict=True):
            yield Cell(size, path or None, head or b"")


def names_of(cells: Sequence[Cell], kind: str) -> list[str]:
    """What the files are called: as they were where that is known and names one alone, else by the row's number."""
    own = [_own_name(cell.path) for cell in cells]
    count = Counter(name.lower() for name in own)
    names = []
    for row, (cell, name) in enumerate(zip(cells, own, strict=True)):
        if not name:
            names.append(f"{row:08}{_suffix(cell.head) or ('.png' if kind == 'image' else '.mp4')}")
        elif count[name.lower()] > 1:
            stem, suffix = posixpath.splitext(name)
            names.append(f"{stem}-{row:08}{suffix}")
        else:
            names.append(name)
    return names


def place_of(path: str, folder: Path | None, repository: str) -> str:
    """Where a file lies that a table names: as it says if that is clear, else in the dataset's folder or repository."""
    if "://" in path or Path(path).is_absolute():
        return path
    if folder is not None:
        return str(folder / path)
    return f"hf://datasets/{repository}/{path}"


def is_local(place: str) -> bool:
    """Whether a place is a path of this machine."""
    return "://" not in place


def copy_to(place: str, path: Path) -> None:
    """Copy a file that any library of fsspec can reach; it is there whole or not at all."""
    import fsspec

    with fsspec.open(place, "rb") as source, atomic_path(path) as temporary, temporary.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _own_name(path: str | None) -> str:
    """The name of the file in a path like "zip://a/b.mp4::/data/x.zip"; "" when it tells no kind of media."""
    name = posixpath.basename((path or "").partition("::")[0].partition("?")[0].replace("\\", "/"))
    return name if is_media_name(name) and not name.startswith(".") else ""


def _suffix(head: bytes) -> str:
    return next((end for (at, mark), end in SIGNATURES.items() if head[at : at + len(mark)] == mark), "")
