"""The first frames of image-to-video: of each clip its own, or the picture of the same name in a linked dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from simplewan.data.buckets import Size, SizeRule, make_clip
from simplewan.data.captions import stem
from simplewan.data.samples import Sample, Scan
from simplewan.errors import some


def own_first_frame(sample: Sample) -> Sample:
    """The first frame of a clip, as a sample of one frame."""
    return replace(sample, clip=replace(sample.clip, num_frames=1))


@dataclass(frozen=True)
class Linked:
    """A picture that stands for the first frame of a clip; its size, and that of the clip's file."""

    picture: Sample
    size: Size
    source: Size

    @property
    def has_the_shape(self) -> bool:
        """Whether the picture has the aspect of the clip's file, to a pixel."""
        (width, height), (across, down) = self.size, self.source
        return abs(width * down - height * across) <= max(across, down)

    def cut_as(self, cut: Sample) -> Sample:
        """The part of the picture that this cut of the clip shows; where its aspect is another one, the middle."""
        if not self.has_the_shape:
            return fitted(self.picture, self.size, (cut.clip.width, cut.clip.height))
        own, shown = self.picture.clip, cut.clip
        first = shown.downsample_width, shown.downsample_height
        if not (first[0] < self.size[0] and first[1] < self.size[1]):
            first = 0, 0  # the picture is smaller than that already
        clip = replace(
            shown,
            num_frames=1,
            fps=own.fps,
            sample_fps=own.sample_fps,
            source_fps=own.source_fps,
            start_seconds=own.start_seconds,
            downsample_width=first[0],
            downsample_height=first[1],
        )
        return replace(self.picture, clip=clip, crops=())


@dataclass
class Links:
    """By sample, the picture for its first frame. By name, the clips without one, and those that begin in the midst of
    their file, which no picture of the whole file begins."""

    found: dict[str, Linked] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    within: list[str] = field(default_factory=list)

    def warnings(self, dataset: str, linked: Sequence[str]) -> list[str]:
        """What is said of them."""
        where, said = " and ".join(linked), []
        if self.without:
            count, names = len(self.without), some(self.without)
            said.append(f"{dataset}: {count} clips have no picture in {where} and begin with their own: {names}")
        if self.within:
            count, names = len(self.within), some(self.within)
            said.append(
                f"{dataset}: {count} clips do not start where their file does, which is what the pictures in {where} "
                f"stand for, and begin with their own first frames: {names}"
            )
        if others := sorted({each.picture.name for each in self.found.values() if not each.has_the_shape}):
            said.append(
                f"{dataset}: {len(others)} pictures in {where} have another shape than their clips' files and are cut "
                f"from the middle: {some(others)}"
            )
        return said


def link_pictures(clips: Scan, pictures: Sequence[Scan]) -> Links:
    """The pictures of linked datasets that belong to clips; of several the one of the last dataset."""
    links = Links()
    finders = [_Finder(scan) for scan in pictures]
    for sample in clips.samples:
        found = [linked for finder in finders if (linked := finder(sample)) is not None]
        if not found:
            links.without.append(sample.name)
        elif sample.clip.start_seconds > 0:
            links.within.append(sample.name)
        else:
            picture, size = found[-1]
            source = clips.sources[sample.source.path]
            links.found[sample.id] = Linked(picture, size, (source.width, source.height))
    return links


class _Finder:
    """A picture belongs to the clip of the same path without the ending, else to those of the same name alone, where
    only one picture has it."""

    def __init__(self, pictures: Scan) -> None:
        self._sources = pictures.sources
        self._by_path = {stem(picture.source.path): picture for picture in pictures.samples}
        self._by_name: dict[str, list[Sample]] = {}
        for picture in pictures.samples:
            self._by_name.setdefault(_name(picture), []).append(picture)

    def __call__(self, sample: Sample) -> tuple[Sample, Size] | None:
        same_name = self._by_name.get(_name(sample), [])
        found = self._by_path.get(stem(sample.source.path)) or (same_name[0] if len(same_name) == 1 else None)
        if found is None:
            return None
        info = self._sources[found.source.path]
        return found, (info.width, info.height)


def _name(sample: Sample) -> str:
    return stem(sample.source.path).rpartition("/")[2]


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
