"""Whose an unfinished file is: temporary names carry the process that writes, so that only what is left over goes.

Imports psutil, nothing of this project. A process is named by host, number and time of starting, because numbers are
used again. Of another host (a shared folder) nothing can be known, so its files count as in use for a day.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
from pathlib import Path

import psutil

TAG = r"(?P<host>[^@]+)@(?P<pid>\d+)@(?P<started>\d+)@[0-9a-f]+$"
FOREIGN_SECONDS = 24 * 3600
CLOCK_SLACK_SECONDS = 10


def owner_tag() -> str:
    """The end of a file's name that says: this process is at it. Never the same twice."""
    return f"{_host()}@{os.getpid()}@{_started(os.getpid())}@{secrets.token_hex(4)}"


def is_own(match: re.Match[str]) -> bool:
    """Whether the tag (a match of `TAG`) is of this process."""
    return match["host"] == _host() and int(match["pid"]) == os.getpid() and _is_alive(match)


def in_use(path: Path, match: re.Match[str]) -> bool:
    """Whether whoever began the file at `path`, whose tag matched, may still be at it."""
    if match["host"] == _host():
        return _is_alive(match)
    try:
        return time.time() - path.stat().st_mtime < FOREIGN_SECONDS
    except FileNotFoundError:
        return True


def remove_leftovers(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """Remove the files of `folder` that match `pattern` (a `TAG` at its end) and are not in use; returns their names.

    What may not be removed (a folder that is only readable) stays.
    """
    removed = []
    for path in folder.iterdir():
        match = pattern.match(path.name)
        if match is None or in_use(path, match):
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError:
            continue
        removed.append(path.name)
    return sorted(removed)


def _is_alive(match: re.Match[str]) -> bool:
    try:
        started = _started(int(match["pid"]))
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    return abs(started - int(match["started"])) <= CLOCK_SLACK_SECONDS


def _started(pid: int) -> int:
    """When a process started, in seconds since 1970; it moves a little when the system's clock is set."""
    return round(psutil.Process(pid).create_time())


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname()) or "localhost"
