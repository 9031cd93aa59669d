"""Opening places as the dataset file names them; every example of docs/backends.md is opened, listed and read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, Features, Value, Video
from serving import no_account, s3_server
from test_data_helpers import caption, write_clip

from simplewan.data.backends import Backend, Captioned, LocalBackend, Refused, trying
from simplewan.data.backends.csv_table import CsvBackend
from simplewan.data.backends.hub import HubBackend
from simplewan.data.backends.opening import open_backend, open_cache_backend
from simplewan.data.backends.s3 import S3Backend
from simplewan.errors import UserError
from simplewan.events import Event, Progress, silent
from simplewan.options import load
from simplewan.options.datasets import DatasetOptions
from simplewan.options.declare import declarations

PAGE = (Path(__file__).parents[1] / "docs" / "backends.md").read_text(encoding="utf-8")
EXAMPLES: list[list[dict[str, Any]]] = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE, re.S)]
NAMES = ["fox.mp4", "more/cub.mp4"]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with no_account(), s3_server() as address:
        yield address


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the examples name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "datasets" / "foxes"
    for name in NAMES:
        caption(write_clip(folder / name, frames=len(name)), f"words of {name}")
    (table,) = re.findall(r"```csv\n(.*?)```", PAGE, re.S)
    (folder / "metadata.csv").write_text(table, encoding="utf-8")
    clips = [{"bytes": (folder / name).read_bytes(), "path": None} for name in NAMES]
    features = Features(video=Video(), words=Value("string"), more=Value("string"))
    columns = {"video": clips, "words": [f"words of {name}" for name in NAMES], "more": ["", ""]}
    (tmp_path / "datasets" / "fox-rows").mkdir()
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "datasets" / "fox-rows" / "train.parquet")
    return folder


def opened(entry: DatasetOptions, cache: Path, **hooks: Any) -> Backend:
    return open_backend(entry, cache=cache, **{"emit": silent, **hooks})


def loaded(tmp_path: Path, entries: list[dict[str, Any]]) -> dict[str, DatasetOptions]:
    """The entries as a run has them; nothing in them is still to come."""
    (tmp_path / "data.json").write_text(json.dumps(entries))
    environ = {"CLIPS_KEY": "AKID", "CLIPS_SECRET": "hidden"}
    found = load(None, [("data_backend_config", str(tmp_path / "data.json")), ("max_train_steps", 1)], environ=environ)
    assert found.later == [] and not [notice for notice in found.notices if notice.severity == "warning"]
    assert "hidden" not in json.dumps(found.resolved)
    return {entry.id: entry for entry in found.datasets}


@pytest.mark.slow
@pytest.mark.parametrize("entries", EXAMPLES, ids=[f"{entries[0]['type']}-{n}" for n, entries in enumerate(EXAMPLES)])
def test_the_examples_of_the_page_work(
    world: Path, tmp_path: Path, server: str, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in entries:
        if "aws_endpoint_url" in entry:
            entry["aws_endpoint_url"] = server
    found = loaded(tmp_path, entries)
    backend = opened(found["foxes"], tmp_path / "cache")
    if isinstance(backend, S3Backend):
        location = {"LocationConstraint": "eu-central-1"}
        backend._connection().call_s3("create_bucket", Bucket="my-clips", CreateBucketConfiguration=location)
        for path in sorted(world.rglob("*.*")):
            backend.write(path.relative_to(world).as_posix(), path)
    sizes = {entry.path: entry.size for entry in backend.list() if entry.path.endswith(".mp4")}
    rows = isinstance(backend, HubBackend)
    assert list(sizes) == (["00000000.mp4", "00000001.mp4"] if rows else NAMES)
    assert list(sizes.values()) == [(world / name).stat().st_size for name in NAMES]
    for path, name in zip(sizes, NAMES, strict=True):
        assert backend.read(path) == (world / name).read_bytes()
    if isinstance(backend, Captioned):
        first = (
            ("words of fox.mp4",) if rows else ("A fox, red in the low sun, trots through snow", "A red fox in winter")
        )
        assert backend.captions(next(iter(sizes))) == first
    else:
        assert backend.read("more/cub.txt") == b"words of more/cub.mp4"
    caches = [entry for entry in found.values() if entry.dataset_type == "text_embeds" and entry.type == "aws"]
    assert len(caches) == isinstance(backend, S3Backend)
    for entry in caches:
        place = open_cache_backend(entry)
        assert place is not None and place.root == f"{server}/my-clips/cache/text"
        place.write("shards/0001.safetensors", b"record")
        assert [entry.path for entry in place.list()] == ["shards/0001.safetensors"]
        place.delete("shards/0001.safetensors")
        assert list(place.list()) == []
    assert "hidden" not in repr(backend)


def test_the_page_shows_every_type() -> None:
    assert {entries[0]["type"] for entries in EXAMPLES} == set(declarations(DatasetOptions)["type"].choices)


WRONG = [
    ({}, "instance_data_dir is missing; name the folder of the files"),
    ({"instance_data_dir": "none"}, "instance_data_dir = 'none' is a folder that does not exist"),
    ({"instance_data_dir": "file"}, "instance_data_dir = 'file' is a file, not a folder"),
    ({"type": "csv"}, "csv_file is missing; name the table of the files"),
    ({"type": "csv", "csv_file": "none.csv"}, "csv_file = 'none.csv' is a file that does not exist"),
    ({"type": "csv", "csv_file": "folder"}, "csv_file = 'folder' is a folder, not a file"),
    ({"type": "csv", "csv_file": "file", "instance_data_dir": "none"}, "instance_data_dir = 'none' is a folder that"),
    ({"type": "huggingface"}, "dataset_name is missing; name a dataset of the hub (user/name), or a folder"),
    ({"type": "huggingface", "huggingface": {"name": "a/b"}}, "huggingface.name is not a key; its keys: dataset_name,"),
    ({"type": "huggingface", "huggingface": {"streaming": "yes"}}, "huggingface.streaming = 'yes' is not true or fal"),
    ({"type": "aws"}, "aws_bucket_name is missing; name the bucket"),
    ({"type": "aws", "aws_bucket_name": "b", "aws_access_key_id": "x"}, "aws_secret_access_key is missing; give both"),
    (
        {"type": "aws", "aws_bucket_name": "b", "aws_endpoint_url": "s3:9000"},
        "aws_endpoint_url is no address of a serv",
    ),
]


@pytest.mark.parametrize(("keys", "words"), WRONG)
def test_what_an_entry_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError) as caught:
        opened(DatasetOptions(id="clips", **keys), tmp_path)
    assert str(caught.value).startswith(f'dataset "clips": {words}')


def test_the_keys_reach_their_places(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("video,words\n")
    (tmp_path / "folder").mkdir()
    local = opened(DatasetOptions(id="a", instance_data_dir=tmp_path), tmp_path)
    assert local == LocalBackend(tmp_path) and (local.remarks, local.refused) == ((), ())
    keys = {"csv_file": tmp_path / "a.csv", "csv_caption_column": "words", "instance_data_dir": tmp_path / "folder"}
    table = opened(DatasetOptions(id="a", type="csv", csv_cache_dir=tmp_path / "here", **keys), tmp_path / "cache")
    assert isinstance(table, CsvBackend) and table.downloads.folder == tmp_path / "here"
    assert (table.base, table.file_column, table.caption_column) == (tmp_path / "folder", None, "words")
    plain = opened(DatasetOptions(id="a", type="csv", csv_file=tmp_path / "a.csv"), tmp_path / "cache")
    assert isinstance(plain, CsvBackend) and plain.needs_captions
    assert (plain.base, plain.downloads.folder) == (tmp_path, tmp_path / "cache" / "downloads")
    keys = {"dataset_name": "a/b", "split": "train[:10]", "revision": "v1", "caption_strategy": "filename"}
    hub = opened(
        DatasetOptions(id="a", type="huggingface", dataset_type="image", huggingface={"split": "test"}, **keys),
        tmp_path,
    )
    assert isinstance(hub, HubBackend) and (hub.kind, hub.needs_captions, hub.streaming) == ("image", False, False)
    assert hub.root == "a/b@v1:test"
    bucket = opened(DatasetOptions(id="a", type="aws", aws_bucket_name="b", aws_max_pool_connections=7), tmp_path)
    assert bucket == S3Backend("b", connections=7)


def test_the_place_of_a_cache() -> None:
    assert open_cache_backend(DatasetOptions(id="t", dataset_type="text_embeds")) is None
    bucket = DatasetOptions(id="t", dataset_type="text_embeds", type="aws", aws_bucket_name="b", aws_data_prefix="c")
    assert open_cache_backend(bucket) == S3Backend("b", "c")
    with pytest.raises(UserError, match="type = 'csv' cannot hold a cache; a cache can be in a folder"):
        open_cache_backend(DatasetOptions(id="t", dataset_type="text_embeds", type="csv"))


def test_a_long_listing_tells_and_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "FIRST_WAIT_SECONDS", 0.001)

    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    (tmp_path / "a.csv").write_text("url,prompt\nhttp://127.0.0.1:9/a.mp4,x\n")
    entry = DatasetOptions(id="clips", type="csv", csv_file=tmp_path / "a.csv")
    heard: list[Event] = []
    backend = opened(entry, tmp_path, emit=heard.append)
    assert list(backend.list()) == []
    assert heard == [Progress("scan", "Asking for clips", 1, 1, "files")]
    assert isinstance(backend.refused[0], Refused) and backend.refused[0].kind == "no answer"
    with pytest.raises(Stopped):
        list(opened(entry, tmp_path, check=stop).list())
