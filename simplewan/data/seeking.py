"""The times of a clip's frames: of all of them from its packets, and of those behind a start while they are decoded.

Imports this room's opening and resampling. A start inside a file is reached from the key frame before it, wherever
that gives the very frames with the very times that decoding from the beginning gives; where that is not certain,
decoding starts at the beginning:
- a file whose first decoded frame, after three tries, lies behind the start, or refers to others;
- a file of which some packets or frames have no time, or the same as another.
With `source_fps` frames are counted, too: all packets before the start are read, but not decoded.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from typing import Any

from simplewan.data.mediainfo import MediaError, load_av
from simplewan.data.opening import Place, open_video
from simplewan.data.resampling import TIE

# A file may come to rest behind the place that was asked for, since it seeks by when frames are decoded; then it is
# asked for one this much earlier (seconds).
SEEK_MARGINS = (0.0, 0.5, 3.0)

Timed = tuple[float, Any]


def is_shown(packet: Any, stream: Any) -> bool:
    """Whether a packet holds a frame that will be shown (an edit list may cut some off)."""
    if not packet.size or packet.is_discard or packet.is_corrupt:
        return False
    # VP8 keeps reference frames that are never shown in packets of their own: bit 4 of the frame's tag.
    return stream.codec_context.name != "vp8" or bool(memoryview(packet)[0] & 0x10)


def stamp_of(packet: Any) -> int | None:
    """When the packet's frame is shown, in the stream's time base."""
    return packet.pts if packet.pts is not None else packet.dts


def shown_times(container: Any, stream: Any, stamps: list[int | None], first: int | None) -> list[float]:
    """Seconds from the first frame, in order, from the stamps of all packets that are shown.

    `first` is the stamp of the first frame that decodes. Some may lie before it: a clip that was cut out of another
    may begin with frames that refer to what is gone.
    """
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if _evenly_spaced(container) or len(known) < len(stamps):
        return [index / _nominal_rate(stream) for index in range(len(stamps))]
    origin = known[0] if first is None else first
    return [float((stamp - origin) * stream.time_base) for stamp in known if stamp >= origin]


def timed_frames(place: Place, *, start_seconds: float, source_fps: float) -> Iterator[Timed]:
    """(seconds from the first frame, frame) in order of time, as `shown_times` has them.

    The first of them is not later than `start_seconds`, unless all are. `source_fps` overrules the times in the file.
    While one is looked at, a thread decodes the next. Raises MediaError at a damaged frame.
    """
    frames = _in_turn(place, start_seconds, source_fps)
    with closing(frames), ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, frames, None)
        while (current := following.result()) is not None:
            following = pool.submit(next, frames, None)
            yield current


def _in_turn(place: Place, start_seconds: float, source_fps: float) -> Generator[Timed, None, None]:
    if start_seconds > 0:
        with open_video(place) as (container, stream):
            frames = _from_key_frame(container, stream, start_seconds, source_fps)
            if frames is not None:
                yield from frames
                return
    with open_video(place) as (container, stream):
        yield from _from_beginning(container, stream, source_fps)


def decoded(container: Any, stream: Any, *, fed: Callable[[Any], None] | None = None) -> Iterator[Any]:
    """Frames in order of presentation; `fed` sees every packet first. Raises MediaError at a damaged frame."""
    av = load_av()
    seconds = 0.0
    for packet in container.demux(stream):
        if fed is not None:
            fed(packet)
        if packet.dts is not None:
            seconds = max(0.0, float((packet.dts - (stream.start_time or 0)) * stream.time_base))
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            raise _damaged(seconds) from None
        for frame in frames:
            if frame.is_corrupt:
                raise _damaged(seconds)
            yield frame


def _damaged(seconds: float) -> MediaError:
    return MediaError(f"is damaged near {seconds:.1f} seconds, it does not decode there")


def _evenly_spaced(container: Any) -> bool:
    """AVI counts frames; the times that are derived from it are in decoding order, so they are not used."""
    return "avi" in container.format.name.split(",")


def _nominal_rate(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0) or 25.0


def _from_beginning(container: Any, stream: Any, source_fps: float) -> Iterator[Timed]:
    if source_fps or _evenly_spaced(container):
        rate = source_fps or _nominal_rate(stream)
        yield from ((index / rate, frame) for index, frame in enumerate(decoded(container, stream)))
        return
    origin: int | None = None
    for index, frame in enumerate(decoded(container, stream)):
        if frame.pts is None:
            yield index / _nominal_rate(stream), frame
            continue
        origin = frame.pts if origin is None else origin
        yield float((frame.pts - origin) * stream.time_base), frame


@dataclass(frozen=True)
class _Read:
    """The clock of a file that holds the times of its frames."""

    origin: int
    time_base: Fraction

    def stamp(self, seconds: float) -> int:
        return self.origin + round(seconds / self.time_base)

    def seconds(self, stamp: int) -> float:
        return float((stamp - self.origin) * self.time_base)


@dataclass(frozen=True)
class _Counted:
    """The clock of frames that are counted: the stamps of the first of them, in order, and how many make a second."""

    stamps: list[int]
    rate: float

    def stamp(self, seconds: float) -> int:
        return self.stamps[min(max(int(seconds * self.rate), 0), len(self.stamps) - 1)]

    def seconds(self, stamp: int) -> float | None:
        index = bisect_left(self.stamps, stamp)
        return index / self.rate if index < len(self.stamps) and self.stamps[index] == stamp else None


def _from_key_frame(container: Any, stream: Any, start: float, source_fps: float) -> Iterator[Timed] | None:
    """`timed_frames` from the key frame before `start`; None where it takes decoding from the beginning."""
    av = load_av()
    # AVI only counts frames, in the order in which they are stored. A frame's dts is that of the packet that brought
    # it out, and those follow each other as the frames are shown, however they were stored.
    stamp_name = "dts" if _evenly_spaced(container) else "pts"
    rate = source_fps or (_nominal_rate(stream) if _evenly_spaced(container) else 0.0)
    try:
        clock = _clock(container, stream, stamp_name, rate, start)
        if clock is None:
            return None
        for earlier in SEEK_MARGINS:
            container.seek(clock.stamp(start - earlier), stream=stream, backward=True)
            frames = decoded(container, stream)
            first = next(frames, None)
            stamp = getattr(first, stamp_name, None)
            seconds = None if stamp is None else clock.seconds(stamp)
            if seconds is not None and seconds <= start + TIE and _is_whole(first):
                return _timed(chain([first], frames), clock, seconds, _nominal_rate(stream))
    except (av.FFmpegError, MediaError):
        pass  # it cannot seek, or is damaged: decoding from the beginning tells
    return None


def _is_whole(frame: Any) -> bool:
    """Whether a frame refers to no other, as far as its decoder tells.

    Where a clip refreshes its pictures bit by bit (x264's intra-refresh) decoding may begin at one that does; the
    pictures are nearly right from then on.
    """
    from av.video.frame import PictureType

    return int(frame.pict_type) not in (PictureType.P, PictureType.B, PictureType.S)


def _clock(container: Any, stream: Any, stamp_name: str, rate: float, start: float) -> _Read | _Counted | None:
    """The times of frames by their stamps; None where stamps are missing or not one for each frame.

    The first frame is decoded, since only that tells which it is. For counting, the packets up to `start` are read.
    """
    stamps: list[int | None] = []

    def note(packet: Any) -> None:
        if is_shown(packet, stream):
            stamps.append(getattr(packet, stamp_name))

    first = next(decoded(container, stream, fed=note), None)
    origin = getattr(first, stamp_name, None)
    if origin is None:
        return None
    if not rate:
        return _Read(origin, stream.time_base)
    known = sorted(stamp for stamp in stamps if stamp is not None and stamp >= origin)
    wanted = int(start * rate) + 1
    for packet in container.demux(stream):
        if len(known) > wanted and packet.dts is not None and packet.dts > known[wanted]:
            break  # none is shown before it is decoded: those up to the start are known
        if is_shown(packet, stream):
            stamp = getattr(packet, stamp_name)
            stamps.append(stamp)
            if stamp is not None and stamp >= origin:
                insort(known, stamp)  # at the end or near it
    if None in stamps or any(earlier == later for earlier, later in pairwise(known)):
        return None
    return _Counted(known, rate)


def _timed(frames: Iterator[Any], clock: _Read | _Counted, first: float, nominal_rate: float) -> Iterator[Timed]:
    if isinstance(clock, _Counted):
        for index, frame in enumerate(frames, start=round(first * clock.rate)):
            yield index / clock.rate, frame
        return
    seconds = first
    for frame in frames:
        seconds = seconds + 1 / nominal_rate if frame.pts is None else clock.seconds(frame.pts)
        yield seconds, frame
