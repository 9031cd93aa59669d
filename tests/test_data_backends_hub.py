"""Datasets of the `datasets` library as places of files: folders, Parquet, saved ones, streams, and the hub itself."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import datasets
import huggingface_hub
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value, Video
from datasets.exceptions import DatasetNotFoundError
from PIL import Image as Picture
from serving import web_server
from test_data_backends_csv import Site, _plain
from test_data_helpers import write_clip

from simplewan.data.backends import Captioned, hub, trying
from simplewan.data.backends.hub import HubBackend
from simplewan.data.backends.hub_loading import Wanted, _explain, load
from simplewan.data.backends.hub_rows import place_of
from simplewan.errors import Interrupted, UserError
from simplewan.events import Event, Notice, Progress


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home of the library's own, and no network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        patch.setenv("no_proxy", "127.0.0.1")
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Five clips of different lengths."""
    folder = tmp_path_factory.mktemp("made")
    return [write_clip(folder / f"{frames}.mp4", frames=frames, size=(32, 32)).read_bytes() for frames in range(1, 6)]


FEATURES = Features({"video": Video(), "caption": Value("string")})


def rows(clips: list[bytes], *, names: bool = False, captions: list[Any] | None = None) -> dict[str, list[Any]]:
    pairs = [{"bytes": clip, "path": f"clip {n}.mp4" if names else None} for n, clip in enumerate(clips)]
    return {"video": pairs, "caption": captions or [f"caption {n}" for n in range(len(clips))]}


