"""Where captions come from: text files, names, one prompt for all, tables, and places that bring their own.

Imports this room. Text files are UTF-8 (a byte order mark is fine); one that
is not is refused rather than read with some letters replaced, since the text encoder would see other words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath

from simplewan.data.backends import Entry

SUFFIX = ".txt"

# The variants of a file's caption. Raises CaptionError.
Captions = Callable[[Entry], tuple[str, ...]]


class CaptionError(ValueError):
    """A caption that cannot be used; `kind` groups the reasons."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(reason)


def text_files(files: Mapping[str, Entry], contents: Mapping[str, bytes | str]) -> Captions:
    """a.txt beside a.mp4, one variant a line.

    `files` are those of `caption_files`, `contents` their bytes by path, or the reason why one cannot be read.
    """

    def captions(entry: Entry) -> tuple[str, ...]:
        file = files.get(stem(entry.path))
        if file is None:
            raise missing_caption(entry.path, files)
        content = contents[file.path]
        if isinstance(content, str):
            raise CaptionError("broken caption", f"its caption {file.path} cannot be read: {content}")
        return parse_captions(content, PurePosixPath(file.path).name)

    return captions


def from_names(entry: Entry) -> tuple[str, ...]:
    """The words of the file's name: "a_red-fox_01.mp4" is "a red fox"; a number at its end only tells files apart."""
    words = re.sub(r"[_\-\s]+", " ", PurePosixPath(entry.path).stem).strip()
    caption = re.sub(r"\s*\(?\d+\)?$", "", words).strip()
    if not caption:
        raise CaptionError("no caption", "its name holds no words")
    return (caption,)


def always(*variants: str) -> Captions:
    """The same for every file."""
    return lambda _entry: variants


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
        raise CaptionError("empty caption", f"its caption {name} is empty")
    return variants


def caption_files(entries: Iterable[Entry]) -> dict[str, Entry]:
    """Text files by the path without the suffix, which they share with the clips they describe.

    Where there is both a.txt and a.TXT the first is taken.
    """
    files: dict[str, Entry] = {}
    for entry in entries:
        if entry.path[-4:].lower() == SUFFIX and (entry.path.endswith(SUFFIX) or stem(entry.path) not in files):
            files[stem(entry.path)] = entry
    return files


def stem(path: str) -> str:
    """The path without its last suffix: "sub/a.mp4" and "sub/a.txt" share "sub/a"."""
    folder, slash, name = path.rpartition("/")
    cut = name.rfind(".")
    return f"{folder}{slash}{name[:cut] if cut > 0 else name}"


def missing_caption(path: str, files: Mapping[str, Entry]) -> CaptionError:
    """Why a clip has no caption, and the name that one should have."""
    wanted = PurePosixPath(stem(path)).name + SUFFIX
    if path in files:
        return CaptionError("no caption", f"no caption file {wanted}; rename {PurePosixPath(files[path].path).name}")
    return CaptionError("no caption", f"no caption file {wanted} beside it")
