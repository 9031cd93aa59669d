"""What comes from a hub: only the files that match, after a look at the disk. Imports the errors and flavours.

huggingface_hub is imported only when a repository is really asked for. Without the network what was downloaded before
does; what cannot be had is told with the local alternative, and with the repository that was probably meant.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simplewan.errors import Problem, UserError
from simplewan.flavours import FLAVOURS

KNOWN = tuple(dict.fromkeys(name for row in FLAVOURS.values() for name in row.repositories))


def download(
    name: str, patterns: Sequence[str], *, key: str, revision: str | None = None, but: Sequence[str] = ()
) -> Path:
    """The local copy of a repository, of which only files that match `patterns`, and none of `but`, are downloaded.

    Raises UserError, naming the local alternative, when it cannot be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        DryRunError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    of_the_hub = (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError, DryRunError)
    wanted: dict[str, Any] = {"repo_id": name, "revision": revision, "allow_patterns": list(patterns)}
    if but:
        wanted["ignore_patterns"] = list(but)
    try:
        files = snapshot_download(**wanted, dry_run=True)
        needed = sum(file.file_size or 0 for file in files if file.will_download)
        room = shutil.disk_usage(_existing(Path(constants.HF_HUB_CACHE))).free
        if needed > room:
            message = f"needs {needed / 2**30:.1f} GiB, and {constants.HF_HUB_CACHE} has {room / 2**30:.1f} GiB free"
            raise UserError(Problem("model", message, key=key, value=name, fix="make room or set HF_HOME"))
        return Path(snapshot_download(**wanted))
    except HFValidationError as error:
        raise _no_repository(error, name, key) from error
    except (OSError, HTTPError) as error:
        reason = _reason(error)
        if isinstance(reason, RevisionNotFoundError):
            fix = "name a branch, a tag or a commit of it, or leave revision out"
            raise UserError(Problem("model", f"is no revision of {name}", "revision", str(revision), fix)) from error
        if not isinstance(error, of_the_hub):
            message = f"cannot be downloaded to {constants.HF_HUB_CACHE}: {_first_line(error)}"
            fix = "make it writable and see that there is room, or set HF_HOME"
            raise UserError(Problem("model", message, key=key, value=name, fix=fix)) from error
        return _cached(wanted, key, reason)


def _reason(error: Exception) -> Exception:
    """What is behind an error that only says that nothing was found on this machine, or that nothing can be listed."""
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    behind = error.__cause__
    wraps = isinstance(error, (DryRunError, LocalEntryNotFoundError))
    return behind if wraps and isinstance(behind, Exception) else error


def _cached(wanted: dict[str, Any], key: str, reason: Exception) -> Path:
    """The copy in the hub's cache, for when the hub is out of reach or denies the repository."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    name = wanted["repo_id"]
    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except LocalEntryNotFoundError as error:
        if isinstance(reason, RepositoryNotFoundError):
            raise _no_repository(reason, name, key) from error
        message = f"is not on this machine, and the hub is out of reach ({_first_line(reason)})"
        raise UserError(Problem("model", message, key=key, value=name, fix=_alternative(name, key))) from error


def _no_repository(error: Exception, name: str, key: str) -> UserError:
    message = f"is neither a local folder nor a repository that can be read ({_first_line(error)})"
    return UserError(Problem("model", message, key=key, value=name, fix=_alternative(name, key)))


def _alternative(name: str, key: str) -> str:
    meant = meant_repository(name)
    question = f'did you mean "{meant}"? or ' if meant else ""
    return f"{question}give {key} the path of a local copy"


def meant_repository(name: str) -> str | None:
    """The known repository that a name which is none of them is a slip of; None when it is one, or like none."""
    if name in KNOWN:
        return None
    lowered = {known.lower(): known for known in KNOWN}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.8)
    return lowered[close[0]] if close else None


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
