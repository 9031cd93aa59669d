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
    GIMBLE_REACH,
    GIMBLE_SECONDS,
    GROUNDS,
    HELD_BACK,
    MIDDLE_SECONDS,
    PLACES,
    RADII,
    SHAPES,
    SPEEDS,
    TOO_ALIKE,
    WANDER,
    MovingShape,
    Scene,
    caption,
    caption_words,
    draw_frames,
    random_scene,
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
    expected = np.array(DIRECTIONS[direction]) * SPEEDS[speed] * 64 * 8 / 16
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
        assert np.hypot(columns + 0.5 - 48, rows + 0.5 - 32).max() <= radius * 64 * 1.35 + 1
        areas[size] = far.sum()
    assert areas["big"] / areas["small"] == pytest.approx((RADII["big"] / RADII["small"]) ** 2, rel=0.06)


def test_shapes_differ() -> None:
    pictures = [draw_frames(_scene(MovingShape(s, "red", "big", (0.75, 0.5)), num_frames=1)) for s in SHAPES]
    for one, other in itertools.combinations(pictures, 2):
        assert (one != other).any(axis=-1).sum() > 40


def test_gimbles_swings_right_back_and_left() -> None:
    item = MovingShape("circle", "red", "small", (0.75, 0.5), gimbles=True)
    frames = draw_frames(_scene(item, num_frames=17))
    path = np.array([_centroid(frame) for frame in frames]) - _centroid(frames[0])
    seconds = np.arange(17) / 16
    assert path[:, 0] == pytest.approx(GIMBLE_REACH * 64 * np.sin(2 * np.pi * seconds / GIMBLE_SECONDS), abs=0.05)
    assert path[:, 1] == pytest.approx(0, abs=0.05)
    assert caption(_scene(item)) == "a small red circle gimbles over a grey ground"


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


def _scenes() -> list[Scene]:
    """Scenes of every size and length, a quarter of them without a held-back concept."""
    return [scene for concept in (None, *HELD_BACK) for scene in make_scenes(9, 60, concept=concept)]


def test_whole_paths_lie_in_the_frame_and_never_touch() -> None:
    for scene in _scenes():
        edge = min(scene.width, scene.height)
        times = [index / scene.fps for index in range(scene.num_frames)]
        paths = [np.array([item.centre(seconds) for seconds in times]) for item in scene.objects]
        for item, path in zip(scene.objects, paths, strict=True):
            margin = 0.9 * RADII[item.size] - 1e-3  # a tenth of the radius may be cut
            assert (path >= margin).all()
            assert (path <= np.array([scene.width, scene.height]) / edge - margin).all()
        if len(paths) == 2:
            apart = np.linalg.norm(paths[0] - paths[1], axis=1) - sum(RADII[item.size] for item in scene.objects)
            assert apart.min() > 0.035


def _away(scene: Scene) -> list[float]:
    """How far the objects are from their places half a second in, in shares of the shorter edge, the larger of x, y."""
    edge = min(scene.width, scene.height)
    places = [place if scene.width >= scene.height else place[::-1] for place in PLACES[len(scene.objects)]]
    middles = [np.array(place) * (scene.width, scene.height) / edge for place in places]
    centres = [item.centre(MIDDLE_SECONDS) for item in scene.objects]
    return [float(np.abs(m - np.array(c)).max()) for m, c in zip(middles, centres, strict=True)]


def test_objects_wander_about_their_places_unless_they_may_be_anywhere() -> None:
    def draw(index: int, *, anywhere: bool) -> Scene:
        generator = np.random.default_rng([7, index])
        width, height = SIZES[index % len(SIZES)]
        return random_scene(generator, width=width, height=height, num_frames=17, anywhere=anywhere)

    near, far = ([draw(index, anywhere=anywhere) for index in range(240)] for anywhere in (False, True))
    alone = [distance for scene in near if len(scene.objects) == 1 for distance in _away(scene)]
    assert 0.5 * WANDER < max(alone) <= WANDER + 1e-4
    for portrait in (False, True):
        pairs = [scene for scene in near if len(scene.objects) == 2 and (scene.width < scene.height) == portrait]
        assert len(pairs) > 10
        assert np.mean([max(_away(scene)) <= WANDER + 1e-4 for scene in pairs]) > 0.6  # the others had to give way
    assert np.mean([distance > 2 * WANDER for scene in far for distance in _away(scene)]) > 0.4


def test_two_objects_differ_and_are_named_from_left_to_right() -> None:
    pairs = [scene for scene in _scenes() if len(scene.objects) == 2]
    assert len(pairs) > 50
    for scene in pairs:
        one, other = scene.objects
        assert one.shape != other.shape
        assert one.colour != other.colour
        assert {one.size, other.size} == {"small"}
        axis = 0 if scene.width >= scene.height else 1
        seconds = (scene.num_frames - 1) / scene.fps
        middles = [(item.centre(0)[axis] + item.centre(seconds)[axis]) / 2 for item in scene.objects]
        if not one.gimbles and not other.gimbles:
            assert middles[0] < middles[1]


def test_what_is_held_back_is_shown_only_when_asked_for() -> None:
    held_back = set(HELD_BACK)
    for concept in (None, *HELD_BACK):
        for scene in make_scenes(9, 60, concept=concept):
            words = caption(scene).replace(";", "").split()
            assert [word for word in words if word in held_back] == ([concept] if concept else [])
            assert not {(item.colour, scene.ground) for item in scene.objects} & TOO_ALIKE


def test_every_word_of_a_caption_is_in_the_vocabulary() -> None:
    words = set(caption_words())
    used = {word for scene in _scenes() for word in caption(scene).replace(";", "").split()}
    assert used == words


def test_the_world_is_all_there() -> None:
    generator = np.random.default_rng(5)
    scenes = [random_scene(generator, width=64, height=64, num_frames=17) for _ in range(300)]
    items = [item for scene in scenes for item in scene.objects]
    assert {item.shape for item in items} == set(SHAPES) - set(HELD_BACK)
    assert {item.colour for item in items} == set(COLOURS) - set(HELD_BACK)
    assert {(item.direction, item.speed) for item in items} == {*itertools.product(DIRECTIONS, SPEEDS), (None, None)}
    assert {item.size for item in items} == set(RADII)
    assert {scene.ground for scene in scenes} == set(GROUNDS)
