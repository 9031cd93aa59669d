"""Files for the tests of the data room, written with PyAV. Frame i of a clip is a flat grey of known brightness."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from simplewan.data.backends.opening import open_backend
from simplewan.data.samples import Scan
from simplewan.data.scan import scan
from simplewan.events import silent
from simplewan.flavours import find_flavour
from simplewan.options.datasets import DatasetOptions

GREY_STEP = 8


def grey(index: int) -> int:
    return 12 + GREY_STEP * (index % 28)


def grey_index(frame: np.ndarray) -> int:
    """Which frame (modulo 28) a decoded picture is, from the brightness of its lower right quarter."""
    quarter = frame[frame.shape[0] // 2 :, frame.shape[1] // 2 :]
    return round((float(quarter.mean()) - 12) / GREY_STEP)


def picture(index: int, size: tuple[int, int] = (64, 48), marked: bool = False) -> np.ndarray:
    pixels = np.full((size[1], size[0], 3), grey(index), np.uint8)
    if marked:  # red in the upper left corner, to see which way is up
        pixels[: size[1] // 4, : size[0] // 4] = (230, 20, 20)
    return pixels


def write_clip(
    path: Path,
    *,
    frames: int = 20,
    rate: int = 16,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: float | None = None,
    milliseconds: Sequence[int] | None = None,
    marked: bool = False,
    aspect: Fraction | None = None,
    stream_setup: Any = None,
    pictures: Sequence[np.ndarray] | None = None,
    container_options: dict[str, str] | None = None,
    first: int = 0,
) -> Path:
    """A clip of flat greys, or of `pictures`; frame i has the time `first` + i, or milliseconds[i]."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    base = Fraction(1, 1000) if milliseconds else Fraction(1, rate)
    if pictures is not None:
        frames, size = len(pictures), (pictures[0].shape[1], pictures[0].shape[0])
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if milliseconds:
            stream.codec_context.time_base = base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if stream_setup:
            stream_setup(stream)
        for index, stamp in enumerate(milliseconds or range(first, first + frames)):
            pixels = picture(index, size, marked) if pictures is None else pictures[index]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24" if pixels.shape[2] == 3 else "rgba")
            frame.pts, frame.time_base = stamp, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def caption(path: Path, text: str = "a clip") -> None:
    path.with_suffix(".txt").write_text(text, encoding="utf-8")


def dataset(folder: Path, *, video: dict[str, Any] | None = None, **keys: Any) -> DatasetOptions:
    keys = {"id": "clips", "dataset_type": "video", "resolution": "64x48", **keys}
    return DatasetOptions(instance_data_dir=folder, video={"num_frames": 9, **(video or {})}, **keys)


def scanned(options: DatasetOptions, index_folder: Path, *, flavour: str = "t2v-mini-low", **hooks: Any) -> Scan:
    hooks = {"emit": silent, "check": lambda: None, **hooks}
    backend = open_backend(options, cache=index_folder, emit=hooks["emit"])
    return scan(options, backend, flavour=find_flavour(flavour), index_folder=index_folder, **hooks)
