"""What a table says of files: captions, and sizes and lengths, so that no file has to be opened before it is encoded.

Imports errors, options for their types alone, and this room. A row belongs to a file by its path, else by its name,
else by its name without the ending; where that is not clear nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simplewan.data.backends import Entry
from simplewan.data.captions import CaptionError
from simplewan.data.media import is_image_name
from simplewan.data.mediainfo import MediaInfo
from simplewan.data.tables import Match, Row, Table, TableError, find_column, match, texts
from simplewan.errors import Problem, UserError, some

if TYPE_CHECKING:
    from simplewan.options.datasets import DatasetOptions

LARGEST = 10_000_000  # of any size or length that a table may say; infinity is none
TABLES = ("parquet", "csv", "jsonl")


@dataclass(frozen=True)
class Descriptions:
    """The rows of a table by the files of a dataset. `remarks` are what there is to say of it."""

    rows: Sequence[Row]
    match: Match
    columns: Mapping[str, str | None]
    remarks: tuple[str, ...]

    def captions(self, entry: Entry) -> tuple[str, ...]:
        """The caption variants of a file: those of all its rows. Raises CaptionError."""
        if (why := self.match.unclear.get(entry.path)) is not None:
            raise CaptionError("not in the table", why)
        if entry.path not in self.match.rows:
            raise CaptionError("not in the table", "the table does not name it")
        found: list[str] = []
        for cells in self._cells(entry.path):
            caption, fallback = (self.columns[key] for key in ("caption_column", "fallback_caption_column"))
            found += texts(cells.get(caption)) or (texts(cells.get(fallback)) if fallback else ())
        if not found:
            raise CaptionError("empty caption", f"its caption in row {self._row(entry.path).number} is empty")
        return tuple(dict.fromkeys(found))

    def media(self, path: str) -> MediaInfo | None:
        """What the table says is in a file; None where it does not say all that is needed."""
        if path not in self.match.rows:
            return None
        keys = ("width_column", "height_column", "num_frames_column", "fps_column")
        width, height, num_frames, fps = (self._number(path, key) for key in keys)
        if not width or not height:
            return None
        if is_image_name(path):
            return MediaInfo(int(width), int(height), 1, fps=0.0, seconds=0.0, is_image=True)
        if not num_frames or not fps:
            return None
        count = int(num_frames)
        times = tuple(index / fps for index in range(count))
        return MediaInfo(int(width), int(height), count, fps=fps, seconds=count / fps, is_image=False, times=times)

    def _row(self, path: str) -> Row:
        return self.rows[self.match.rows[path][0]]

    def _cells(self, path: str) -> Iterable[Mapping[str, Any]]:
        return (self.rows[number].cells for number in self.match.rows[path])

    def _number(self, path: str, key: str) -> float | None:
        column = self.columns[key]
        value = self._row(path).cells.get(column) if column is not None else None
        try:
            number = float(value) if value is not None else None
        except (TypeError, ValueError):
            return None
        return number if number is not None and 0 < number <= LARGEST else None


def read_descriptions(dataset: DatasetOptions, paths: Sequence[str]) -> Descriptions | None:
    """The table that a dataset names, matched with its files; None where none is asked for. Raises UserError."""
    place = dataset.parquet.path or dataset.csv_file
    if place is None or not {dataset.caption_strategy, dataset.metadata_backend} & set(TABLES):
        return None
    where, key = f'dataset "{dataset.id}"', "parquet.path" if dataset.parquet.path else "csv_file"
    try:
        table = Table.read(place.expanduser())
    except TableError as error:
        raise UserError(Problem(where, str(error), key, str(place))) from None
    keys = [name for name in type(dataset.parquet).model_fields if name.endswith("_column")]
    columns = {name: _column(table, getattr(dataset.parquet, name)) for name in keys}
    if dataset.parquet.path is None:
        columns["filename_column"] = columns["filename_column"] or _column(table, dataset.csv_video_column)
        columns["caption_column"] = columns["caption_column"] or _column(table, dataset.csv_caption_column)
    needed = ["filename_column"]
    if dataset.caption_strategy in TABLES and dataset.type != "csv" and not dataset.only_instance_prompt:
        needed.append("caption_column")
    for name in needed:
        if columns[name] is None:
            named = getattr(dataset.parquet, name)
            fix = f"its columns: {', '.join(table.columns)}"
            raise UserError(Problem(where, f"is no column of {place.name}", f"parquet.{name}", named, fix))
    matched = match([str(row.cells.get(columns["filename_column"] or "") or "") for row in table.rows], paths)
    return Descriptions(table.rows, matched, columns, _remarks(table, matched))


def _column(table: Table, name: str | None) -> str | None:
    return find_column(table.columns, name) if name else None


def _remarks(table: Table, matched: Match) -> tuple[str, ...]:
    remarks = [f"{table.name}: row {number} {reason}" for number, reason in table.broken]
    if matched.unused:
        rows = [str(table.rows[number].number) for number in matched.unused]
        remarks.append(f"{table.name}: no file for row {some(rows)}")
    return tuple(remarks)
