"""Puts the miniature under one folder, once: `clips/`, `model/`, and a marker that says what made them.

Imports `clips` and `model`. Everything is made in a temporary folder beside the target and renamed as a whole, so that
a kill at any moment leaves either nothing or all. A lock beside it makes a second process wait instead of doing the
work twice. The marker holds a digest of the generator's source: when that changed, the folder is made anew (its caches
go with it; they belong to the old model). A folder that this code did not make is never touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simplewan.errors import Problem, UserError
from simplewan.mini import clips, draw, model

MARKER = "example.json"
SEED = 42
CLIPS = 24


def prepare(folder: Path, *, seed: int = SEED, count: int = CLIPS) -> bool:
    """Makes `folder`/clips and `folder`/model unless they are there; returns whether they had to be made.

    Raises UserError when `folder` holds something else.
    """
    wanted = {"generator": _generator_digest(), "seed": seed, "clips": count}
    if _marker(folder) == wanted:
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        found = _marker(folder)
        if found == wanted:
            return False
        if found is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(
                Problem(
                    where=str(folder),
                    message="holds files that were not generated here, and the example needs the place",
                    fix="move them, or name another folder with the environment variable SIMPLEWAN_CACHE",
                )
            )
        _make(folder, wanted, seed=seed, count=count)
    return True


def _make(folder: Path, marker: dict[str, object], *, seed: int, count: int) -> None:
    prefix = f".{folder.name}.making-"
    # The lock is held: what others left half done belongs to processes that are gone.
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    workplace = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        new, old = workplace / "new", workplace / "old"
        clips.write_dataset(new / "clips", seed=seed, count=count)
        model.build_model(new / "model", seed=seed)
        (new / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(workplace)


def _marker(folder: Path) -> dict[str, object] | None:
    """The marker of a finished folder, {} when it cannot be read as one, None when there is none."""
    try:
        found = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _generator_digest() -> str:
    """A digest of the source that makes the example, so that nobody has to remember a version number."""
    digest = hashlib.sha256()
    for module in (draw, clips, model):
        assert module.__file__ is not None, "the package lies on disk"
        digest.update(Path(module.__file__).read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the system releases it when the process ends, however it ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
