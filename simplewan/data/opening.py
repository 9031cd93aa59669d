"""Opening a clip or a picture wherever it lies: a file of this machine by its name, any other through its stream.

Imports the places of files and `mediainfo`. What goes wrong is a MediaError: lasting where the file is at fault,
passing where the place that holds it is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from simplewan.data.backends import Source
from simplewan.data.mediainfo import MediaError, load_av

Place = Source | Path | str

# How to set a decoder so that it reports damage. With threads for the slices of a picture, H.264 switches off the error
# resilience that notices, and HEVC drops the errors of its rows; with threads for several pictures, reports get lost
# now and then. So these two get one thread. HEVC reports nothing unless errors are to "explode"; H.264 must not: it
# would refuse harmless things at the start of an open group of pictures. To the other decoders neither matters.
REPORTING: dict[str, dict[str, str]] = {"h264": {}, "hevc": {"err_detect": "explode"}}


def name_of(place: Place) -> str:
    """The file's name without its folders."""
    return place.name if isinstance(place, Source) else Path(place).name


@contextmanager
def opened(place: Place) -> Iterator[Path | BinaryIO]:
    """The absolute path of a file of this machine, a stream at its start for any other. Raises MediaError.

    Files that are missing or empty are refused; they are what a broken copy leaves behind.
    """
    path = place.local if isinstance(place, Source) else Path(place)
    try:
        if path is not None:
            size = path.stat().st_size
        else:
            assert isinstance(place, Source)
            file = place.open()
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
    except OSError as error:
        raise cannot_read(error) from None
    if path is not None:
        _refuse_empty(size)
        yield path.absolute()  # FFmpeg takes what stands before a colon in a relative name for a protocol
        return
    with file:
        _refuse_empty(size)
        yield file


def _refuse_empty(size: int) -> None:
    if size == 0:
        raise MediaError("the file is empty (0 bytes)")


def cannot_read(error: OSError) -> MediaError:
    """What the operating system or a place reports: worth another try."""
    return MediaError(f"cannot be read: {error.strerror or error}", lasting=False)


@contextmanager
def open_video(place: Place) -> Iterator[tuple[Any, Any]]:
    """(container, stream of moving pictures) of PyAV, set to report damage.

    Raises MediaError, and turns PyAV's errors inside the context into it.
    """
    av = load_av()
    with opened(place) as file:
        try:
            # Titles in any encoding are no reason to refuse a clip.
            target = str(file) if isinstance(file, Path) else _Nameless(file)
            with av.open(target, metadata_errors="replace") as container:
                yield container, _video_stream(container)
        except av.FFmpegError as error:
            # InvalidData and the like are the file's fault; what the operating system reports need not be.
            lasting = not isinstance(error, (OSError, MemoryError))
            raise MediaError(f"does not decode: {error.strerror or error}", lasting=lasting) from None
        except OSError as error:  # of the stream: PyAV passes it on
            raise cannot_read(error) from None


class _Nameless:
    """What PyAV needs of a stream and no more: a name would have to be text, and its ending would count."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def _video_stream(container: Any) -> Any:
    """The first stream of moving pictures (the cover of a song is none). Raises MediaError."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            codec = stream.codec_context
            if codec is None:
                raise MediaError("its codec is not known here")
            stream.thread_type = "SLICE"
            if codec.name in REPORTING:
                codec.thread_count, codec.options = 1, REPORTING[codec.name]
            return stream
    raise MediaError("holds no video, only sound" if container.streams.audio else "holds no video")
