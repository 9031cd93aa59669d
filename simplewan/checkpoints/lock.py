"""One writer at a time in an output folder. The lock belongs to the process and goes with it, however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from simplewan.errors import Problem, UserError


class OutputLock:
    """A context manager; raises UserError at entry when another live process writes to the folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".lock"

    def __enter__(self) -> OutputLock:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            reason = f"cannot be written: {error.strerror}"
            raise UserError(Problem("output_dir", reason, key="output_dir", value=str(self._path.parent))) from None
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stream.seek(0)
            owner = self._stream.read().strip() or "unknown"
            self._stream.close()
            raise UserError(
                Problem(
                    "output_dir",
                    f"is being written by another run (process {owner})",
                    key="output_dir",
                    value=str(self._path.parent),
                    fix="wait for it, stop it, or choose another output_dir",
                )
            ) from None
        self._stream.truncate(0)
        self._stream.write(str(os.getpid()))
        self._stream.flush()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stream.close()
