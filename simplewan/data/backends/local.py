"""A folder on this machine, or one that is mounted, and everything below it.

Imports this package and the atomic writes of the room.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from simplewan.data.atomic import atomic_path
from simplewan.data.backends.base import Entry, Refused

IGNORED_SUFFIXES = (".tmp", ".temp", ".part", ".partial", ".crdownload", ".download", ".swp", ".bak", "~")


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is hidden or unfinished."""
    return name.startswith(".") or name.lower().endswith(IGNORED_SUFFIXES)


def is_ignored_path(path: str) -> bool:
    """Whether the file, or a folder on the way to it, is hidden or unfinished."""
    return any(is_ignored(part) for part in path.split("/"))


@dataclass(frozen=True)
class LocalBackend:
    """A folder and everything below it.

    Links to folders are followed, but every folder is listed once, under its real name where it has one below the
    root: so a loop of links ends.
    """

    folder: Path

    @property
    def root(self) -> str:
        return str(self.folder)

    @property
    def remarks(self) -> tuple[str, ...]:
        return ()

    @property
    def refused(self) -> tuple[Refused, ...]:
        return ()

    def list(self) -> Iterator[Entry]:
        yield from sorted(_walk(self.folder), key=itemgetter(0))

    def stat(self, path: str) -> Entry:
        stat = (self.folder / path).stat()
        return Entry(path, stat.st_size, stat.st_mtime_ns)

    def open(self, path: str) -> BinaryIO:
        return (self.folder / path).open("rb")

    def read(self, path: str) -> bytes:
        return (self.folder / path).read_bytes()

    def local_path(self, path: str) -> Path | None:
        return self.folder / path

    def identity(self, entry: Entry) -> str | None:
        return None

    def write(self, path: str, content: bytes | Path) -> None:
        with atomic_path(self.folder / path) as temporary:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                shutil.copyfile(content, temporary)

    def delete(self, path: str) -> None:
        (self.folder / path).unlink(missing_ok=True)


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
            name = item.name
            if is_ignored(name):
                continue
            try:
                if item.is_file():
                    stat = item.stat()
                    found.append(Entry(prefix + name, stat.st_size, stat.st_mtime_ns))
                elif item.is_dir():
                    (links if item.is_symlink() else folders).append((Path(item.path), f"{prefix}{name}/"))
            except OSError:  # removed since it was listed, or a link that leads nowhere
                continue
