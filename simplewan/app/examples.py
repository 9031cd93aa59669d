"""The bundled examples, made ready: their generated files under SIMPLEWAN_CACHE, once, atomically."""

from __future__ import annotations

from pathlib import Path

from simplewan.mini.example import EXAMPLES
from simplewan.mini.example import prepare as prepare_mini
from simplewan.reporting.quiet import quiet_loading_bars


def prepare(name: str, folder: Path) -> None:
    """Make the files of example `name` in `folder` if they are not there."""
    quiet_loading_bars()
    prepare_mini(folder, EXAMPLES[name])
