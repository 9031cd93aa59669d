"""Signals as flags that are looked at in safe places: stop (SIGINT, SIGTERM), save (SIGUSR1), validate (SIGUSR2).

A second SIGINT or SIGTERM leaves at once, without saving; everything on disk stays valid, since all writes are atomic.
`check` is what long work calls between two pieces: it raises `Interrupted`, also when the time limit is reached.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any

from simplewan.errors import EXIT_DONE, EXIT_SIGINT, EXIT_SIGTERM, Interrupted

STOP_CODES = {signal.SIGINT: EXIT_SIGINT, signal.SIGTERM: EXIT_SIGTERM}


class SignalWatch:
    """A context manager that installs the handlers and puts the old ones back. Use it in the main thread.

    `max_seconds` counts from `started` (time.monotonic()); None is no limit.
    """

    def __init__(self, *, max_seconds: float | None = None, started: float | None = None) -> None:
        self.stop_signal: signal.Signals | None = None
        self.save_requested = False
        self.validate_requested = False
        self._deadline = None if max_seconds is None else (started or time.monotonic()) + max_seconds
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalWatch:
        for number in (*STOP_CODES, signal.SIGUSR1, signal.SIGUSR2):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if received == signal.SIGUSR1:
            self.save_requested = True
        elif received == signal.SIGUSR2:
            self.validate_requested = True
        elif self.stop_signal is not None:
            os._exit(STOP_CODES[received])
        else:
            self.stop_signal = received
            os.write(sys.stderr.fileno(), f"\n{received.name}: stopping safely; once more leaves at once\n".encode())

    def seconds_left(self) -> float:
        """Seconds until the time limit; infinite when there is none."""
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()

    def check(self, *, needed_seconds: float = 0.0) -> None:
        """Raise `Interrupted` when asked to stop, or when less than `needed_seconds` of the time limit is left."""
        if self.stop_signal is not None:
            raise Interrupted(self.stop_signal.name, STOP_CODES[self.stop_signal])
        if self.seconds_left() <= needed_seconds:
            raise Interrupted("max_train_seconds", EXIT_DONE)
