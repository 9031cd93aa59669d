"""What is known of a media file, how it fails, and the conversion constants that reading and writing share.

Imports nothing of this project, and PyAV when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

HD_LINES = 720
# swscale's flags for colour conversion: BICUBIC, FULL_CHR_H_INT, FULL_CHR_H_INP, ACCURATE_RND, BITEXACT. Full chroma,
# and the same bits on every processor.
EXACT_CONVERSION = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000


def load_av() -> Any:
    """The module av, with FFmpeg's messages kept in FFmpeg.

    PyAV's own log function takes Python's interpreter lock. FFmpeg's threads log too, and while one thread closes a
    file, holding the lock and waiting for them, they would wait for it: several readers would hang for good.
    """
    import av
    import av.logging

    av.logging.set_libav_level(av.logging.PANIC)
    av.logging.restore_default_callback()
    return av


class MediaError(ValueError):
    """A file that cannot be used; `reason` says why, without the file's name.

    `lasting` is false where the file itself may be sound (no permission, a disk that fails): worth another try.
    """

    def __init__(self, reason: str, *, lasting: bool = True) -> None:
        self.reason, self.lasting = reason, lasting
        super().__init__(reason)


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds. Width and height are those of the picture as shown: rotated, with square pixels.

    `times` are the frames' seconds from the first one, in order; `fps` the rate while it runs evenly (0 for a picture).
    `rotation` is in degrees counter-clockwise. `remarks` are oddities worth telling.
    """

    width: int
    height: int
    num_frames: int
    fps: float
    seconds: float
    is_image: bool
    rotation: int = 0
    times: tuple[float, ...] = (0.0,)
    remarks: tuple[str, ...] = ()
