"""Clips with PyAV: the times of their frames without decoding, and the frames that are asked for.

Imports `media` for its records and `resampling`. Frames are timed by their presentation times, so variable frame
rates need no special care; AVI holds none, there frames are evenly spaced. A damaged frame is an error, not a grey
picture: decoders hide damage, and what they invent may differ from run to run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simplewan.data.mediainfo import EXACT_CONVERSION, HD_LINES, MediaError, MediaInfo, load_av
from simplewan.data.resampling import pick_nearest, typical_rate

if TYPE_CHECKING:
    import numpy as np

# Before a start that lies far inside the file, decode from the key frame before this much earlier (seconds).
SEEK_MARGIN = 1.0
PQ, HLG = 16, 18  # transfer characteristics of HDR (ITU-T H.273)


def probe_video(path: Path) -> MediaInfo:
    """Times by reading packets, size and orientation from the first frame. Raises MediaError."""
    av = load_av()
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            times, announced = _packet_times(container, stream), stream.frames
        if not times:
            raise MediaError("holds no frame")
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            frame = next(_decoded(container, stream), None)
            if frame is None:
                raise MediaError("no frame decodes")
            return _describe(frame, stream.codec_context, times, announced)
    except av.FFmpegError as error:
        raise _as_media_error(error) from None


def _as_media_error(error: Any) -> MediaError:
    """InvalidData and the like are the file's fault; what the operating system reports need not be."""
    return MediaError(
        f"does not decode: {error.strerror or error}", lasting=not isinstance(error, (OSError, MemoryError))
    )


def _describe(frame: Any, codec: Any, times: list[float], announced: int) -> MediaInfo:
    sideways, rotation = _turn(frame)[0], frame.rotation % 360
    width, height, aspect = frame.width, frame.height, codec.sample_aspect_ratio
    remarks = []
    if aspect and aspect > 0 and aspect != 1:
        width = max(1, round(width * aspect))
    if announced > len(times):
        remarks.append(f"holds {len(times)} of the {announced} frames it announces (cut off?)")
    if int(codec.color_trc) in (PQ, HLG):
        remarks.append("is HDR; it is not tone-mapped, so it looks pale")
    rate = typical_rate(times) or 0.0
    if sideways:
        width, height = height, width
    return MediaInfo(
        width=width,
        height=height,
        num_frames=len(times),
        fps=rate,
        seconds=times[-1] + (1 / rate if rate else 0.0),
        is_image=False,
        rotation=rotation,
        times=tuple(times),
        remarks=tuple(remarks),
    )


def read_video(
    path: Path, *, num_frames: int | None, fps: float, start_seconds: float, source_fps: float
) -> Iterator[np.ndarray]:
    """The frames that `media.iter_frames` promises. Raises MediaError."""
    av = load_av()
    from av.video.reformatter import VideoReformatter

    converter = VideoReformatter()  # kept for the whole file: setting one up costs as much as a conversion
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            frames = _timed_frames(container, stream, start_seconds=start_seconds, source_fps=source_fps)
            picked = pick_nearest(frames, fps=fps, start_seconds=start_seconds)
            for _time, frame in islice(picked, num_frames):
                yield _to_rgb(frame, converter)
    except av.FFmpegError as error:
        raise _as_media_error(error) from None


def _video_stream(container: Any) -> Any:
    """The first stream of moving pictures (the cover of a song is none). Raises MediaError."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise MediaError("its codec is not known here")
            stream.thread_type = "SLICE"  # with threads by frame, damage is sometimes not reported
            return stream
    raise MediaError("holds no video, only sound" if container.streams.audio else "holds no video")


def _evenly_spaced(container: Any) -> bool:
    """AVI counts frames; the times that are derived from it are in decoding order, so they are not used."""
    return "avi" in container.format.name.split(",")


def _nominal_rate(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0) or 25.0


def _packet_times(container: Any, stream: Any) -> list[float]:
    """Seconds from the first frame for every frame that will be shown, in order; nothing is decoded."""
    stamps: list[int | None] = []
    is_vp8 = stream.codec_context.name == "vp8"
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard or packet.is_corrupt:
            continue
        # VP8 keeps reference frames that are never shown in packets of their own: bit 4 of the frame's tag.
        if is_vp8 and not memoryview(packet)[0] & 0x10:
            continue
        stamps.append(packet.pts if packet.pts is not None else packet.dts)
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if _evenly_spaced(container) or len(known) < len(stamps):
        return [index / _nominal_rate(stream) for index in range(len(stamps))]
    return [float((stamp - known[0]) * stream.time_base) for stamp in known]


def _timed_frames(
    container: Any, stream: Any, *, start_seconds: float, source_fps: float
) -> Iterator[tuple[float, Any]]:
    """(seconds from the first frame, frame) in order of time, as `_packet_times` has them."""
    if source_fps or _evenly_spaced(container):
        rate = source_fps or _nominal_rate(stream)
        yield from ((index / rate, frame) for index, frame in enumerate(_decoded(container, stream)))
        return
    origin = None if start_seconds <= SEEK_MARGIN else _seek(container, stream, start_seconds - SEEK_MARGIN)
    for index, frame in enumerate(_decoded(container, stream)):
        if frame.pts is None:
            yield index / _nominal_rate(stream), frame
            continue
        origin = frame.pts if origin is None else origin
        yield float((frame.pts - origin) * stream.time_base), frame


def _seek(container: Any, stream: Any, seconds: float) -> int | None:
    """Go to the key frame before `seconds`; the time stamp of the first frame, None where the file tells none."""
    if stream.start_time is None:
        return None
    container.seek(stream.start_time + round(seconds / stream.time_base), stream=stream, backward=True)
    return stream.start_time


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames in order of presentation. Raises MediaError at a damaged one."""
    for index, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise MediaError(f"frame {index} is damaged")
        yield frame


def _turn(frame: Any) -> tuple[bool, bool, bool]:
    """(transpose, mirror left-right, mirror top-bottom) that bring a decoded frame upright.

    From the display matrix a b u / c d v / x y w: a point goes to (a x + c y, b x + d y).
    """
    try:
        matrix = struct.unpack("<9i", bytes(frame.side_data["DISPLAYMATRIX"]))
    except KeyError:
        return False, False, False
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if b == c == 0 and a and d:
        return False, a < 0, d < 0
    if a == d == 0 and b and c:
        return True, c < 0, b < 0
    raise MediaError(f"is turned by {frame.rotation} degrees; only quarter turns are read")


def _to_rgb(frame: Any, converter: Any) -> np.ndarray:
    """(H, W, 3) uint8, upright; transparent pixels are flattened on white.

    The file's colour matrix and range are honoured; where none is named it is BT.709 from 720 lines on, BT.601 below.
    """
    import numpy as np
    from av.video.reformatter import ColorRange, Colorspace

    has_alpha = any(component.is_alpha for component in frame.format.components)
    unnamed = Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601
    rgb = converter.reformat(
        frame,
        format="rgba" if has_alpha else "rgb24",
        src_colorspace=unnamed if int(frame.colorspace) == 2 else None,
        src_color_range=int(ColorRange.JPEG) if frame.format.name.startswith("yuvj") else int(frame.color_range),
        dst_color_range=ColorRange.JPEG,
        interpolation=EXACT_CONVERSION,
    )
    pixels = rgb.to_ndarray()
    if has_alpha:
        alpha = pixels[..., 3:].astype(np.uint32)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    transpose, mirror, flip = _turn(frame)
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    if mirror:
        pixels = pixels[:, ::-1]
    if flip:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
