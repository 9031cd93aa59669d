"""The drawn data set on disk: `clip-000.mp4` with its caption in `clip-000.txt`, and so on.

Imports `draw` and the writer of `simplewan.data`. Sizes and lengths go round a fixed list, so that every aspect
bucket and length is present from the first few clips on; what is seen in them comes from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simplewan.data.media import write_mp4
from simplewan.mini.draw import Scene, caption, draw_frames, is_held_out, random_scene

# (width, height) of the sources: square, landscape and portrait; the larger ones are scaled down to the training size.
SIZES = ((64, 64), (80, 48), (48, 80), (128, 128), (160, 96), (96, 160))
LENGTHS_FRAMES = (17, 21, 17, 25)


def make_scenes(
    seed: int, count: int, *, concept: str | None = None, sizes: Sequence[tuple[int, int]] = SIZES
) -> tuple[Scene, ...]:
    """`count` scenes; the first n of a longer list are those of a shorter one with the same seed.

    `concept`, one of `draw.HELD_BACK`, is in every scene; without one, in none. No caption is one that is held out.
    """
    scenes = []
    for index in range(count):
        generator = np.random.default_rng([seed, index])
        width, height = sizes[index % len(sizes)]
        num_frames = LENGTHS_FRAMES[(index // len(sizes)) % len(LENGTHS_FRAMES)]
        while True:
            scene = random_scene(generator, width=width, height=height, num_frames=num_frames, concept=concept)
            if not is_held_out(caption(scene)):
                break
        scenes.append(scene)
    return tuple(scenes)


def write_dataset(
    folder: Path, *, seed: int, count: int, concept: str | None = None, sizes: Sequence[tuple[int, int]] = SIZES
) -> tuple[Scene, ...]:
    """Writes `count` clips and their captions into `folder`; returns their scenes, in the order of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = make_scenes(seed, count, concept=concept, sizes=sizes)
    for index, scene in enumerate(scenes):
        write_mp4(folder / f"clip-{index:03d}.mp4", draw_frames(scene), scene.fps)
        (folder / f"clip-{index:03d}.txt").write_text(caption(scene) + "\n", encoding="utf-8")
    return scenes
