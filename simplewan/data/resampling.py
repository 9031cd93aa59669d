"""Which source frames make a clip at the model's frame rate. Pure arithmetic over times in seconds.

Imports nothing of this project. Scanning runs it over the times of packets, loading over decoded frames: the same
function on the same times, so both take the same frames. It looks one frame ahead and no further, so loading decodes
only what it uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")

# Times nearer than this (seconds) count as equal; containers round to 1e-3, 1e-5 or finer.
TIE = 1e-6


def pick_nearest(
    frames: Iterable[tuple[float, T]], *, fps: float, start_seconds: float = 0.0
) -> Iterator[tuple[float, T]]:
    """Of `frames` (time, frame), in order of time, those nearest to start + k / fps for k = 0, 1, 2, ...

    No frame is taken twice: where the source has none for a while (or is slower than `fps`) the clip has fewer
    frames, never invented ones. Of two frames equally near the earlier is taken. fps 0 takes every frame.
    """
    for _wanted, time, frame in _pick(frames, fps=fps, start_seconds=start_seconds):
        yield time, frame


def sample_times(times: Iterable[float], *, fps: float) -> list[tuple[float, float]]:
    """(start, time) of each frame that `pick_nearest` takes of a source with these times.

    A clip that begins at `start` has the frames from this one on, the same ones as here: starts lie on the grid of
    k / fps (with fps 0 they are the times themselves).
    """
    return [(wanted, time) for wanted, time, _ in _pick(((time, None) for time in times), fps=fps)]


def _pick(
    frames: Iterable[tuple[float, T]], *, fps: float, start_seconds: float = 0.0
) -> Iterator[tuple[float, float, T]]:
    """(the first point of the grid that the frame is nearest to, its time, frame)."""
    k = 0
    previous: tuple[float, T] | None = None
    interval = 0.0
    for current in frames:
        if fps <= 0:
            if current[0] >= start_seconds - TIE:
                yield current[0], *current
            continue
        if previous is not None:
            interval = current[0] - previous[0]
            middle = (previous[0] + current[0]) / 2 + TIE
            if start_seconds + k / fps <= middle:
                yield start_seconds + k / fps, *previous
                while start_seconds + k / fps <= middle:
                    k += 1
        previous = current
    # The last frame is on screen for as long as the one before it was.
    if previous is not None and start_seconds + k / fps < previous[0] + max(interval - TIE, TIE):
        yield start_seconds + k / fps, *previous


def typical_rate(times: list[float]) -> float | None:
    """Frames a second while the source runs evenly; None for fewer than two frames.

    The mean of the intervals that lie within half of the median: a frozen stretch or a few dropped frames do not make
    a 30 fps clip a slow one, and a container's rounding to milliseconds averages out.
    """
    intervals = sorted(later - earlier for earlier, later in pairwise(times) if later > earlier)
    if not intervals:
        return None
    median = intervals[len(intervals) // 2]
    even = [interval for interval in intervals if 0.5 * median <= interval <= 1.5 * median]
    return len(even) / sum(even)


def count_gaps(times: list[float], fps: float) -> int:
    """How often two frames that follow each other in a clip lie more than 1.75 frame times apart."""
    return sum(1 for earlier, later in pairwise(times) if later - earlier > 1.75 / fps)
