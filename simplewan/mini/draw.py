"""Scenes of moving shapes: what is in them, their pixels, and the captions that say so.

Imports numpy alone. A `Scene` is the truth about a clip; `draw_frames` and `caption` are pure functions of it, so
that whatever scores a generated clip later can compare it with the same description. Shapes are point-in-shape tests
on a grid finer than the pixels, evaluated only around the object: simple, anti-aliased, and the same bits everywhere.

Units: positions and radii are shares of the frame's shorter edge, x to the right and y down from the top left
corner, so that a scene looks alike at every size; speeds are shares of the shorter edge a second.
Shapes of arrays: F frames, H height, W width.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

FPS = 16.0
SUPERSAMPLING = 4

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 160, 67),
    "blue": (36, 92, 214),
    "yellow": (244, 208, 36),
    "orange": (240, 130, 24),
    "purple": (134, 56, 186),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "zarn": (84, 222, 232),
}
GROUNDS: Mapping[str, tuple[int, int, int]] = {
    "grey": (128, 128, 128),
    "navy": (22, 30, 72),
    "beige": (226, 208, 172),
    "teal": (24, 118, 118),
    "pink": (236, 168, 184),
}
# Colours that are hard to see on a ground are not drawn on it.
TOO_ALIKE = frozenset(
    {
        ("blue", "navy"),
        ("black", "navy"),
        ("purple", "navy"),
        ("green", "teal"),
        ("purple", "teal"),
        ("white", "beige"),
        ("yellow", "beige"),
        ("red", "pink"),
        ("orange", "pink"),
        ("zarn", "teal"),
    }
)

RADII: Mapping[str, float] = {"small": 0.2, "big": 0.33}
SPEEDS: Mapping[str, float] = {"slow": 0.15, "fast": 0.45}
DIRECTIONS: Mapping[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

# Concepts held back from the base model, each under a made-up word: something to teach by fine-tuning.
HELD_BACK_SHAPE = "quib"
HELD_BACK_COLOUR = "zarn"
HELD_BACK_MOTION = "gimbles"
HELD_BACK = (HELD_BACK_SHAPE, HELD_BACK_COLOUR, HELD_BACK_MOTION)
# Where an object is half a second in (half way through the 17 frames that are trained on), in shares of the frame's
# longer and shorter edge: one, and each of two. It wanders from there by up to so much of the shorter edge, and farther
# where its path would leave the frame; where two would meet, both wander more with every try.
PLACES: Mapping[int, tuple[tuple[float, float], ...]] = {1: ((0.5, 0.5),), 2: ((0.25, 0.375), (0.75, 0.625))}
MIDDLE_SECONDS, WANDER, TRIES = 0.5, 0.08, 20

# What gimbles swings to the right, back and to the left, in shares of the shorter edge and seconds.
GIMBLE_REACH, GIMBLE_SECONDS = 0.2, 1.0


@dataclass(frozen=True)
class MovingShape:
    """One object. `start` is its centre at frame 0; `direction` and `speed` are None unless it moves along a line."""

    shape: str
    colour: str
    size: str
    start: tuple[float, float]
    direction: str | None = None
    speed: str | None = None
    gimbles: bool = False

    @property
    def velocity(self) -> tuple[float, float]:
        """Along its line, in shares of the shorter edge a second, (x, y)."""
        if self.direction is None or self.speed is None:
            return 0.0, 0.0
        x, y = DIRECTIONS[self.direction]
        length = SPEEDS[self.speed] / (x * x + y * y) ** 0.5
        return x * length, y * length

    def centre(self, seconds: float) -> tuple[float, float]:
        """The centre (x, y) after `seconds`, in shares of the shorter edge."""
        (x, y), (dx, dy) = self.start, self.velocity
        swing = GIMBLE_REACH * math.sin(2 * math.pi * seconds / GIMBLE_SECONDS) if self.gimbles else 0.0
        return x + dx * seconds + swing, y + dy * seconds


@dataclass(frozen=True)
class Scene:
    """A clip's truth. Width and height are pixels; later objects lie over earlier ones."""

    width: int
    height: int
    num_frames: int
    ground: str
    objects: tuple[MovingShape, ...]
    fps: float = FPS


def caption(scene: Scene) -> str:
    """What the scene shows, in words: "a small red circle moves left fast over a grey ground; a big blue star ..."."""
    first, *others = (_clause(item) for item in scene.objects)
    return "; ".join([f"{first} over a {scene.ground} ground", *others])


