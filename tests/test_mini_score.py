"""The scorer sees in a drawn clip what was drawn, in a spoilt one nearly so, and in noise next to nothing."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageFilter

from simplewan.mini.draw import (
    DIRECTIONS,
    HELD_BACK,
    RADII,
    SHAPES,
    SPEEDS,
    MovingShape,
    Scene,
    draw_frames,
    random_scene,
)
from simplewan.mini.measure import Seen, label, measure
from simplewan.mini.score import ATTRIBUTES, Score, concept_score, expected, score, tally, wrong

SIZES = ((64, 64), (80, 48), (48, 80))


def _scenes(seed: int, count: int) -> list[tuple[Scene, str | None]]:
    """Scenes over all sizes and lengths, every other one with a held-back concept."""
    scenes = []
    for index in range(count):
        (width, height), num_frames = SIZES[index % 3], (9, 13, 17)[index // 3 % 3]
        concept = HELD_BACK[index // 2 % 3] if index % 2 else None
        generator = np.random.default_rng([seed, index])
        scene = random_scene(generator, width=width, height=height, num_frames=num_frames, concept=concept)
        scenes.append((scene, concept))
    return scenes


def _spoilt(frames: np.ndarray, seed: int, *, noise: float = 10.0, blur: float = 1.0) -> np.ndarray:
    """Blurred by so many pixels, then with normal noise of this deviation in 8-bit values: what a poor VAE returns."""
    soft = np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(blur))) for frame in frames])
    noisy = soft + np.random.default_rng(seed).normal(0, noise, soft.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "least"), [(False, 0.99), (True, 0.97)])
def test_what_was_drawn_is_seen(spoil: bool, least: float) -> None:
    scores = []
    for index, (scene, concept) in enumerate(_scenes(11, 180)):
        frames = draw_frames(scene)
        seen = measure(_spoilt(frames, index) if spoil else frames, scene.fps)
        scores.append(score(seen, scene))
        if concept is not None:
            scores.append({concept: concept_score(seen, scene, concept)})
    total = tally(scores)
    assert list(total) == [*ATTRIBUTES, *dict.fromkeys(name for name in total if name in HELD_BACK)]
    assert {name: part.share for name, part in total.items() if part.share < least} == {}


def test_noise_is_seen_as_nothing() -> None:
    total = []
    for index, (scene, _) in enumerate(_scenes(12, 12)):
        frames = np.random.default_rng(index).integers(0, 256, draw_frames(scene).shape, dtype=np.uint8)
        total.append(score(measure(frames, scene.fps), scene))
    floor = tally(total)
    assert {name: part.share for name, part in floor.items() if part.share > 0.3} == {}


@pytest.mark.parametrize(("shape", "num_frames"), itertools.product(SHAPES, (9, 17)))
def test_figures_are_those_of_the_drawing(shape: str, num_frames: int) -> None:
    item = MovingShape(shape, "orange", "small", (0.4, 0.5), "right", "fast")
    seen = measure(draw_frames(Scene(80, 48, num_frames, "teal", (item,))), 16.0)
    (found,) = seen.objects
    assert (found.shape, found.colour, found.size, found.direction, found.speed) == (
        shape,
        "orange",
        "small",
        "right",
        "fast",
    )
    assert found.radius == pytest.approx(RADII["small"], rel=0.05)
    assert found.velocity == pytest.approx((SPEEDS["fast"], 0.0), abs=0.02)
    assert found.centre == pytest.approx(item.centre((num_frames - 1) / 32), abs=0.02)
    assert found.frames == num_frames
    assert found.likeness > 0.97


@pytest.mark.parametrize(("direction", "speed"), itertools.product(DIRECTIONS, SPEEDS))
def test_frames_a_second_count(direction: str, speed: str) -> None:
    item = MovingShape("square", "red", "small", (0.8, 0.5), direction, speed)
    frames = draw_frames(Scene(80, 48, 9, "grey", (item,)))
    (found,) = measure(frames, 16.0).objects
    assert (found.direction, found.speed) == (direction, speed)
    (halved,) = measure(frames, 8.0).objects
    assert math.hypot(*halved.velocity) == pytest.approx(SPEEDS[speed] / 2, abs=0.02)


def test_a_swing_is_neither_still_nor_a_line() -> None:
    swinging = MovingShape("square", "red", "small", (0.8, 0.5), gimbles=True)
    for num_frames in (9, 13, 17):
        frames = draw_frames(Scene(80, 48, num_frames, "grey", (swinging,)))
        assert measure(frames, 16.0).objects[0].direction == "gimbles"
    # To the left first, or twice as often, is another motion.
    frames = draw_frames(Scene(80, 48, 17, "grey", (swinging,)))
    assert measure(frames[:, :, ::-1], 16.0).objects[0].direction is None
    assert measure(np.concatenate([frames[:-1:2], frames[::2]]), 16.0).objects[0].direction is None


def test_a_diagonal_is_no_direction() -> None:
    frames = [
        draw_frames(Scene(64, 64, 1, "grey", (MovingShape("circle", "red", "small", (0.2 + step, 0.2 + step)),)))
        for step in np.arange(17) * 0.02
    ]
    (found,) = measure(np.concatenate(frames), 16.0).objects
    assert found.direction is None
    assert found.speed is None


def _pair() -> Scene:
    return Scene(
        80,
        48,
        9,
        "grey",
        (
            MovingShape("circle", "red", "small", (0.3, 0.5)),
            MovingShape("star", "blue", "small", (1.2, 0.5), "left", "slow"),
        ),
    )


def test_a_missing_object_has_everything_wrong() -> None:
    scene = _pair()
    alone = dataclasses.replace(scene, objects=scene.objects[1:])
    seen = measure(draw_frames(alone), scene.fps)
    scores = score(seen, scene)
    assert {name: (part.right, part.total) for name, part in scores.items()} == {
        "colour": (1, 2),
        "shape": (1, 2),
        "size": (1, 2),
        "direction": (1, 2),
        "speed": (1, 1),
        "ground": (1, 1),
        "count": (0, 1),
        "all": (0, 1),
    }
    assert wrong(seen, scene) == ("red circle missing", "count 1, not 2")


def test_an_object_too_many_is_a_wrong_count_alone() -> None:
    scene = _pair()
    asked = dataclasses.replace(scene, objects=scene.objects[1:])
    scores = score(measure(draw_frames(scene), scene.fps), asked)
    assert {name for name, part in scores.items() if part.right < part.total} == {"count", "all"}


def test_places_do_not_matter_and_each_object_answers_for_itself() -> None:
    scene = _pair()
    seen = measure(draw_frames(scene), scene.fps)
    turned = dataclasses.replace(scene, objects=scene.objects[::-1])
    assert score(seen, turned)["all"] == Score(1, 1)
    swapped = tuple(
        dataclasses.replace(item, colour=other.colour)
        for item, other in zip(scene.objects, scene.objects[::-1], strict=True)
    )
    scores = score(seen, dataclasses.replace(scene, objects=swapped))
    assert scores["colour"] == Score(0, 2)
    assert scores["shape"] == Score(2, 2)


def test_what_flickers_or_is_dirt_is_not_counted() -> None:
    scene = _pair()
    frames = draw_frames(scene)
    frames[:3, 2:10, 36:46] = (244, 208, 36)  # as big as an object, in a third of the frames
    frames[:, 2:5, 60:64] = (244, 208, 36)  # always there, too small for an object
    assert score(measure(frames, scene.fps), scene)["all"] == Score(1, 1)
    frames[3:7] = frames[4]
    frames[3] = np.array((128, 128, 128))  # a frame without anything
    seen = measure(frames, scene.fps)
    assert len(seen.objects) == 2
    assert seen.objects[0].frames == 8


def test_a_concept_counts_on_its_own_object() -> None:
    scene = _pair()
    circle, star = scene.objects
    asked = dataclasses.replace(scene, objects=(dataclasses.replace(circle, colour="zarn"), star))
    seen = measure(draw_frames(asked), scene.fps)
    assert concept_score(seen, asked, "zarn") == Score(1, 1)
    other = dataclasses.replace(scene, objects=(circle, dataclasses.replace(star, colour="zarn")))
    assert concept_score(seen, other, "zarn") == Score(0, 1)
    assert concept_score(seen, asked, "quib") == Score(0, 0)
    assert expected(MovingShape("quib", "red", "big", (0, 0), gimbles=True)) == {
        "colour": "red",
        "shape": "quib",
        "size": "big",
        "direction": "gimbles",
    }


def test_components_hang_together_by_their_sides() -> None:
    mask = np.array(
        [
            [[1, 1, 0, 1], [0, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]],
            [[0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]],
        ],
        bool,
    )
    labels = label(mask)
    assert (labels > 0).tolist() == mask.tolist()
    assert sorted(np.bincount(labels.reshape(-1))[1:]) == [1, 1, 1, 1, 2, 4, 8]
    spiral = np.ones((1, 9, 9), bool)
    spiral[0, 1, :8] = spiral[0, 1:8, 7] = spiral[0, 7, 1:8] = spiral[0, 3:8, 1] = spiral[0, 3, 1:6] = False
    assert label(spiral).max() == 1
    assert label(np.zeros((2, 3, 4), bool)).max() == 0


def test_an_empty_clip_has_no_objects() -> None:
    assert measure(np.full((9, 48, 80, 3), 128, np.uint8), 16.0) == Seen("grey", ())
    assert measure(np.zeros((1, 16, 16, 3), np.uint8), 16.0).objects == ()


def test_the_interval_is_wilsons() -> None:
    low, high = Score(8, 10).interval()
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=2e-4)
    assert Score(0, 0).interval() == (0.0, 1.0)
    assert math.isnan(Score(0, 0).share)
    assert Score(20, 20).interval()[1] == pytest.approx(1.0)
    assert tally([{"ground": Score(1, 1), "x": Score(0, 1)}, {"colour": Score(1, 2), "ground": Score(0, 1)}]) == {
        "colour": Score(1, 2),
        "ground": Score(1, 2),
        "x": Score(0, 1),
    }
