"""Is a clip decoded, resized and cut as fast as the plainest loop over PyAV does it?

The plain loop is what a first script does: decode with PyAV's own settings, `frame.reformat` to the size, `to_ndarray`.
It resizes bilinearly, squeezes what has another shape, halves the colours' resolution across, and takes damage for
pictures. Ours is bicubic and exact to the rounding, with all colours, cuts to the shape, and reports damage: H.264 is
decoded in one thread for that, which costs on clips whose pictures are coded in slices, as these are. Both take every
frame. Asked for: at least 0.9 of the plain loop's speed.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np

from benchmarks.timing import Row, alternate, ratios, row
from simplewan.data.backends import LocalBackend, Source
from simplewan.data.buckets import Clip
from simplewan.data.loading import load_clip
from simplewan.data.mediainfo import load_av
from simplewan.data.samples import Sample

SOURCE = (854, 480)
TARGETS = ((832, 480), (416, 240))
SECONDS, FPS = 5, 30
ROUNDS = 15
ASKED_RATIO = 0.9


def run() -> list[Row]:
    """Frames a second of both at two sizes, and ours by theirs in the same turn."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_texture(path)
        for target in TARGETS:
            sample = _sample(path, target)
            assert load_clip(sample).shape == (SECONDS * FPS, 3, *target[::-1])
            assert [frame.shape for frame in plain_loop(path, target)] == [(*target[::-1], 3)] * SECONDS * FPS
            times = alternate(
                {
                    "ours": lambda sample=sample: load_clip(sample),
                    "plain": lambda target=target: plain_loop(path, target),
                },
                rounds=ROUNDS,
            )
            size = f"{target[0]}x{target[1]}"
            for name, seconds in times.items():
                speeds = [SECONDS * FPS / value for value in seconds]
                rows.append(row(f"decode: {SOURCE[0]}x{SOURCE[1]} to {size}, {name}", speeds, "frames/s"))
            rows.append(
                row(
                    f"decode: to {size}, speed by the plain loop's",
                    ratios(times["plain"], times["ours"]),
                    "x",
                    f"asked for: >= {ASKED_RATIO}",
                )
            )
    return rows


def write_texture(path: Path, *, size: tuple[int, int] = SOURCE, frames: int = SECONDS * FPS) -> None:
    """An H.264 clip in which a coloured texture with detail at every scale moves about."""
    av = load_av()
    width, height = size
    texture = _texture(width + 256, height + 256)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            top, left = int(128 + 100 * np.sin(index / 17)), int(128 + 100 * np.cos(index / 23))
            pixels = np.ascontiguousarray(texture[top : top + height, left : left + width])
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _texture(width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: noise whose amplitude falls with the frequency, as that of photographs does."""
    noise = np.random.default_rng(0).normal(size=(height, width, 3))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]) + 1 / 400
    spectrum = np.fft.rfft2(noise, axes=(0, 1)) / frequency[..., None] ** 1.1
    texture = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
    return (texture / texture.std() * 48 + 128).clip(0, 255).astype(np.uint8)


def plain_loop(path: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """The clip's frames, (H, W, 3) uint8 each, as a first script over PyAV gets them."""
    import av

    with av.open(str(path)) as container:
        return [frame.reformat(*size, format="rgb24").to_ndarray() for frame in container.decode(video=0)]


def _sample(path: Path, target: tuple[int, int]) -> Sample:
    covering = (round(SOURCE[0] * target[1] / SOURCE[1]), target[1])
    clip = Clip(
        width=target[0],
        height=target[1],
        num_frames=SECONDS * FPS,
        fps=FPS,
        sample_fps=0.0,
        source_fps=0.0,
        start_seconds=0.0,
        resize_width=covering[0],
        resize_height=covering[1],
        crop_left=(covering[0] - target[0]) // 2,
        crop_top=0,
    )
    return Sample("clips/clip.mp4", "clips", Source(LocalBackend(path.parent), path.name), "", (), clip)
