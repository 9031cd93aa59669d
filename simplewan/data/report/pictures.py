"""From the frames of a clip to small pictures, and to the few numbers by which clips are compared.

Imports the room's records; numpy and PIL. The hash is a difference hash: one bit for each pair of neighbours in a row
of a picture shrunk to 9 x 8. By itself it takes much for the same that only has the same outlines, so the colours of
16 x 16 cells are kept beside it and decide.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from simplewan.data.buckets import Clip, Size

STRIP_FRAMES = 5  # a clip has 4n + 1 frames: 0, n, 2n, 3n and 4n are spread over it evenly
LOOK_FRAMES = 3  # the first three of those: half of the clip is decoded
FRAME_PIXELS = 17_500  # the area of a frame of a strip
JPEG_QUALITY = 72
CELLS = 16
HASH_WIDTH, HASH_HEIGHT = 9, 8
# A neighbour counts as brighter from this on (of 255): in flat areas the noise of encoding must not decide.
BRIGHTER = 1.5


@dataclass(frozen=True)
class Grid:
    """Where to look in a file: `count` frames from `start_seconds`, `rate` a second, all on the grid of training."""

    start_seconds: float
    rate: float
    source_fps: float
    count: int


@dataclass(frozen=True)
class Strip:
    """What is shown of a clip, as JPEG: its frames after resizing and cropping side by side, and a whole source frame.

    Sizes are those of one frame and of the source's picture, in pixels.
    """

    frames: bytes
    frame_size: Size
    num_frames: int
    source: bytes
    source_size: Size


@dataclass(frozen=True)
class Look:
    """What is remembered of a file: hashes and cells of one or two of its frames, and its middle as JPEG.

    `brightness` is the mean of the brightest frame, `motion` the largest change of a cell between two frames, both of
    255; a picture has no motion.
    """

    hashes: tuple[int, ...]
    cells: bytes
    brightness: float
    motion: float | None
    picture: bytes
    picture_size: Size


def grid_of(clip: Clip) -> Grid:
    """The frames of a clip that a strip shows."""
    step = (clip.num_frames - 1) // (STRIP_FRAMES - 1)
    rate, count = (clip.fps / step, STRIP_FRAMES) if step else (clip.sample_fps, 1)
    return Grid(clip.start_seconds, rate, clip.source_fps, count)


def shrunk_size(width: float, height: float) -> Size:
    """A size of the same shape and FRAME_PIXELS; never more than four to one, so that it can be laid out."""
    aspect = min(4.0, max(0.25, width / height))
    return round(math.sqrt(FRAME_PIXELS * aspect)), round(math.sqrt(FRAME_PIXELS / aspect))


def fitted(frame_HWC: np.ndarray, clip: Clip) -> Image.Image:
    """One frame (H, W, 3) uint8 as it is after `clip`'s resizing and cropping, shrunk."""
    height, width = frame_HWC.shape[:2]
    across, down = width / clip.resize_width, height / clip.resize_height
    box = (
        clip.crop_left * across,
        clip.crop_top * down,
        min(width, (clip.crop_left + clip.width) * across),
        min(height, (clip.crop_top + clip.height) * down),
    )
    size = shrunk_size(clip.width, clip.height)
    return Image.fromarray(frame_HWC).resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def whole(frame_HWC: np.ndarray, size: Size) -> Image.Image:
    """One frame shrunk, all of it; `size` is that of the picture as shown, since pixels may be oblong."""
    shrunk = shrunk_size(*size)
    return Image.fromarray(frame_HWC).resize(shrunk, Image.Resampling.BICUBIC, reducing_gap=3.0)


def strip_of(frames: Sequence[Image.Image], source: Image.Image) -> Strip:
    """The frames of a clip side by side, and the source's."""
    width, height = frames[0].size
    joined = Image.new("RGB", (width * len(frames), height))
    for number, frame in enumerate(frames):
        joined.paste(frame, (number * width, 0))
    return Strip(_jpeg(joined), (width, height), len(frames), _jpeg(source), source.size)


def look_of(frames: Sequence[Image.Image]) -> Look:
    """What is remembered of the (whole, shrunk) frames at the beginning, a quarter and the middle, or of the only one.

    The beginning is not compared: many clips open on black or a title.
    """
    cells = np.stack([_cells(frame) for frame in frames])
    compared = range(1, len(frames)) if len(frames) > 1 else range(1)
    steps = np.abs(np.diff(cells.astype(np.int16), axis=0))
    middle = frames[-1]
    return Look(
        hashes=tuple(difference_hash(frames[at]) for at in compared),
        cells=cells[compared.start :].tobytes(),
        brightness=round(float(cells.mean(axis=(1, 2, 3)).max()), 2),
        motion=float(steps.max()) if len(frames) > 1 else None,
        picture=_jpeg(middle),
        picture_size=middle.size,
    )


def difference_hash(picture: Image.Image) -> int:
    """64 bits: whether each pixel of the grey picture at 9 x 8 is brighter than the one to its left."""
    small = picture.convert("F").resize((HASH_WIDTH, HASH_HEIGHT), Image.Resampling.BOX)
    brighter = np.diff(np.asarray(small), axis=1) > BRIGHTER
    return int.from_bytes(np.packbits(brighter).tobytes(), "big")


def _cells(picture: Image.Image) -> np.ndarray:
    """The mean colours of CELLS x CELLS parts, (CELLS, CELLS, 3) uint8."""
    return np.asarray(picture.resize((CELLS, CELLS), Image.Resampling.BOX))


def _jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True)
    return stream.getvalue()
