"""What deserves a warning: clips that are enlarged, slow, jumping, static, black or broken, and odd captions.

Imports the room and this package. Each check is a function of the scans and of what was seen; what only other rooms
know (buckets that do not fill a batch) is handed in as findings of the same kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from simplewan.data.buckets import enlargement
from simplewan.data.mediainfo import MediaInfo
from simplewan.data.report.duplicates import File, files_of
from simplewan.data.report.looking import Seen
from simplewan.data.report.pictures import Look
from simplewan.data.resampling import count_gaps, sample_times
from simplewan.data.samples import Sample, Scan
from simplewan.flavours import Flavour

# Of 255. Film grain and noise of encoding move the mean of a cell by less than 2.
STATIC_MOTION = 4.0
BLACK_BRIGHTNESS = 16.0
SAME_RATE = 0.99
# Of English; other languages have more. Only the text encoder's tokenizer counts right.
TOKENS_PER_WORD = 1.4
# Letters that are words of their own: Chinese, Japanese, and Korean syllables.
_ALONE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+(?:['\u2019]\w+)?")


@dataclass(frozen=True)
class Mark:
    """One clip, file or bucket that a finding is about: the clip's id in `sample`, or where the file lies in `path`."""

    dataset: str
    name: str
    detail: str = ""
    sample: str | None = None
    path: str | None = None


@dataclass(frozen=True)
class Finding:
    """Something worth a second look. `badge` is the short form beside a clip, `advice` what to do about it."""

    kind: str
    title: str
    advice: str
    badge: str
    marks: tuple[Mark, ...]


def count_words(caption: str) -> int:
    """Words; where a language writes none apart (Chinese, Japanese) each letter is one."""
    return sum(1 for _ in _WORD.finditer(caption))


def estimate_tokens(caption: str) -> int:
    """About how many tokens the text encoder makes of a caption."""
    return round(count_words(caption) * TOKENS_PER_WORD) + 1


def find_all(
    scans: Sequence[Scan], seen: Seen, flavour: Flavour, *, captioned: Sequence[Scan] | None = None
) -> list[Finding]:
    """The findings of all checks that found something, the gravest first.

    `captioned` are the scans whose captions are looked at (None: all).
    """
    captioned = scans if captioned is None else captioned
    found = (
        _broken(scans, seen),
        _black(scans, seen),
        _static(scans, seen),
        _jumping(scans),
        _enlarged(scans),
        _slow(scans, flavour),
        _empty_captions(captioned),
        _long_captions(captioned, flavour),
    )
    return [finding for finding in found if finding is not None]


def counted(count: int, one: str, many: str) -> str:
    """ "1 clip is", "3 clips are"."""
    return f"{count:,} {one if count == 1 else many}"


def _finding(kind: str, marks: Sequence[Mark], one: str, many: str, advice: str, badge: str) -> Finding | None:
    if not marks:
        return None
    return Finding(kind, counted(len(marks), one, many), advice, badge, tuple(marks))


def _broken(scans: Sequence[Scan], seen: Seen) -> Finding | None:
    marks = [_of_file(file, seen.failures[file.path]) for file in files_of(scans) if file.path in seen.failures]
    advice = "Caching will leave it out. What was cut off or damaged has to be fetched or encoded again."
    return _finding(
        "broken",
        marks,
        "file does not decode to the last frame that is used",
        "files do not decode as far as they are used",
        advice,
        "does not decode",
    )


def _black(scans: Sequence[Scan], seen: Seen) -> Finding | None:
    marks = [
        _of_sample(scan, sample, f"brightness {look.brightness:.0f} of 255")
        for scan, sample, look in _looked_at(scans, seen)
        if look.brightness < BLACK_BRIGHTNESS
    ]
    advice = "All frames that were looked at are dark. Is it a fade, a title, or the wrong part of the file?"
    return _finding("black", marks, "clip is nearly black", "clips are nearly black", advice, "nearly black")


def _static(scans: Sequence[Scan], seen: Seen) -> Finding | None:
    marks = [
        _of_sample(scan, sample, f"nothing changes by more than {look.motion:.0f} of 255")
        for scan, sample, look in _looked_at(scans, seen)
        if look.motion is not None and look.motion < STATIC_MOTION and look.brightness >= BLACK_BRIGHTNESS
    ]
    advice = "Hardly anything moves in the first half of what is used; that teaches a model to stand still."
    return _finding("static", marks, "clip is static", "clips are static", advice, "static")


