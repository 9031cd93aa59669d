"""A table as a place of files: columns, broken rows, and files that are fetched from a web server, once."""

from __future__ import annotations

import csv
import hashlib
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from serving import web_server
from test_data_helpers import write_clip

from simplewan.data.backends import Captioned, trying, web
from simplewan.data.backends.csv_table import CsvBackend
from simplewan.data.backends.web import Downloads, ask
from simplewan.errors import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(trying, "FIRST_WAIT_SECONDS", 0.005)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips and a picture's name, with a table of DiffSynth's kind beside them."""
    for name in ("a.mp4", "deep/er/片段.mp4", "b, c.mp4"):
        (tmp_path / "clips" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clips" / name).write_bytes(name.encode() * 100)
    return tmp_path / "clips"


def table(folder: Path, *rows: tuple[str, ...], name: str = "metadata.csv") -> Path:
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    return folder / name


def backend(path: Path, **fields: Any) -> CsvBackend:
    fields = {"base": path.parent, "downloads": Downloads(path.parent / ".cache"), "dataset": "clips", **fields}
    return CsvBackend(path, **fields)


def listed(place: CsvBackend) -> dict[str, tuple[str, ...] | None]:
    return {entry.path: place.captions(entry.path) for entry in place.list()}


def reasons(place: CsvBackend) -> list[tuple[str, str]]:
    return [(item.name, item.reason) for item in place.refused]


def test_a_quoted_table_of_video_and_prompt_works_as_it_is(folder: Path) -> None:
    rows = (("a.mp4", "a fox, red"), ("./deep/er/片段.mp4", 'two\nlines, "quoted"'), ("b, c.mp4", "x"))
    place = backend(table(folder, ("video", "prompt"), *rows))
    assert isinstance(place, Captioned) and (place.remarks, place.refused) == ((), ())
    assert listed(place) == {
        "a.mp4": ("a fox, red",),
        "b, c.mp4": ("x",),
        "deep/er/片段.mp4": ('two\nlines, "quoted"',),
    }
    assert place.remarks == ('metadata.csv: the column "prompt" is taken (csv_caption_column names another)',)
    for entry in place.list():
        path = folder / entry.path
        assert (entry.size, entry.stamp) == (path.stat().st_size, path.stat().st_mtime_ns)
        assert place.stat(entry.path) == entry and place.local_path(entry.path) == path
        assert place.open(entry.path).read() == place.read(entry.path) == path.read_bytes()
        assert place.identity(entry) is None
    with pytest.raises(FileNotFoundError):
        place.stat("other.mp4")


def test_files_count_from_the_base_or_are_absolute(folder: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "outside.mp4")
    tables = tmp_path / "tables"
    tables.mkdir()
    rows = (("a.mp4", "one"), (str(folder / "b, c.mp4"), "two"), (str(tmp_path / "outside.mp4"), "three"))
    path = table(tables, ("video", "caption"), *rows, ("..\\outside.mp4", "four"), ("deep\\er\\片段.mp4", "five"))
    place = backend(path, base=folder)
    outside = (tmp_path / "outside.mp4").as_posix()
    assert list(listed(place)) == [outside, "a.mp4", "b, c.mp4", "deep/er/片段.mp4"]
    assert place.captions(outside) == ("three", "four")
    assert place.local_path(outside) == tmp_path / "outside.mp4" and place.root == str(path)
    lost = backend(path)
    assert list(listed(lost)) == [(folder / "b, c.mp4").as_posix(), outside]
    assert reasons(lost) == [
        ("metadata.csv row 2", "a.mp4 is not there"),
        ("metadata.csv row 6", "deep/er/片段.mp4 is not there"),
    ]


def test_rows_of_one_file_are_its_variants(folder: Path) -> None:
    rows = (("a.mp4", "one"), ("./a.mp4", "two"), ("a.mp4", "one"), ("a.mp4", " "))
    place = backend(table(folder, ("video", "caption"), *rows))
    assert listed(place) == {"a.mp4": ("one", "two")}
    assert reasons(place) == [
        ("metadata.csv row 4", "says the same as row 2"),
        ("metadata.csv row 5", "its caption is empty"),
    ]


def test_rows_that_cannot_be_used_are_told_and_the_others_go_on(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    (folder / "metadata.csv").write_text(
        'video,caption\ngone.mp4,one\na.mp4,two, three\n"b, c.mp4",\n,four\nnotes.txt,five\ndeep,six\na.mp4,seven\n'
    )
    place = backend(folder / "metadata.csv")
    assert listed(place) == {"a.mp4": ("seven",)}
    assert reasons(place) == [
        ("metadata.csv row 3", "has 3 fields instead of 2; quote texts with commas"),
        ("metadata.csv row 4", "its caption is empty"),
        ("metadata.csv row 5", "its video is empty"),
        ("metadata.csv row 2", "gone.mp4 is not there"),
        ("metadata.csv row 6", "notes.txt is no kind of file that is read"),
        ("metadata.csv row 7", "deep is no kind of file that is read"),
    ]
    assert {item.kind for item in place.refused} == {"broken row", "no caption", "missing file", "no clip"}


@pytest.mark.parametrize(
    ("columns", "fields", "words"),
    [
        (
            ("movie", "words"),
            {},
            "metadata.csv has no column video: it has movie, words; name it with csv_video_column",
        ),
        (("path", "url", "caption"), {}, "no column video: any of path, url may be meant; name it with csv_video_col"),
        (("video", "text", "prompt"), {}, "any of prompt, text may be meant; name it with csv_caption_column"),
        (("video", "words"), {}, "no column caption: it has video, words; name it with csv_caption_column"),
        (
            ("video", "words"),
            {"caption_column": "word"},
            "csv_caption_column = 'word' is no column of metadata.csv, wh",
        ),
        (("image", "text"), {"file_column": "video"}, "csv_video_column = 'video' is no column of metadata.csv, which"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(
    folder: Path, columns: tuple[str, ...], fields: dict[str, str], words: str
) -> None:
    path = table(folder, columns, ("a.mp4", "one", "two")[: len(columns)])
    with pytest.raises(UserError) as caught:
        list(backend(path, **fields).list())
    assert words in str(caught.value) and 'dataset "clips"' in str(caught.value)


def test_columns_by_other_names(folder: Path) -> None:
    path = table(folder, ("Image", "Text", "words"), ("a.mp4", "one", "two"))
    place = backend(path)
    assert listed(place) == {"a.mp4": ("one",)} and len(place.remarks) == 2
    named = backend(path, file_column="Image", caption_column="words")
    assert listed(named) == {"a.mp4": ("two",)} and named.remarks == ()
    bare = backend(table(folder, ("file_name", "words"), ("a.mp4", "one")), needs_captions=False)
    assert listed(bare) == {"a.mp4": None} and bare.refused == ()
    empty = backend(table(folder, ("video", "caption"), ("a.mp4", "")), needs_captions=False)
    assert listed(empty) == {"a.mp4": None}


def test_json_lines_as_the_hub_lays_them_out(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "one"}\n{"file_name": "b, c.mp4"}\n')
    place = backend(folder / "metadata.jsonl")
    assert listed(place) == {"a.mp4": ("one",)}
    assert reasons(place) == [("metadata.jsonl row 2", "its text is empty")]


def test_a_table_that_is_not_there_or_broken(folder: Path) -> None:
    with pytest.raises(UserError, match=r"csv_file = .* cannot be read: No such file"):
        list(backend(folder / "none.csv").list())
    (folder / "metadata.csv").write_bytes(b"video,caption\na.mp4,gr\xfcn\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        list(backend(folder / "metadata.csv").list())


def test_an_edited_table_is_seen(folder: Path) -> None:
    place = backend(table(folder, ("video", "caption"), ("a.mp4", "one")))
    assert place.captions("a.mp4") == ("one",)
    table(folder, ("video", "caption"), ("a.mp4", "two"), ("b, c.mp4", "three"))
    assert listed(place) == {"a.mp4": ("two",), "b, c.mp4": ("three",)}
    assert listed(pickle.loads(pickle.dumps(place))) == listed(place)


@dataclass
class Site:
    """Files of a web server, and how it behaves; `asked` lists the requests."""

    files: dict[str, bytes] = field(default_factory=dict)
    heads: bool = True
    tags: bool = True
    lengths: bool = True
    kinds: dict[str, str] = field(default_factory=dict)
    fails: dict[str, list[int]] = field(default_factory=dict)  # statuses, one a request; 0 drops, -1 cuts the body
    asked: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""

    def count(self, method: str) -> int:
        return sum(asked == method for asked, _ in self.asked)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            made.asked.append((self.command, self.path))
            content = made.files.get(self.path)
            fault = (made.fails.get(self.path) or [200]).pop(0)
            if self.command == "HEAD" and not made.heads:
                fault = 405
            if fault == 0:
                return
            if content is None or fault >= 400:
                self.send_error(404 if fault in (200, -1) else fault)
                return
            self.send_response(200)
            if made.lengths:
                self.send_header("Content-Length", str(len(content)))
            if made.tags:
                self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
            self.send_header("Content-Type", made.kinds.get(self.path, "application/octet-stream"))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[: len(content) // 2] if fault == -1 else content)

        do_GET = do_HEAD

        def log_message(self, *_arguments: object) -> None:
            pass

    with web_server(Handler) as address:
        made.address = address
        yield made


def web_table(folder: Path, site: Site, *rows: tuple[str, str]) -> CsvBackend:
    return backend(table(folder, ("url", "caption"), *[(f"{site.address}{url}", text) for url, text in rows]))


def test_files_of_the_web_are_fetched_once_when_they_are_opened(folder: Path, site: Site) -> None:
    site.files = {"/x/a.mp4": b"one" * 1000, "/x/b c.mp4": b"two" * 1000}
    heard: list[tuple[int, int]] = []
    host = site.address.removeprefix("http://")
    rows = (("/x/a.mp4", "first"), ("/x/b%20c.mp4?key=hidden", "second"))
    site.files["/x/b%20c.mp4?key=hidden"] = site.files["/x/b c.mp4"]
    place = web_table(folder, site, *rows)
    object.__setattr__(place, "tell", lambda count, total: heard.append((count, total)))
    entries = list(place.list())
    assert [(entry.path, entry.size) for entry in entries] == [(f"{host}/x/a.mp4", 3000), (f"{host}/x/b c.mp4", 3000)]
    assert site.count("GET") == 0 and heard == [(1, 2), (2, 2)]
    assert place.local_path(entries[0].path) is None
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(place.read, [entry.path for entry in entries] * 8)) == [b"one" * 1000, b"two" * 1000] * 8
    assert site.count("GET") == 2
    for entry in entries:
        path = place.local_path(entry.path)
        assert path is not None and path.suffix == ".mp4" and path.read_bytes() == place.open(entry.path).read()
    again = web_table(folder, site, *rows)
    assert list(again.list()) == entries and again.read(entries[0].path) == b"one" * 1000
    assert site.count("GET") == 2
    assert "hidden" not in repr(entries)
    assert not any(b"hidden" in file.read_bytes() for file in (folder / ".cache").iterdir())
    asked = len(site.asked)
    copied = pickle.loads(pickle.dumps(place))  # in another process: it knows what was listed
    assert copied == place and copied.read(entries[0].path) == b"one" * 1000 and len(site.asked) == asked
    path = place.local_path(entries[0].path)
    assert path is not None
    path.write_bytes(b"one")  # a copy that was damaged
    assert place.read(entries[0].path) == b"one" * 1000 and site.count("GET") == 3


@pytest.mark.parametrize(("heads", "tags", "lengths"), [(True, True, True), (False, True, False), (True, False, True)])
def test_a_file_that_changed_is_fetched_anew(folder: Path, site: Site, heads: bool, tags: bool, lengths: bool) -> None:
    site.heads, site.tags, site.lengths = heads, tags, lengths
    site.files["/a.mp4"] = b"one"
    place = web_table(folder, site, ("/a.mp4", "x"))
    (first,) = place.list()
    assert first.size == (3 if lengths else -1) and place.read(first.path) == b"one"
    site.files["/a.mp4"] = b"other"
    (second,) = place.list()
    assert second.stamp != first.stamp and place.local_path(second.path) is None
    assert place.read(second.path) == b"other"
    gets = site.count("GET")
    place.read(second.path)
    assert site.count("GET") == gets
    assert len(list((folder / ".cache").iterdir())) == 2


def test_the_copies_do_without_the_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Count:
        tries = 0

    site = Site(files={"/a.mp4": b"one", "/b.mp4": b"two"})
    with web_server(_plain(site)) as site.address:
        place = web_table(folder, site, ("/a.mp4", "x"), ("/b.mp4", "y"))
        first, _ = place.list()
        place.read(first.path)
    opened = web._opened

    def counted(url: str, method: str) -> Any:
        Count.tries += 1
        return opened(url, method)

    monkeypatch.setattr(web, "_opened", counted)
    assert listed(place) == {first.path: ("x",)}
    assert list(place.list()) == [first]
    assert place.read(first.path) == b"one"
    assert place.remarks[-1] == "1 file could not be asked for in the web: the copies from earlier are used"
    ((name, reason),) = reasons(place)
    assert name == "metadata.csv row 3" and "refuses the connection; is its server running?" in reason
    rows = [(f"/{number}.mp4", "x") for number in range(500)]
    Count.tries = 0
    assert listed(web_table(folder, site, *rows)) == {}
    assert Count.tries <= web.AT_ONCE * trying.ATTEMPTS * 2  # not one wait a file


def _plain(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = site.files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_arguments: object) -> None:
            pass

    return Handler


def test_failures_are_reasons_of_a_row(folder: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "TIMEOUT_SECONDS", 0.2)
    site.files = {"/ok.mp4": b"1", "/secret.mp4": b"1", "/busy.mp4": b"1", "/page": b"1", "/none": b"1"}
    site.fails = {"/secret.mp4": [403] * 99, "/busy.mp4": [503] * 99}
    site.kinds = {"/page": "text/html", "/none": "video/mp4"}
    names = ("ok.mp4", "gone.mp4", "secret.mp4", "busy.mp4", "page", "none")
    place = web_table(folder, site, *[(f"/{name}", "x") for name in names])
    found, host = listed(place), site.address.removeprefix("http://")
    assert [path.rpartition("/")[2][:5] for path in found] == ["none-", "ok.mp"] and all(map(place.read, found))
    said = dict(reasons(place))
    assert "answers 404 Not Found: the address is wrong, or the file gone" in said["metadata.csv row 3"]
    assert "answers 403 Forbidden: it needs a sign-in" in said["metadata.csv row 4"]
    assert "answers 503 Service Unavailable; try later" in said["metadata.csv row 5"]
    assert f"{host}/page is no kind of file that is read" in said["metadata.csv row 6"]
    with pytest.raises(OSError, match="is not known; is there a network"):
        ask("http://no-such-host.invalid/a.mp4")

    class Slow(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.rfile.read(1)

    with web_server(Slow) as address, pytest.raises(OSError, match=r"did not answer within 0.2 seconds"):
        ask(f"{address}/a.mp4")
    with pytest.raises(OSError, match=r"the certificate|broke again"):
        ask(site.address.replace("http:", "https:") + "/ok.mp4")


def test_what_breaks_off_is_fetched_again_or_not_there(folder: Path, site: Site) -> None:
    site.files = {"/a.mp4": b"one" * 100_000, "/b.mp4": b"two" * 100_000}
    place = web_table(folder, site, ("/a.mp4", "x"), ("/b.mp4", "y"))
    first, second = place.list()
    site.fails = {"/a.mp4": [503, 0, -1], "/b.mp4": [-1] * 99}
    assert place.read(first.path) == site.files["/a.mp4"]
    with pytest.raises(OSError, match="broke again and again"):
        place.open(second.path)
    assert place.local_path(second.path) is None
    assert len(list((folder / ".cache").iterdir())) == 2  # the whole one and its note
    site.fails = {}
    assert place.read(second.path) == site.files["/b.mp4"]


def test_addresses_that_differ_in_their_query_are_other_files(folder: Path, site: Site) -> None:
    site.files = {"/get?id=1": b"one", "/get?id=2": b"two", "/c.mp4?v=1": b"three", "/c.mp4?v=2": b"four"}
    site.kinds = dict.fromkeys(site.files, "video/webm")
    place = web_table(folder, site, *[(url, url) for url in site.files])
    entries = list(place.list())
    captions = {place.read(entry.path): place.captions(entry.path) for entry in entries}
    assert captions == {content: (url,) for url, content in site.files.items()}
    assert sorted(Path(entry.path).suffix for entry in entries) == [".mp4", ".mp4", ".webm", ".webm"]
