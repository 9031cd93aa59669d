"""The protocol of a place that holds files, and the records that it speaks of.

Imports nothing of this project. Everything that can go wrong in a place is an OSError whose `strerror` is for people;
FileNotFoundError and PermissionError mean what they say, any other may pass when it is tried again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable


class Entry(NamedTuple):
    """One file: its path relative to the root, its size in bytes, and a stamp that changes whenever the bytes do.

    The stamp is the time of the last modification in nanoseconds, an ETag or a revision. The size is -1 where only
    reading would tell.
    """

    path: str
    size: int
    stamp: int | str


class Refused(NamedTuple):
    """Something that a place names but cannot give: a row of a table, say. `kind` groups the reasons."""

    name: str
    reason: str
    kind: str = "not usable"


class Backend(Protocol):
    """What scanning and loading need of a place that holds files. Threads may share it."""

    @property
    def root(self) -> str:
        """The place in words and for comparing: "/data/clips", "s3://bucket/prefix". Never holds a secret."""
        ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What there is to say once all files were listed: a column that was guessed, say. Nothing before."""
        ...

    @property
    def refused(self) -> tuple[Refused, ...]:
        """What the last listing named and left out, with the reasons."""
        ...

    def list(self) -> Iterator[Entry]:
        """Every file below the root that is neither hidden nor temporary, sorted by path. Raises OSError.

        A place that is described by a table raises UserError when the table cannot be used.
        """
        ...

    def stat(self, path: str) -> Entry:
        """The entry of one file. Raises FileNotFoundError."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A seekable stream of the file's bytes; what is not asked for is not fetched, where the place can do that."""
        ...

    def read(self, path: str) -> bytes:
        """All bytes of a (small) file."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Where the file lies on this machine, or None."""
        ...

    def identity(self, entry: Entry) -> str | None:
        """What names the file's bytes without reading them, or None: then their SHA-256 is computed."""
        ...


class WritableBackend(Backend, Protocol):
    """A place that may hold caches, too. A put is all or nothing: other readers see the whole file or none."""

    def write(self, path: str, content: bytes | Path) -> None:
        """Put a file there, from bytes or from a local file; replaces one of the same name."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file of a cache; one that is not there is no error."""
        ...


@runtime_checkable
class Captioned(Protocol):
    """A place that brings captions with its files: `isinstance(backend, Captioned)` tells."""

    def captions(self, path: str) -> tuple[str, ...] | None:
        """The variants of a listed file's caption; None where it has none."""
        ...


@dataclass(frozen=True)
class Source:
    """A file in a place: all that decoding needs to open it."""

    backend: Backend
    path: str

    @property
    def name(self) -> str:
        """The last part of the path; its ending tells the kind of file."""
        return PurePosixPath(self.path).name

    @property
    def local(self) -> Path | None:
        """Where it lies on this machine, or None."""
        return self.backend.local_path(self.path)

    def open(self) -> BinaryIO:
        """A seekable stream of its bytes. Raises OSError."""
        return self.backend.open(self.path)

    def __str__(self) -> str:
        return str(self.local or f"{self.backend.root}/{self.path}")