def _jumping(scans: Sequence[Scan]) -> Finding | None:
    marks = []
    for scan, sample, info in _videos(scans):
        if gaps := _gaps(sample, info):
            marks.append(_of_sample(scan, sample, counted(gaps, "gap", "gaps")))
    advice = (
        "Frames are missing in the file, so the motion jumps there. Encode it again at an even rate, or leave it out."
    )
    one, many = "clip has gaps in its frame times", "clips have gaps in their frame times"
    return _finding("gaps", marks, one, many, advice, "gaps")


def _gaps(sample: Sample, info: MediaInfo) -> int:
    """How often the motion of a clip jumps."""
    clip = sample.clip
    if clip.source_fps or not clip.fps:
        return 0
    if max((later - earlier for earlier, later in pairwise(info.times)), default=0.0) * clip.fps <= 1.75:
        return 0
    sampled = sample_times(info.times, fps=clip.sample_fps)
    times = [time for wanted, time in sampled if wanted >= clip.start_seconds - 1e-6][: clip.num_frames]
    return count_gaps(times, clip.fps)


def _enlarged(scans: Sequence[Scan]) -> Finding | None:
    marks = []
    for scan in scans:
        for sample in scan.samples:
            info = scan.sources[sample.source.path]
            if (factor := enlargement(info.width, info.height, sample.clip)) > 1:
                sizes = f"{info.width}x{info.height} to {sample.clip.width}x{sample.clip.height}"
                marks.append(_of_sample(scan, sample, f"{sizes}, {factor:.2f} times"))
    advice = "The source is smaller than the size to train at, so the clip is soft; minimum_image_size leaves such out."
    return _finding("enlarged", marks, "clip is enlarged", "clips are enlarged", advice, "enlarged")


def _slow(scans: Sequence[Scan], flavour: Flavour) -> Finding | None:
    marks = []
    for scan, sample, _info in _videos(scans):
        clip = sample.clip
        if clip.sample_fps and 0 < clip.fps < clip.sample_fps * SAME_RATE:
            marks.append(_of_sample(scan, sample, f"{clip.fps:g} fps"))
    advice = (
        f"The frames are taken as they are and the model takes them for {flavour.fps:g} a second, so everything looks "
        "faster than it was. Sources with more frames a second would mend that."
    )
    one, many = f"clip is slower than {flavour.fps:g} fps", f"clips are slower than {flavour.fps:g} fps"
    return _finding("slow", marks, one, many, advice, "slow")


def _long_captions(scans: Sequence[Scan], flavour: Flavour) -> Finding | None:
    marks = []
    for scan, sample in _first_of_each_file(scans):
        tokens = max(map(estimate_tokens, sample.captions), default=0)
        if tokens > flavour.text_tokens:
            marks.append(Mark(scan.dataset, sample.source.path, f"about {tokens} tokens", path=sample.path))
    advice = (
        f"By an estimate ({TOKENS_PER_WORD:g} tokens a word) longer than the {flavour.text_tokens} tokens that the "
        "model reads; the rest is cut off."
    )
    return _finding("long captions", marks, "caption is very long", "captions are very long", advice, "long caption")


def _empty_captions(scans: Sequence[Scan]) -> Finding | None:
    marks = [
        Mark(scan.dataset, sample.source.path, path=sample.path)
        for scan, sample in _first_of_each_file(scans)
        if not all(caption.strip() for caption in sample.captions)
    ]
    advice = "Trained without words. Is that meant? caption_strategy says where captions come from."
    return _finding("empty captions", marks, "caption is empty", "captions are empty", advice, "no caption")


def _videos(scans: Sequence[Scan]) -> Iterator[tuple[Scan, Sample, MediaInfo]]:
    for scan in scans:
        for sample in scan.samples:
            info = scan.sources[sample.source.path]
            if not info.is_image:
                yield scan, sample, info


def _looked_at(scans: Sequence[Scan], seen: Seen) -> Iterator[tuple[Scan, Sample, Look]]:
    for scan in scans:
        for sample in scan.samples:
            if (look := seen.clips.get(sample.id)) is not None:
                yield scan, sample, look


def _first_of_each_file(scans: Sequence[Scan]) -> Iterator[tuple[Scan, Sample]]:
    for scan in scans:
        by_file = {sample.source.path: sample for sample in reversed(scan.samples)}
        yield from ((scan, by_file[path]) for path in sorted(by_file))


def _of_file(file: File, detail: str) -> Mark:
    return Mark(file.dataset, file.name, detail, path=file.path)


def _of_sample(scan: Scan, sample: Sample, detail: str) -> Mark:
    return Mark(scan.dataset, sample.name, detail, sample.id)
