"""Reading and writing clips and pictures: what is in a file, its frames as RGB, and mp4 files.

Imports nothing of this project but this room; PyAV and PIL are imported when a file is opened. A file is a path, or a
`Source` in any place: what lies elsewhere is read through its stream, only where it is needed. Nothing here is guessed
from headers alone: `probe` decodes the first frame, so that size and orientation are those of the picture.
Legend: F frames, H height, W width; frames are uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simplewan.data.atomic import atomic_path
from simplewan.data.images import probe_image, read_image
from simplewan.data.mediainfo import EXACT_CONVERSION, HD_LINES, MediaError, MediaInfo, load_av
from simplewan.data.opening import Place, name_of
from simplewan.data.pixels import Size, channels, resized
from simplewan.data.videos import probe_video, read_video

if TYPE_CHECKING:
    import numpy as np

    from simplewan.data.pixels import Planes

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def is_image_name(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_media_name(name: str) -> bool:
    """Whether a file's name is that of a clip or a picture that can be read."""
    return name.lower().endswith(VIDEO_SUFFIXES + IMAGE_SUFFIXES)


def probe(place: Place) -> MediaInfo:
    """What the file holds; frames are counted by reading all packets, one frame is decoded. Raises MediaError."""
    return probe_image(place) if is_image_name(name_of(place)) else probe_video(place)


def iter_frames(
    place: Place,
    *,
    num_frames: int | None = None,
    fps: float = 0.0,
    start_seconds: float = 0.0,
    source_fps: float = 0.0,
) -> Iterator[np.ndarray]:
    """The frames nearest to start + k / fps (fps 0: all), each (H, W, 3) uint8, oriented as shown.

    Pixels may be oblong (anamorphic sources); `probe` tells the shape of the picture. `source_fps` overrules the times
    in the file. A start inside the file is reached from the key frame before it, and nothing is decoded past the last
    frame that is asked for, but for the one after it, which decides which is nearer. Raises MediaError.
    """
    import numpy as np

    for planes in iter_planes(
        place, num_frames=num_frames, fps=fps, start_seconds=start_seconds, source_fps=source_fps
    ):
        yield np.stack(planes, axis=-1)


def iter_planes(
    place: Place,
    *,
    sizes: Sequence[Size] = (),
    num_frames: int | None = None,
    fps: float = 0.0,
    start_seconds: float = 0.0,
    source_fps: float = 0.0,
) -> Iterator[Planes]:
    """The frames of `iter_frames` as their red, green and blue planes (H, W) uint8, which are only to be read.

    The picture as shown is brought to each (width, height) of `sizes` in turn: bicubic and antialiased, for clips in
    one step with the conversion to RGB. Raises MediaError.
    """
    if is_image_name(name_of(place)):
        yield channels(resized(read_image(place), sizes))
        return
    yield from read_video(
        place, sizes=sizes, num_frames=num_frames, fps=fps, start_seconds=start_seconds, source_fps=source_fps
    )


def decode_frames(
    place: Place,
    *,
    num_frames: int | None = None,
    fps: float = 0.0,
    start_seconds: float = 0.0,
    source_fps: float = 0.0,
) -> np.ndarray:
    """`iter_frames` as one array (F, H, W, 3) uint8. Raises MediaError when there are fewer than `num_frames`."""
    import numpy as np

    frames = list(
        iter_frames(place, num_frames=num_frames, fps=fps, start_seconds=start_seconds, source_fps=source_fps)
    )
    if not frames or (num_frames is not None and len(frames) < num_frames):
        raise MediaError(f"has {len(frames)} frames that decode, {num_frames or 1} are needed")
    return np.stack(frames)


def write_mp4(path: Path | str, frames_FHWC: Any, fps: float, *, crf: int = 14) -> None:
    """Write frames (F, H, W, 3) uint8 (an array or a CPU tensor, or an iterable of single frames) as an H.264 mp4.

    libx264, yuv420p, atomically; equal frames give equal bytes. An odd last column or row is left out, since yuv420p
    has none. Colours are tagged: BT.709 from 720 lines on, BT.601 below, as players assume.
    """
    import numpy as np

    av = load_av()
    rate = Fraction(fps).limit_denominator(1001)
    frames: Iterable[Any] = iter(frames_FHWC)
    with atomic_path(Path(path)) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream: Any = None
        for index, frame in enumerate(frames):
            pixels = np.ascontiguousarray(np.asarray(frame, dtype=np.uint8))
            pixels = np.ascontiguousarray(pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2])
            if stream is None:
                stream = _h264_stream(container, rate, pixels.shape, crf)
            for packet in stream.encode(_yuv_frame(pixels, index, rate)):
                container.mux(packet)
        if stream is None:
            raise ValueError(f"{path}: a clip needs at least one frame")
        for packet in stream.encode(None):
            container.mux(packet)


def _h264_stream(container: Any, rate: Fraction, shape: tuple[int, ...], crf: int) -> Any:
    from av.video.reformatter import ColorRange

    # x264's macroblock tree reads memory that it has not set: with it, the same frames give other bytes now and then.
    options = {"crf": str(crf), "preset": "medium", "x264-params": "mbtree=0"}
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width = shape[0], shape[1]
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.color_range = int(ColorRange.MPEG)
    context.colorspace = context.color_primaries = context.color_trc = _matrix_tag(shape[0])
    return stream


def _matrix_tag(height: int) -> int:
    """The matrix coefficients of ITU-T H.273: 1 is BT.709, 6 is BT.601 (525 lines)."""
    return 1 if height >= HD_LINES else 6


def _yuv_frame(pixels: np.ndarray, index: int, rate: Fraction) -> Any:
    from av.video.reformatter import ColorRange, Colorspace

    av = load_av()
    matrix = Colorspace.ITU709 if pixels.shape[0] >= HD_LINES else Colorspace.ITU601
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=matrix,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=EXACT_CONVERSION,
    )
    frame.pts, frame.time_base = index, 1 / rate
    return frame
