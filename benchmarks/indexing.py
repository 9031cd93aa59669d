"""How fast is a folder of 100,000 files taken in: at first, when nothing changed, and when some were edited?

50,000 clips, each with a caption file, in 100 folders, with real files on the disk (their headers are read lazily, so
what is in the clips does not matter here). Measured is what every start does before it opens a file: listing,
comparing with the index, and, at first, reading the captions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.timing import Row, row, seconds_of
from simplewan.data.backends import LocalBackend
from simplewan.data.captions import caption_files, text_files
from simplewan.data.index import Changes, Index
from simplewan.data.inspection import Inspector
from simplewan.data.media import is_media_name
from simplewan.events import silent

FOLDERS, CLIPS_EACH = 100, 500
FILES = FOLDERS * CLIPS_EACH * 2
EDITED = 10
ROUNDS = 5


def run() -> list[Row]:
    """Files a second: first scan with captions read, warm, and warm with a few files edited (which must be noticed)."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "clips")
        _write(root)
        first, warm, edited = [], [], []
        for number in range(ROUNDS):
            place = Path(folder, f"index-{number}")
            first.append(FILES / seconds_of(lambda place=place: _look(root, place, captions=True)))
            warm.append(FILES / seconds_of(lambda place=place: _look(root, place)))
            for at in range(EDITED):
                clip = root / f"{at:03d}" / f"clip{number:04d}"
                clip.with_suffix(".mp4").write_bytes(b"edited")
                clip.with_suffix(".txt").write_text(f"edited {number}")
            seconds = seconds_of(lambda place=place: _expect(_look(root, place), edited=2 * EDITED))
            edited.append(FILES / seconds)
    return [
        row(f"index: first scan of {FILES:,} files", first, "files/s", "asked for: >= 20,000; captions read"),
        row(f"index: {FILES:,} files, nothing changed", warm, "files/s", "asked for: >= 150,000"),
        row(f"index: {FILES:,} files, {2 * EDITED} edited", edited, "files/s", "all noticed"),
    ]


def _write(root: Path) -> None:
    for number in range(FOLDERS):
        folder = root / f"{number:03d}"
        folder.mkdir(parents=True)
        for at in range(CLIPS_EACH):
            (folder / f"clip{at:04d}.mp4").write_bytes(b"not looked into")
            (folder / f"clip{at:04d}.txt").write_text("a red ball rolls to the left")


def _look(root: Path, place: Path, *, captions: bool = False) -> Changes:
    backend = LocalBackend(root)
    with Index(place, dataset="clips", root=backend.root) as index:
        entries = list(backend.list())
        changes = index.update(entries)
        if captions:
            inspector = Inspector("clips", backend, index, silent, lambda: None)
            files = caption_files(entries)
            read = text_files(files, inspector.contents(list(files.values())))
            assert all(read(entry) for entry in entries if is_media_name(entry.path))
    return changes


def _expect(changes: Changes, *, edited: int) -> None:
    assert len(changes.edited) == edited and not changes.new and not changes.gone, changes
