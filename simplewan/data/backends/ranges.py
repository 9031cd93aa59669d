"""A seekable stream over something that is fetched in ranges of bytes. Imports nothing of this project.

Blocks of 1 MiB are kept, the newest 16 of a stream: a reader looks at the beginning and the end of an mp4 before it
reads the rest, and these are not fetched twice. While reading goes straight on, up to 8 blocks are asked for at once.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
MAX_RUN_BLOCKS = 8
KEPT_BLOCKS = 16
BUFFER_BYTES = 1 << 16

Fetch = Callable[[int, int], bytes]


def open_ranges(fetch: Fetch, size: int, *, beginning: bytes = b"") -> BinaryIO:
    """A stream of `size` bytes; `fetch(start, end)` gives those from `start` up to, not including, `end`.

    `beginning` is what is known of the first block already; it is used if it is the whole block. Whatever `fetch`
    raises, reading raises.
    """
    return io.BufferedReader(_Ranges(fetch, size, beginning), BUFFER_BYTES)


class _Ranges(io.RawIOBase):
    def __init__(self, fetch: Fetch, size: int, beginning: bytes) -> None:
        self._fetch, self._size = fetch, size
        self._position = 0
        self._blocks: dict[int, bytes] = {}  # in the order of their fetching
        self._next, self._run = 0, 0  # the block after those fetched last, and how many those were
        if len(beginning) >= min(size, BLOCK_BYTES):
            self._keep(0, beginning)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        if position < 0:
            raise ValueError(f"cannot seek to {position}, before the beginning")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._position >= self._size:
            return 0
        number, offset = divmod(self._position, BLOCK_BYTES)
        if number not in self._blocks:
            self._load(number)
        found = self._blocks[number][offset : offset + len(buffer)]
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)

    def _load(self, number: int) -> None:
        run = min(2 * self._run, MAX_RUN_BLOCKS) if number == self._next and self._run else 1
        start, end = number * BLOCK_BYTES, min((number + run) * BLOCK_BYTES, self._size)
        content = self._fetch(start, end)
        if len(content) != end - start:
            raise OSError(errno.EIO, f"{len(content)} bytes came instead of {end - start}")
        self._keep(number, content)

    def _keep(self, number: int, content: bytes) -> None:
        for start in range(0, len(content), BLOCK_BYTES):
            block = number + start // BLOCK_BYTES
            self._blocks.pop(block, None)
            self._blocks[block] = content[start : start + BLOCK_BYTES]
        self._run = max(1, -(-len(content) // BLOCK_BYTES))
        self._next = number + self._run
        for old in list(self._blocks)[:-KEPT_BLOCKS]:
            del self._blocks[old]