def parquet(folder: Path, columns: dict[str, list[Any]], features: Features = FEATURES, **how: Any) -> Path:
    folder.mkdir(exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet", **how)
    return folder


def backend(place: Path | str, **fields: Any) -> HubBackend:
    about = {key: fields.pop(key) for key in ("config", "split", "revision") if key in fields}
    cache = fields.pop("cache", None) or Path(str(place)).parent / "cache"
    return HubBackend(Wanted(str(place), dataset="clips", **about), cache, **fields)


def contents(place: HubBackend) -> dict[str, bytes]:
    return {entry.path: place.read(entry.path) for entry in place.list()}


def reasons(place: HubBackend) -> list[tuple[str, str]]:
    return [(item.name, item.reason) for item in place.refused]


def numbered(clips: list[bytes]) -> dict[str, bytes]:
    return {f"{row:08}.mp4": clip for row, clip in enumerate(clips)}


@pytest.mark.parametrize("kind", ["parquet", "saved", "saved dict"])
@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_in_tables(tmp_path: Path, clips: list[bytes], kind: str, streaming: bool) -> None:
    place = tmp_path / "data"
    if kind == "parquet":
        parquet(place, rows(clips))
    else:
        made = Dataset.from_dict(rows(clips), features=FEATURES)
        (made if kind == "saved" else DatasetDict({"train": made, "test": made.select([0])})).save_to_disk(place)
    source = backend(place, streaming=streaming)
    assert isinstance(source, Captioned)
    assert contents(source) == numbered(clips) and source.refused == ()
    assert source.captions("00000003.mp4") == ("caption 3",)
    assert source.remarks == (
        'the files are taken from the column "video" (video_column names another)',
        'the captions are taken from the column "caption" (caption_column names another)',
    )
    for entry in source.list():
        assert entry.size == len(source.read(entry.path)) and source.stat(entry.path) == entry
        with source.open(entry.path) as stream, av.open(stream) as container:
            assert sum(1 for _ in container.decode(video=0)) == int(entry.path[:8]) + 1
        path = source.local_path(entry.path)
        assert (path is not None) == streaming and (path is None or path.read_bytes() == source.read(entry.path))
    with pytest.raises(FileNotFoundError):
        source.read("00000009.mp4")
    assert source.root == f"{place}:train" and "torchcodec" not in sys.modules
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, numbered(clips))) == clips
    assert contents(pickle.loads(pickle.dumps(source))) == numbered(clips)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_clips(tmp_path: Path, clips: list[bytes], streaming: bool) -> None:
    for number, name in enumerate(("a.mp4", "sub/b.mp4", "sub/a.mp4")):
        (tmp_path / "data" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "train" / name).write_bytes(clips[number])
    lines = [{"file_name": name, "text": f"words of {name}"} for name in ("a.mp4", "sub/b.mp4", "sub/a.mp4")]
    (tmp_path / "data" / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = backend(tmp_path / "data", streaming=streaming)
    found = contents(source)
    assert {path.rstrip("0123456789.mp") for path in found} == {"a-", "b"} and len(found) == 3
    assert {clip: source.captions(path) for path, clip in found.items()} == {
        clips[0]: ("words of a.mp4",),
        clips[1]: ("words of sub/b.mp4",),
        clips[2]: ("words of sub/a.mp4",),
    }
    path = source.local_path("b.mp4")
    assert path == tmp_path / "data" / "train" / "sub" / "b.mp4"  # not copied
    entry = source.stat("b.mp4")
    assert (entry.size, entry.stamp) == (path.stat().st_size, path.stat().st_mtime_ns)


def test_own_names_where_they_are_known(tmp_path: Path, clips: list[bytes]) -> None:
    source = backend(parquet(tmp_path / "data", rows(clips[:2], names=True)))
    assert contents(source) == {"clip 0.mp4": clips[0], "clip 1.mp4": clips[1]}


def picture(format_: str) -> bytes:
    file = io.BytesIO()
    Picture.new("RGB", (8, 8)).save(file, format_)
    return file.getvalue()


def test_pictures_and_bare_bytes_are_told_by_their_first_bytes(tmp_path: Path, clips: list[bytes]) -> None:
    formats = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}
    pairs = [{"bytes": picture(name), "path": None} for name in formats]
    features = Features({"image": Image(), "words": Value("string")})
    source = backend(parquet(tmp_path / "a", {"image": pairs, "words": list(formats)}, features), kind="image")
    assert [path[8:] for path in contents(source)] == list(formats.values())
    assert 'column "words"' in source.remarks[1]
    raw = parquet(
        tmp_path / "b", {"mp4": clips[:1], "text": ["x"]}, Features(mp4=Value("binary"), text=Value("string"))
    )
    for streaming in (False, True):
        assert contents(backend(raw, streaming=streaming)) == numbered(clips[:1])


def test_several_captions_and_rows_without(tmp_path: Path, clips: list[bytes]) -> None:
    features = Features({"video": Video(), "caption": List(Value("string"))})
    columns = rows(clips, captions=[["one", " two "], ["three"], [], None, ["", "four"]])
    columns["video"][1] = None
    for streaming in (False, True):
        source = backend(parquet(tmp_path / "data", columns, features), streaming=streaming)
        assert list(contents(source)) == ["00000000.mp4", "00000004.mp4"]
        assert source.captions("00000000.mp4") == ("one", "two") and source.captions("00000004.mp4") == ("four",)
        assert reasons(source) == [
            ("row 1", "its video is empty"),
            ("row 2", "its caption is empty"),
            ("row 3", "its caption is empty"),
        ]
        bare = backend(tmp_path / "data", streaming=streaming, needs_captions=False)
        assert len(list(bare.list())) == 4 and bare.captions("00000000.mp4") is None


