"""Processes that die at an exact point: real SIGKILLs, without the seconds that a fresh interpreter costs.

Attempts are forked from a server that has imported everything and computed nothing (a process whose kernels have
threads must not be forked). What follows the point never happens: no `finally`, no flush.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["simplewan.app.train", "simplewan.mini.example", "transformers", "diffusers.loaders"])


@dataclass(frozen=True)
class Point:
    """Death at the `call`-th call of `target` ("module:name" or "module:Class.name"), before or after what it does.

    Only calls with `match` in the text of an argument count. `last_act` is called with the arguments just before, to
    leave something half done.
    """

    target: str
    call: int = 1
    after: bool = False
    match: str = ""
    last_act: Callable[..., None] | None = None

    def arm(self) -> None:
        """Patch the target of this process."""
        module, _, path = self.target.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        original = getattr(owner, name)
        calls = 0

        def dying(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += any(self.match in str(value) for value in (*arguments, *keywords.values()))
            result = original(*arguments, **keywords) if self.after or calls < self.call else None
            if calls >= self.call:
                if self.last_act is not None:
                    self.last_act(*arguments, **keywords)
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, dying)


def attempt(
    function: Callable[..., int | None], *arguments: Any, point: Point | None = None, environ: Mapping[str, str]
) -> int:
    """Call `function` in a process of its own that dies at `point`; its exit code, negative for a signal."""
    process = _CONTEXT.Process(target=_attempt, args=(function, arguments, point, dict(environ)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _attempt(
    function: Callable[..., int | None], arguments: Sequence[Any], point: Point | None, environ: Mapping[str, str]
) -> None:
    os.environ.update(environ)
    if point is not None:
        point.arm()
    sys.exit(function(*arguments))


@contextmanager
def user(take: Callable[[], object]) -> Iterator[int]:
    """A process, forked from this one, that has called `take`, and is killed at the end of the block; its id."""
    taken = multiprocessing.get_context("fork").SimpleQueue()

    def hold() -> None:
        thing = None
        try:
            thing = take()
        finally:
            taken.put(thing is not None)
        signal.pause()

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    assert taken.get() and process.pid is not None
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


def train(*arguments: str) -> int:
    """`simpletuner train`, in this process."""
    from simplewan.cli import main

    return main(["train", *arguments])


def train_with_small_flushes(*arguments: str) -> int:
    """The same, but every encode group is written as soon as it is there, as in runs that take longer."""
    from simplewan.caches.fill import fill

    assert fill.__kwdefaults__ is not None
    fill.__kwdefaults__["flush_bytes"] = 1
    return train(*arguments)


def half_a_line(log: Any, _event: object) -> None:
    """Write the beginning of a record, as a write that is cut off does."""
    log._file.write('{"type": "metric", "st')
    log._file.flush()


def half_a_folder(folder: Path, **_keywords: object) -> None:
    """Remove some of a folder's files."""
    for path in sorted(item for item in Path(folder).iterdir() if item.is_file())[:2]:
        path.unlink()
