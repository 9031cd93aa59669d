"""The errors that are shown to people: where, which key, which value, what is wrong, and how to mend it.

Imports nothing of this project. `UserError` collects several problems, because a person wants to mend all of them
at once; the command line prints them without a traceback and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_SIGINT = 130
EXIT_SIGTERM = 143
# As many of many names are told.
LISTED = 5


@dataclass(frozen=True)
class Problem:
    """One mistake. `where` is a file, a dataset or "command line"; `key` and `value` may be absent (None)."""

    where: str
    message: str
    key: str | None = None
    value: Any = None
    fix: str | None = None

    def __str__(self) -> str:
        subject = self.where
        if self.key is not None:
            subject += f": {self.key}"
            if self.value is not None:
                subject += f" = {shorten(repr(self.value))}"
        text = f"{subject}: {self.message}" if self.key is None else f"{subject} {self.message}"
        return f"{text}; {self.fix}" if self.fix else text


class UserError(ValueError):
    """One or more mistakes in configuration, data or arguments. Exit code 2, no traceback."""

    def __init__(self, *problems: Problem) -> None:
        assert problems, "a UserError names at least one problem"
        self.problems: Sequence[Problem] = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class Interrupted(Exception):
    """The run was asked to stop (SIGINT, SIGTERM) and has left everything resumable. Carries the exit code."""

    def __init__(self, signal_name: str, exit_code: int) -> None:
        self.signal_name = signal_name
        self.exit_code = exit_code
        super().__init__(f"stopped by {signal_name}")


class TrainingFailure(RuntimeError):
    """Training cannot go on (a loss that is not finite, say); the message is what the user reads. Exit code 1."""


def shorten(text: str, limit: int = 120) -> str:
    """`text`, cut in the middle when longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def counted(number: int, noun: str) -> str:
    """A number of things: 1 clip, 2 clips."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(names: Sequence[str], limit: int = LISTED) -> str:
    """The first few of many names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
