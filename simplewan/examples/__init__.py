"""The examples that come with the package: a folder each, with config.json and what it names.

Imports the standard library alone. They are package data, found through importlib.resources, so that an installed
package has them as a checkout has.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

CONFIG = "config.json"


def example_names() -> tuple[str, ...]:
    """The names of all examples, sorted."""
    return tuple(sorted(folder.name for folder in _root().iterdir() if (folder / CONFIG).is_file()))


def example_folder(name: str) -> Path | None:
    """The folder of an example's JSON files; None when there is no such example."""
    return _root() / name if name in example_names() else None


def _root() -> Path:
    return Path(str(files(__name__)))
