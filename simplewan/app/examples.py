"""The bundled examples, made ready: their generated files under SIMPLEWAN_CACHE, once, atomically."""

from __future__ import annotations

from pathlib import Path

from simplewan.errors import Problem, UserError
from simplewan.mini.example import EXAMPLES
from simplewan.mini.example import prepare as prepare_mini
from simplewan.reporting.quiet import quiet_loading_bars


def prepare(name: str, folder: Path) -> None:
    """Make the files of example `name` in `folder` if they are not there. Raises UserError if none can be written."""
    quiet_loading_bars()
    try:
        prepare_mini(folder, EXAMPLES[name])
    except OSError as error:
        fix = "name a folder that can be written, on a disk with room, with the environment variable SIMPLEWAN_CACHE"
        message = f"the example cannot be made: {error.strerror or error}"
        raise UserError(Problem(str(folder), message, fix=fix)) from error
