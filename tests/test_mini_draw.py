"""The drawn clips say what their captions say."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from simplewan.mini.clips import LENGTHS_FRAMES, SIZES, make_scenes
from simplewan.mini.draw import (
    COLOURS,
    DIRECTIONS,
    GROUNDS,
    RADII,
    SHAPES,
    SPEEDS,
    MovingShape,
    Scene,
    caption,
    caption_words,
    draw_frames,
)


def _scene(item: MovingShape, *, width: int = 96, height: int = 64, num_frames: int = 17) -> Scene:
    return Scene(width=width, height=height, num_frames=num_frames, ground="grey", objects=(item,))


def _centroid(frame: np.ndarray) -> np.ndarray:
    """(x, y) of what is not ground, in pixels, weighted by how far it is from the ground's colour."""
    weight = np.abs(frame.astype(float) - np.array(GROUNDS["grey"])).sum(axis=-1)
    rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]] + 0.5
    return np.array([(weight * columns).sum(), (weight * rows).sum()]) / weight.sum()


@pytest.mark.parametrize(("direction", "speed"), itertools.product(DIRECTIONS, SPEEDS))
def test_objects_move_as_the_caption_says(direction: str, speed: str) -> None:
    item = MovingShape("circle", "red", "small", (0.75, 0.5), direction, speed)
    frames = draw_frames(_scene(item, num_frames=9))
    moved = _centroid(frames[-1]) - _centroid(frames[0])
    heading = np.array(DIRECTIONS[direction])
    expected = heading / np.linalg.norm(heading) * SPEEDS[speed] * 64 * 8 / 16
    assert moved == pytest.approx(expected, abs=0.05)
    assert f"moves {direction} {speed}" in caption(_scene(item))


def test_what_stands_still_does_not_change() -> None:
    frames = draw_frames(_scene(MovingShape("star", "blue", "big", (0.75, 0.5))))
    assert (frames == frames[0]).all()


@pytest.mark.parametrize("shape", list(SHAPES))
def test_shapes_have_their_colour_size_and_soft_edges(shape: str) -> None:
    areas = {}
    for size, radius in RADII.items():
        frame = draw_frames(_scene(MovingShape(shape, "red", size, (0.75, 0.5)), num_frames=1))[0]
        far = np.abs(frame.astype(int) - np.array(GROUNDS["grey"])).sum(axis=-1)
        near = (frame == np.array(COLOURS["red"])).all(axis=-1)
        assert near.any(), "the pure colour is there"
        assert ((far > 0) & ~near).any(), "edges are blends"
        rows, columns = np.nonzero(far)
        assert np.hypot(columns + 0.5 - 48, rows + 0.5 - 32).max() <= radius * 64 * 1.2 + 1
        areas[size] = far.sum()
    assert areas["big"] / areas["small"] == pytest.approx((RADII["big"] / RADII["small"]) ** 2, rel=0.06)


def test_shapes_differ() -> None:
    pictures = [draw_frames(_scene(MovingShape(s, "red", "big", (0.75, 0.5)), num_frames=1)) for s in SHAPES]
    for one, other in itertools.combinations(pictures, 2):
        assert (one != other).any(axis=-1).sum() > 40


def test_captions_name_every_object() -> None:
    still = MovingShape("star", "blue", "big", (1.0, 0.5))
    moving = MovingShape("circle", "red", "small", (0.2, 0.2), "left", "fast")
    scene = dataclasses.replace(_scene(moving), objects=(moving, still))
    assert caption(scene) == "a small red circle moves left fast over a grey ground; a big blue star stands still"


def test_scenes_come_from_the_seed() -> None:
    scenes = make_scenes(3, 24)
    assert scenes == make_scenes(3, 24)
    assert scenes[:7] == make_scenes(3, 7)
    assert scenes != make_scenes(4, 24)
    assert {(scene.width, scene.height) for scene in scenes} == set(SIZES)
    assert {scene.num_frames for scene in scenes} == set(LENGTHS_FRAMES)
    assert {len(scene.objects) for scene in scenes} == {1, 2}
    assert (draw_frames(scenes[0]) == draw_frames(make_scenes(3, 1)[0])).all()


def test_objects_stay_in_the_frame_and_apart_from_the_ground() -> None:
    words = set(caption_words())
    for scene in make_scenes(9, 120):
        edge = min(scene.width, scene.height)
        for item in scene.objects:
            for seconds in (0.0, (scene.num_frames - 1) / scene.fps):
                x, y = item.centre(seconds)
                assert -1e-3 <= x <= scene.width / edge + 1e-3
                assert -1e-3 <= y <= scene.height / edge + 1e-3
            assert item.colour != scene.ground
        assert set(caption(scene).replace(";", "").split()) <= words
