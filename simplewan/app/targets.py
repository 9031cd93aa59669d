"""Whether an export may write to a place: nothing twice, nothing over what is read or what is not its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from simplewan.errors import Problem, UserError
from simplewan.headers import read_header
from simplewan.options.sources import COMMAND_LINE

# The key of the metadata by which a merged file is known.
MERGED_FROM = "merged"


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Tell what keeps a place from being written: a file in the way, no permission, no room. Raises UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            reason = next((f"{parent} is a file" for parent in target.parents if parent.is_file()), reason)
        fix = "name a folder that can be written, on a disk with room"
        raise UserError(Problem(COMMAND_LINE, f"cannot be written: {reason}", "output", str(target), fix)) from error


def check_targets(targets: Sequence[Path], sources: Sequence[Path], *, overwrite: bool, folders: bool = False) -> None:
    """That nothing is written twice, over what is read, or (unless asked) over what is there. Raises UserError.

    With `folders` the targets are folders, which are replaced as a whole: only by what a merge left there.
    """
    problems = []
    for target in dict.fromkeys(targets):
        with writing(target):
            fault = _fault(target, targets, sources, overwrite=overwrite, folders=folders)
        if fault is not None:
            problems.append(Problem(COMMAND_LINE, fault[0], "output", str(target), fault[1]))
    if problems:
        raise UserError(*problems)


def _fault(
    target: Path, targets: Sequence[Path], sources: Sequence[Path], *, overwrite: bool, folders: bool
) -> tuple[str, str] | None:
    """Why nothing may be written there, and the fix; None if it may."""
    if [each.resolve() for each in targets].count(target.resolve()) > 1:
        return "would be written more than once", "name a folder, or one file at a time"
    if target.exists() and any(path.exists() and target.samefile(path) for path in sources):
        return "is what is read", "name another"
    if any(target.resolve() in path.resolve().parents for path in sources):
        return "holds what is read", "name another"
    if target.exists() and target.is_dir() != folders:
        return f"is a {'file' if folders else 'folder'}", "name another"
    # A folder further below is none of the model's; a file there would still go when the model is replaced.
    above = target.resolve().parents[:1] if folders else target.resolve().parents
    if any(path.is_dir() and path.resolve() in above for path in sources):
        return "is inside what is read", "name another"
    if target.exists() and not overwrite:
        return "is there already", "give --overwrite"
    if folders and (foreign := _foreign(target)) is not None:
        return f"holds {foreign}, which no merge wrote", "move it away, or name another"
    return None


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
