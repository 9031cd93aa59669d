"""From a dataset's options to the rules of bucket arithmetic, and from a source to its clips or the reason it has none.

Imports flavours, options for their types alone, and this room's arithmetic. What is random (crops, aspect ratios,
places of clips) is a hash of the dataset's random_seed and the file's name: the same in every run and on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from simplewan.data.buckets import (
    CLOSEST,
    PRESERVE,
    RANDOM,
    Clip,
    FrameRule,
    Size,
    SizeRule,
    crop_offset,
    floor_frames,
    floor_to_multiple,
    frames_to_take,
    make_clip,
    size_refusal,
)
from simplewan.data.draws import uniform
from simplewan.data.extraction import clip_starts
from simplewan.data.media import MediaInfo
from simplewan.data.resampling import count_gaps, sample_times, typical_rate
from simplewan.data.samples import Dropped
from simplewan.flavours import Flavour

if TYPE_CHECKING:
    from simplewan.options.datasets import DatasetOptions

# A source this near below the model's rate (23.976 for 24) is not called slower.
SAME_RATE = 0.99
WITHOUT_CUTS = ("head", "full")
# Crops that are drawn anew in each epoch come round again after so many: they are all encoded before training.
MOST_CROPS = 16


@dataclass(frozen=True)
class Rules:
    """How the sources of one dataset become clips: one for each of `sizes`, of `frames`, and of the starts in a source.

    `sample_fps` 0 takes every frame. `asked_sizes` are exact sizes as they were written; those of the rules divide by
    what the model needs. `seed` decides what is random; `crops` is how many crops a clip has, one an epoch
    in turn.
    """

    sizes: tuple[SizeRule, ...]
    frames: tuple[FrameRule, ...]
    image_frames: FrameRule
    sample_fps: float
    source_fps: float
    takes_videos: bool
    asked_sizes: tuple[Size, ...] = ()
    extraction: str = "head"
    frame_stride: int = 1
    frame_sample: int = 1
    finds_cuts: bool = False
    crop_style: str = "center"
    seed: int = 0
    crops: int = 1

    @property
    def finds_faces(self) -> bool:
        """Whether the place of a face decides over the crop."""
        return self.crop_style == "face"

    @property
    def one_clip(self) -> bool:
        """Whether a source gives one clip at most, so that its name is the clip's."""
        return len(self.sizes) == 1 and len(self.frames) == 1 and self.extraction in WITHOUT_CUTS


@dataclass(frozen=True)
class Found:
    """What is known of a source: its media, its scene cuts (seconds) and a face (x, y in 0..1), where they matter."""

    info: MediaInfo
    cuts: tuple[float, ...] = ()
    face: tuple[float, float] | None = None


@dataclass(frozen=True)
class Fitted:
    """The clips of a source, and what is worth telling about it: a slower rate, gaps in its times, lengths it lacks.

    `crops` are the further crops of each clip, for the epochs after the first.
    """

    clips: tuple[Clip, ...]
    info: MediaInfo
    slower: bool
    gaps: int
    too_short_for: tuple[int, ...] = ()
    crops: Mapping[Clip, tuple[Clip, ...]] = field(default_factory=dict)


def make_rules(dataset: DatasetOptions, flavour: Flavour) -> Rules:
    """The rules of a dataset for the flavour's geometry and rate."""
    video = dataset.video
    is_image_set = dataset.dataset_type in ("image", "conditioning")
    frames = _frame_rules(dataset)
    # Where lengths may differ a picture is a clip of one frame; elsewhere it must be long enough as any other.
    pictures_fit = is_image_set or (video.by_length and video.min_frames is None)
    single = FrameRule(num_frames=1, min_frames=1)
    return Rules(
        sizes=tuple(_size_rule(dataset, resolution, flavour) for resolution in resolutions(dataset)),
        frames=frames,
        image_frames=single if pictures_fit else replace(frames[0], max_frames=None),
        sample_fps=0.0 if video.keep_source_fps else flavour.fps,
        source_fps=video.source_fps or 0.0,
        takes_videos=not is_image_set,
        asked_sizes=tuple(size for resolution in resolutions(dataset) for size in _asked_sizes(resolution)),
        extraction=video.extraction,
        frame_stride=video.frame_stride,
        frame_sample=video.frame_sample,
        finds_cuts=video.scene_cuts and video.extraction not in WITHOUT_CUTS,
        crop_style=dataset.crop_style,
        seed=dataset.random_seed,
        crops=MOST_CROPS if dataset.renews_crops else 1,
    )


