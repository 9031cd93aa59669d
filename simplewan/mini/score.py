"""How much of what a caption asks for is seen in a clip: counted per attribute, for one clip and for many.

Imports `draw`, `measure` and numpy's arithmetic through them; nothing is learned. Objects are matched to the asked-for
ones so that most agrees, because captions name no places; an object that is missing has all its attributes wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from simplewan.mini.draw import HELD_BACK_MOTION, MovingShape, Scene
from simplewan.mini.measure import STILL, Seen, SeenObject

OBJECT_ATTRIBUTES = ("colour", "shape", "size", "direction", "speed")
# "all" is the composite: one for a clip in which everything is right and nothing is too much.
ATTRIBUTES = (*OBJECT_ATTRIBUTES, "ground", "count", "all")
MOST_OBJECTS = 6


@dataclass(frozen=True)
class Score:
    """How many of `total` samples are right."""

    right: int
    total: int

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.total + other.total)

    @property
    def share(self) -> float:
        """0..1; not a number when there is no sample."""
        return self.right / self.total if self.total else math.nan

    def interval(self, deviations: float = 1.96) -> tuple[float, float]:
        """Wilson's interval of the share, 95 percent unless told otherwise; (0, 1) when there is no sample.

        E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
        """
        if not self.total:
            return 0.0, 1.0
        squared = deviations**2
        middle = (self.right + squared / 2) / (self.total + squared)
        spread = self.share * (1 - self.share) / self.total + squared / (4 * self.total**2)
        half = deviations * math.sqrt(spread) * self.total / (self.total + squared)
        return max(0.0, middle - half), min(1.0, middle + half)


def expected(item: MovingShape) -> dict[str, str]:
    """The attributes that a caption asks of an object; `speed` only of what moves along a line."""
    direction = HELD_BACK_MOTION if item.gimbles else item.direction or STILL
    asked = {"colour": item.colour, "shape": item.shape, "size": item.size, "direction": direction}
    return asked | ({"speed": item.speed} if item.speed is not None else {})


def match(seen: Seen, scene: Scene) -> tuple[SeenObject | None, ...]:
    """The seen object for each one of the scene's, None where there is none left: the assignment that agrees most."""
    asked = [expected(item) for item in scene.objects]
    there: list[SeenObject | None] = [*sorted(seen.objects, key=lambda o: -o.radius * o.frames)[:MOST_OBJECTS]]
    there += [None] * max(0, len(asked) - len(there))
    agreement = {
        (row, column): sum(_agrees(item, name, value) for name, value in wanted.items())
        for row, wanted in enumerate(asked)
        for column, item in enumerate(there)
    }
    chosen = max(
        itertools.permutations(range(len(there)), len(asked)),
        key=lambda columns: sum(agreement[pair] for pair in enumerate(columns)),
    )
    return tuple(there[column] for column in chosen)


def score(seen: Seen, scene: Scene) -> dict[str, Score]:
    """Right and asked-for per attribute (`ATTRIBUTES`, those that the scene asks for), for one clip."""
    scores: dict[str, Score] = {}
    for item, found in zip(scene.objects, match(seen, scene), strict=True):
        for name, value in expected(item).items():
            scores[name] = scores.get(name, Score(0, 0)) + Score(_agrees(found, name, value), 1)
    scores["ground"] = Score(int(seen.ground == scene.ground), 1)
    scores["count"] = Score(int(len(seen.objects) == len(scene.objects)), 1)
    scores["all"] = Score(int(all(part.right == part.total for part in scores.values())), 1)
    return scores


def concept_score(seen: Seen, scene: Scene, concept: str) -> Score:
    """Whether `concept` (a colour, shape, size, direction or speed) is seen on the objects that it is asked of."""
    result = Score(0, 0)
    for item, found in zip(scene.objects, match(seen, scene), strict=True):
        for name, value in expected(item).items():
            if value == concept:
                result += Score(_agrees(found, name, value), 1)
    return result


def wrong(seen: Seen, scene: Scene) -> tuple[str, ...]:
    """What is not as asked for, in words, such as "shape star, not circle"; for people who look at the clips."""
    words = []
    for item, found in zip(scene.objects, match(seen, scene), strict=True):
        if found is None:
            words.append(f"{item.colour} {item.shape} missing")
            continue
        differing = [name for name, value in expected(item).items() if not _agrees(found, name, value)]
        words += [f"{name} {getattr(found, name)}, not {expected(item)[name]}" for name in differing]
    if seen.ground != scene.ground:
        words.append(f"ground {seen.ground}, not {scene.ground}")
    if len(seen.objects) != len(scene.objects):
        words.append(f"count {len(seen.objects)}, not {len(scene.objects)}")
    return tuple(words)


def tally(scores: Iterable[Mapping[str, Score]]) -> dict[str, Score]:
    """The sum over clips, in the order of `ATTRIBUTES`; other names behind them."""
    sums: dict[str, Score] = {}
    for clip in scores:
        for name, part in clip.items():
            sums[name] = sums.get(name, Score(0, 0)) + part
    order = [name for name in ATTRIBUTES if name in sums] + [name for name in sums if name not in ATTRIBUTES]
    return {name: sums[name] for name in order}


def _agrees(found: SeenObject | None, attribute: str, value: str) -> int:
    return int(found is not None and getattr(found, attribute) == value)
