"""Puts an example under one folder, once: drawn clips, the miniature's `model/`, and a marker that says what made them.

Imports `clips`. The model comes with the package; the clips teach it what was held back from it. All is made in a
temporary folder beside the target and renamed as a whole, so that a kill at any moment leaves either nothing or all. A
lock beside it makes a second process wait instead of doing the work twice. The marker holds a digest of what makes the
example: when that changed, the folder is made anew (its caches go with it; they belong to the old model). A folder that
this code did not make is never touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from simplewan.errors import Problem, UserError
from simplewan.mini import clips, draw
from simplewan.mini.model import model_files, place_model

MARKER = "example.json"
SEED = 42


@dataclass(frozen=True)
class Clips:
    """Clips of a data set: how many, from which seed, and the held-back concept that all of them show, if any."""

    count: int
    concept: str | None = None
    seed: int = SEED
    sizes: tuple[tuple[int, int], ...] = clips.SIZES


@dataclass(frozen=True)
class Example:
    """The data sets of an example by their folders' names, and the task of its model."""

    datasets: Mapping[str, Clips]
    task: str = "t2v"


SQUARE = ((64, 64),)
EXAMPLES: Mapping[str, Example] = {
    "mini": Example({"clips": Clips(24, draw.HELD_BACK_SHAPE)}),
    "zarn": Example({"clips": Clips(240, draw.HELD_BACK_COLOUR), "known": Clips(240, seed=SEED + 1)}),
    "i2v": Example({"clips": Clips(48, draw.HELD_BACK_MOTION)}, task="i2v"),
    "ti2v": Example({"clips": Clips(48, draw.HELD_BACK_MOTION, sizes=SQUARE)}, task="ti2v"),
}


def prepare(folder: Path, example: Example) -> bool:
    """Makes `folder`/model and a folder for each data set unless they are there; returns whether it had to.

    Raises UserError when `folder` holds something else.
    """
    wanted = json.loads(json.dumps({"generator": _digest(example.task), **asdict(example)}))
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
        _make(folder, wanted, example)
    return True


def _make(folder: Path, marker: dict[str, object], example: Example) -> None:
    prefix = f".{folder.name}.making-"
    # The lock is held: what others left half done belongs to processes that are gone.
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    workplace = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        new, old = workplace / "new", workplace / "old"
        place_model(new / "model", example.task)
        for name, made in example.datasets.items():
            clips.write_dataset(new / name, seed=made.seed, count=made.count, concept=made.concept, sizes=made.sizes)
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


def _digest(task: str) -> str:
    """A digest of what the example is made from, so that nobody has to remember a version number."""
    sources = [Path(str(module.__file__)) for module in (draw, clips)]
    digest = hashlib.sha256()
    for path in (*sources, *model_files(task).values()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the system releases it when the process ends, however it ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
