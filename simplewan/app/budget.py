"""Whether the caches of a run fit on the disk, before hours are spent on them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from simplewan.app.context import Context
from simplewan.caches.store import Store
from simplewan.errors import Problem, UserError

GIB = 2**30
SPARE = 1.05  # headers of the files, and the text cache, which is small beside the latents


def check_disk(context: Context, missing: Mapping[str, tuple[Store, int]]) -> None:
    """Say how much the latents still to be cached take; UserError when a disk has no room.

    `missing` are bytes by dataset and the store they go to; a store elsewhere takes them away from this disk.
    """
    disks: dict[int, tuple[Path, list[str]]] = {}
    for dataset, (store, _bytes) in missing.items():
        if not store.shelf.is_mirror:
            folder = store.folder.absolute()
            disks.setdefault(folder.stat().st_dev, (folder, []))[1].append(dataset)
    problems = []
    for place, datasets in disks.values():
        needed = round(sum(missing[dataset][1] for dataset in datasets) * SPARE)
        free = shutil.disk_usage(place).free
        if needed > free:
            problems.append(
                Problem(
                    f"datasets {', '.join(datasets)}",
                    f"need {needed / GIB:.2f} GiB for cached latents; the disk of {place} has {free / GIB:.2f} free",
                    fix="free some room, or put the caches elsewhere with cache_dir or cache_dir_vae",
                )
            )
    if problems:
        raise UserError(*problems)
    total = sum(needed for _store, needed in missing.values())
    if total >= GIB / 10:
        context.say(f"latents to be cached take about {total / GIB:.1f} GiB on disk")