def test_paths_count_from_the_dataset_and_what_is_missing_is_told(tmp_path: Path, clips: list[bytes]) -> None:
    columns = {"path": ["a.mp4", "gone.mp4", str(tmp_path / "b.mp4"), None], "text": ["x"] * 4}
    Dataset.from_dict(columns).save_to_disk(tmp_path / "data")
    (tmp_path / "data" / "a.mp4").write_bytes(clips[0])
    (tmp_path / "b.mp4").write_bytes(clips[1])
    for streaming in (False, True):
        source = backend(tmp_path / "data", streaming=streaming)
        assert contents(source) == {"a.mp4": clips[0], "b.mp4": clips[1]}
        assert source.local_path("a.mp4") == tmp_path / "data" / "a.mp4"
        gone = f"{tmp_path / 'data' / 'gone.mp4'} is not there"
        assert reasons(source) == [("row 1", gone), ("row 3", "its path is empty")]
    assert place_of("x/a.mp4", None, "user/name@v1") == "hf://datasets/user/name@v1/x/a.mp4"


def test_files_elsewhere_are_copied_once(tmp_path: Path, clips: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(files={"/x/a.mp4": clips[0], "/x/gone.mp4": clips[1]})
    with web_server(_plain(site)) as address:
        columns = {"url": [f"{address}/x/a.mp4", f"{address}/x/gone.mp4"], "text": ["x", "y"]}
        folder = parquet(tmp_path / "data", columns, Features(url=Value("string"), text=Value("string")))
        for streaming in (False, True):
            source = backend(folder, streaming=streaming, cache=tmp_path / f"cache {streaming}")
            assert [entry[:2] for entry in source.list()] == [("a.mp4", -1), ("gone.mp4", -1)]
            assert source.local_path("a.mp4") is None
            assert source.open("a.mp4").read() == source.read("a.mp4") == clips[0]
            assert source.local_path("a.mp4") is not None
    assert source.read("a.mp4") == clips[0]
    monkeypatch.setattr(trying, "FIRST_WAIT_SECONDS", 0.001)
    with pytest.raises(OSError, match="refuses the connection"):
        source.read("gone.mp4")
    assert source.local_path("gone.mp4") is None


def test_an_archive_of_clips(tmp_path: Path, clips: list[bytes]) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "data").mkdir()
    for number, clip in enumerate(clips[:2]):
        (tmp_path / "clips" / f"{number}.mp4").write_bytes(clip)
    shutil.make_archive(str(tmp_path / "data" / "clips"), "zip", tmp_path / "clips")
    source = backend(tmp_path / "data", streaming=True, needs_captions=False)
    assert [entry.size for entry in source.list()] == [-1, -1] and source.local_path("0.mp4") is None
    assert contents(source) == {"0.mp4": clips[0], "1.mp4": clips[1]}
    copy = source.local_path("0.mp4")
    (tmp_path / "data" / "clips.zip").write_bytes(b"no archive any more")
    assert copy is not None and source.read("0.mp4") == copy.read_bytes() == clips[0]
    copy.unlink()
    with pytest.raises(OSError, match=r"cannot be copied from zip://0\.mp4::"):
        source.read("0.mp4")


@pytest.mark.parametrize("kind", ["parquet", "saved"])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_edited_dataset_is_seen(tmp_path: Path, clips: list[bytes], kind: str, streaming: bool) -> None:
    def write(chosen: list[bytes]) -> None:
        if kind == "parquet":
            parquet(tmp_path / "data", rows(chosen))
        else:
            Dataset.from_dict(rows(chosen), features=FEATURES).save_to_disk(tmp_path / "data")

    write(clips[:2])
    source = backend(tmp_path / "data", streaming=streaming)
    before, again = list(source.list()), list(backend(tmp_path / "data", streaming=streaming).list())
    assert before == again
    padded = clips[1] + bytes(len(clips[0]) - len(clips[1])) if len(clips[0]) > len(clips[1]) else clips[1]
    write([padded[: len(clips[0])], clips[1]])  # the first clip is another of the same size
    after = list(source.list())
    assert after[0].size == before[0].size and after[0].stamp != before[0].stamp
    assert source.read("00000000.mp4") == padded[: len(clips[0])]


