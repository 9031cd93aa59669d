"""The checkpoints of one output folder.

`checkpoint-N/` is written under a temporary name and renamed when it is whole; `manifest.json` (file, size, SHA-256)
is written last, so that a folder without a valid manifest is not a checkpoint. N counts the run's steps. Reading
verifies every hash: it costs a second per GB and means that what is resumed is what was saved.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from simplewan.checkpoints.files import read_part, sha256, write_json, write_part
from simplewan.data.atomic import sync
from simplewan.errors import Problem, UserError
from simplewan.events import Emit, Notice

MANIFEST = "manifest.json"
RESOLVED = "config.resolved.json"  # the run's options, in every checkpoint and beside them
_NAME = re.compile(r"checkpoint-(\d+)")


class DamagedCheckpoint(Exception):
    """A folder that looks like a checkpoint and is none; the message says why."""


class CheckpointStore:
    """Saves, verifies, finds and rotates `checkpoint-N/` folders.

    `limit` keeps that many of the newest (0 keeps all); the one just written is never removed. `read_only` is for those
    who do not hold the folder's lock: another process may be writing there, and nothing is made or tidied up.
    """

    def __init__(self, folder: Path, *, limit: int, emit: Emit, read_only: bool = False) -> None:
        self.folder = folder
        self._limit = limit
        self._emit = emit
        if read_only:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".checkpoint-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """The steps of all folders named like checkpoints, ascending; not verified."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir())
        return sorted(int(match.group(1)) for match in found if match)

    def save(
        self, step: int, parts: Mapping[str, Mapping[str, Any]], *, record: Mapping[str, Any], extra: Any = None
    ) -> Path:
        """Write checkpoint `step` from named state dicts; `record` is the resolved configuration.

        `extra`, when given, is called with the temporary folder to add files of its own (the exported LoRA).
        """
        temporary = self.folder / f".checkpoint-{step}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, state in parts.items():
            write_part(temporary, name, state)
        write_json(temporary / RESOLVED, record)
        if extra is not None:
            extra(temporary)
        entries = []
        for path in sorted(item for item in temporary.rglob("*") if item.is_file()):
            sync(path)
            name = path.relative_to(temporary).as_posix()
            entries.append({"file": name, "size": path.stat().st_size, "sha256": sha256(path)})
        write_json(temporary / MANIFEST, {"step": step, "files": entries})
        final = self.path(step)
        if final.exists():
            self._discard(final)
        temporary.rename(final)
        sync(self.folder)
        self.rotate(step)
        return final

    def verify(self, path: Path, *, only: str = "*") -> int:
        """The step of the checkpoint at `path`. Raises DamagedCheckpoint when a file is missing or differs.

        `only` is a pattern of the files that are looked at: an optimizer's state is larger than the weights.
        """
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            step, files = int(manifest["step"]), manifest["files"]
        except FileNotFoundError:
            raise DamagedCheckpoint(f"{path.name} has no {MANIFEST}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"{path.name}: {MANIFEST} cannot be read ({error})") from None
        named = _NAME.fullmatch(path.name)
        if named and int(named.group(1)) != step:
            raise DamagedCheckpoint(f"{path.name} holds step {step}: it was renamed")
        for entry in files:
            if not fnmatch(entry["file"], only):
                continue
            file = path / entry["file"]
            if not file.is_file():
                raise DamagedCheckpoint(f"{path.name}: {entry['file']} is missing")
            try:
                same = file.stat().st_size == entry["size"] and sha256(file) == entry["sha256"]
            except FileNotFoundError:  # another process rotates the checkpoints of its run
                raise DamagedCheckpoint(f"{path.name} was removed while it was read") from None
            if not same:
                raise DamagedCheckpoint(f"{path.name}: {entry['file']} is not what was saved")
        return step

    def find(self, wanted: str, *, only: str = "*") -> tuple[Path, int] | None:
        """The checkpoint to resume from, and its step: "latest", "none", "checkpoint-N", or a path.

        "latest" skips damaged ones and says so; None when there is none. One named outright must be whole: UserError.
        `only` is that of `verify`.
        """
        if wanted == "none":
            return None
        if wanted != "latest":
            named = self.folder / wanted if _NAME.fullmatch(wanted) else Path(wanted)
            if not named.is_dir():
                there = ", ".join(self.path(step).name for step in self.steps())
                raise UserError(
                    Problem(
                        "command line or config",
                        f"is not there: {named}",
                        key="resume_from_checkpoint",
                        value=wanted,
                        fix=f"there are {there}" if there else "there are no checkpoints yet; leave it out",
                    )
                )
            try:
                return named, self.verify(named, only=only)
            except DamagedCheckpoint as error:
                raise UserError(
                    Problem(
                        "command line or config",
                        f"cannot be used: {error}",
                        key="resume_from_checkpoint",
                        value=wanted,
                        fix='use "latest", which skips damaged ones',
                    )
                ) from None
        for step in reversed(self.steps()):
            try:
                return self.path(step), self.verify(self.path(step), only=only)
            except DamagedCheckpoint as error:
                self._emit(Notice(f"skipping a damaged checkpoint: {error}", severity="warning"))
        return None

    def read(self, path: Path, name: str) -> Mapping[str, Any]:
        """One part of a verified checkpoint."""
        return read_part(path, name)

    def set_aside_after(self, step: int) -> None:
        """Rename checkpoints beyond `step`: resuming earlier abandoned their run. Nothing is deleted."""
        for later in (number for number in self.steps() if number > step):
            attempt = 1
            while (aside := self.folder / f"set-aside-{attempt}-checkpoint-{later}").exists():
                attempt += 1
            self.path(later).rename(aside)
            self._emit(Notice(f"{self.path(later).name} is beyond the resumed step and was renamed to {aside.name}"))

    def rotate(self, newest: int) -> None:
        """Remove the oldest checkpoints beyond the limit, never `newest`. `save` does; a start makes up for a kill."""
        if self._limit <= 0:
            return
        for step in [step for step in self.steps() if step != newest][: -self._limit + 1 or None]:
            self._discard(self.path(step))

    def _discard(self, path: Path) -> None:
        """Remove a folder so that no half of it is ever seen under its name."""
        trash = self.folder / f".{path.name}.{os.getpid()}.trash"
        path.rename(trash)
        shutil.rmtree(trash)
