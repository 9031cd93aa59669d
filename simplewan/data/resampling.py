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
    k = 0
    previous: tuple[float, T] | None = None
    interval = 0.0
    for current in frames:
        if fps <= 0:
            if current[0] >= start_seconds - TIE:
                yield current
            continue
        if previous is not None:
            interval = current[0] - previous[0]
            middle = (previous[0] + current[0]) / 2 + TIE
            if start_seconds + k / fps <= middle:
                yield previous
                while start_seconds + k / fps <= middle:
                    k += 1
        previous = current
    # The last frame is on screen for as long as the one before it was.
    if previous is not None and start_seconds + k / fps < previous[0] + max(interval - TIE, TIE):
        yield previous


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
