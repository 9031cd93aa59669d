"""Tables that describe files, through the scan: captions, sizes and lengths without opening a file; mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from test_data_helpers import caption, dataset, scanned, write_clip

from simplewan.data.loading import load_clip
from simplewan.data.media import MediaError
from simplewan.data.samples import Scan
from simplewan.errors import UserError

ROWS = [
    {"filename": "a.mp4", "caption": "a red ball", "width": 64, "height": 48, "num_frames": 20, "fps": 16},
    {"filename": "sub/b", "caption": "a blue ball", "width": 64, "height": 48, "num_frames": 40, "fps": 32},
    {"filename": "gone.mp4", "caption": "nothing", "width": 64, "height": 48, "num_frames": 20, "fps": 16},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clip(tmp_path / "clips" / "a.mp4")
    write_clip(tmp_path / "clips" / "sub" / "b.mp4", frames=40, rate=32)
    return tmp_path / "clips"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
            writer.writeheader()
            writer.writerows(rows)
    return path


def scan_of(folder: Path, table: Path, *, columns: dict[str, str] | None = None, **keys: Any) -> Scan:
    described = {"path": str(table), **(columns or {})}
    return scanned(dataset(folder, parquet=described, **keys), folder.parent / "index")


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_captions_come_from_a_table_of_any_kind(folder: Path, ending: str) -> None:
    table = write(folder.parent / f"table.{ending}", ROWS)
    found = scan_of(folder, table, caption_strategy=ending)
    assert {sample.name: sample.captions for sample in found.samples} == {
        "a.mp4": ("a red ball",),
        "sub/b.mp4": ("a blue ball",),
    }
    assert any("no file for row" in notice for notice in found.notices)


def test_columns_may_have_other_names_and_a_fallback(folder: Path) -> None:
    rows = [{"file": "a", "long": "", "short": "a ball"}, {"file": "b.mp4", "long": "a blue ball", "short": "ball"}]
    columns = {"filename_column": "file", "caption_column": "long", "fallback_caption_column": "short"}
    found = scan_of(folder, write(folder.parent / "t.csv", rows), caption_strategy="csv", columns=columns)
    assert [sample.captions for sample in found.samples] == [("a ball",), ("a blue ball",)]


def test_a_table_without_the_column_is_refused_with_those_it_has(folder: Path) -> None:
    table = write(folder.parent / "t.csv", [{"file": "a.mp4", "text": "a ball"}])
    with pytest.raises(UserError, match=r"parquet.filename_column = 'filename' is no column of t.csv; .*: file, text"):
        scan_of(folder, table, caption_strategy="csv")
    (folder.parent / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"parquet.path"):
        scan_of(folder, folder.parent / "bad.parquet", caption_strategy="parquet")


def test_files_that_the_table_does_not_name_are_left_out_by_name(folder: Path) -> None:
    found = scan_of(folder, write(folder.parent / "t.csv", ROWS[:1]), caption_strategy="csv")
    assert [str(item) for item in found.dropped] == ["sub/b.mp4 (the table does not name it)"]


@pytest.mark.parametrize("backend", ["csv", "parquet"])
def test_what_the_table_says_is_in_a_file_saves_opening_it(
    folder: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.rglob("*.mp4"):
        caption(path)
    plain = scanned(dataset(folder), folder.parent / "plain")
    monkeypatch.setattr("simplewan.data.inspection.probe", lambda _source: pytest.fail("a file was opened"))
    table = write(folder.parent / f"t.{backend}", ROWS)
    found = scan_of(folder, table, metadata_backend=backend)
    assert [(sample.id, sample.clip, sample.content) for sample in found.samples] == [
        (sample.id, sample.clip, sample.content) for sample in plain.samples
    ]
    assert all(sample.described is not None for sample in found.samples)
    for sample, same in zip(found.samples, plain.samples, strict=True):
        assert load_clip(sample).equal(load_clip(same))


def test_what_the_table_leaves_open_is_looked_up_in_the_file(folder: Path) -> None:
    for path in folder.rglob("*.mp4"):
        caption(path)
    rows = [{**ROWS[0], "fps": "inf"}, {**ROWS[1], "width": "wide"}]
    found = scan_of(folder, write(folder.parent / "t.csv", rows), metadata_backend="csv")
    assert [sample.described for sample in found.samples] == [None, None]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"width": 128}, "is 64x48; the table says 128x48"),
        ({"fps": 24}, "has 16 frames a second; the table says 24"),
        ({"num_frames": 80}, "has 20 frames; the table says 80"),
    ],
)
def test_a_table_that_is_wrong_is_noticed_before_anything_is_encoded(
    folder: Path, wrong: dict[str, Any], reason: str
) -> None:
    caption(folder / "a.mp4")
    table = write(folder.parent / "t.csv", [{**ROWS[0], **wrong}])
    frames = 77 if "num_frames" in wrong else 9
    found = scan_of(folder, table, metadata_backend="csv", video={"num_frames": frames})
    sample = next(sample for sample in found.samples if sample.name == "a.mp4")
    with pytest.raises(MediaError, match=reason):
        load_clip(sample)


def test_the_csv_of_other_trainers_works_as_it_is(folder: Path) -> None:
    """Columns video and prompt, every field quoted."""
    write(folder / "metadata.csv", [{"video": "a.mp4", "prompt": 'a "red", round ball'}])
    options = dataset(folder).model_copy(update={"type": "csv", "csv_file": folder / "metadata.csv"})
    found = scanned(options.model_copy(update={"instance_data_dir": None}), folder.parent / "index")
    assert [(sample.name, sample.captions) for sample in found.samples] == [("a.mp4", ('a "red", round ball',))]
    assert any("prompt" in notice for notice in found.notices)
