"""A dataset that is read once, as a stream, its bytes going into a folder of files: for those too large to hold twice.

Imports this package and the atomic writes of the room. A manifest says, a line a row, what was written and where the
stream stood, so that one that was broken off goes on there. It is begun anew when the dataset has changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from simplewan.data.atomic import atomic_path
from simplewan.data.backends.hub_loading import Columns
from simplewan.data.backends.hub_rows import HEAD_BYTES, Cell, names_of
from simplewan.data.tables import texts

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Rows:
    """What was read of a dataset: for each row its cell, its captions, and the file with its bytes, if one was written.

    `version` changes whenever the dataset does.
    """

    version: str
    columns: Columns
    rows: Sequence[tuple[Cell, tuple[str, ...], Path | None]]


@dataclass(frozen=True)
class Stream:
    """A dataset in a folder; `kind` is the dataset's type, for files whose bytes do not tell their kind."""

    folder: Path
    kind: str

    def known(self, version: str | None) -> Rows | None:
        """All rows, if they were read before and the dataset, as far as anyone can say, is the same."""
        found = self._kept(version)
        return None if found is None or "rows" not in found[1][-1] else self._rows(found[0], found[1][:-1])

    def fill(self, dataset: Any, columns: Columns, version: str | None, *, tell: Callable[[int], None]) -> Rows:
        """All rows, those read that were not read yet; `tell` hears the number of each.

        Whatever reading raises passes through, and OSError when there is no room: a further call goes on there.
        """
        head = {"version": version or "unknown", "media": columns.media, "caption": columns.caption}
        head["remarks"] = columns.remarks
        found = self._kept(version)
        lines: list[dict[str, Any]] = []
        if found is not None and all(found[0][key] == head[key] for key in ("media", "caption")):
            head, lines = found[0], [line for line in found[1] if "rows" not in line]
        self._begin(head, lines)
        if lines:
            dataset.load_state_dict(lines[-1]["state"])
        with (self.folder / MANIFEST).open("a", encoding="utf-8") as manifest:
            for row, cells in enumerate(dataset, start=len(lines)):
                line = self._write(row, cells, columns)
                lines.append({**line, "state": dataset.state_dict()})
                manifest.write(json.dumps(lines[-1]) + "\n")
                manifest.flush()
                tell(row + 1)
            manifest.write(json.dumps({"rows": len(lines)}) + "\n")
        return self._rows(head, lines)

    def _write(self, row: int, cells: dict[str, Any], columns: Columns) -> dict[str, Any]:
        """The line of a row; its bytes, where it has some, are in the folder now."""
        value = cells.get(columns.media)
        pair = value if isinstance(value, dict) else {"path": value} if isinstance(value, str) else {"bytes": value}
        content, path = pair.get("bytes"), pair.get("path")
        line = {"path": path, "captions": texts(cells.get(columns.caption)) if columns.caption else ()}
        if content is None:
            return line
        head = content[:HEAD_BYTES]
        (name,) = names_of([Cell(len(content), path, head)], self.kind)
        file = f"{row:08}{PurePosixPath(name).suffix}"
        with atomic_path(self.folder / file) as temporary:
            temporary.write_bytes(content)
        return {**line, "file": file, "size": len(content), "head": head.hex()}

    def _rows(self, head: dict[str, Any], lines: Sequence[dict[str, Any]]) -> Rows:
        rows = []
        for line in lines:
            cell = Cell(line.get("size"), line["path"], bytes.fromhex(line.get("head", "")))
            rows.append((cell, tuple(line["captions"]), self.folder / line["file"] if "file" in line else None))
        return Rows(head["version"], Columns(head["media"], head["caption"], tuple(head["remarks"])), rows)

    def _kept(self, version: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """The head of the manifest and its lines, up to the first whose file is not whole; None for another version."""
        head, *lines = list(_read(self.folder / MANIFEST)) or [{}]
        if not lines or (version is not None and head["version"] != version):
            return None
        broken = (number for number, line in enumerate(lines) if "file" in line and not self._is_whole(line))
        lines = lines[: next(broken, len(lines))]
        return (head, lines) if lines else None

    def _is_whole(self, line: dict[str, Any]) -> bool:
        try:
            return (self.folder / line["file"]).stat().st_size == line["size"]
        except OSError:
            return False

    def _begin(self, head: dict[str, Any], lines: Sequence[dict[str, Any]]) -> None:
        """The manifest with nothing but what `lines` say, and an empty folder when they say nothing."""
        if not lines:
            shutil.rmtree(self.folder, ignore_errors=True)
        with atomic_path(self.folder / MANIFEST) as temporary:
            text = [json.dumps(line) for line in (head, *lines)]
            temporary.write_text("\n".join(text) + "\n", encoding="utf-8")


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a manifest, up to the first that is not whole."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            return
        yield content
