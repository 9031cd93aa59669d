"""Writing a file so that it is either there completely or not at all. Used by every room that keeps something.

Imports nothing of this project. The price is a second name in the same folder and two fsyncs per file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; when the block ends well, the file written there becomes `path`.

    The temporary name is hidden and has the same ending, by which libraries tell formats. Whoever may read the folder
    may read the file; some libraries write for the owner alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}"
    try:
        yield temporary
        share_with_folder(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def share_with_folder(path: Path) -> None:
    """Let whoever may read or write the folder of `path` read or write `path`."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def sync(path: Path) -> None:
    """Make a file's bytes, or the renames inside a folder, last through a power cut."""
    if os.name == "nt":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
