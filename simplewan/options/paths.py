"""Relative paths, home folders, and whether what is named is there.

Imports nothing but the declarations. Without a `base`, paths stay as they are written and count from the working
directory; with one, they are joined to it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from simplewan.options.declare import Group
from simplewan.options.sources import Findings, below_placeholder, holds_token

AnyGroup = TypeVar("AnyGroup", bound=Group)


@dataclass(frozen=True)
class Paths:
    """How paths are resolved. What lies below an `unprepared` placeholder is still to be made, and not looked for."""

    base: Path | None
    beside: Path | None
    unprepared: Collection[str]

    def __call__(self, path: Path) -> Path:
        path = path.expanduser()
        return path if self.base is None or path.is_absolute() else self.base / path

    def find(self, path: Path, *, from_config: bool = False) -> Path:
        """Relative to the base, else beside the configuration file; a bare name in that file, the other way round."""
        here = self(path)
        if self.beside is None or path.expanduser().is_absolute():
            return here
        there = self.beside / path
        first, second = (there, here) if from_config and len(path.parts) == 1 else (here, there)
        return first if first.exists() else second if second.exists() else here

    def resolve(self, group: AnyGroup) -> AnyGroup:
        """The group with every path resolved, and names of models too where a folder of that name is there."""
        update: dict[str, Any] = {}
        for key, value in group.__dict__.items():
            if isinstance(value, Path):
                update[key] = self(value)
            elif isinstance(value, Group):
                update[key] = self.resolve(value)
            elif isinstance(value, str) and key.endswith("_name_or_path"):
                update[key] = self.model_name(value)
        return group.model_copy(update=update) if update else group

    def model_name(self, value: str) -> str:
        """A hub name as it stands, a local path resolved."""
        if value.startswith("~") or (self.base is not None and self(Path(value)).exists()):
            return str(self(Path(value)))
        return value

    def require_folder(self, path: Path, raw: Any, *, where: str, key: str, findings: Findings) -> None:
        """A problem unless `path` is a folder (or still to be made)."""
        if below_placeholder(raw, self.unprepared):
            return
        found = self(path)
        if not found.exists():
            # What stands for a placeholder is not shown: it may be a secret.
            told = path.expanduser().is_absolute() or holds_token(raw)
            fix = (
                "" if told else f"relative paths count from {self(Path()).resolve()}: {found.resolve()} was looked for"
            )
            findings.problem(where, "is not there", key=key, value=str(raw), fix=fix)
        elif not found.is_dir():
            findings.problem(where, "is not a folder", key=key, value=str(raw))

    def require_file(self, path: Path, raw: Any, *, where: str, key: str, findings: Findings, told: Any = None) -> bool:
        """A problem unless `path` is there (or still to be made); whether it can be read now. `told` is shown of it."""
        if below_placeholder(raw, self.unprepared):
            return False
        found = self.find(path, from_config=True)
        if found.exists():
            return True
        example = found.with_name(f"{found.name}.example")
        fix = f"{example} is a start" if example.exists() else ""
        findings.problem(where, "is not there", key=key, value=told or str(raw), fix=fix)
        return False
