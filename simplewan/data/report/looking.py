"""Looking at the files of datasets: which clips are shown, and each file decoded once, a few at a time.

Imports errors, events and this package. Of a clip that is shown five frames are decoded, of any other the first three
of those, so half of it. Files are opened by a few threads (PyAV and PIL release the interpreter's lock); the cache is
written by one. What takes longest is decoding: so many files are looked at and no more, and the page says so.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from simplewan.data.backends import Source
from simplewan.data.buckets import Clip, Size
from simplewan.data.media import MediaError, iter_frames
from simplewan.data.report.cache import PictureCache
from simplewan.data.report.pictures import (
    LOOK_FRAMES,
    Grid,
    Look,
    Strip,
    fitted,
    grid_of,
    look_of,
    strip_of,
    whole,
)
from simplewan.data.samples import Sample, Scan
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Progress

MAX_WORKERS = 8
TELL_SECONDS = 0.1
MOST_OF_A_BUCKET, MOST_SHOWN = 12, 360


@dataclass(frozen=True)
class Seen:
    """What was seen: of files (by where they lie; of their first clip), of clips (by sample id), and of those shown.

    `failures` are files that do not decode as far as they are used, with the reason; `not_looked_at` counts files.
    """

    looks: Mapping[str, Look]
    clips: Mapping[str, Look]
    strips: Mapping[str, Strip]
    failures: Mapping[str, str]
    not_looked_at: int = 0


@dataclass
class _Task:
    """One part of one file: what is wanted of it, and what was found."""

    dataset: str
    source: Source
    content: str
    grid: Grid
    size: Size
    wants_look: bool = False
    samples: list[str] = field(default_factory=list)
    clips: dict[Clip, list[str]] = field(default_factory=dict)
    look: Look | None = None
    strips: dict[Clip, Strip] = field(default_factory=dict)
    failure: str | None = None
    failure_lasts: bool = True

    @property
    def is_done(self) -> bool:
        has_look = self.look is not None or not self.wants_look
        return self.failure is not None or (has_look and len(self.strips) == len(self.clips))


def by_bucket(scan: Scan) -> dict[str, list[Sample]]:
    """The samples of each bucket, the fullest bucket first."""
    buckets: dict[str, list[Sample]] = {bucket: [] for bucket in scan.buckets}
    for sample in scan.samples:
        buckets[sample.bucket].append(sample)
    return buckets


def pictures_for(scans: Sequence[Scan]) -> int:
    """How many clips of a bucket to show, so that the page stays below about 10 MB."""
    buckets = sum(len(scan.buckets) for scan in scans)
    return min(MOST_OF_A_BUCKET, max(1, MOST_SHOWN // max(1, buckets)))


def spread(items: Sequence[Sample], count: int) -> list[Sample]:
    """`count` of the items, the first and the last among them, in order; all when there are no more."""
    if len(items) <= count:
        return list(items)
    if count <= 1:
        return list(items[:count])
    return [items[round(at * (len(items) - 1) / (count - 1))] for at in range(count)]


def look_at(
    scans: Sequence[Scan],
    caches: Mapping[str, Path],
    *,
    pictures: int,
    max_files: int,
    emit: Emit,
    check: Callable[[], None],
) -> Seen:
    """Look at the clips that are shown (`pictures` of each bucket) and, for comparing, at `max_files` files in all.

    `caches` holds the file of each dataset's cache. Raises UserError when one cannot be used. Whatever `check` raises
    passes through; what was seen until then is kept.
    """
    tasks, left = _plan(scans, pictures=pictures, max_files=max_files)
    path = Path()
    try:
        with ExitStack() as stack:
            opened = {}
            for scan in scans:
                path = caches[scan.dataset]
                opened[scan.dataset] = stack.enter_context(PictureCache(path))
                opened[scan.dataset].keep_only({sample.content for sample in scan.samples})
            missing = [task for task in tasks if not _recall(task, opened[task.dataset])]
            for task in _work(missing, emit=emit, check=check):
                _remember(task, opened[task.dataset])
    except sqlite3.OperationalError as error:
        fix = "is the disk full or read-only, or another program using the file?"
        raise UserError(Problem(str(path), f"the cache of pictures cannot be used: {error}", fix=fix)) from None
    return _gather(tasks, left)


def _plan(scans: Sequence[Scan], *, pictures: int, max_files: int) -> tuple[list[_Task], int]:
    """What is to be looked at, and how many files are left out. A file of several datasets is looked at once."""
    tasks: dict[tuple[str, Grid], _Task] = {}
    first: dict[str, tuple[Scan, Sample]] = {}
    for scan in scans:
        for sample in scan.samples:
            first.setdefault(sample.path, (scan, sample))
        for samples in by_bucket(scan).values():
            for sample in spread(samples, pictures):
                _task(tasks, scan, sample).clips.setdefault(sample.clip, []).append(sample.id)
    shown = {path for path, _ in tasks}
    others = [sample for path, (_, sample) in first.items() if path not in shown]
    looked_at = spread(others, max(0, max_files - len(shown)))
    for path in (*shown, *(sample.path for sample in looked_at)):
        _task(tasks, *first[path]).wants_look = True
    for scan in scans:
        for sample in scan.samples:
            if (task := tasks.get((sample.path, grid_of(sample.clip)))) is not None:
                task.samples.append(sample.id)
    return [tasks[key] for key in sorted(tasks, key=lambda key: key[0])], len(others) - len(looked_at)


def _task(tasks: dict[tuple[str, Grid], _Task], scan: Scan, sample: Sample) -> _Task:
    grid = grid_of(sample.clip)
    info = scan.sources[sample.source.path]
    task = _Task(scan.dataset, sample.source, sample.content, grid, (info.width, info.height))
    return tasks.setdefault((sample.path, grid), task)


def _recall(task: _Task, cache: PictureCache) -> bool:
    """Fill in what is known; whether that is all."""
    look = cache.look(task.content, task.grid)
    if isinstance(look, str):
        task.failure = look
        return True
    task.look = look
    found = {clip: cache.strip(task.content, clip) for clip in task.clips}
    task.strips = {clip: strip for clip, strip in found.items() if strip is not None}
    return task.is_done


def _remember(task: _Task, cache: PictureCache) -> None:
    if task.failure is not None and not task.failure_lasts:
        return
    seen = task.failure if task.failure is not None else task.look
    if seen is not None:
        cache.put_look(task.content, task.grid, seen)
    for clip, strip in task.strips.items():
        cache.put_strip(task.content, clip, strip)


def _work(tasks: Sequence[_Task], *, emit: Emit, check: Callable[[], None]) -> Iterator[_Task]:
    """The tasks, done, in order."""
    if not tasks:
        return
    local = tasks[0].source.local is not None
    workers = min(MAX_WORKERS, (os.cpu_count() or 1) if local else MAX_WORKERS, len(tasks))
    pool = ThreadPoolExecutor(workers)
    told = time.monotonic()
    try:
        for count, task in enumerate(pool.map(_decode, tasks), start=1):
            yield task
            if count == len(tasks) or time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                emit(Progress("looks", "Looking at clips", count, len(tasks), "files"))
            check()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(task: _Task) -> _Task:
    """Fill in what is missing, from the file."""
    grid = task.grid
    clips = {clip: [] for clip in task.clips if clip not in task.strips}
    count = grid.count if clips else min(grid.count, LOOK_FRAMES)
    wholes = []
    try:
        frames = iter_frames(
            task.source,
            num_frames=count,
            fps=grid.rate,
            start_seconds=grid.start_seconds,
            source_fps=grid.source_fps,
        )
        for frame in frames:
            if len(wholes) < LOOK_FRAMES:
                wholes.append(whole(frame, task.size))
            for clip, shown in clips.items():
                shown.append(fitted(frame, clip))
        if not wholes:
            raise MediaError(f"no frame decodes from {grid.start_seconds:g} s on")
    except MediaError as error:
        task.failure, task.failure_lasts = error.reason, error.lasting
        return task
    task.look = look_of(wholes)
    task.strips.update({clip: strip_of(shown, wholes[-1]) for clip, shown in clips.items()})
    return task


def _gather(tasks: Sequence[_Task], not_looked_at: int) -> Seen:
    looks: dict[str, Look] = {}
    clips: dict[str, Look] = {}
    strips: dict[str, Strip] = {}
    failures: dict[str, str] = {}
    for task in tasks:
        path = str(task.source)
        if task.failure is not None:
            failures[path] = task.failure
        elif task.look is not None:
            clips.update(dict.fromkeys(task.samples, task.look))
            if task.wants_look:
                looks[path] = task.look
        for clip, strip in task.strips.items():
            strips.update(dict.fromkeys(task.clips[clip], strip))
    return Seen(looks, clips, strips, failures, not_looked_at)
