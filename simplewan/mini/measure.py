"""What is seen in a clip of the drawn world: its ground, and each object's colour, shape, size and motion.

Imports `draw` and numpy. Nothing here is learned: a pixel belongs to an object as far as it is from the ground on the
line to the object's colour, the pixels that hang together in a frame are tracked over the frames, and what is tracked
is compared with the palette, with the shapes' own point-in-shape tests and with lines and swings. The trade-off: two
objects that touch in most frames are seen as one, which a drawn scene never shows and a generated one should not.

Units: as in `draw`, lengths are shares of the frame's shorter edge, speeds shares of it a second, y points down.
Legend: F frames, H height, W width, K components (pixels that hang together in one frame), N pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from simplewan.mini.draw import (
    COLOURS,
    DIRECTIONS,
    GIMBLE_REACH,
    GIMBLE_SECONDS,
    GROUNDS,
    HELD_BACK_MOTION,
    RADII,
    SHAPES,
    SPEEDS,
)

STILL = "still"

# Distances of colours are Euclidean in 8-bit RGB. The nearest colour and ground that are drawn together are 92 apart,
# so that half of that is certain to be no ground; beyond UNLIKE a colour is none of the palette.
OFF_GROUND = 45.0
UNLIKE = 100.0
EDGE_SHARE = 0.4
# With fewer pixels near the commonest colour there is no ground.
GROUND_SHARE = 0.3
# The smallest object is a small star, 1.23 radii squared; what has less than a third of that is dirt.
SMALLEST_AREA = 0.4 * RADII["small"] ** 2
# The largest is a big circle; what is half as large again is no object, but a ground that has gone to pieces.
LARGEST_AREA = 1.5 * math.pi * RADII["big"] ** 2
# The fastest swing covers 0.09 of the edge a frame. Farther is another object.
LARGEST_STEP = 0.2
SEEN_SHARE = 0.5
LIKE_A_SHAPE = 0.85

SIZE_LIMIT = math.sqrt(RADII["small"] * RADII["big"])
SPEED_LIMIT = math.sqrt(SPEEDS["slow"] * SPEEDS["fast"])
STILL_LIMIT = SPEEDS["slow"] / 2
LARGEST_WOBBLE = 0.05
LARGEST_TILT = math.tan(math.radians(30))

# Shapes are compared on a grid centred on the object and measured in square roots of its area.
GRID_REACH, GRID_POINTS = 1.1, 45
# Each shape is tried with edges as sharp as drawn and as soft as a poor VAE makes them, deviations in grid points.
SOFTNESSES = (0.0, 2.0)


@dataclass(frozen=True)
class SeenObject:
    """One object. A name is None where what is seen is like nothing that is drawn.

    `direction` is one of `draw.DIRECTIONS`, "still" or "gimbles"; `speed` belongs to the four directions alone.
    `likeness` is that to the best shape, 0..1; `frames` says in how many of the frames it was found.
    """

    shape: str | None
    colour: str | None
    size: str | None
    direction: str | None
    speed: str | None
    centre: tuple[float, float]
    radius: float
    velocity: tuple[float, float]
    likeness: float
    frames: int


@dataclass(frozen=True)
class Seen:
    """A clip's ground (None: like none that is drawn) and its objects, from left to right."""

    ground: str | None
    objects: tuple[SeenObject, ...]


@dataclass
class _Track:
    """One object over the frames: the frame and the component of each sighting, the last centre and mean colour."""

    frames: list[int] = field(default_factory=list)
    components: list[int] = field(default_factory=list)
    centre: np.ndarray = field(default_factory=lambda: np.zeros(2))
    colour: np.ndarray = field(default_factory=lambda: np.zeros(3))


@dataclass(frozen=True)
class _Components:
    """The components of a clip. `labels` (F, H, W) counts from 1, 0 being none; the other arrays have K rows.

    `centres` are (x, y) in pixels, `colours` RGB; `frames` holds each component's frame.
    """

    labels: np.ndarray
    frames: np.ndarray
    centres: np.ndarray
    colours: np.ndarray


