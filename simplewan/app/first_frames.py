"""The first frames of image-to-video: of each clip its own, or the picture of the same name in a linked dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simplewan.data.buckets import Size, SizeRule, make_clip
from simplewan.data.captions import stem
from simplewan.data.notices import some
from simplewan.data.samples import Sample, Scan


def own_first_frame(sample: Sample) -> Sample:
    """The first frame of a clip, as a sample of one frame."""
    return replace(sample, clip=replace(sample.clip, num_frames=1))


def linked_first_frames(samples: Sequence[Sample], pictures: Scan) -> tuple[dict[str, Sample], list[str]]:
    """By sample, the picture that stands for its first frame, cut to the sample's size; and those without, by name.

    A picture belongs to the clip of the same path without the ending, else to those of the same name alone, where only
    one picture has it.
    """
    by_path = {stem(picture.source.path): picture for picture in pictures.samples}
    by_name: dict[str, list[Sample]] = {}
    for picture in pictures.samples:
        by_name.setdefault(_name(picture), []).append(picture)
    found: dict[str, Sample] = {}
    without = []
    for sample in samples:
        same_name = by_name.get(_name(sample), [])
        linked = by_path.get(stem(sample.source.path)) or (same_name[0] if len(same_name) == 1 else None)
        if linked is None:
            without.append(sample.name)
        else:
            found[sample.id] = _cut_as(sample, linked, pictures)
    return found, without


def missing_text(dataset: str, linked: str, without: Sequence[str]) -> str:
    """What is said of clips without a picture."""
    return f"{dataset}: {len(without)} clips have no picture in {linked} and begin with their own: {some(without)}"


def _name(sample: Sample) -> str:
    return stem(sample.source.path).rpartition("/")[2]


def _cut_as(sample: Sample, picture: Sample, pictures: Scan) -> Sample:
    info = pictures.sources[picture.source.path]
    return fitted(picture, (info.width, info.height), (sample.clip.width, sample.clip.height))


def fitted(sample: Sample, source: Size, size: Size) -> Sample:
    """The first frame of a sample from a file of `source` pixels, cut from the middle to `size`, the aspect kept."""
    own = sample.clip
    clip = make_clip(
        *source,
        SizeRule(resolution=0.0, exact=(size,)),
        num_frames=1,
        fps=own.fps,
        sample_fps=own.sample_fps,
        source_fps=own.source_fps,
        start_seconds=own.start_seconds,
    )
    return replace(sample, clip=clip, crops=())
