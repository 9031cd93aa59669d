"""Whether the caches of a run fit on the disk, before hours are spent on them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from simplewan.app.context import Context
from simplewan.app.gathering import Gathered
from simplewan.errors import Problem, UserError

GIB = 2**30
SPARE = 1.05  # headers of the files, and the text cache, which is small beside the latents


def check_disk(context: Context, bytes_missing: Mapping[str, int], gathered: Gathered) -> None:
    """Say how much the latents still to be cached take (dataset -> bytes); UserError when a disk has no room."""
    disks: dict[int, tuple[Path, list[str]]] = {}
    for dataset in bytes_missing:
        folder = gathered.latents_folder(dataset).absolute()
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        disks.setdefault(existing.stat().st_dev, (existing, []))[1].append(dataset)
    problems = []
    for place, datasets in disks.values():
        missing = round(sum(bytes_missing[dataset] for dataset in datasets) * SPARE)
        free = shutil.disk_usage(place).free
        if missing > free:
            problems.append(
                Problem(
                    f"datasets {', '.join(datasets)}",
                    f"need {missing / GIB:.2f} GiB for cached latents; the disk of {place} has {free / GIB:.2f} free",
                    fix="free some room, or put the caches elsewhere with cache_dir or cache_dir_vae",
                )
            )
    if problems:
        raise UserError(*problems)
    total = sum(bytes_missing.values())
    if total >= GIB / 10:
        context.say(f"latents to be cached take about {total / GIB:.1f} GiB on disk")
