"""Whether the caches of a run fit on the disk, before hours are spent on them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from simplewan.app.context import Context
from simplewan.app.wanted import Wanted, bytes_missing
from simplewan.errors import Problem, UserError

GIB = 2**30
PACKED = 0.7  # of their size is left of latents that are compressed; measured: benchmarks.cpu cache_rw
SPARE = 1.05  # headers of the files, and the text cache, which is small beside the latents


def check_disk(context: Context, parts: Sequence[tuple[str, Wanted]]) -> None:
    """Say how much the latents still to be cached take; UserError when a disk has no room.

    `parts` are (dataset, what is wanted). What goes to a place elsewhere takes no room here to speak of.
    """
    disks: dict[int, tuple[Path, set[str], list[int]]] = {}
    for dataset, wanted in parts:
        if not wanted.store.shelf.is_mirror:
            folder = wanted.store.folder.absolute()
            _, datasets, sizes = disks.setdefault(folder.stat().st_dev, (folder, set(), []))
            datasets.add(dataset)
            sizes.append(bytes_missing(context, wanted))
    problems = []
    for place, datasets, sizes in disks.values():
        packed = PACKED if context.options.caches.compress_disk_cache else 1.0
        needed = round(sum(sizes) * packed * SPARE)
        free = shutil.disk_usage(place).free
        if needed > free:
            problems.append(
                Problem(
                    f"datasets {', '.join(sorted(datasets))}",
                    f"need {needed / GIB:.2f} GiB for cached latents; the disk of {place} has {free / GIB:.2f} free",
                    fix="free some room, or put the caches elsewhere with cache_dir or cache_dir_vae",
                )
            )
    if problems:
        raise UserError(*problems)
    total = sum(sum(sizes) for _place, _datasets, sizes in disks.values())
    if total >= GIB / 10:
        context.say(f"latents to be cached take about {total / GIB:.1f} GiB on disk")
