"""Where the files of a dataset are: one small protocol, and the local folder behind it.

Imports nothing of this project. Paths are relative to the root, with "/" between the parts, on every system. Source
files are only ever read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

IGNORED_SUFFIXES = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".swp", ".bak", "~")


@dataclass(frozen=True)
class Entry:
    """One file: its path relative to the root, its size in bytes and when it was last modified (nanoseconds)."""

    path: str
    size: int
    mtime_ns: int


class Backend(Protocol):
    """What scanning and loading need of a place that holds files."""

    def list(self) -> Iterator[Entry]:
        """Every file below the root that is neither hidden nor temporary, sorted. Raises OSError."""
        ...

    def stat(self, path: str) -> Entry:
        """The entry of one file. Raises FileNotFoundError."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A seekable stream of the file's bytes."""
        ...

    def read(self, path: str) -> bytes:
        """All bytes of a (small) file."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Where the file lies on this machine, or None."""
        ...


class LocalBackend:
    """A folder and everything below it.

    Links to folders are followed, but every folder is listed once, under its real name where it has one below the
    root: so a loop of links ends.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> Iterator[Entry]:
        yield from sorted(_walk(self.root), key=lambda entry: entry.path)

    def stat(self, path: str) -> Entry:
        stat = (self.root / path).stat()
        return Entry(path, stat.st_size, stat.st_mtime_ns)

    def open(self, path: str) -> BinaryIO:
        return (self.root / path).open("rb")

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def local_path(self, path: str) -> Path | None:
        return self.root / path


def _walk(root: Path) -> list[Entry]:
    seen: set[tuple[int, int]] = set()
    found: list[Entry] = []
    waiting = [(root, "")]
    while waiting:
        links: list[tuple[Path, str]] = []
        while waiting:
            folder, prefix = waiting.pop()
            stat = folder.stat()
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                _list_folder(folder, prefix, found, waiting, links)
        waiting = sorted(links, key=lambda link: link[1], reverse=True)
    return found


def _list_folder(
    folder: Path,
    prefix: str,
    found: list[Entry],
    folders: list[tuple[Path, str]],
    links: list[tuple[Path, str]],
) -> None:
    with os.scandir(folder) as items:
        for item in items:
            if item.name.startswith(".") or item.name.lower().endswith(IGNORED_SUFFIXES):
                continue
            try:
                if item.is_dir():
                    (links if item.is_symlink() else folders).append((Path(item.path), f"{prefix}{item.name}/"))
                elif item.is_file():
                    stat = item.stat()
                    found.append(Entry(f"{prefix}{item.name}", stat.st_size, stat.st_mtime_ns))
            except OSError:  # removed since it was listed, or a link that leads nowhere
                continue
