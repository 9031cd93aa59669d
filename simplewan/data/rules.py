"""From a dataset's options to the rules of bucket arithmetic, and from a source to its clip or the reason it has none.

Imports flavours, options for their types alone, and this room's arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from simplewan.data.buckets import (
    CLOSEST,
    PRESERVE,
    Clip,
    FrameRule,
    Size,
    SizeRule,
    floor_frames,
    floor_to_multiple,
    frames_to_take,
    make_clip,
    size_refusal,
)
from simplewan.data.media import MediaInfo
from simplewan.data.resampling import count_gaps, pick_nearest, typical_rate
from simplewan.data.samples import Dropped
from simplewan.flavours import Flavour

if TYPE_CHECKING:
    from simplewan.options.datasets import DatasetOptions

# A source this near below the model's rate (23.976 for 24) is not called slower.
SAME_RATE = 0.99


@dataclass(frozen=True)
class Rules:
    """How the sources of one dataset become clips. `sample_fps` 0 takes every frame.

    `asked_sizes` are exact sizes as they were written; those of `size` divide by what the model needs.
    """

    size: SizeRule
    frames: FrameRule
    image_frames: FrameRule
    sample_fps: float
    source_fps: float
    takes_videos: bool
    asked_sizes: tuple[Size, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """A clip, and what is worth telling about its source: its rate when that is slower, gaps in its times."""

    clip: Clip
    info: MediaInfo
    slower: bool
    gaps: int


def make_rules(dataset: DatasetOptions, flavour: Flavour) -> Rules:
    """The rules of a dataset for the flavour's geometry and rate."""
    video = dataset.video
    is_image_set = dataset.dataset_type == "image"
    by_length = video.bucket_strategy == "resolution_frames"
    wanted = floor_frames(video.num_frames)
    frames = FrameRule(
        num_frames=None if by_length else wanted,
        min_frames=video.min_frames if video.min_frames is not None else wanted,
        max_frames=video.max_frames,
        interval=video.frame_interval if by_length else 1,
    )
    single = FrameRule(num_frames=1, min_frames=1)
    # Where lengths may differ a picture is a clip of one frame; elsewhere it must be long enough as any other.
    pictures_fit = is_image_set or (by_length and video.min_frames is None)
    return Rules(
        size=_size_rule(dataset, flavour),
        frames=frames,
        image_frames=single if pictures_fit else replace(frames, max_frames=None),
        sample_fps=0.0 if video.keep_source_fps else flavour.fps,
        source_fps=video.source_fps or 0.0,
        takes_videos=not is_image_set,
        asked_sizes=_asked_sizes(dataset),
    )


def _size_rule(dataset: DatasetOptions, flavour: Flavour) -> SizeRule:
    multiple = flavour.pixel_multiple
    shape = dataset.crop_aspect if dataset.crop else PRESERVE
    return SizeRule(
        resolution=float(dataset.resolution) if isinstance(dataset.resolution, (int, float)) else 0.0,
        resolution_type=dataset.resolution_type,
        exact=tuple(_fitting(size, multiple) for size in _asked_sizes(dataset)),
        multiple=multiple,
        aspect_rounding=dataset.aspect_bucket_rounding,
        shape=shape,
        aspects=tuple(dataset.crop_aspect_buckets) if shape == CLOSEST else (),
        minimum=dataset.minimum_image_size,
        maximum=dataset.maximum_image_size,
        target_downsample=dataset.target_downsample_size,
        minimum_aspect=dataset.minimum_aspect_ratio,
        maximum_aspect=dataset.maximum_aspect_ratio,
    )


def _asked_sizes(dataset: DatasetOptions) -> tuple[Size, ...]:
    """Exact sizes as they are written; none when the resolution is a number."""
    return () if isinstance(dataset.resolution, (int, float)) else tuple(dataset.resolution)


def _fitting(size: Size, multiple: int) -> Size:
    return floor_to_multiple(size[0], multiple), floor_to_multiple(size[1], multiple)


def fit(name: str, info: MediaInfo, rules: Rules) -> Fitted | Dropped:
    """The clip of a source, or why there is none."""
    if not info.is_image and not rules.takes_videos:
        return Dropped(name, 'a video in a dataset of images; dataset_type = "video" takes it', "other kind of file")
    refusal = size_refusal(info.width, info.height, rules.size)
    if refusal:
        return Dropped(name, refusal[1], refusal[0])
    times = sampled_times(info, rules)
    rule = rules.image_frames if info.is_image else rules.frames
    if rule.num_frames is not None and rule.max_frames and len(times) > rule.max_frames:
        reason = f"{_frames_text(info, times, rules)}; max_frames is {rule.max_frames}"
        return Dropped(name, reason, "too long", len(times))
    num_frames = frames_to_take(len(times), rule)
    if num_frames is None:
        return Dropped(name, _too_short(info, times, rule, rules), "too short", len(times))
    rate = 0.0 if info.is_image else result_rate(info, rules)
    clip = make_clip(
        info.width,
        info.height,
        rules.size,
        num_frames=num_frames,
        fps=rate,
        sample_fps=0.0 if info.is_image else rules.sample_fps,
        source_fps=0.0 if info.is_image else rules.source_fps,
    )
    slower = not info.is_image and 0 < rate < rules.sample_fps
    gaps = count_gaps(times[:num_frames], rate) if rate else 0
    return Fitted(clip, info, slower, gaps)


def sampled_times(info: MediaInfo, rules: Rules) -> list[float]:
    """The times of the source frames that resampling takes."""
    return [
        time for time, _ in pick_nearest(((time, None) for time in _source_times(info, rules)), fps=rules.sample_fps)
    ]


def _source_times(info: MediaInfo, rules: Rules) -> list[float]:
    if rules.source_fps and not info.is_image:
        return [index / rules.source_fps for index in range(info.num_frames)]
    return list(info.times)


def result_rate(info: MediaInfo, rules: Rules) -> float:
    """Frames a second of the clip: the model's rate, or the source's where that is slower or kept."""
    own = rules.source_fps or typical_rate(list(info.times)) or 0.0
    if rules.sample_fps and (own == 0.0 or own >= rules.sample_fps * SAME_RATE):
        return rules.sample_fps
    return round(own, 3)


def _frames_text(info: MediaInfo, times: list[float], rules: Rules) -> str:
    if info.is_image:
        return "a picture has 1 frame"
    frames = "1 frame" if len(times) == 1 else f"{len(times)} frames"
    rate = result_rate(info, rules)
    return f"has {frames} at {rate:g} fps" + (
        f" (the file's {info.num_frames} resampled)" if len(times) != info.num_frames else ""
    )


def _too_short(info: MediaInfo, times: list[float], rule: FrameRule, rules: Rules) -> str:
    has = _frames_text(info, times, rules)
    if rule.num_frames is not None and len(times) >= rule.min_frames:
        return (
            f"{has}; buckets take video.num_frames = {rule.num_frames} "
            '(video.bucket_strategy = "resolution_frames" takes shorter clips as they are)'
        )
    return f"{has}, {max(rule.min_frames, rule.num_frames or 1)} are needed"
