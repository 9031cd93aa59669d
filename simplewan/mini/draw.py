"""Scenes of moving shapes: what is in them, their pixels, and the captions that say so.

Imports numpy alone. A `Scene` is the truth about a clip; `draw_frames` and `caption` are pure functions of it, so
that whatever scores a generated clip later can compare it with the same description. Shapes are point-in-shape tests
on a grid finer than the pixels, evaluated only around the object: simple, anti-aliased, and the same bits everywhere.

Units: positions and radii are shares of the frame's shorter edge, x to the right and y down from the top left
corner, so that a scene looks alike at every size; speeds are shares of the shorter edge a second.
Shapes of arrays: F frames, H height, W width.
"""

from __future__ import annotations

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
    }
)

RADII: Mapping[str, float] = {"small": 0.13, "big": 0.24}
SPEEDS: Mapping[str, float] = {"slow": 0.14, "fast": 0.42}
DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "up and left": (-1, -1),
    "up and right": (1, -1),
    "down and left": (-1, 1),
    "down and right": (1, 1),
}


@dataclass(frozen=True)
class MovingShape:
    """One object. `direction` and `speed` are None when it stands still; `start` is its centre at frame 0."""

    shape: str
    colour: str
    size: str
    start: tuple[float, float]
    direction: str | None = None
    speed: str | None = None

    @property
    def velocity(self) -> tuple[float, float]:
        """Shares of the shorter edge a second, (x, y)."""
        if self.direction is None or self.speed is None:
            return 0.0, 0.0
        x, y = DIRECTIONS[self.direction]
        length = SPEEDS[self.speed] / (x * x + y * y) ** 0.5
        return x * length, y * length

    def centre(self, seconds: float) -> tuple[float, float]:
        """The centre (x, y) after `seconds`, in shares of the shorter edge."""
        (x, y), (dx, dy) = self.start, self.velocity
        return x + dx * seconds, y + dy * seconds


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
    return f"a {item.size} {item.colour} {item.shape} {motion}"


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


SHAPES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}


def random_scene(generator: np.random.Generator, *, width: int, height: int, num_frames: int) -> Scene:
    """A scene of one or two objects; the second is of another shape and colour and has a half of its own."""
    ground = _pick(generator, GROUNDS)
    colours = [name for name in COLOURS if (name, ground) not in TOO_ALIKE]
    count = 1 + int(generator.random() < 0.4)
    shapes = [str(name) for name in generator.permutation(list(SHAPES))[:count]]
    chosen = [str(name) for name in generator.permutation(colours)[:count]]
    objects = tuple(
        _random_object(generator, shape, colour, part=(index, count), frame=(width, height, num_frames))
        for index, (shape, colour) in enumerate(zip(shapes, chosen, strict=True))
    )
    return Scene(width=width, height=height, num_frames=num_frames, ground=ground, objects=objects)


def _random_object(
    generator: np.random.Generator, shape: str, colour: str, *, part: tuple[int, int], frame: tuple[int, int, int]
) -> MovingShape:
    """An object whose path is centred in its part of the frame, and never leaves the frame."""
    width, height, num_frames = frame
    index, count = part
    # With company, objects are small: a big one would hide the other.
    size = _pick(generator, RADII) if count == 1 else "small"
    direction = _pick(generator, DIRECTIONS) if generator.random() < 0.85 else None
    speed = _pick(generator, SPEEDS) if direction else None
    still = MovingShape(shape=shape, colour=colour, size=size, start=(0.0, 0.0), direction=direction, speed=speed)
    half_seconds = (num_frames - 1) / FPS / 2
    long_axis = 0 if width >= height else 1
    start = []
    for axis, (length, velocity) in enumerate(zip((width, height), still.velocity, strict=True)):
        extent = length / min(width, height)
        low, high = (extent * index / count, extent * (index + 1) / count) if axis == long_axis else (0.0, extent)
        slack = max(0.0, (high - low) / 2 - RADII[size])
        middle = (low + high) / 2 + slack * float(generator.uniform(-0.7, 0.7))
        reach = min(abs(velocity) * half_seconds, extent / 2)
        middle = min(max(middle, reach), extent - reach)
        start.append(round(middle - velocity * half_seconds, 4))
    return replace(still, start=(start[0], start[1]))


def _pick(generator: np.random.Generator, names: Mapping[str, object]) -> str:
    return list(names)[int(generator.integers(len(names)))]