def test_a_stream_goes_on_where_it_broke_off(
    tmp_path: Path, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = parquet(tmp_path / "data", rows(clips * 4), batch_size=3)
    calls = 0

    def stop_at_12() -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Interrupted("SIGINT", 130)

    source = backend(folder, streaming=True, check=stop_at_12)
    with pytest.raises(Interrupted):
        list(source.list())
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.mp4")}
    assert len(written) == 12
    manifest = next((tmp_path / "cache").rglob("manifest.jsonl"))
    manifest.write_text(manifest.read_text()[:-40])  # a line that was cut off by a kill
    manifest.with_name("00000009.mp4").unlink()  # and a file that someone removed
    calls = 0
    resumed = backend(folder, streaming=True, check=lambda: None)
    assert contents(resumed) == numbered(clips * 4)
    kept = [path.name for path, stamp in written.items() if path.exists() and path.stat().st_mtime_ns == stamp]
    assert sorted(kept) == [f"{row:08}.mp4" for row in range(9)]
    monkeypatch.setattr(hub, "load", None)  # nothing is loaded any more
    assert contents(backend(folder, streaming=True)) == numbered(clips * 4)


def test_a_stream_tells_how_far_it_came(tmp_path: Path, clips: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SAY_SECONDS", 0)
    folder = parquet(tmp_path / "data", rows(clips[:2]))
    heard: list[Event] = []
    list(backend(folder, streaming=True, emit=heard.append).list())
    assert heard == [Notice("Streaming clips: row 1"), Notice("Streaming clips: row 2")]
    heard.clear()
    list(backend(folder).list())  # now the library knows how many there are
    list(backend(folder, streaming=True, cache=tmp_path / "other", emit=heard.append).list())
    assert heard == [Progress("scan", "Streaming clips", count, 2, "rows") for count in (1, 2)]


def test_a_stream_of_the_hub_does_without_it_once_it_is_here(
    tmp_path: Path, clips: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = parquet(tmp_path / "data", rows(clips[:2]))
    source = backend("user/name", cache=tmp_path / "cache", streaming=True)
    with monkeypatch.context() as patch:
        patch.setattr(hub, "load", lambda _wanted, streaming: load(Wanted(str(folder)), streaming=streaming))
        patch.setattr(hub, "identity", lambda _wanted, cache: "commit 1")
        first = list(source.list())
    assert list(backend("user/name", cache=tmp_path / "cache", streaming=True).list()) == first
    assert contents(source) == numbered(clips[:2])
    with pytest.raises(UserError, match="cannot be reached"):
        list(backend("user/name", cache=tmp_path / "cache", streaming=True, revision="v2").list())
    monkeypatch.setattr(hub, "identity", lambda _wanted, cache: "commit 2")
    with pytest.raises(UserError, match="cannot be reached"):  # it has changed: what is here is not served
        list(source.list())


def test_a_stream_holds_one_row_at_a_time(tmp_path: Path, clips: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = parquet(tmp_path / "data", rows(clips), batch_size=1)
    source = backend(folder, streaming=True)
    there: list[int] = []
    object.__setattr__(source, "check", lambda: there.append(len(list((tmp_path / "cache").rglob("0*.mp4")))))
    list(source.list())
    assert there == [1, 2, 3, 4, 5]
    inside = backend(folder, streaming=True, cache=folder / "cache")  # our own files do not change the dataset
    first = list(inside.list())
    monkeypatch.setattr(hub, "load", None)
    assert list(inside.list()) == first


COLUMNS = {
    "two videos": (
        Features(a=Video(), b=Video(), caption=Value("string")),
        "has several columns of videos or images: a",
    ),
    "nothing": (
        Features(a=Value("int64"), caption=Value("string")),
        "has no column of videos or images: it has a, cap",
    ),
    "two captions": (Features(a=Video(), text=Value("string"), prompt=Value("string")), "of captions: text, prompt"),
    "other words": (
        Features(a=Video(), b=Value("string"), c=Value("string")),
        "of captions: b, c; name one with capti",
    ),
    "no caption": (Features(a=Video(), b=Value("int64")), "has no column of captions: it has a, b; name it with capti"),
}


@pytest.mark.parametrize(("features", "words"), COLUMNS.values(), ids=COLUMNS)
def test_columns_that_are_not_clear_are_asked_for(tmp_path: Path, features: Features, words: str) -> None:
    values = {"Video": {"bytes": b"1", "path": None}, "Value": None}
    columns = {name: [values[type(feature).__name__]] for name, feature in features.items()}
    folder = parquet(tmp_path / "data", columns, features)
    for streaming in (False, True):
        with pytest.raises(UserError) as caught:
            list(backend(folder, streaming=streaming).list())
        assert words in str(caught.value) and 'dataset "clips": dataset_name' in str(caught.value)


def test_columns_that_are_named(tmp_path: Path, clips: list[bytes]) -> None:
    pair = [{"bytes": clip, "path": None} for clip in clips[:2]]
    still = [{"bytes": picture("PNG"), "path": None}] * 2
    features = Features(a=Video(), b=Video(), still=Image(), one=Value("string"), two=Value("string"))
    columns = {"a": pair[:1], "b": pair[1:], "still": still[:1], "one": ["x"], "two": ["y"]}
    folder = parquet(tmp_path / "data", columns, features)
    source = backend(folder, video_column="b", caption_column="two")
    assert contents(source) == {"00000000.mp4": clips[1]} and source.captions("00000000.mp4") == ("y",)
    assert source.remarks == ()
    images = backend(folder, kind="image", caption_column="one")
    assert contents(images) == {"00000000.png": picture("PNG")}
    assert contents(backend(folder, image_column="still", caption_column="one")) == {"00000000.png": picture("PNG")}
    with pytest.raises(
        UserError, match=r"caption_column = 'three' is no column of .*, which has a, b, still, one, two"
    ):
        list(backend(folder, video_column="a", caption_column="three").list())


def test_what_cannot_be_loaded(tmp_path: Path, clips: list[bytes]) -> None:
    folder = parquet(tmp_path / "data", rows(clips[:1]))
    (tmp_path / "empty").mkdir()
    made = Dataset.from_dict(rows(clips[:1]), features=FEATURES)
    DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "saved")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 and no more")
    cases = [
        (backend(folder, split="test"), 'Unknown split "test"'),
        (backend(folder, config="large"), "cannot be loaded: BuilderConfig 'large' not found"),
        (backend(tmp_path / "saved", split="val"), "split = 'val' is not one of train, test"),
        (backend(tmp_path / "empty"), "holds no files that make a dataset"),
        (backend(tmp_path / "none"), "is a folder that does not exist"),
        (backend("./none", cache=tmp_path), "is a folder that does not exist"),
        (backend("not a name!", cache=tmp_path), "is neither a folder nor a name of the hub"),
        (backend(tmp_path / "broken"), "cannot be loaded: Parquet magic bytes not found"),
    ]
    for source, words in cases:
        with pytest.raises(UserError) as caught:
            list(source.list())
        assert words in str(caught.value) and "\n" not in str(caught.value), caught.value


@pytest.mark.parametrize("streaming", [False, True])
def test_a_name_of_the_hub_without_network(tmp_path: Path, streaming: bool) -> None:
    with pytest.raises(UserError) as caught:
        list(backend("nobody/nothing", cache=tmp_path, streaming=streaming).list())
    said = str(caught.value)
    assert "cannot be reached on the hub (HF_HUB_OFFLINE is set)" in said and "name the local folder instead" in said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"), "is not on the hub, or private"),
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."), "asks for a sign-in"),
        (RuntimeError("Dataset scripts are no longer supported"), "cannot be loaded: Dataset scripts"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (LocalEntryNotFoundError)"), "name the local folder instead"),
    ],
)
def test_what_the_hub_answers_is_explained(error: Exception, words: str) -> None:
    assert words in str(_explain(Wanted("a/b"), error))