def _frame_rules(dataset: DatasetOptions) -> tuple[FrameRule, ...]:
    video = dataset.video
    counts = sorted({floor_frames(count) for count in video.num_frames})
    if video.by_length:
        least = counts[0] if video.min_frames is None else video.min_frames
        interval = video.frame_interval if video.bucket_strategy == "resolution_frames" else 1
        return (FrameRule(num_frames=None, min_frames=least, max_frames=video.max_frames, interval=interval),)
    return tuple(
        FrameRule(
            num_frames=count,
            min_frames=count if video.min_frames is None else video.min_frames,
            max_frames=video.max_frames,
        )
        for count in counts
    )


def resolutions(dataset: DatasetOptions) -> tuple[float | tuple[Size, ...], ...]:
    """Each resolution that the clips of a dataset are trained at."""
    return dataset.resolutions or (dataset.resolution,)


def _size_rule(dataset: DatasetOptions, resolution: float | tuple[Size, ...], flavour: Flavour) -> SizeRule:
    multiple = flavour.pixel_multiple
    shape = dataset.crop_aspect if dataset.crop else PRESERVE
    return SizeRule(
        resolution=float(resolution) if isinstance(resolution, (int, float)) else 0.0,
        resolution_type=dataset.resolution_type,
        exact=tuple(_fitting(size, multiple) for size in _asked_sizes(resolution)),
        multiple=multiple,
        aspect_rounding=dataset.aspect_bucket_rounding,
        shape=shape,
        aspects=tuple(dataset.crop_aspect_buckets) if shape in (CLOSEST, RANDOM) else (),
        minimum=dataset.minimum_image_size,
        maximum=dataset.maximum_image_size,
        target_downsample=dataset.target_downsample_size,
        minimum_aspect=dataset.minimum_aspect_ratio,
        maximum_aspect=dataset.maximum_aspect_ratio,
    )


def _asked_sizes(resolution: float | tuple[Size, ...]) -> tuple[Size, ...]:
    """Exact sizes as they are written; none when the resolution is a number."""
    return () if isinstance(resolution, (int, float)) else tuple(resolution)


def _fitting(size: Size, multiple: int) -> Size:
    return floor_to_multiple(size[0], multiple), floor_to_multiple(size[1], multiple)


def _refusal(name: str, info: MediaInfo, rules: Rules) -> Dropped | None:
    """Why a source is not used, whatever part of it; None when it may be."""
    if not info.is_image and not rules.takes_videos:
        return Dropped(name, 'a video in a dataset of images; dataset_type = "video" takes it', "other kind of file")
    reason = size_refusal(info.width, info.height, rules.sizes[0])
    return Dropped(name, reason[1], reason[0]) if reason else None


def fit(name: str, found: Found, rules: Rules) -> Fitted | Dropped:
    """The clips of a source, or why there is none."""
    info = found.info
    refused = _refusal(name, info, rules)
    if refused is not None:
        return refused
    sampled = _sampled(_source_times(info, rules), rules.sample_fps)
    clips: dict[Clip, tuple[Clip, ...]] = {}
    short: list[Dropped] = []
    lacking: list[int] = []
    for rule in (rules.image_frames,) if info.is_image else rules.frames:
        if rule.num_frames is not None and rule.max_frames and len(sampled) > rule.max_frames:
            reason = f"{_frames_text(info, len(sampled), rules)}; max_frames is {rule.max_frames}"
            return Dropped(name, reason, "too long", len(sampled))
        num_frames = frames_to_take(len(sampled), rule)
        starts = _starts(name, found, sampled, num_frames, rules) if num_frames else []
        if not num_frames or not starts:
            fits = num_frames is not None
            reason = _all_cut(rule, found) if fits else _too_short(info, len(sampled), rule, rules)
            short.append(Dropped(name, reason, "too short", None if fits else len(sampled)))
            lacking.append(rule.num_frames or rule.min_frames)
            continue
        for size in rules.sizes:
            for start in starts:
                place = partial(_place, name, found, size, num_frames, start, rules)
                clips[place()] = tuple(place(crop=crop) for crop in range(1, rules.crops))
    if not clips:
        return short[0]
    first = next(iter(clips))
    gaps = count_gaps([time for _, time in sampled[: first.num_frames]], first.fps) if first.fps else 0
    return Fitted(
        clips=tuple(clips),
        crops=clips,
        info=info,
        slower=not info.is_image and 0 < first.fps < rules.sample_fps,
        gaps=gaps,
        too_short_for=tuple(lacking),
    )


