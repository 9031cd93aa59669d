"""How sizes, lengths, rates and captions are distributed: numbers to rows of (label, count).

Imports the room's records. Few different values get a row each; many are put into at most nine equal bins with round
edges, and a long tail into one open bin at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simplewan.data.report.findings import count_words
from simplewan.data.samples import Scan

MAX_ROWS = 9
MAX_VALUES = 7
TAIL = 0.95


@dataclass(frozen=True)
class Distribution:
    """A titled table of (label, count)."""

    title: str
    rows: tuple[tuple[str, int], ...]


def distributions(scans: Sequence[Scan]) -> list[Distribution]:
    """Those of the files that are used, and of their captions; without those that have nothing to show."""
    infos = [info for scan in scans for info in scan.sources.values()]
    videos = [info for info in infos if not info.is_image]
    captions = {(scan.dataset, sample.source.path): sample.captions for scan in scans for sample in scan.samples}
    sizes = Counter(f"{info.width}x{info.height}" for info in infos)
    words = [count_words(caption) for variants in captions.values() for caption in variants]
    found = [
        Distribution("Aspect ratio (width / height)", by_value(round(info.width / info.height, 2) for info in infos)),
        Distribution("Source size (pixels)", first_rows(sizes.most_common())),
        Distribution("Source length (seconds)", by_value(round(info.seconds, 2) for info in videos)),
        Distribution("Source frames a second", by_value(round(info.fps, 2) for info in videos)),
        Distribution("Caption length (words)", by_value(words)),
        Distribution("Captions a file", by_value(len(variants) for variants in captions.values())),
    ]
    return [item for item in found if item.rows]


def by_value(values: Iterable[float]) -> tuple[tuple[str, int], ...]:
    """A row for each value, or for each bin, in order."""
    ordered = sorted(values)
    if len(set(ordered)) <= MAX_VALUES:
        return tuple((f"{value:g}", count) for value, count in Counter(ordered).items())
    return _binned(ordered)


def first_rows(rows: Sequence[tuple[str, int]], most: int = MAX_ROWS) -> tuple[tuple[str, int], ...]:
    """The first rows, and one for the others where there are more than `most`."""
    if len(rows) <= most:
        return tuple(rows)
    others = sum(count for _, count in rows[most - 1 :])
    return (*rows[: most - 1], (f"{len(rows) - most + 1:,} others", others))


def _binned(ordered: Sequence[float]) -> tuple[tuple[str, int], ...]:
    """At most MAX_ROWS bins of equal width; where the last few values are far out, the last bin is open."""
    low, high = ordered[0], ordered[-1]
    nearly_all = ordered[int(TAIL * (len(ordered) - 1))]
    is_open = high - low > 3 * (nearly_all - low) > 0
    top = nearly_all if is_open else high
    width = round_width((top - low) / (MAX_ROWS - 2))
    first = math.floor(low / width + 1e-9)
    last = math.floor(top / width + 1e-9)
    counts = Counter(min(math.floor(value / width + 1e-9), last + is_open) for value in ordered)
    rows = [
        (f"{_plain(number * width)} \u2013 {_plain((number + 1) * width)}", counts[number])
        for number in range(first, last + 1)
    ]
    if is_open and counts[last + 1]:
        rows.append((f"{_plain((last + 1) * width)} and more", counts[last + 1]))
    return tuple(rows)


def round_width(width: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... (or 0.5, 0.2, ...) that is not below."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))


def _plain(value: float) -> str:
    return f"{round(value, 6):g}"
