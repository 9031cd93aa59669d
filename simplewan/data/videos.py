"""Clips with PyAV: what is in a file, and the frames that are asked for.

Imports this room's opening, times and pixels. Frames are timed by their presentation times, so variable frame rates
need no special care; AVI holds none, there frames are evenly spaced. A damaged frame is an error, not a grey picture:
decoders hide damage, and what they invent may differ from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from simplewan.data.mediainfo import MediaError, MediaInfo
from simplewan.data.opening import Place, open_video
from simplewan.data.pixels import Converter, Size, turn
from simplewan.data.resampling import pick_nearest, typical_rate
from simplewan.data.seeking import decoded, is_shown, shown_times, stamp_of, timed_frames

if TYPE_CHECKING:
    from simplewan.data.pixels import Planes

PQ, HLG = 16, 18  # transfer characteristics of HDR (ITU-T H.273)


def probe_video(place: Place) -> MediaInfo:
    """Times from all packets, size and orientation from the first frame, in one reading. Raises MediaError."""
    stamps: list[int | None] = []
    with open_video(place) as (container, stream):

        def note(packet: Any) -> None:
            if is_shown(packet, stream):
                stamps.append(stamp_of(packet))

        frame = next(decoded(container, stream, fed=note), None)
        for packet in container.demux(stream):
            note(packet)
        if not stamps:
            raise MediaError("holds no frame")
        if frame is None:
            raise MediaError("no frame decodes")
        return _describe(frame, stream, shown_times(container, stream, stamps, frame.pts))


def _describe(frame: Any, stream: Any, times: list[float]) -> MediaInfo:
    codec = stream.codec_context
    width, height, aspect = frame.width, frame.height, codec.sample_aspect_ratio
    remarks = []
    if aspect and aspect > 0 and aspect != 1:
        width = max(1, round(width * aspect))
    if stream.frames > len(times):
        remarks.append(f"holds {len(times)} of the {stream.frames} frames it announces (cut off?)")
    if int(codec.color_trc) in (PQ, HLG):
        remarks.append("is HDR; it is not tone-mapped, so it looks pale")
    rate = typical_rate(times) or 0.0
    if turn(frame)[0]:
        width, height = height, width
    return MediaInfo(
        width=width,
        height=height,
        num_frames=len(times),
        fps=rate,
        seconds=times[-1] + (1 / rate if rate else 0.0),
        is_image=False,
        rotation=frame.rotation % 360,
        times=tuple(times),
        remarks=tuple(remarks),
    )


def read_video(
    place: Place,
    *,
    sizes: Sequence[Size],
    num_frames: int | None,
    fps: float,
    start_seconds: float,
    source_fps: float,
) -> Iterator[Planes]:
    """The frames that `media.iter_planes` promises. Raises MediaError."""
    converter = Converter(sizes)
    frames = timed_frames(place, start_seconds=start_seconds, source_fps=source_fps)
    for _time, frame in islice(pick_nearest(frames, fps=fps, start_seconds=start_seconds), num_frames):
        yield converter(frame)
