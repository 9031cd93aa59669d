"""Captions through the scan: every source of them, and the edits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_data_helpers import caption, dataset, scanned, write_clip

from simplewan.errors import UserError


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture
def folder(clip: Path, tmp_path: Path) -> Path:
    root = tmp_path / "clips"
    (root / "sub").mkdir(parents=True)
    for name in ("a_red-fox_01.mp4", "sub/snow (2).mp4"):
        shutil.copy(clip, root / name)
    caption(root / "a_red-fox_01.mp4", "fox, snow, blurry, Night\na fox\n")
    return root


def captions(folder: Path, **keys: Any) -> dict[str, tuple[str, ...]]:
    found = scanned(dataset(folder, **keys), folder.parent / "index")
    return {sample.name: sample.captions for sample in found.samples}


def test_names_hold_captions(folder: Path) -> None:
    assert captions(folder, caption_strategy="filename") == {
        "a_red-fox_01.mp4": ("a red fox",),
        "sub/snow (2).mp4": ("snow",),
    }


def test_a_name_without_words_is_no_caption(folder: Path, clip: Path) -> None:
    shutil.copy(clip, folder / "0001.mp4")
    found = scanned(dataset(folder, caption_strategy="filename"), folder.parent / "index")
    assert [(item.name, item.kind) for item in found.dropped] == [("0001.mp4", "no caption")]


@pytest.mark.parametrize(
    "keys", [{"caption_strategy": "instanceprompt"}, {"only_instance_prompt": True}, {"caption_strategy": "none"}]
)
def test_one_caption_for_all_needs_no_files(folder: Path, keys: dict[str, Any]) -> None:
    expected = "" if "none" in keys.values() else "zarn style"
    found = captions(folder, instance_prompt="zarn style", **keys)
    assert found == {"a_red-fox_01.mp4": (expected,), "sub/snow (2).mp4": (expected,)}


def test_the_instance_prompt_may_stand_before_captions(folder: Path) -> None:
    found = captions(folder, instance_prompt="zarn style,", prepend_instance_prompt=True)
    assert found == {"a_red-fox_01.mp4": ("zarn style, fox, snow, blurry, Night", "zarn style, a fox")}


def test_the_instance_prompt_is_not_put_before_itself(folder: Path) -> None:
    keys = {"instance_prompt": "zarn", "prepend_instance_prompt": True}
    for strategy in ({"caption_strategy": "instanceprompt"}, {"only_instance_prompt": True}):
        assert set(captions(folder, **keys, **strategy).values()) == {("zarn",)}


def test_a_table_needs_no_captions_where_one_prompt_serves_all(folder: Path) -> None:
    (folder / "files.csv").write_text("video\na_red-fox_01.mp4\n")
    keys = {"type": "csv", "csv_file": folder / "files.csv", "instance_prompt": "zarn", "only_instance_prompt": True}
    assert captions(folder, **keys) == {"a_red-fox_01.mp4": ("zarn",)}


def test_filters_remove_and_replace(folder: Path) -> None:
    filters = [", blurry", "s/night/day/i", "s/(f)(o)x/\\1ir\\/\\2/"]
    assert captions(folder, caption_filter_list=filters)["a_red-fox_01.mp4"] == ("fir/o, snow, day", "a fir/o")
    for name, content in (("filters.txt", "\n".join(filters)), ("filters.json", json.dumps(filters))):
        (folder.parent / name).write_text(content)
        found = captions(folder, caption_filter_list=str(folder.parent / name))
        assert found["a_red-fox_01.mp4"] == ("fir/o, snow, day", "a fir/o")


def test_a_filter_that_leaves_nothing_drops_the_variant_and_then_the_clip(folder: Path) -> None:
    assert captions(folder, caption_filter_list=["a fox"])["a_red-fox_01.mp4"] == ("fox, snow, blurry, Night",)
    found = scanned(dataset(folder, caption_filter_list=["s/.*//"]), folder.parent / "index")
    assert found.samples == ()
    assert "caption_filter_list leaves nothing" in str(found.dropped[0])


@pytest.mark.parametrize("text", ["s/(/x/", "s/a/\\2/", "s/a", "s/a/b/q"])
def test_a_filter_that_is_no_replacement_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(UserError, match="caption_filter_list") as caught:
        captions(folder, caption_filter_list=[text])
    assert repr(text) in str(caught.value)


def test_a_filter_file_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="caption_filter_list"):
        captions(folder, caption_filter_list=str(folder / "nowhere.txt"))


def test_tags_are_shuffled_the_same_way_every_time(folder: Path) -> None:
    keys = {"caption_shuffle_count": 4, "caption_shuffle_keep": 1, "caption_filter_list": ["s/^a fox$//"]}
    found = captions(folder, **keys)["a_red-fox_01.mp4"]
    assert len(found) == 4
    assert all(order.startswith("fox, ") for order in found)
    assert {frozenset(order.split(", ")) for order in found} == {frozenset(("fox", "snow", "blurry", "Night"))}
    assert captions(folder, **keys)["a_red-fox_01.mp4"] == found
    assert captions(folder, **keys, random_seed=7)["a_red-fox_01.mp4"] != found
    assert len(captions(folder, **{**keys, "caption_shuffle_count": 99})["a_red-fox_01.mp4"]) == 6  # all there are


@pytest.mark.parametrize("strategy", ["huggingface", "textfile"])
def test_a_dataset_with_a_column_of_captions_brings_its_own(clip: Path, strategy: str, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "hub").mkdir()
    rows = [{"video": {"bytes": clip.read_bytes(), "path": "fox.mp4"}, "caption": "a fox"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hub" / "data.parquet")
    keys = {"type": "huggingface", "dataset_name": str(tmp_path / "hub"), "video_column": "video"}
    options = dataset(tmp_path, caption_strategy=strategy, **keys).model_copy(update={"instance_data_dir": None})
    found = scanned(options, tmp_path / "index")
    assert [sample.captions for sample in found.samples] == [("a fox",)]
    assert found.samples[0].bucket == "64x48@9"


def test_a_dataset_of_several_configurations_gives_the_one_that_is_named(clip: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "hub").mkdir()
    for name in ("red", "blue"):
        rows = [{"video": {"bytes": clip.read_bytes(), "path": f"{name}.mp4"}, "caption": f"a {name} fox"}]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "hub" / f"{name}.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("red", "blue"))
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    keys = {"type": "huggingface", "dataset_name": str(tmp_path / "hub"), "video_column": "video"}
    options = dataset(tmp_path, dataset_config="blue", **keys).model_copy(update={"instance_data_dir": None})
    found = scanned(options, tmp_path / "index")
    assert [sample.captions for sample in found.samples] == [("a blue fox",)]


def test_captions_of_a_place_that_brings_none_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="type local brings none"):
        captions(folder, caption_strategy="huggingface")
