"""Whether an export may write to a place: nothing twice, nothing over what is read or what is not its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simplewan.errors import Problem, UserError
from simplewan.headers import read_header
from simplewan.options.sources import COMMAND_LINE

# The key of the metadata by which a merged file is known.
MERGED_FROM = "merged"


def check_targets(targets: Sequence[Path], sources: Sequence[Path], *, overwrite: bool, folders: bool = False) -> None:
    """That nothing is written twice, over what is read, or (unless asked) over what is there. Raises UserError.

    With `folders` the targets are folders, which are replaced as a whole: only by what a merge left there.
    """
    problems = []
    for target in dict.fromkeys(targets):
        fault = None
        if targets.count(target) > 1:
            fault = "would be written more than once", "name a folder, or one file at a time"
        elif target.exists() and any(path.exists() and target.samefile(path) for path in sources):
            fault = "is what is read", "name another"
        elif any(target.resolve() in path.resolve().parents for path in sources):
            fault = "holds what is read", "name another"
        elif target.exists() and target.is_dir() != folders:
            fault = f"is a {'file' if folders else 'folder'}", "name another"
        elif target.exists() and not overwrite:
            fault = "is there already", "give --overwrite"
        elif folders and (foreign := _foreign(target)) is not None:
            fault = f"holds {foreign}, which no merge wrote", "move it away, or name another"
        if fault is not None:
            problems.append(Problem(COMMAND_LINE, fault[0], "output", str(target), fault[1]))
    if problems:
        raise UserError(*problems)


def _foreign(folder: Path) -> str | None:
    """What lies in a folder and was not written there by a merge; None when there is nothing."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name == "config.json" or path.name.endswith(".safetensors.index.json"):
            continue
        try:
            header = read_header(path) if path.is_file() else None
        except ValueError:  # a damaged file tells nothing
            header = None
        if header is None or MERGED_FROM not in header.metadata:
            return path.name
    return None
