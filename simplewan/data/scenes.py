"""Where a clip cuts to another scene.

Imports this room's times. Frames are compared as small grey pictures. A cut is where the three frames before all differ
from the three behind, by more than half of the contrast that they have, and by far more than neighbours differ around
it. FFmpeg's own scdet looks at neighbours alone, so to it a flash of lightning is as good a cut (7.5 in one of the
clips that this was tuned on) as one from a dark scene to another (7.2).

What it finds: hard cuts, lights switched on, jumps in time that move most of the picture. What it leaves alone: flashes
of one or two frames, pans, zooms, shaking. What it misses: fades and dissolves of more than about two frames, cuts
within a motion so fast that neighbours have nothing in common.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simplewan.data.media import is_image_name
from simplewan.data.opening import Place, name_of
from simplewan.data.seeking import timed_frames

if TYPE_CHECKING:
    import numpy as np

SIZE = (64, 36)
REACH = 3  # frames on either side that are compared
# Found on real clips (cuts from 0.56 and 7.1 up, lightning at 0.32 and 2.4) and on drawn ones.
DIFFERENT = 0.4  # mean absolute difference by contrast
STANDS_OUT = 2.5  # times that of the neighbours around
NOISE = 4.0  # contrast (0..255) that counts for nothing
CALM = 0.03  # difference of neighbours that counts for nothing
# swscale: bilinear, which widens when shrinking; exact, so that the cuts are the same everywhere.
SHRINKING = 0x2 | 0x40000 | 0x80000


def find_cuts(place: Place) -> tuple[float, ...]:
    """When a new scene begins, in seconds from the first frame: each is the time of that scene's first frame.

    The whole clip is decoded. A picture has no cuts. Raises MediaError.
    """
    if is_image_name(name_of(place)):
        return ()
    from av.video.reformatter import VideoReformatter

    scaler = VideoReformatter()
    times: list[float] = []
    differences: list[tuple[float, ...]] = []
    recent: deque[tuple[np.ndarray, float]] = deque(maxlen=2 * REACH - 1)
    for seconds, frame in timed_frames(place, start_seconds=0.0, source_fps=0.0):
        small = _small(frame, scaler)
        contrast = float(small.std())
        differences.append(tuple(_difference(small, contrast, *other) for other in reversed(recent)))
        recent.append((small, contrast))
        times.append(seconds)
    return tuple(times[index] for index in cut_indices(differences))


def _small(frame: Any, scaler: Any) -> np.ndarray:
    import numpy as np

    plane = scaler.reformat(frame, *SIZE, format="gray", interpolation=SHRINKING, threads=1).planes[0]
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: SIZE[1], : SIZE[0]].astype(np.int16)


def _difference(first: np.ndarray, first_contrast: float, second: np.ndarray, second_contrast: float) -> float:
    """Mean absolute difference of two pictures by their contrast: about 1.1 for two that have nothing in common."""
    import numpy as np

    contrast = (first_contrast + second_contrast) / 2 + NOISE
    return float(np.abs(first - second).mean()) / contrast


def cut_indices(differences: Sequence[Sequence[float]]) -> list[int]:
    """The indices of frames that begin a scene; differences[i][k] is how far frame i lies from frame i - 1 - k."""
    count = len(differences)
    neighbours = [0.0, *(row[0] for row in differences[1:])]
    found = []
    for index in range(1, count):
        across = min(
            differences[index + behind][behind + before]
            for behind in range(min(REACH, count - index))
            for before in range(min(REACH, index))
        )
        around = [
            neighbours[other] for other in range(max(1, index - REACH), min(count, index + REACH + 1)) if other != index
        ]
        usual = sum(around) / len(around) if around else 0.0
        if across >= DIFFERENT and across >= STANDS_OUT * (usual + CALM):
            found.append(index)
    return found
