"""Bucket arithmetic: the size and the number of frames that a source is trained at. Pure: numbers in, numbers out.

Imports nothing of this project. Sizes are (width, height) in pixels, aspect ratios width / height.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

MEGAPIXEL = 1_000_000
SQUARE, PRESERVE, CLOSEST, RANDOM = "square", "preserve", "closest", "random"
CENTER, CORNER, FACE = "center", "corner", "face"

Size = tuple[int, int]


@dataclass(frozen=True)
class Clip:
    """Everything that decides the pixels of a sample, so all of it belongs in a cache key.

    `sample_fps` is the rate at which source frames are picked (0: every frame), `fps` the rate that results: lower
    where the source is slower. `source_fps` overrules the times in the file (0: not). The source is first brought to
    `downsample_*` (0: not), then to `resize_*`, then the rectangle `width` x `height` at (`crop_left`, `crop_top`) is
    cut out.
    """

    width: int
    height: int
    num_frames: int
    fps: float
    sample_fps: float
    source_fps: float
    start_seconds: float
    resize_width: int
    resize_height: int
    crop_left: int
    crop_top: int
    downsample_width: int = 0
    downsample_height: int = 0

    @property
    def bucket(self) -> str:
        return f"{self.width}x{self.height}@{self.num_frames}"


@dataclass(frozen=True)
class SizeRule:
    """How sizes are chosen. `exact` sizes win over `resolution`; None switches a bound off.

    The bounds and `target_downsample` are in the unit of `resolution_type`: pixel (shorter edge), pixel_area (edge of
    a square of the same area) or area (megapixels).
    """

    resolution: float
    resolution_type: str = "pixel_area"
    exact: tuple[Size, ...] = ()
    multiple: int = 16
    aspect_rounding: int = 2
    shape: str = PRESERVE
    aspects: tuple[float, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    target_downsample: float | None = None
    minimum_aspect: float | None = None
    maximum_aspect: float | None = None


@dataclass(frozen=True)
class FrameRule:
    """How many frames are taken. `num_frames` None: as many as there are (bucket_strategy resolution_frames)."""

    num_frames: int | None
    min_frames: int
    max_frames: int | None = None
    interval: int = 1


def floor_frames(frames: int) -> int:
    """The largest 4n + 1 that is not above `frames` (at least 1): what Wan's VAE takes."""
    return max(1, (frames - 1) // 4 * 4 + 1)


def round_to_multiple(pixels: float, multiple: int) -> int:
    """The nearest multiple (halves go up), at least one."""
    return max(multiple, math.floor(pixels / multiple + 0.5) * multiple)


def floor_to_multiple(pixels: int, multiple: int) -> int:
    """The largest multiple that is not above `pixels`, at least one."""
    return max(multiple, pixels // multiple * multiple)


def measure(width: int, height: int, resolution_type: str) -> float:
    """The size of a picture in the unit of `resolution_type`."""
    if resolution_type == "pixel":
        return min(width, height)
    if resolution_type == "area":
        return width * height / MEGAPIXEL
    return math.sqrt(width * height)


def scaled_size(width: int, height: int, value: float, resolution_type: str) -> Size:
    """The picture made as large as `value` says, its aspect kept."""
    length = measure(width, height, resolution_type)
    factor = math.sqrt(value / length) if resolution_type == "area" else value / length
    return max(1, round(width * factor)), max(1, round(height * factor))


def target_size(width: int, height: int, rule: SizeRule) -> Size:
    """The bucket's size for a source of `width` x `height`.

    By area: W = round(edge sqrt(a)), H = round(edge / sqrt(a)), rounded to the multiple, where a is the aspect ratio
    rounded to `aspect_rounding` decimals: sources of nearly the same shape share a bucket. A source on its side gets
    the same size on its side.
    """
    if rule.exact:
        return min(rule.exact, key=lambda size: _aspect_distance(width / height, size[0] / size[1]))
    aspect = bucket_aspect(max(width, height) / min(width, height), width < height, rule)
    if rule.resolution_type == "pixel":
        across, down = (rule.resolution * max(1.0, aspect), rule.resolution * max(1.0, 1 / aspect))
    else:
        edge = math.sqrt(rule.resolution * MEGAPIXEL) if rule.resolution_type == "area" else rule.resolution
        across, down = edge * math.sqrt(aspect), edge / math.sqrt(aspect)
    size = round_to_multiple(across, rule.multiple), round_to_multiple(down, rule.multiple)
    return size[::-1] if width < height else size


def bucket_aspect(aspect: float, upright: bool, rule: SizeRule) -> float:
    """The aspect ratio, long side by short side, of the bucket for a source of `aspect`; below 1 it is turned."""
    if rule.shape == SQUARE:
        return 1.0
    if rule.shape == CLOSEST and rule.aspects:
        choices = [1 / choice if upright else choice for choice in rule.aspects]
        return min(choices, key=lambda choice: _aspect_distance(aspect, choice))
    return round(aspect, rule.aspect_rounding)


def _aspect_distance(first: float, second: float) -> float:
    return abs(math.log(first / second))


def cover_size(width: int, height: int, target: Size) -> Size:
    """The source resized so that it just covers `target`, its aspect kept to the pixel."""
    across, down = target
    if width * down >= height * across:
        return max(across, round(width * down / height)), down
    return across, max(down, round(height * across / width))


def centre_offset(covering: Size, target: Size) -> tuple[int, int]:
    """(left, top) of the cut from the middle."""
    return (covering[0] - target[0]) // 2, (covering[1] - target[1]) // 2


def crop_offset(
    covering: Size,
    target: Size,
    style: str,
    *,
    position: tuple[float, float] | None = None,
    draw: tuple[float, float] | None = None,
) -> tuple[int, int]:
    """(left, top) of the cut of `target` from `covering`, which is nowhere smaller.

    center: from the middle. corner: the upper left one. random: by `draw`, (x, y) in [0, 1), every offset equally
    often. face: with `position`, the centre of the face as (x, y) in 0..1 of `covering`, as near to the middle of the
    cut as the edges allow; from the middle where there is none.
    """
    room = covering[0] - target[0], covering[1] - target[1]
    assert min(room) >= 0, "the cut lies inside"
    if style == CORNER:
        return 0, 0
    if style == RANDOM:
        assert draw is not None, "a random cut is drawn"
        return int(draw[0] * (room[0] + 1)), int(draw[1] * (room[1] + 1))
    if style == FACE and position is not None:
        left, top = (round(position[axis] * covering[axis] - target[axis] / 2) for axis in (0, 1))
        return min(max(left, 0), room[0]), min(max(top, 0), room[1])
    if style not in (CENTER, FACE):
        raise ValueError(f"{style!r} is no way to cut; there are {CENTER}, {CORNER}, {RANDOM}, {FACE}")
    return centre_offset(covering, target)


def enlargement(width: int, height: int, clip: Clip) -> float:
    """By how much the source is magnified (below 1: made smaller)."""
    return max(clip.resize_width / width, clip.resize_height / height)


def size_refusal(width: int, height: int, rule: SizeRule) -> tuple[str, str] | None:
    """(kind, reason) when the size or shape of a source is outside the bounds, else None."""
    size, aspect = measure(width, height, rule.resolution_type), width / height
    unit = {"pixel": "pixels on the shorter edge", "area": "megapixels"}.get(
        rule.resolution_type, "as the edge of a square of its area"
    )
    if rule.minimum and size < rule.minimum:
        return "too small", f"{width}x{height} is {size:g} {unit}, minimum_image_size is {rule.minimum:g}"
    if rule.maximum and size > rule.maximum and not rule.target_downsample:
        return "too large", f"{width}x{height} is {size:g} {unit}, maximum_image_size is {rule.maximum:g}"
    if rule.minimum_aspect and aspect < rule.minimum_aspect:
        return "aspect ratio", f"aspect ratio {aspect:.2f} is below minimum_aspect_ratio {rule.minimum_aspect:g}"
    if rule.maximum_aspect and aspect > rule.maximum_aspect:
        return "aspect ratio", f"aspect ratio {aspect:.2f} is above maximum_aspect_ratio {rule.maximum_aspect:g}"
    return None


def frames_to_take(available: int, rule: FrameRule) -> int | None:
    """How many of `available` frames (after resampling) a clip takes, a 4n + 1; None when they are too few.

    With a fixed `num_frames`, `max_frames` bounds the sources that are accepted (the caller checks that); without,
    it bounds what is taken.
    """
    if available < max(1, rule.min_frames):
        return None
    if rule.num_frames is not None:
        wanted = floor_frames(rule.num_frames)
        return wanted if available >= wanted else None
    frames = min(available, rule.max_frames) if rule.max_frames else available
    if rule.interval > 1 and frames > rule.interval:
        frames = frames // rule.interval * rule.interval
    return floor_frames(frames)


def make_clip(
    width: int,
    height: int,
    rule: SizeRule,
    *,
    num_frames: int,
    fps: float,
    sample_fps: float,
    source_fps: float = 0.0,
    start_seconds: float = 0.0,
    crop_at: Callable[[Size, Size], tuple[int, int]] = centre_offset,
) -> Clip:
    """The clip of a source that passed the bounds; `crop_at` gives (left, top) from covering size and target."""
    target = target_size(width, height, rule)
    covering = cover_size(width, height, target)
    left, top = crop_at(covering, target)
    first = (0, 0)
    if rule.maximum and rule.target_downsample and measure(width, height, rule.resolution_type) > rule.maximum:
        smaller = scaled_size(width, height, rule.target_downsample, rule.resolution_type)
        if covering[0] < smaller[0] < width and covering[1] < smaller[1] < height:
            first = smaller
    return Clip(
        width=target[0],
        height=target[1],
        num_frames=num_frames,
        fps=fps,
        sample_fps=sample_fps,
        source_fps=source_fps,
        start_seconds=start_seconds,
        resize_width=covering[0],
        resize_height=covering[1],
        crop_left=left,
        crop_top=top,
        downsample_width=first[0],
        downsample_height=first[1],
    )