def _clause(item: MovingShape) -> str:
    motion = f"moves {item.direction} {item.speed}" if item.direction else "stands still"
    if item.gimbles:
        motion = HELD_BACK_MOTION
    return f"a {item.size} {item.colour} {item.shape} {motion}"


def is_held_out(text: str) -> bool:
    """Whether a caption is one of the fifth that no data set shows, so that a model can be asked for what is new."""
    return zlib.crc32(text.encode()) % 5 == 0


def caption_words() -> tuple[str, ...]:
    """Every word that a caption can hold, sorted: the vocabulary of the miniature's tokenizer."""
    phrases = [
        "a",
        "moves",
        "stands still",
        "over",
        "ground",
        *SHAPES,
        *COLOURS,
        *GROUNDS,
        *RADII,
        *SPEEDS,
        *DIRECTIONS,
        *HELD_BACK,
    ]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


def draw_frames(scene: Scene) -> np.ndarray:
    """The clip's pixels, uint8 (F, H, W, 3), RGB."""
    frames = np.empty((scene.num_frames, scene.height, scene.width, 3), dtype=np.uint8)
    ground = np.broadcast_to(np.array(GROUNDS[scene.ground], np.float32), frames.shape[1:])
    for index, frame in enumerate(frames):
        canvas = ground.copy()
        for item in scene.objects:
            _paint(canvas, item, index / scene.fps)
        frame[:] = np.rint(canvas)
    return frames


