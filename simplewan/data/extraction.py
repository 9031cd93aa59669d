"""Where the clips of a source start. Pure arithmetic over frame numbers of the resampled source.

Imports nothing of this project. The modes are those of musubi-tuner's documentation, and random; with cuts, each scene
is a source of its own, so no clip shows parts of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

HEAD, CHUNK, SLIDE, UNIFORM, RANDOM, FULL = "head", "chunk", "slide", "uniform", "random", "full"
MODES = (HEAD, CHUNK, SLIDE, UNIFORM, RANDOM, FULL)

Draw = Callable[[int], float]


def clip_starts(
    available: int,
    num_frames: int,
    *,
    mode: str,
    frame_stride: int = 1,
    frame_sample: int = 1,
    cuts: Sequence[int] = (),
    draw: Draw | None = None,
) -> list[int]:
    """The numbers of the frames at which clips of `num_frames` start in a source of `available` frames, in order.

    None where the source has too few. `cuts` are the numbers of frames that begin a scene.

    - head: one clip, at the start of the source, whatever its cuts.
    - full: one clip, likewise; the caller makes `num_frames` as large as the source allows.
    - chunk: one beside the other from the start of each scene; what is left at its end is dropped.
    - slide: every `frame_stride` frames from the start of each scene, as long as they fit into it.
    - uniform: `frame_sample` of the starts at which a clip fits into a scene, evenly spread from the first to the last;
      one alone is the first. Fewer where there are fewer such starts.
    - random: `frame_sample` of those starts, none twice, by `draw(number)` in [0, 1) for number 0, 1, ...
      (`draws.uniform`). Asking for more leaves those that are already drawn as they are.
    """
    assert num_frames >= 1 and frame_stride >= 1 and frame_sample >= 1
    if mode not in MODES:
        raise ValueError(f"{mode!r} is no mode of extraction; there are {', '.join(MODES)}")
    if available < num_frames:
        return []
    if mode in (HEAD, FULL):
        return [0]
    scenes = scene_bounds(available, cuts)
    if mode in (CHUNK, SLIDE):
        step = num_frames if mode == CHUNK else frame_stride
        return [start for begin, end in scenes for start in range(begin, end - num_frames + 1, step)]
    fitting = [start for begin, end in scenes for start in range(begin, end - num_frames + 1)]
    if mode == UNIFORM:
        return _spread(fitting, frame_sample)
    assert draw is not None, "random starts are drawn from somewhere"
    return sorted(_drawn(fitting, frame_sample, draw))


def scene_bounds(available: int, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """(first frame, frame behind the last) of each scene. Cuts outside the source count for nothing."""
    inside = sorted({cut for cut in cuts if 0 < cut < available})
    return list(pairwise([0, *inside, available]))


def _spread(fitting: Sequence[int], count: int) -> list[int]:
    """`count` of them, as evenly as whole steps allow: number i (last / (count - 1)), rounded."""
    last = len(fitting) - 1
    count = min(count, len(fitting))
    if count <= 1:
        return list(fitting[:count])
    return [fitting[(2 * i * last + count - 1) // (2 * (count - 1))] for i in range(count)]


def _drawn(fitting: Sequence[int], count: int, draw: Draw) -> list[int]:
    """`count` of them; one that is taken already gives way to the next free one behind it, around the end."""
    taken: dict[int, None] = {}
    for number in range(min(count, len(fitting))):
        place = int(draw(number) * len(fitting))
        while place in taken:
            place = (place + 1) % len(fitting)
        taken[place] = None
    return [fitting[place] for place in taken]