def measure(frames_FHWC: np.ndarray, fps: float) -> Seen:
    """What a clip shows; uint8 RGB (F, H, W, 3) and its frames a second -> the ground and the objects."""
    pixels = frames_FHWC.astype(np.float32)
    ground, share = _ground_colour(pixels)
    components = _find_components(pixels, ground)
    tracks = _track(components, edge=min(pixels.shape[1:3]))
    enough = max(1, math.ceil(SEEN_SHARE * len(pixels)))
    objects = [_look_at(pixels, ground, components, track, fps) for track in tracks if len(track.frames) >= enough]
    name = _nearest(ground, GROUNDS) if share > GROUND_SHARE else None
    return Seen(name, tuple(sorted(objects, key=lambda item: item.centre)))


def _ground_colour(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """The colour that most pixels are near to, RGB, and how many are: objects never cover half of a frame."""
    flat = pixels[:, ::2, ::2].reshape(-1, 3)
    ground = np.median(flat, axis=0)
    near = flat[np.linalg.norm(flat - ground, axis=1) < OFF_GROUND]
    return (np.median(near, axis=0) if len(near) else ground), len(near) / len(flat)


def _nearest(colour: np.ndarray, palette: Mapping[str, tuple[int, int, int]]) -> str | None:
    """The palette's name for `colour`, RGB; None if it is far from all."""
    distances = {name: float(np.linalg.norm(colour - np.array(value))) for name, value in palette.items()}
    name = min(distances, key=lambda key: distances[key])
    return name if distances[name] < UNLIKE else None


def _find_components(pixels: np.ndarray, ground: np.ndarray) -> _Components:
    """The components of all frames: first what is not ground, then of each what has enough of its own contrast."""
    distance = np.sqrt(np.square(pixels - ground).sum(axis=-1))
    square = min(pixels.shape[1:3]) ** 2
    smallest, largest = SMALLEST_AREA * square, LARGEST_AREA * square
    labels = _of_areas(label(distance > OFF_GROUND), smallest, math.inf)
    contrast = _means(labels, distance[..., None])[:, 0]
    labels = _of_areas(label(distance > np.maximum(EDGE_SHARE * contrast, OFF_GROUND)[labels]), smallest, largest)
    count = int(labels.max())
    where = np.nonzero(labels)
    ids = labels[where]
    areas = np.maximum(np.bincount(ids, minlength=count + 1), 1)
    sums = [np.bincount(ids, weights=axis, minlength=count + 1) / areas for axis in where]
    centres = np.stack([sums[2] + 0.5, sums[1] + 0.5], axis=1)
    colours = _means(labels, pixels)
    return _Components(labels, np.rint(sums[0][1:]).astype(int), centres[1:], colours[1:])


def label(mask_FHW: np.ndarray) -> np.ndarray:
    """Numbers the components of each frame (neighbours share a side): bool (F, H, W) -> int (F, H, W), 0 for none.

    Every pixel takes the largest number in its run along the row, then along the column, until nothing changes.
    """
    labels = np.where(mask_FHW, np.arange(1, mask_FHW.size + 1).reshape(mask_FHW.shape), 0)
    rows, columns = _run_starts(mask_FHW), _run_starts(mask_FHW.transpose(0, 2, 1))
    while True:
        before = labels
        labels = _largest_of_runs(labels, rows)
        labels = _largest_of_runs(labels.transpose(0, 2, 1), columns).transpose(0, 2, 1)
        if (labels == before).all():
            return _renumbered(labels)


def _run_starts(mask: np.ndarray) -> np.ndarray:
    """Where, in the flattened array, runs of equal values along the last axis begin."""
    starts = np.ones(mask.shape, bool)
    starts[..., 1:] = mask[..., 1:] != mask[..., :-1]
    return np.flatnonzero(starts)


def _largest_of_runs(labels: np.ndarray, starts: np.ndarray) -> np.ndarray:
    lengths = np.diff(np.append(starts, labels.size))
    return np.repeat(np.maximum.reduceat(labels.reshape(-1), starts), lengths).reshape(labels.shape)


def _renumbered(labels: np.ndarray) -> np.ndarray:
    """The same components numbered 1, 2, ... in the order of frames."""
    used = np.zeros(int(labels.max()) + 1, int)
    used[np.unique(labels)] = 1
    used[0] = 0
    return (np.cumsum(used) * used)[labels]


def _of_areas(labels: np.ndarray, smallest: float, largest: float) -> np.ndarray:
    """Without the components that have fewer or more pixels than that."""
    areas = np.bincount(labels.reshape(-1))[labels]
    return _renumbered(np.where((areas >= smallest) & (areas <= largest), labels, 0))


def _means(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each component's mean over its inner pixels, (F, H, W, C) -> (K + 1, C); without inner pixels, over all.

    Row 0, for what is in no component, is infinite.
    """
    count = int(labels.max()) + 1
    inner = labels.copy()
    for axis in (1, 2):
        for shift in (1, -1):
            inner[np.roll(labels, shift, axis) != labels] = 0
    result = np.full((count, values.shape[-1]), np.inf)
    inner_areas = np.bincount(inner.reshape(-1), minlength=count)
    for chosen, wanted in ((labels, inner_areas == 0), (inner, inner_areas > 0)):
        wanted[0] = False
        if not wanted.any():
            continue
        where = np.nonzero(chosen)
        areas = np.maximum(np.bincount(chosen[where], minlength=count), 1)
        for channel in range(values.shape[-1]):
            sums = np.bincount(chosen[where], weights=values[..., channel][where], minlength=count)
            result[wanted, channel] = (sums / areas)[wanted]
    return result


def _track(components: _Components, *, edge: int) -> list[_Track]:
    """Follows components from frame to frame: the nearest in place and colour first."""
    tracks: list[_Track] = []
    for frame in range(components.labels.shape[0]):
        here: list[int] = np.flatnonzero(components.frames == frame).tolist()
        pairs = []
        for track in tracks:
            for component in here:
                step = float(np.linalg.norm(components.centres[component] - track.centre)) / edge
                change = float(np.linalg.norm(components.colours[component] - track.colour))
                if step < LARGEST_STEP * (frame - track.frames[-1]) and change < UNLIKE:
                    pairs.append((step + change / 255, id(track), track, component))
        taken: set[int] = set()
        for _, key, track, component in sorted(pairs, key=lambda pair: pair[0]):
            if key not in taken and -component - 1 not in taken:
                taken |= {key, -component - 1}
                _extend(track, components, component)
        for component in here:
            if -component - 1 not in taken:
                tracks.append(_Track())
                _extend(tracks[-1], components, component)
    return tracks


def _extend(track: _Track, components: _Components, component: int) -> None:
    track.frames.append(int(components.frames[component]))
    track.components.append(component)
    track.centre, track.colour = components.centres[component], components.colours[component]


def _look_at(pixels: np.ndarray, ground: np.ndarray, components: _Components, track: _Track, fps: float) -> SeenObject:
    """The names of one tracked object."""
    frames = np.array(track.frames)
    labels = components.labels[frames]
    own = labels == (np.array(track.components) + 1)[:, None, None]
    colour = _core_colour(pixels[frames][own], ground)
    region = _grown(own) & (own | (labels == 0))
    line = colour - ground
    cover = np.clip((pixels[frames] - ground) @ line / max(float(line @ line), 1e-6), 0, 1) * region
    areas, centres = _moments(cover)
    # Where it touched another, or half of it was lost, it says nothing.
    usual = np.abs(areas / np.median(areas) - 1) < 0.35
    usual |= not usual.any()
    frames, cover, areas, centres = frames[usual], cover[usual], areas[usual], centres[usual]
    edge = min(pixels.shape[1:3])
    shape, constant, likeness = _shape(cover, areas, centres)
    radius = math.sqrt(float(np.median(areas)) / constant) / edge
    direction, velocity = _motion(frames / fps, centres / edge)
    middle = np.median(centres, axis=0) / edge
    return SeenObject(
        shape=shape,
        colour=_nearest(colour, COLOURS),
        size="small" if radius < SIZE_LIMIT else "big",
        direction=direction,
        speed=("slow" if math.hypot(*velocity) < SPEED_LIMIT else "fast") if direction in DIRECTIONS else None,
        centre=(float(middle[0]), float(middle[1])),
        radius=radius,
        velocity=velocity,
        likeness=likeness,
        frames=len(track.frames),
    )


def _core_colour(own_N3: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """The median of the half of an object's pixels that is farthest from the ground: its edges are blends."""
    distance = np.square(own_N3 - ground).sum(axis=1)
    return np.median(own_N3[distance >= np.median(distance)], axis=0)


def _grown(mask: np.ndarray, pixels: int = 2) -> np.ndarray:
    """The mask and what is within so many pixels of it, frame by frame."""
    for _ in range(pixels):
        for axis in (1, 2):
            size = mask.shape[axis]
            wider = mask.copy()
            low, high = [slice(None)] * 3, [slice(None)] * 3
            low[axis], high[axis] = slice(0, size - 1), slice(1, size)
            wider[tuple(low)] |= mask[tuple(high)]
            wider[tuple(high)] |= mask[tuple(low)]
            mask = wider
    return mask


def _moments(cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas (F,) in pixels and centres (F, 2), (x, y) in pixels, of cover (F, H, W) in 0..1."""
    height, width = cover.shape[1:]
    areas = np.maximum(cover.sum(axis=(1, 2)), 1e-6)
    x = cover.sum(axis=1) @ (np.arange(width) + 0.5) / areas
    y = cover.sum(axis=2) @ (np.arange(height) + 0.5) / areas
    return areas, np.stack([x, y], axis=1)


@functools.cache
def _templates() -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """The shapes on the grid: names, covers (shapes, points, points), and areas in squared radii."""
    fine = (np.arange(1000) + 0.5) / 1000 * 2.4 - 1.2
    step, parts = 2 * GRID_REACH / (GRID_POINTS - 1), 8
    offsets = ((np.arange(parts) + 0.5) / parts - 0.5) * 1.5 * step
    points = (np.linspace(-GRID_REACH, GRID_REACH, GRID_POINTS)[:, None] + offsets).reshape(-1)
    covers, areas = [], []
    for inside in SHAPES.values():
        filled = inside(fine[None, :], fine[:, None])
        area = float(filled.mean()) * 2.4**2
        x, y = (float((filled * axis).sum() / filled.sum()) for axis in (fine[None, :], fine[:, None]))
        scaled = points * math.sqrt(area)
        dots = inside(scaled[None, :] + x, scaled[:, None] + y)
        covers.append(dots.reshape(GRID_POINTS, parts, GRID_POINTS, parts).mean(axis=(1, 3)))
        areas.append(area)
    sharp = np.array(covers)
    names, constants = tuple(SHAPES) * len(SOFTNESSES), np.tile(areas, len(SOFTNESSES))
    return names, np.concatenate([_blurred(sharp, softness) for softness in SOFTNESSES]), constants


def _blurred(images: np.ndarray, deviation: float) -> np.ndarray:
    """Images (N, P, P) under a Gaussian blur of so many points; 0 leaves them alone."""
    if deviation == 0:
        return images
    reach = math.ceil(3 * deviation)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        padded = np.pad(images, [(0, 0), *((reach, reach) if axis == a else (0, 0) for a in (1, 2))])
        images = sum(
            weight * np.take(padded, range(start, start + GRID_POINTS), axis) for start, weight in enumerate(kernel)
        )
    return images


def _shape(cover: np.ndarray, areas: np.ndarray, centres: np.ndarray) -> tuple[str | None, float, float]:
    """The most alike shape (None if nothing is alike), its area in squared radii, and the likeness in 0..1.

    Frames are laid over each other on the grid; the likeness is the cosine of the covers, which softness hardly moves.
    Grid points outside the picture count for nothing, so that what its edge cuts is not held against a shape.
    """
    names, templates, constants = _templates()
    grid = np.linspace(-GRID_REACH, GRID_REACH, GRID_POINTS) * np.sqrt(areas)[:, None]
    x, y = centres[:, :1] + grid, centres[:, 1:] + grid
    height, width = cover.shape[1:]
    inside = ((y > 0) & (y < height))[:, :, None] & ((x > 0) & (x < width))[:, None, :]
    weight = inside.mean(axis=0)
    picture = (_sampled(cover, x, y) * inside).mean(axis=0) / np.maximum(weight, 1e-6)
    products = (weight * templates * picture).sum(axis=(1, 2))
    squares = (weight * templates**2).sum(axis=(1, 2)) * (weight * picture**2).sum()
    likeness = products / np.sqrt(np.maximum(squares, 1e-6))
    best = int(likeness.argmax())
    return (names[best] if likeness[best] >= LIKE_A_SHAPE else None), float(constants[best]), float(likeness[best])


def _sampled(images: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear values of images (F, H, W) at the crossings of x (F, P) and y (F, P), pixels -> (F, P, P)."""
    height, width = images.shape[1:]
    x, y = np.clip(x - 0.5, 0, width - 1), np.clip(y - 0.5, 0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    right_share, low_share = (x - left)[:, None, :], (y - top)[:, :, None]
    frame = np.arange(len(images))[:, None, None]
    top, left = top[:, :, None], left[:, None, :]
    upper = images[frame, top, left] * (1 - right_share) + images[frame, top, left + 1] * right_share
    lower = images[frame, top + 1, left] * (1 - right_share) + images[frame, top + 1, left + 1] * right_share
    return upper * (1 - low_share) + lower * low_share


def _motion(seconds: np.ndarray, centres: np.ndarray) -> tuple[str | None, tuple[float, float]]:
    """The direction's name and the velocity of a path (F, 2): a swing, a line along an axis, or neither (None)."""
    if len(seconds) < 3:
        return None, (0.0, 0.0)
    ones = np.ones_like(seconds)
    swing = np.sin(2 * math.pi * seconds / GIMBLE_SECONDS)
    straight, off_straight = _fit(np.stack([ones, seconds], axis=1), centres)
    velocity = (float(straight[1, 0]), float(straight[1, 1]))
    if seconds[-1] - seconds[0] > 0.4 * GIMBLE_SECONDS:
        swung, off_swing = _fit(np.stack([ones, seconds, swing], axis=1), centres)
        reach, across = float(swung[2, 0]), float(swung[2, 1])
        drift = float(np.abs(swung[1]).max())
        steady = off_swing < 0.25 * GIMBLE_REACH and abs(across) < 0.5 * GIMBLE_REACH and drift < SPEEDS["slow"]
        if 0.5 * GIMBLE_REACH < reach < 2 * GIMBLE_REACH and steady:
            return HELD_BACK_MOTION, velocity
    if off_straight > LARGEST_WOBBLE:
        return None, velocity
    if math.hypot(*velocity) < STILL_LIMIT:
        return STILL, velocity
    along, across = max(map(abs, velocity)), min(map(abs, velocity))
    if across > LARGEST_TILT * along:
        return None, velocity
    best = max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], velocity)))
    return best, velocity


def _fit(columns: np.ndarray, path: np.ndarray) -> tuple[np.ndarray, float]:
    """Least squares of a path (F, 2) over columns (F, n): coefficients (n, 2), and the distance left over, RMS."""
    coefficients = np.linalg.lstsq(columns, path, rcond=None)[0]
    left = path - columns @ coefficients
    return coefficients, float(np.sqrt(np.square(left).sum(axis=1).mean()))
