"""Doing again what failed in passing: a dropped connection, a server that is overloaded. Imports nothing of ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.25  # doubled each time: 3.75 seconds in all


def attempt(
    do: Callable[[], Result], *, failures: tuple[type[Exception], ...], passing: Callable[[Exception], bool]
) -> Result:
    """What `do` returns, tried up to ATTEMPTS times while `passing` says of the failure that it may go away.

    Raises the last of the `failures`; any other exception passes through at once.
    """
    wait = FIRST_WAIT_SECONDS
    for number in range(1, ATTEMPTS + 1):
        try:
            return do()
        except failures as error:
            if number == ATTEMPTS or not passing(error):
                raise
        time.sleep(wait)
        wait *= 2
    raise AssertionError("the last attempt returns or raises")
