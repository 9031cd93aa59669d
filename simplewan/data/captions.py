"""Captions from text files: `a.txt` beside `a.mp4`, one variant a line.

Imports this room's backends alone. Files are UTF-8 (a byte order mark is fine); one that is not is refused rather than
read with some letters replaced, since the text encoder would see other words.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from simplewan.data.backends import Entry

SUFFIX = ".txt"


class CaptionError(ValueError):
    """A caption file that cannot be used; `kind` groups the reasons."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(reason)


def parse_captions(content: bytes, name: str) -> tuple[str, ...]:
    """The non-empty lines, stripped. Raises CaptionError when there are none or the bytes are not UTF-8."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(
            "broken caption", f"its caption {name} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").split("\n")
    variants = tuple(line.strip() for line in lines if line.strip())
    if not variants:
        raise CaptionError("no caption", f"its caption {name} is empty")
    return variants


def caption_files(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Text files by the path without the suffix, which they share with the clips they describe.

    Where there is both a.txt and a.TXT the first is taken.
    """
    files: dict[str, Entry] = {}
    for entry in entries:
        path = PurePosixPath(entry.path)
        if path.suffix.lower() == SUFFIX and (path.suffix == SUFFIX or stem(entry.path) not in files):
            files[stem(entry.path)] = entry
    return files


def stem(path: str) -> str:
    """The path without its last suffix: "sub/a.mp4" and "sub/a.txt" share "sub/a"."""
    return str(PurePosixPath(path).with_suffix(""))


def missing_caption(path: str, files: dict[str, Entry]) -> CaptionError:
    """Why a clip has no caption, and the name that one should have."""
    wanted = PurePosixPath(stem(path)).name + SUFFIX
    if path in files:
        return CaptionError("no caption", f"no caption file {wanted}; rename {PurePosixPath(files[path].path).name}")
    return CaptionError("no caption", f"no caption file {wanted} beside it")