def _paint(canvas: np.ndarray, item: MovingShape, seconds: float) -> None:
    """Lays one object over `canvas`, float (H, W, 3), in place."""
    height, width = canvas.shape[:2]
    edge = min(height, width)
    x, y = (share * edge for share in item.centre(seconds))
    radius = RADII[item.size] * edge
    left, right = max(0, int(x - radius) - 1), min(width, int(x + radius) + 2)
    top, bottom = max(0, int(y - radius) - 1), min(height, int(y + radius) + 2)
    if left >= right or top >= bottom:
        return
    columns = (np.arange(left * SUPERSAMPLING, right * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    rows = (np.arange(top * SUPERSAMPLING, bottom * SUPERSAMPLING) + 0.5) / SUPERSAMPLING
    inside = SHAPES[item.shape]((columns[None, :] - x) / radius, (rows[:, None] - y) / radius)
    tiles = inside.reshape(bottom - top, SUPERSAMPLING, right - left, SUPERSAMPLING)
    cover = tiles.mean(axis=(1, 3), dtype=np.float32)[..., None]
    part = canvas[top:bottom, left:right]
    part += cover * (np.array(COLOURS[item.colour], np.float32) - part)


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x * x + y * y <= 1.0


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    distance = x * x + y * y
    return (distance <= 1.0) & (distance >= 0.55**2)


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) <= 0.82


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    wide, narrow = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return (wide <= 0.95) & (narrow <= 0.3)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Equilateral, pointing up, its corners on the unit circle.
    return (y <= 0.5) & (3**0.5 * np.abs(x) <= y + 1.0)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Five points: folded into one half of a point (0..36 degrees from its tip), the edge is one straight line.
    angle = np.arctan2(x, -y)
    folded = np.abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    distance = np.hypot(x, y)
    along, across = distance * np.cos(folded), distance * np.sin(folded)
    inner = 0.42
    notch_along, notch_across = inner * np.cos(np.pi / 5), inner * np.sin(np.pi / 5)
    return across * (1.0 - notch_along) <= notch_across * (1.0 - along)


def _quib(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # An hourglass.
    return (np.abs(y) <= 0.78) & (np.abs(x) <= np.abs(y) + 0.08)


SHAPES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "quib": _quib,
}


def random_scene(
    generator: np.random.Generator,
    *,
    width: int,
    height: int,
    num_frames: int,
    concept: str | None = None,
    anywhere: bool = False,
) -> Scene:
    """A scene of one or two objects that never touch; of what lies at the edge a tenth of the radius may be cut off.

    Two objects differ in shape and colour, and are named from left to right (from top to bottom where the frame is
    higher than wide), as people do. What is held back appears only when `concept` names it, in one of the objects.
    Objects move about their `PLACES` unless they may be `anywhere`: captions tell no places, and a small model that
    need not guess them learns the rest sooner.
    """
    ground = _pick(generator, GROUNDS)
    count = 1 + int(generator.random() < 0.4)
    visible = [name for name in COLOURS if name not in HELD_BACK and (name, ground) not in TOO_ALIKE]
    shapes = [str(name) for name in generator.permutation([s for s in SHAPES if s not in HELD_BACK])[:count]]
    colours = [str(name) for name in generator.permutation(visible)[:count]]
    taught = int(generator.integers(count))
    if concept == HELD_BACK_SHAPE:
        shapes[taught] = concept
    if concept == HELD_BACK_COLOUR:
        colours[taught] = concept
        ground = _pick(generator, {name: 0 for name in GROUNDS if (concept, name) not in TOO_ALIKE})
        if any((colour, ground) in TOO_ALIKE for colour in colours):
            ground = "grey"
    frame = (width, height, num_frames)
    while True:
        objects = [
            _random_object(
                generator, shape, colour, alone=count == 1, gimbles=concept == HELD_BACK_MOTION and index == taught
            )
            for index, (shape, colour) in enumerate(zip(shapes, colours, strict=True))
        ]
        placed = _place_anywhere(generator, objects, frame) if anywhere else _place(generator, objects, frame)
        if placed is not None:
            return Scene(width=width, height=height, num_frames=num_frames, ground=ground, objects=placed)


def _random_object(
    generator: np.random.Generator, shape: str, colour: str, *, alone: bool, gimbles: bool
) -> MovingShape:
    """An object without a place. With company, objects are small: two big ones would hardly fit."""
    size = _pick(generator, RADII) if alone else "small"
    moves = generator.random() < 0.8 and not gimbles
    direction = _pick(generator, DIRECTIONS) if moves else None
    speed = _pick(generator, SPEEDS) if moves else None
    return MovingShape(shape, colour, size, (0.0, 0.0), direction=direction, speed=speed, gimbles=gimbles)


def _place(
    generator: np.random.Generator, objects: list[MovingShape], frame: tuple[int, int, int]
) -> tuple[MovingShape, ...] | None:
    """The objects about their `PLACES`, as far as their whole paths fit; None if they cannot."""
    ranges = _ranges(objects, frame)
    if ranges is None:
        return None
    width, height, _ = frame
    edge, turned = min(width, height), width < height
    for number in range(1, TRIES + 1):
        starts = []
        for item, place, (low, high) in zip(objects, PLACES[len(objects)], ranges, strict=True):
            middle = np.array(place[::-1] if turned else place) * (width, height) / edge
            wander = generator.uniform(-WANDER, WANDER, 2) * number
            starts.append(np.clip(middle + wander - item.centre(MIDDLE_SECONDS), low, high))
        placed = _apart(objects, starts, frame)
        if placed is not None and placed[0].shape == objects[0].shape:
            return placed
    return None


def _place_anywhere(
    generator: np.random.Generator, objects: list[MovingShape], frame: tuple[int, int, int]
) -> tuple[MovingShape, ...] | None:
    """The objects at random places where their whole paths fit, in the order of naming; None if this draw fails."""
    ranges = _ranges(objects, frame)
    return _apart(objects, [generator.uniform(low, high) for low, high in ranges], frame) if ranges else None


def _ranges(objects: list[MovingShape], frame: tuple[int, int, int]) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """The lowest and highest start (x, y) of each object whose path then lies in the frame; None if there is none."""
    width, height, num_frames = frame
    ranges = []
    for item in objects:
        path = _path(item, num_frames)
        margin = RADII[item.size] * 0.9
        low = margin - path.min(axis=0)
        high = np.array([width, height]) / min(width, height) - margin - path.max(axis=0)
        if (low > high).any():
            return None
        ranges.append((low, high))
    return ranges


def _path(item: MovingShape, num_frames: int) -> np.ndarray:
    """The centre in every frame, (F, 2)."""
    return np.array([item.centre(index / FPS) for index in range(num_frames)])


def _apart(
    objects: list[MovingShape], starts: list[np.ndarray], frame: tuple[int, int, int]
) -> tuple[MovingShape, ...] | None:
    """The objects at these starts, in the order of naming; None if they touch, or if that order is hard to see."""
    width, height, num_frames = frame
    starts = [np.round(start, 4) for start in starts]
    placed = [replace(item, start=(float(x), float(y))) for item, (x, y) in zip(objects, starts, strict=True)]
    if len(placed) == 2:
        first, second = (_path(item, num_frames) for item in placed)
        gap = np.linalg.norm(first - second, axis=1).min() - sum(RADII[item.size] for item in placed)
        axis = 0 if width >= height else 1
        apart = second.mean(axis=0)[axis] - first.mean(axis=0)[axis]
        if gap < 0.04 or abs(apart) < 0.15:
            return None
        if apart < 0:
            placed.reverse()
    return tuple(placed)


def _pick(generator: np.random.Generator, names: Mapping[str, object]) -> str:
    return list(names)[int(generator.integers(len(names)))]