def _starts(
    name: str, found: Found, sampled: Sequence[tuple[float, float]], num_frames: int, rules: Rules
) -> list[float]:
    """Seconds at which the clips of `num_frames` begin in a source."""
    if rules.extraction in WITHOUT_CUTS or found.info.is_image:
        return [sampled[0][0]]
    cuts = [next((at for at, (_, time) in enumerate(sampled) if time >= cut), len(sampled)) for cut in found.cuts]
    starts = clip_starts(
        len(sampled),
        num_frames,
        mode=rules.extraction,
        frame_stride=rules.frame_stride,
        frame_sample=rules.frame_sample,
        cuts=cuts,
        draw=lambda number: uniform(rules.seed, "clips", name, num_frames, number),
    )
    return [sampled[start][0] for start in starts]


def _place(
    name: str, found: Found, size: SizeRule, num_frames: int, start: float, rules: Rules, *, crop: int = 0
) -> Clip:
    """One clip of a source: its size, and where it is cut out; `crop` numbers its random crops."""
    info = found.info
    if size.shape == RANDOM:
        chosen = size.aspects[int(uniform(rules.seed, "aspect", name) * len(size.aspects))]
        size = replace(size, shape=CLOSEST, aspects=(chosen,))

    def crop_at(covering: Size, target: Size) -> tuple[int, int]:
        pair = None
        if rules.crop_style == RANDOM:
            about = ("crop", crop, name, *target, num_frames, f"{start:.3f}")
            pair = uniform(rules.seed, "across", *about), uniform(rules.seed, "down", *about)
        return crop_offset(covering, target, rules.crop_style, position=found.face, draw=pair)

    return make_clip(
        info.width,
        info.height,
        size,
        num_frames=num_frames,
        fps=0.0 if info.is_image else result_rate(info, rules),
        sample_fps=0.0 if info.is_image else rules.sample_fps,
        source_fps=0.0 if info.is_image else rules.source_fps,
        start_seconds=start,
        crop_at=crop_at,
    )


def _source_times(info: MediaInfo, rules: Rules) -> tuple[float, ...]:
    if rules.source_fps and not info.is_image:
        return tuple(index / rules.source_fps for index in range(info.num_frames))
    return info.times


# Many files of a dataset have the same times: both are pure, and remembering a few makes large scans much faster.
@lru_cache(maxsize=1024)
def _sampled(times: tuple[float, ...], fps: float) -> tuple[tuple[float, float], ...]:
    return tuple(sample_times(times, fps=fps))


@lru_cache(maxsize=1024)
def _own_rate(times: tuple[float, ...]) -> float:
    return typical_rate(list(times)) or 0.0


def result_rate(info: MediaInfo, rules: Rules) -> float:
    """Frames a second of the clip: the model's rate, or the source's where that is slower or kept."""
    own = rules.source_fps or _own_rate(info.times)
    if rules.sample_fps and (own == 0.0 or own >= rules.sample_fps * SAME_RATE):
        return rules.sample_fps
    return round(own, 3)


def _frames_text(info: MediaInfo, count: int, rules: Rules) -> str:
    if info.is_image:
        return "a picture has 1 frame"
    frames = "1 frame" if count == 1 else f"{count} frames"
    rate = result_rate(info, rules)
    return f"has {frames} at {rate:g} fps" + (
        f" (the file's {info.num_frames} resampled)" if count != info.num_frames else ""
    )


def _too_short(info: MediaInfo, count: int, rule: FrameRule, rules: Rules) -> str:
    has = _frames_text(info, count, rules)
    if rule.num_frames is not None and count >= rule.min_frames:
        return (
            f"{has}; buckets take video.num_frames = {rule.num_frames} "
            '(video.bucket_strategy = "resolution_frames" takes shorter clips as they are)'
        )
    return f"{has}, {max(rule.min_frames, rule.num_frames or 1)} are needed"


def _all_cut(rule: FrameRule, found: Found) -> str:
    has = f"none of its {len(found.cuts) + 1} scenes has {rule.num_frames} frames"
    return f"{has} (video.scene_cuts = false lets clips straddle cuts)"
