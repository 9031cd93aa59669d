"""Tables of files: what each format gives, broken rows by number, and which row is whose."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplewan.data.backends import LocalBackend, Source
from simplewan.data.tables import Table, TableError, find_column, match, texts

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


def read(folder: Path, name: str, content: str | bytes, **how: object) -> Table:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Table.read(folder / name, **how)  # type: ignore[arg-type]


def cells(table: Table) -> list[tuple[object, ...]]:
    return [(row.number, *row.cells.values()) for row in table.rows]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_quoted_csv(tmp_path: Path, mark: bytes, end: str) -> None:
    rows = ['"video","prompt"', '"a.mp4","a fox, red"', '"片段.mp4","two\nlines and ""quotes"""', "", '"c.mp4",""']
    table = read(tmp_path, "metadata.csv", mark + end.join(rows).encode())
    assert table.columns == ("video", "prompt") and table.broken == ()
    assert cells(table) == [(2, "a.mp4", "a fox, red"), (3, "片段.mp4", 'two\nlines and "quotes"'), (5, "c.mp4", "")]


@given(st.lists(st.lists(TEXT, min_size=3, max_size=3), max_size=6), st.sampled_from([",", ";", "\t"]))
def test_what_python_writes_is_read(written: list[list[str]], delimiter: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["a", "b", "c"], *written])

    class Memory(LocalBackend):
        def open(self, path: str) -> io.BytesIO:
            return io.BytesIO(file.getvalue().encode())

    table = Table.read(Source(Memory(Path("/")), "x.csv"))
    wanted = [tuple(row) for row in written if any(cell.strip() for cell in row)]
    assert [tuple(row.cells.values()) for row in table.rows] == wanted and table.broken == ()


def test_broken_rows_are_told_by_number(tmp_path: Path) -> None:
    table = read(tmp_path, "x.csv", 'video,prompt\na.mp4,one\nb.mp4,two, three\nc.mp4\nd.mp4,"x"y\ne.mp4,four\n')
    assert cells(table) == [(2, "a.mp4", "one"), (6, "e.mp4", "four")]
    assert [number for number, _ in table.broken] == [3, 4, 5]
    assert table.broken[0][1] == "has 3 fields instead of 2; quote texts with commas"
    assert "quotation mark" in table.broken[2][1]
    table = read(tmp_path, "x.csv", 'video,prompt\na.mp4,one\nb.mp4,"never closed\nc.mp4,three\n')
    assert cells(table) == [(2, "a.mp4", "one")] and [number for number, _ in table.broken] == [3]


def test_json_lines(tmp_path: Path) -> None:
    lines = '{"file_name": "a.mp4", "text": "one"}\r\n\n{"file_name": \n["a"]\n{"file_name": "b.mp4", "more": [1]}\n'
    table = read(tmp_path, "metadata.jsonl", lines)
    assert table.columns == ("file_name", "text", "more")
    assert [(row.number, row.cells) for row in table.rows] == [
        (1, {"file_name": "a.mp4", "text": "one"}),
        (5, {"file_name": "b.mp4", "more": [1]}),
    ]
    assert [number for number, _ in table.broken] == [3, 4]
    assert cells(read(tmp_path, "metadata.jsonl", lines, columns=["text"]))[0] == (1, "one")


def test_parquet(tmp_path: Path) -> None:
    columns = {"file": [f"{n}.mp4" for n in range(2500)], "caption": [["x", "y"], None, ["z"], *[[]] * 2497]}
    pyarrow.parquet.write_table(pyarrow.table({**columns, "bytes": [b"1"] * 2500}), tmp_path / "x.parquet")
    table = Table.read(tmp_path / "x.parquet", columns=["file", "caption"])
    assert table.columns == ("file", "caption", "bytes") and len(table.rows) == 2500
    assert table.rows[0].cells == {"file": "0.mp4", "caption": ["x", "y"]}
    assert [row.number for row in table.rows] == list(range(1, 2501))
    assert table.rows[2000].cells["file"] == "2000.mp4"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", b"video,prompt\na.mp4,gr\xfcn\n", r"is not UTF-8 \(line 2, byte 21\); save it as UTF-8"),
        ("x.csv", b"\n\n", "is empty; its first line names the columns"),
        ("x.csv", b"a,b,a\n", "has the column a twice"),
        ("x.jsonl", b"[]\n", "holds no JSON object"),
        ("x.parquet", b"PAR1 no", "is no Parquet file"),
        ("x.xlsx", b"", "is no table that can be read; those end with .csv"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    with pytest.raises(TableError, match=words):
        read(tmp_path, name, content)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot be read: No such file"):
        Table.read(tmp_path / "x.csv")


def test_texts_and_columns() -> None:
    assert texts(None) == texts(" ") == texts([None, ""]) == ()
    assert texts(" a fox\0 ") == ("a fox",) and texts(["a ", 7]) == ("a", "7")
    assert find_column(["Video", "b"], "video") == "Video" and find_column(["Video", "video"], "video") == "video"
    assert find_column(["Video", "VIDEO"], "video") is None


def test_a_row_is_found_by_path_then_name_then_stem() -> None:
    names = ["sub/a.mp4", "a.mp4", "/old/place/b.mp4", "c", ".\\sub\\d.mp4", "e.mp4", "e.mp4", "gone.mp4", ""]
    found = match(names, ["a.mp4", "sub/a.mp4", "b.mp4", "sub/c.mp4", "sub/d.mp4", "e.mp4", "sub/f.mp4"])
    assert found.rows == {
        "a.mp4": (1,),
        "sub/a.mp4": (0,),
        "b.mp4": (2,),
        "sub/c.mp4": (3,),
        "sub/d.mp4": (4,),
        "e.mp4": (5, 6),
    }
    assert found.unclear == {} and found.unused == (7,)


def test_what_is_not_clear_is_not_guessed() -> None:
    found = match(["a.mp4", "x/b.mp4", "y/b.mp4", "c.mov", "c.mp4"], ["x/a.mp4", "y/a.mp4", "b.mp4", "c.avi", "d.mp4"])
    assert found.rows == {} and found.unused == ()
    assert found.unclear == {
        "x/a.mp4": "a.mp4 of the table fits files in x and y; write their paths there",
        "y/a.mp4": "a.mp4 of the table fits files in x and y; write their paths there",
        "b.mp4": "x/b.mp4 and y/b.mp4 of the table both fit; write its path there",
        "c.avi": "c.mov and c.mp4 of the table both fit; write its path there",
    }
    shared = match(["a"], ["a.mp4", "a.mov"])  # as one text file is shared by both
    assert shared.rows == {"a.mp4": (0,), "a.mov": (0,)}


@given(st.lists(st.sampled_from(["a.mp4", "b.mp4", "x/a.mp4", "y/a.mov", "a", "x/b"]), max_size=6))
def test_every_row_and_file_is_accounted_for(names: list[str]) -> None:
    paths = ["a.mp4", "x/a.mp4", "y/a.mov", "z/c.mp4"]
    found = match(names, paths)
    assert not set(found.rows) & set(found.unclear) and "z/c.mp4" not in {*found.rows, *found.unclear}
    for path, rows in found.rows.items():
        assert rows and len({names[row] for row in rows}) == 1
        assert path not in names or {names[row] for row in rows} == {path}
    used = {row for rows in found.rows.values() for row in rows}
    assert not used & set(found.unused)


def test_the_table_may_lie_anywhere(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.mp4"}))
    table = Table.read(Source(LocalBackend(tmp_path), "metadata.jsonl"))
    assert table.name == "metadata.jsonl" and table.rows[0].cells == {"file_name": "a.mp4"}
