"""The examples that come with the package: a folder each, with config.json and what it names.

Imports the standard library alone. They are package data, read through importlib.resources, so that an installed
package has them as a checkout has.
"""

from __future__ import annotations

from importlib.resources import files

CONFIG = "config.json"


def example_names() -> tuple[str, ...]:
    """The names of all examples, sorted."""
    return tuple(sorted(item.name for item in files(__name__).iterdir() if item.joinpath(CONFIG).is_file()))


def example_files(name: str) -> dict[str, str]:
    """The text of each file of an example by its file name. Raises KeyError when there is no such example."""
    if name not in example_names():
        raise KeyError(name)
    folder = files(__name__).joinpath(name)
    return {item.name: item.read_text(encoding="utf-8") for item in folder.iterdir() if item.is_file()}
