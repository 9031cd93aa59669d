"""How progress looks: `Bars` redraws tqdm bars on a terminal, `Lines` writes a line now and then elsewhere.

Imports tqdm alone. Both have the same four methods: progress, say, close, close_all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TextIO

from tqdm import tqdm

DEFAULT_COLUMNS = 100


@dataclass(frozen=True)
class Tally:
    """`current` of `total` are done. `before` is what was done before the first call (resumed, from a cache), which
    rates and ETA leave out; None takes the first call's `current`."""

    label: str
    current: int
    total: int
    unit: str
    before: int | None = None
    figures: Mapping[str, str] = field(default_factory=dict)

    @property
    def start(self) -> int:
        return self.current if self.before is None else self.before

    @property
    def is_complete(self) -> bool:
        return self.current >= self.total


class Bars:
    """A bar for each kind of work that is under way; text appears above them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bars: dict[str, tqdm] = {}

    def progress(self, key: str, tally: Tally) -> None:
        bar = self._bars.get(key)
        if bar is not None and (tally.total != bar.total or tally.current < bar.n):
            self.close(key)
            bar = None
        if bar is None:
            bar = self._bars[key] = self._open(tally)
        bar.set_description(tally.label, refresh=False)
        bar.set_postfix(tally.figures, refresh=False)
        bar.update(tally.current - bar.n)
        if tally.is_complete:
            bar.refresh()
            self.close(key)

    def say(self, text: str) -> None:
        tqdm.write(text, file=self._stream)

    def close(self, key: str) -> None:
        bar = self._bars.pop(key, None)
        if bar is not None:
            bar.close()

    def close_all(self) -> None:
        # The lowest first, as they are drawn.
        for key in reversed(list(self._bars)):
            self.close(key)

    def _open(self, tally: Tally) -> tqdm:
        return tqdm(
            total=tally.total,
            initial=tally.start,
            unit=f" {tally.unit}",
            desc=tally.label,
            file=self._stream,
            # Some terminals (containers, job runners) state no width, and tqdm would then draw nothing.
            ncols=None if _has_width(self._stream) else DEFAULT_COLUMNS,
            dynamic_ncols=_has_width(self._stream),
            smoothing=0.1,
            leave=not self._bars,
        )


class Lines:
    """A line now and then while work goes on, the rarer the longer it takes, and one at its end."""

    def __init__(self, stream: TextIO, *, interval_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._interval = interval_seconds
        self._clock = clock
        # key -> when it began, the count then, when a line was last written
        self._work: dict[str, tuple[float, int, float]] = {}

    def progress(self, key: str, tally: Tally) -> None:
        now = self._clock()
        began, start, written = self._work.get(key, (now, tally.start, now))
        # At most one line per 2% of the time so far: a day's training gives hundreds of lines, not thousands.
        due = now - written >= max(self._interval, 0.02 * (now - began))
        if due or tally.is_complete:
            self.say(_line(tally, tally.current - start, now - began))
            written = now
        self._work[key] = (began, start, written)
        if tally.is_complete:
            self.close(key)

    def say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self, key: str) -> None:
        self._work.pop(key, None)

    def close_all(self) -> None:
        self._work.clear()


def _has_width(stream: TextIO) -> bool:
    return os.get_terminal_size(stream.fileno()).columns > 0


def _line(tally: Tally, done: int, seconds: float) -> str:
    parts = [f"{tally.label}: {tally.current}/{tally.total} {tally.unit}"]
    parts.extend(f"{name} {value}" for name, value in tally.figures.items())
    if done > 0 and seconds > 0 and not tally.is_complete:
        parts.append(f"ETA {tqdm.format_interval((tally.total - tally.current) * seconds / done)}")
    return ", ".join(parts)
