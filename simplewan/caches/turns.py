"""Which encode group is next when several processes fill one cache without talking to each other.

Pure, standard library only. A process that is alone goes through the plan in order. Of several each begins at a place
of its own, leaves out what it finds in the cache, and where it meets another's work goes on elsewhere, at random. There
are no claims that a killed process could leave behind; the price is that groups which another process is at, but has
not written yet, may be encoded twice. Neighbours in the plan are of one shape, so going through it in runs keeps shapes
together.
"""

from __future__ import annotations

import random
from collections.abc import Mapping


class Turns:
    """Picks positions in a plan. Different seeds begin at different places, unless the process is alone."""

    def __init__(self, seed: str, *, alone: bool) -> None:
        self._draw = random.Random(seed)
        self._alone = alone
        self._last: int | None = None

    def next(self, pending: Mapping[int, object]) -> int:
        """The position after the last one while that is pending; else the first that is, or, in company, any.

        `pending` is in order, and not empty.
        """
        if self._last is not None and self._last + 1 in pending:
            position = self._last + 1
        else:
            position = next(iter(pending)) if self._alone else self._draw.choice(list(pending))
        self._last = position
        return position

    def meet(self, *, here: bool) -> None:
        """Somebody else works on the plan, too; `here`: on what this process is at, so it goes on elsewhere."""
        self._alone = False
        if here:
            self._last = None

    def plan_anew(self) -> None:
        """Positions mean something else now."""
        self._last = None
