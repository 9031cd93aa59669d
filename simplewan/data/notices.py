"""What a scan tells people: announcements, what was left out and why, and the error when nothing is left.

Imports errors, options for their types alone, and this room's records. Names are listed up to a few; all of them are
in `Scan.dropped`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from simplewan.data.buckets import Size, enlargement, floor_frames
from simplewan.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from simplewan.data.rules import Fitted, Rules
from simplewan.data.samples import Dropped, Scan
from simplewan.errors import LISTED, Problem, UserError, counted, some

if TYPE_CHECKING:
    from simplewan.options.datasets import DatasetOptions

# The sizes Wan was trained at, by the multiple that its VAE and patch ask for.
TRAINED_SIZES: dict[int, tuple[Size, ...]] = {
    16: ((832, 480), (480, 832), (624, 624), (1280, 720), (720, 1280), (960, 960)),
    32: ((1280, 704), (704, 1280)),
}
# Kinds of file that people might expect to be read.
OTHER_MEDIA = (
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".ts",
    ".mts",
    ".m2ts",
    ".3gp",
    ".ogv",
    ".vob",
    ".heic",
    ".avif",
)


def make_notices(
    dataset: DatasetOptions, rules: Rules, kept: Mapping[str, Fitted], paths: Sequence[str]
) -> tuple[str, ...]:
    """Announcements about the clips that are kept (by name) and the files of the folder."""
    notices = [*_changed_options(dataset, rules), *_landing(dataset, rules, kept)]
    slower = [f"{name} ({found.clips[0].fps:g} fps)" for name, found in kept.items() if found.slower]
    if slower:
        verb = ("is", "keeps its") if len(slower) == 1 else ("are", "keep their")
        notices.append(
            f"{_clips(len(slower))} {verb[0]} slower than {rules.sample_fps:g} fps and {verb[1]} rate: {some(slower)}"
        )
    lengths = sorted({count for found in kept.values() for count in found.too_short_for})
    for count in lengths:
        short = [name for name, found in kept.items() if count in found.too_short_for]
        notices.append(f"{_clips(len(short), 'is', 'are')} too short for {count} frames: {some(short)}")
    gaps = [f"{name} ({found.gaps})" for name, found in kept.items() if found.gaps]
    if gaps:
        notices.append(
            f"{_clips(len(gaps), 'has', 'have')} gaps in their frame times, where the motion jumps: {some(gaps)}"
        )
    magnified = []
    for name, found in kept.items():
        info, largest = found.info, max(found.clips, key=lambda clip: clip.width * clip.height)
        if (factor := enlargement(info.width, info.height, largest)) > 1:
            sizes = f"{info.width}x{info.height} to {largest.width}x{largest.height}"
            magnified.append(f"{name} ({sizes}, {factor:.2f} times)")
    if magnified:
        notices.append(
            f"{_clips(len(magnified), 'is', 'are')} smaller than the size to train at and enlarged "
            f"(minimum_image_size leaves such sources out): {some(magnified)}"
        )
    pictures = [name for name, found in kept.items() if found.info.is_image]
    if pictures and dataset.dataset_type == "video":
        count = "1 picture is" if len(pictures) == 1 else f"{len(pictures)} pictures are"
        notices.append(f"{count} trained on as clips of one frame: {some(pictures)}")
    remarks = [f"{name} {remark}" for name, found in kept.items() for remark in found.info.remarks]
    notices += [f"odd files: {some(remarks)}"] if remarks else []
    unread = Counter(PurePosixPath(path).suffix.lower() for path in paths)
    others = [f"{suffix} ({unread[suffix]})" for suffix in OTHER_MEDIA if unread[suffix]]
    if others:
        known = " ".join(suffix[1:] for suffix in VIDEO_SUFFIXES + IMAGE_SUFFIXES)
        notices.append(f"files of kinds that are not read: {', '.join(others)}; read are {known}")
    return tuple(notices)


def _changed_options(dataset: DatasetOptions, rules: Rules) -> list[str]:
    """What was made of options that Wan cannot take as they are written."""
    notices = []
    if dataset.dataset_type == "video" and not dataset.video.by_length:
        for asked in dataset.video.num_frames:
            if (taken := floor_frames(asked)) != asked:
                notices.append(f"num_frames {asked} -> {taken}: Wan's VAE takes 4n+1 frames")
    exact = [size for rule in rules.sizes for size in rule.exact]
    for asked_size, size in zip(rules.asked_sizes, exact, strict=True):
        if asked_size != size:
            notices.append(
                f"resolution {asked_size[0]}x{asked_size[1]} -> {size[0]}x{size[1]}: "
                f"this model takes sizes that divide by {rules.sizes[0].multiple}"
            )
    return notices


def _landing(dataset: DatasetOptions, rules: Rules, kept: Mapping[str, Fitted]) -> list[str]:
    """Which sizes a `resolution` that is one number leads to."""
    numbers = [rule.resolution for rule in rules.sizes if not rule.exact]
    if not numbers or not kept:
        return []
    exact = {size for rule in rules.sizes for size in rule.exact}
    sources: dict[Size, Counter[str]] = {}
    for found in kept.values():
        for size in {(clip.width, clip.height) for clip in found.clips} - exact:
            sources.setdefault(size, Counter())[f"{found.info.width}x{found.info.height}"] += 1
    sizes = sorted(sources, key=lambda size: -sum(sources[size].values()))
    landings = [
        f"{size[0]}x{size[1]} ({_clips(sum(sources[size].values()))}; sources of {some(list(sources[size]), 3)})"
        for size in sizes
    ]
    trained = _trained_size_near(sizes[0], rules.sizes[0].multiple) if sizes else None
    advice = f'; exact sizes: resolution = "{trained[0]}x{trained[1]}"' if trained and trained not in sizes else ""
    asked = " and ".join(f"{number:g}" for number in numbers)
    return [f"resolution {asked} {dataset.resolution_type} lands on {some(landings)}{advice}"]


def _trained_size_near(size: Size, multiple: int) -> Size | None:
    """The size Wan was trained at that is nearest in shape, then in area; None when all are far off."""
    area = size[0] * size[1]
    near = [trial for trial in TRAINED_SIZES.get(multiple, ()) if 0.4 < area / (trial[0] * trial[1]) < 2.5]
    if not near:
        return None

    def distance(trial: Size) -> tuple[float, float]:
        shape = abs(math.log(trial[0] / trial[1] * size[1] / size[0]))
        return round(shape, 1), abs(math.log(trial[0] * trial[1] / area))

    return min(near, key=distance)


def _clips(count: int, one: str = "", many: str = "") -> str:
    return (f"{count} clip {one}" if count == 1 else f"{count} clips {many}").rstrip()


def count_reasons(dropped: Iterable[Dropped]) -> str:
    """ "3 too short, 1 broken file"."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(item.kind for item in dropped).most_common())


