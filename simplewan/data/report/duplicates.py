"""Files that are the same, files that look the same, and captions that are the same.

Imports this package; numpy. Two files look the same when the hashes of both frames that are compared differ in few
bits, and the colours of hardly any part differ. Groups are closed: whatever looks like one of a group belongs to it.
Comparing is all against all, but vectorised, and only among files of nearly equal brightness: 10,000 take a second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simplewan.data.report.pictures import CELLS, Look
from simplewan.data.samples import Scan

# Of 64 bits a frame. Copies that were encoded again (up to CRF 45), made half as large or stretched differ in 0 to 2,
# other scenes in 20 to 40, the same clip mirrored in 13 and more.
MAX_BITS = 10
# Of 255: the mean and the largest difference of a colour of a cell. Such copies have up to 1.4 and 11, a copy that is
# brighter by 8 has 8 and 10; the same clip an eighth of a second later 0.4 and 17, half a second later 1.5 and 65.
MAX_MEAN, MAX_CELL = 9.0, 32
# Frames this dark or this even in colour tell nothing.
MIN_BRIGHTNESS, MIN_CONTRAST = 16.0, 3.0
CHECK_EVERY = 256


@dataclass(frozen=True)
class File:
    """A file that is trained on; a file that several datasets share counts once, for the first of them."""

    path: str
    dataset: str
    name: str
    content: str


@dataclass(frozen=True)
class Alike:
    """Two files or more. `same_bytes` when they are copies of one another, byte for byte; else they look the same."""

    files: tuple[File, ...]
    same_bytes: bool


@dataclass(frozen=True)
class SameCaption:
    """A caption that several files have; names are those inside the datasets."""

    caption: str
    files: tuple[File, ...]


def files_of(scans: Sequence[Scan]) -> list[File]:
    """The files that are trained on, by path."""
    found: dict[str, File] = {}
    for scan in scans:
        for sample in scan.samples:
            file = File(sample.path, sample.dataset, sample.source.path, sample.content)
            found.setdefault(file.path, file)
    return [found[path] for path in sorted(found)]


def find_alike(
    files: Sequence[File], looks: Mapping[str, Look], *, check: Callable[[], None] = lambda: None
) -> list[Alike]:
    """Groups of files with the same bytes or the same looks, the largest first; files without a look may be in a group
    by their bytes alone."""
    by_content: dict[str, list[File]] = defaultdict(list)
    for file in files:
        by_content[file.content].append(file)
    firsts = [same[0] for same in by_content.values()]
    groups = _look_alike(firsts, [looks.get(file.path) for file in firsts], check)
    found = []
    for group in groups:
        members = [file for first in group for file in by_content[first.content]]
        if len(members) > 1:
            found.append(Alike(tuple(sorted(members, key=lambda file: file.path)), same_bytes=len(group) == 1))
    return sorted(found, key=lambda alike: (-len(alike.files), alike.files[0].path))


def same_captions(scans: Sequence[Scan]) -> list[SameCaption]:
    """Captions that several files have, case and spaces aside, those of most files first."""
    written: dict[str, str] = {}
    files: dict[str, dict[str, File]] = defaultdict(dict)
    for scan in scans:
        for sample in scan.samples:
            file = File(sample.path, sample.dataset, sample.source.path, sample.content)
            for caption in sample.captions:
                key = " ".join(caption.casefold().split())
                if key:
                    written.setdefault(key, caption)
                    files[key].setdefault(file.path, file)
    found = [SameCaption(written[key], tuple(group.values())) for key, group in files.items() if len(group) > 1]
    return sorted(found, key=lambda same: (-len(same.files), same.caption))


def _look_alike(files: Sequence[File], looks: Sequence[Look | None], check: Callable[[], None]) -> list[list[File]]:
    """The files grouped by looks; most groups are of one."""
    labels = np.arange(len(files))
    for frames in (1, 2):  # pictures and clips are not compared
        chosen = [at for at, look in enumerate(looks) if look is not None and len(look.hashes) == frames]
        cells = _cells_of([looks[at] for at in chosen], frames)
        telling = _tells(cells) if chosen else np.zeros(0, bool)
        chosen = [at for at, tells in zip(chosen, telling, strict=True) if tells]
        if len(chosen) > 1:
            hashes = np.array([looks[at].hashes for at in chosen], np.uint64)  # type: ignore[union-attr]
            labels[chosen] = _labels(hashes, cells[telling], np.array(chosen), check)
    groups: dict[int, list[File]] = defaultdict(list)
    for file, label in zip(files, labels.tolist(), strict=True):
        groups[label].append(file)
    return list(groups.values())


def _cells_of(looks: Sequence[Look | None], frames: int) -> np.ndarray:
    """(N, frames * CELLS * CELLS, 3) uint8."""
    joined = b"".join(look.cells for look in looks if look is not None)
    return np.frombuffer(joined, np.uint8).reshape(len(looks), frames * CELLS * CELLS, 3)


def _tells(cells_NCK: np.ndarray) -> np.ndarray:
    """Which files are bright and varied enough to be compared, (N,) bool."""
    flat = cells_NCK.reshape(len(cells_NCK), -1)
    contrast = cells_NCK.std(axis=1, dtype=np.float32).max(axis=1)
    return (flat.mean(axis=1, dtype=np.float32) >= MIN_BRIGHTNESS) & (contrast >= MIN_CONTRAST)


def _labels(hashes_NF: np.ndarray, cells_NCK: np.ndarray, labels: np.ndarray, check: Callable[[], None]) -> np.ndarray:
    """`labels` (N,) with those of files that look the same made equal."""
    labels = labels.copy()
    flat = cells_NCK.reshape(len(cells_NCK), -1)
    means = flat.mean(axis=1, dtype=np.float32)
    order = np.argsort(means, kind="stable")
    frames, means = np.ascontiguousarray(hashes_NF[order].T), means[order]
    # Pictures whose means differ by more than MAX_MEAN cannot differ by less than that on average.
    ends = np.searchsorted(means, means + MAX_MEAN, side="right")
    for at, end in enumerate(ends.tolist()):
        if at % CHECK_EVERY == 0:
            check()
        near = np.ones(end - at - 1, bool)
        for hashes in frames:
            near &= np.bitwise_count(hashes[at + 1 : end] ^ hashes[at]) <= MAX_BITS
        others = order[at + 1 : end][near]
        here = order[at]
        others = others[labels[others] != labels[here]]
        if not len(others):
            continue
        differences = np.maximum(flat[others], flat[here]) - np.minimum(flat[others], flat[here])
        same = (differences.mean(axis=1) <= MAX_MEAN) & (differences.max(axis=1) <= MAX_CELL)
        for label in np.unique(labels[others[same]]):
            labels[labels == label] = labels[here]
    return labels