def dropped_notice(scan: Scan) -> str | None:
    """One line about what a scan left out; None when nothing was."""
    if not scan.dropped:
        return None
    total = len(scan.samples) + len(scan.dropped)
    names = some([str(item) for item in scan.dropped])
    rest = "; `simpletuner dataset report` lists all" if len(scan.dropped) > LISTED else ""
    reasons = count_reasons(scan.dropped)
    mended = f"; {fix}" if (fix := remedy(scan.dropped)) else ""
    return f"{scan.dataset}: {len(scan.dropped)} of {total} files are left out: {reasons}: {names}{mended}{rest}"


def datasets_problem(scans: Iterable[Scan]) -> UserError | None:
    """The error that names each dataset of which nothing is left, and why; None when all have samples."""
    problems = [_empty(scan) for scan in scans if not scan.samples]
    return UserError(*problems) if problems else None


def _empty(scan: Scan) -> Problem:
    where = f'dataset "{scan.dataset}"'
    if not scan.dropped:
        kinds = " ".join(suffix[1:] for suffix in VIDEO_SUFFIXES + IMAGE_SUFFIXES)
        others = "".join(f" ({notice})" for notice in scan.notices if notice.startswith("files of kinds"))
        message = f"holds no file that can be read: {scan.folder}{others}"
        return Problem(where, message, fix=f"kinds that are read: {kinds}")
    message = (
        f"nothing is left of {len(scan.dropped)} files in {scan.folder}: {count_reasons(scan.dropped)}: "
        f"{some([str(item) for item in scan.dropped])}"
    )
    return Problem(where, message, fix=remedy(scan.dropped))


def remedy(dropped: Sequence[Dropped]) -> str | None:
    """What would bring back most of the files."""
    kind = Counter(item.kind for item in dropped).most_common(1)[0][0]
    if kind == "too short":
        return _remedy_of_short([item for item in dropped if item.kind == kind])
    return {
        "no caption": "put a text file of the same name beside each clip (a.txt for a.mp4), one caption a line",
        "too small": "lower minimum_image_size, or set it to 0",
        "too large": "raise maximum_image_size, or set target_downsample_size",
        "too long": "raise video.max_frames, or leave it out",
        "aspect ratio": "widen minimum_aspect_ratio and maximum_aspect_ratio",
    }.get(kind)


def _remedy_of_short(dropped: Sequence[Dropped]) -> str | None:
    """What takes the longest clip and the pictures; of clips that are cut into scenes the reasons say it."""
    pictures = [item for item in dropped if item.name.lower().endswith(IMAGE_SUFFIXES)]
    lengths = [item.frames for item in dropped if item.frames and item not in pictures]
    parts = ['an entry of dataset_type "image" takes pictures'] if pictures else []
    if lengths:
        longest, taken = max(lengths), floor_frames(max(lengths))
        has = f"{counted(longest, 'frame')} at the model's rate"
        parts.insert(0, f"the longest has {has}: video.num_frames = {taken} takes it")
    return "; ".join(parts) or None
