"""The dataset report: a page that stands alone, everything on it, what it finds, and what a second one need not do."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_helpers import Page, put, resized, scene
from test_data_helpers import caption, dataset, scanned

from simplewan import cli
from simplewan.app.dataset_report import PAGE_NAME
from simplewan.data.report import looking
from simplewan.data.report.cache import cache_path
from simplewan.data.report.clips import crop_in_source
from simplewan.data.report.looking import look_at
from simplewan.events import silent

ROOT = Path(__file__).resolve().parents[1]
ODD = "<img src=x onerror=alert(1)> \"q\" 'q' & 片段 🦊.mp4"
ODD_CAPTION = "</details><script>alert('x')</script> \"see\" http://example.invalid/x 一只狐狸 🦊 &amp;"
DROPPED = {
    "broken.mp4": "broken file",
    "empty.mp4": "broken file",
    "short.mp4": "too short",
    "picture.png": "too short",
    "untold.mp4": "no caption",
}


def damage(path: Path, *, after: float) -> None:
    """Overwrite bytes in the middle, so that what is beyond no longer decodes."""
    content = bytearray(path.read_bytes())
    start = int(len(content) * after)
    content[start : start + len(content) // 6] = bytes(len(content) // 6)
    path.write_bytes(bytes(content))


def make_files(folder: Path) -> None:
    """Clips of ten kinds; see the tests."""
    first = scene(1)
    put(folder / "a.mp4", first, "A hill, seen  twice\nanother way to say it")
    (folder / "a copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    caption(folder / "a copy.mp4", "a HILL, seen twice")
    put(folder / "a again.mp4", resized(first, (80, 48)), "made smaller", crf=34)
    put(folder / "a mirrored.mp4", first[:, :, ::-1], "mirrored")
    for seed in (2, 3, 4):
        put(folder / f"other {seed}.mp4", scene(seed), f"scene {seed}")
    put(folder / ODD, scene(5, size=(64, 128)), ODD_CAPTION)
    put(folder / "slow.mp4", scene(6), "slow " * 400, rate=8)
    put(folder / "still.mp4", np.repeat(scene(7)[:1], 12, 0), "still")
    put(folder / "black.mp4", scene(8) // 40, "night")
    put(folder / "tiny.mp4", scene(9, size=(48, 32)), "tiny")
    put(folder / "short.mp4", scene(10, frames=5))
    put(folder / "untold.mp4", scene(11), None)
    Image.fromarray(scene(12)[0]).save(folder / "picture.png")
    caption(folder / "picture.png")
    (folder / "broken.mp4").write_bytes(b"nothing" * 100)
    (folder / "empty.mp4").touch()
    for name in ("broken.mp4", "empty.mp4"):
        caption(folder / name)


class Project:
    """A configuration in a folder; `report` runs the command there."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        self.folder = folder
        self.config = folder / "config.json"
        self.page = folder / "output" / PAGE_NAME
        config = {
            "model_flavour": "t2v-mini-low",
            "pretrained_model_name_or_path": str(folder),
            "output_dir": str(folder / "output"),
            "cache_dir": str(folder / "cache"),
            "data_backend_config": str(folder / "data.json"),
            "resolution": ["96x64", "64x96"],
            "train_batch_size": 2,
            "max_train_steps": 1,
            **keys,
        }
        self.config.write_text(json.dumps(config))
        self.entries({"id": "clips", "instance_data_dir": str(folder / "clips")})

    def entries(self, *entries: dict[str, Any]) -> None:
        common = {"type": "local", "dataset_type": "video", "video": {"num_frames": 9}}
        (self.folder / "data.json").write_text(json.dumps([{**common, **entry} for entry in entries]))

    def report(self, *words: str) -> int:
        return cli.main(["dataset", "report", "--config", str(self.config), *words])

    def document(self, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
        capsys.readouterr()
        assert self.report("--json", *words) == 0
        return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, Any], str]:
    """A project with all those files, what its report says as JSON, and the page."""
    folder = tmp_path_factory.mktemp("project")
    make_files(folder / "clips")
    project = Project(folder)
    command = [sys.executable, "-c", "import sys; from simplewan.cli import main; code = main(sys.argv[1:]); "]
    command[-1] += "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
    words = ["dataset", "report", "--config", str(project.config), "--json"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "False", "torch was imported"
    return project, json.loads(done.stdout), project.page.read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with three small clips of its own."""
    for seed in (1, 2, 3):
        put(tmp_path / "clips" / f"{seed}.mp4", scene(seed), f"scene {seed}")
    return Project(tmp_path)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded, as they are."""
    names: list[str] = []
    real = looking.iter_frames

    def noted(source: Any, **asked: Any) -> Any:
        names.append(source.name)
        return real(source, **asked)

    monkeypatch.setattr(looking, "iter_frames", noted)
    return names


def test_the_page_is_well_formed_and_fetches_and_runs_nothing(made: tuple[Project, dict[str, Any], str]) -> None:
    page = Page(made[2])
    assert page.unbalanced == []
    assert not {"script", "link", "iframe", "object", "form"} & set(page.elements)
    addresses = [value for key, value in page.attributes if key in ("src", "href", "data", "xlink:href", "srcset")]
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in addresses)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert not [value for _, value in page.attributes if "http" in value]
    assert "url(" not in page.style and "@import" not in page.style
    targets = {value for key, value in page.attributes if key == "id"}
    assert {value[1:] for value in addresses if value.startswith("#")} <= targets
    assert len(made[2]) < 1_000_000


def test_every_clip_and_every_dropped_file_is_on_the_page(made: tuple[Project, dict[str, Any], str]) -> None:
    project, document, text = made
    page = Page(text)
    names = {path.name for path in (project.folder / "clips").iterdir() if path.suffix in (".mp4", ".png")}
    assert document["totals"]["samples"] == len(names) - len(DROPPED) == 12
    assert all(name in page.text for name in names)
    for caption_ in ("A hill, seen  twice", "another way to say it", ODD_CAPTION, "scene 4"):
        assert caption_ in page.text
    dropped = {item["name"]: item for item in document["datasets"][0]["dropped"]}
    assert {name: item["kind"] for name, item in dropped.items()} == DROPPED
    assert all(item["reason"] in page.text for item in dropped.values())
    assert "one caption a line" in dropped["untold.mp4"]["remedy"] and dropped["untold.mp4"]["remedy"] in page.text
    assert page.text.count("96 \u00d7 64, 16 fps, 0.8 s → 96 \u00d7 64, 9 frames at 16 fps (0.6 s)") == 8


def test_the_document_counts(made: tuple[Project, dict[str, Any], str]) -> None:
    _, document, _ = made
    totals = document["totals"]
    assert (totals["datasets"], totals["files"], totals["dropped"]) == (1, 12, 5)
    assert totals["seconds_used"] == pytest.approx(11 * 9 / 16 + 9 / 8, abs=1e-3)
    assert totals["seconds_in_files"] == pytest.approx(11 * 12 / 16 + 12 / 8)
    assert document["datasets"][0]["buckets"] == {"96x64@9": 11, "64x96@9": 1}
    assert document["model"] == {
        "flavour": "t2v-mini-low",
        "fps": 16.0,
        "pixel_multiple": 16,
        "frames": "4n+1",
        "caption_tokens": 512,
    }
    assert dict(document["distributions"]["Captions a file"]) == {"1": 11, "2": 1}
    assert dict(document["distributions"]["Source frames a second"]) == {"8": 1, "16": 11}


def test_duplicates_are_grouped_and_others_are_not(made: tuple[Project, dict[str, Any], str]) -> None:
    _, document, text = made
    groups = [({file["name"] for file in group["files"]}, group["same_bytes"]) for group in document["duplicates"]]
    assert groups == [({"a.mp4", "a copy.mp4", "a again.mp4"}, False)]
    same = [(item["caption"], {file["name"] for file in item["files"]}) for item in document["same_captions"]]
    assert same == [("a HILL, seen twice", {"a.mp4", "a copy.mp4"})]
    assert "3 files look the same" in text and "has a copy with the same bytes" in text


def test_what_is_worth_a_second_look_is_found(made: tuple[Project, dict[str, Any], str]) -> None:
    _, document, text = made
    about = {item["kind"]: [mark["name"] for mark in item["about"]] for item in document["warnings"]}
    assert about == {
        "black": ["black.mp4"],
        "static": ["still.mp4"],
        "enlarged": ["a again.mp4", "tiny.mp4"],
        "slow": ["slow.mp4"],
        "long captions": ["slow.mp4"],
        "small buckets": ["64x96@9"],
    }
    assert all(item["message"] in Page(text).text for item in document["warnings"])


def test_a_second_report_decodes_nothing_and_says_the_same(
    made: tuple[Project, dict[str, Any], str], decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    project, document, text = made
    assert project.document(capsys) == document
    assert decoded == []
    assert _without_times(project.page.read_text(encoding="utf-8")) == _without_times(text)


def _without_times(page: str) -> list[str]:
    """A page's text without when it was made and how long that took."""
    lines = Page(re.sub(r", \d{4}-\d\d-\d\d \d\d:\d\d", "", page)).text.splitlines()
    return [line for line in lines if not re.fullmatch(r"[\d.]+ s", line)]


def test_what_is_seen_belongs_to_the_bytes_whatever_the_file_is_called(
    project: Project, decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.document(capsys)["duplicates"] == []
    decoded.clear()
    (project.folder / "clips" / "1.mp4").write_bytes((project.folder / "clips" / "2.mp4").read_bytes())
    assert project.document(capsys)["duplicates"][0]["same_bytes"]
    assert decoded == []
    put(project.folder / "clips" / "1.mp4", scene(5))
    assert project.document(capsys)["duplicates"] == []
    assert decoded == ["1.mp4"]


def test_what_belongs_to_files_that_are_gone_is_forgotten(project: Project) -> None:
    assert project.report() == 0
    cache = cache_path(project.folder / "cache" / "vae" / "clips", "clips")
    with looking.PictureCache(cache) as kept:
        before = {row[0] for row in kept._database.execute("SELECT content FROM looks")}
    (project.folder / "clips" / "1.mp4").unlink()
    assert project.report() == 0
    with looking.PictureCache(cache) as kept:
        after = {row[0] for row in kept._database.execute("SELECT content FROM looks")}
        assert {row[0] for row in kept._database.execute("SELECT content FROM strips")} == after
    assert len(before) == 3 and len(after) == 2 and after < before


def test_a_cache_that_is_no_database_is_made_anew(project: Project) -> None:
    cache = cache_path(project.folder / "cache" / "vae" / "clips", "clips")
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"garbage" * 1000)
    assert project.report() == 0 and project.page.exists()


def test_an_interruption_leaves_no_half_page_and_keeps_what_was_seen(
    project: Project, decoded: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(looking, "MAX_WORKERS", 1)
    real = looking.iter_frames

    def interrupting(source: Any, **asked: Any) -> Any:
        if len(decoded) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(source, **asked)

    monkeypatch.setattr(looking, "iter_frames", interrupting)
    project.page.parent.mkdir()
    project.page.write_text("the page before")
    assert project.report("--json") == 130
    captured = capfd.readouterr()
    assert captured.out == "" and "the same command goes on" in captured.err
    assert [path.name for path in project.page.parent.iterdir()] == [PAGE_NAME]
    assert project.page.read_text() == "the page before"
    assert decoded[0] == "1.mp4" and "3.mp4" not in decoded
    decoded[:] = ["", ""]  # no second signal
    assert project.report() == 0
    assert "1.mp4" not in decoded and "3.mp4" in decoded
    assert project.page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_disk_that_fills_up_leaves_the_page_before(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.report() == 0
    before = project.page.read_text(encoding="utf-8")
    real = Path.write_text

    def half(path: Path, text: str, **how: Any) -> int:
        real(path, text[: len(text) // 2], **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    assert project.report() == 2
    assert "the page cannot be written: No space left on device" in capsys.readouterr().err
    assert project.page.read_text(encoding="utf-8") == before
    assert [path.name for path in project.page.parent.iterdir()] == [PAGE_NAME]


def test_a_file_that_breaks_further_on_is_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), np.uint8)
    damage(put(project.folder / "clips" / "damaged.mp4", noise), after=0.3)
    project.entries({"id": "clips", "instance_data_dir": str(project.folder / "clips"), "video": {"num_frames": 37}})
    for seed in (1, 2):
        put(project.folder / "clips" / f"long {seed}.mp4", scene(seed, frames=40))
    for _ in range(2):  # the second time from the cache
        document = project.document(capsys)
        found = {item["kind"]: item["about"] for item in document["warnings"]}
        assert [mark["name"] for mark in found["broken"]] == ["damaged.mp4"]
        assert found["broken"][0]["detail"]
        assert found["broken"][0]["detail"] in Page(project.page.read_text(encoding="utf-8")).text


def test_files_of_several_datasets_are_looked_at_once(
    project: Project, decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(project.folder / "clips")
    project.entries(
        {"id": "large", "instance_data_dir": folder, "resolution": "96x64"},
        {"id": "small & round", "instance_data_dir": folder, "resolution": "48x32"},
    )
    document = project.document(capsys)
    assert sorted(decoded) == ["1.mp4", "2.mp4", "3.mp4"]
    assert document["duplicates"] == [] and document["same_captions"] == []
    assert (document["totals"]["samples"], document["totals"]["files"]) == (6, 3)
    assert document["totals"]["seconds_used"] == pytest.approx(3 * 9 / 16, abs=1e-3)
    page = Page(project.page.read_text(encoding="utf-8"))
    assert page.elements.count("article") == 6
    assert sum(key == "href" and value.startswith("data:") for key, value in page.attributes) == 12


def test_of_a_file_of_several_clips_each_is_judged_by_itself(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    moving, frozen = scene(5, frames=18), scene(6, frames=1)
    put(project.folder / "clips" / "half.mp4", np.concatenate([moving, np.repeat(frozen, 20, 0)]), "half")
    video = {"num_frames": 9, "extraction": "chunk", "scene_cuts": False}
    project.entries({"id": "clips", "instance_data_dir": str(project.folder / "clips"), "video": video})
    document = project.document(capsys)
    (static,) = (item for item in document["warnings"] if item["kind"] == "static")
    starts = [mark["name"].rpartition("+")[2] for mark in static["about"]]
    assert starts == ["1.125s", "1.688s"]
    page = Page(project.page.read_text(encoding="utf-8"))
    assert page.text.splitlines().count("static") == 2 and "from 1.125 s" in page.text


def test_what_was_not_looked_at_is_said(
    project: Project, decoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (project.folder / "clips" / "copy of 3.mp4").write_bytes((project.folder / "clips" / "3.mp4").read_bytes())
    caption(project.folder / "clips" / "copy of 3.mp4", "a copy")
    document = project.document(capsys, "pictures=1", "max_files=2")
    assert len(decoded) == 2
    assert document["totals"]["files_not_looked_at"] == 2
    assert [group["same_bytes"] for group in document["duplicates"]] == [True]
    text = Page(project.page.read_text(encoding="utf-8")).text
    assert "2 files were not looked at" in text and "3 more clips in this bucket" in text
    assert all(name in text for name in ("1.mp4", "2.mp4", "3.mp4", "copy of 3.mp4"))


def test_strips_show_what_is_trained_on(tmp_path: Path) -> None:
    """Against the loader: the same five frames, the same cut, to the eye."""
    from simplewan.data.loading import load_clip

    put(tmp_path / "clips" / "a.mp4", scene(3, frames=45, size=(160, 90)), rate=30)
    found = scanned(dataset(tmp_path / "clips", resolution="64x64", video={"num_frames": 17}), tmp_path / "index")
    (sample,) = found.samples
    assert sample.clip.crop_left > 0
    seen = look_at([found], {"clips": tmp_path / "pictures"}, pictures=1, max_files=9, emit=silent, check=lambda: None)
    strip = seen.strips[sample.id]
    Path(tmp_path / "strip.jpg").write_bytes(strip.frames)
    shown = np.asarray(Image.open(tmp_path / "strip.jpg"))
    width, height = strip.frame_size
    assert shown.shape == (height, 5 * width, 3)
    trained = load_clip(sample).permute(0, 2, 3, 1).numpy()[::4]
    for number, frame in enumerate(trained):
        wanted = np.asarray(Image.fromarray(frame).resize(strip.frame_size, Image.Resampling.BICUBIC)).astype(int)
        right = np.abs(shown[:, number * width : (number + 1) * width] - wanted).mean()
        other = np.abs(shown[:, number * width : (number + 1) * width][:, ::-1] - wanted).mean()
        assert right < 4 < other
    left, top, across, down = crop_in_source(sample.clip, (160, 90))
    assert (left, top, across, down) == pytest.approx((35, 0, 90, 90), abs=0.6)


def test_a_dataset_of_which_nothing_is_left_is_explained(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (project.folder / "clips").glob("*.txt"):
        file.unlink()
    document = project.document(capsys)
    assert document["totals"]["samples"] == 0
    (warning,) = document["warnings"]
    assert "nothing is left of 3 files" in warning["message"] and "one caption a line" in warning["message"]
    page = Page(project.page.read_text(encoding="utf-8"))
    assert page.unbalanced == [] and "no caption: 3" in page.text


def test_captions_that_are_meant_to_be_the_same_are_no_news(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"id": "clips", "instance_data_dir": str(project.folder / "clips")}
    project.entries({**entry, "caption_strategy": "instanceprompt", "instance_prompt": "a zarn"})
    assert project.document(capsys)["same_captions"] == []
    project.entries({**entry, "caption_strategy": "none"})
    assert project.document(capsys)["warnings"] == []


def test_too_few_for_a_step_is_said(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    document = project.document(capsys, "train_batch_size=3", "gradient_accumulation_steps=4")
    assert "set repeats to 3 or more" in document["warnings"][0]["message"]
    document = project.document(capsys, "train_batch_size=4", "--disable_bucket_pruning")
    small = next(item for item in document["warnings"] if item["kind"] == "small buckets")
    assert "every few epochs" in small["advice"]


def test_the_path_is_printed_and_the_page_goes_where_it_is_told(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.report() == 0
    assert capsys.readouterr().out == f"{project.page}\n"
    elsewhere = project.folder / "new" / "页.html"
    assert project.report(f"output={elsewhere}") == 0
    assert capsys.readouterr().out == f"{elsewhere}\n"
    assert elsewhere.exists() and list(elsewhere.parent.iterdir()) == [elsewhere]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["outpt=x.html"], "did you mean output"),
        (["resolutoin=480"], "did you mean resolution"),
        (["pictures=many"], "pictures = 'many' is not a whole number"),
        (["max_files=-1"], "max_files = '-1' is not a whole number"),
        (["--json=perhaps"], "json = 'perhaps' is neither true nor false"),
        (["output=clips"], "the page cannot be written: it is a folder"),
        (["output=config.json/page.html"], "the page cannot be written"),
    ],
)
def test_mistakes_end_with_2(
    words: list[str],
    wanted: str,
    project: Project,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(project.folder)
    assert project.report(*words) == 2
    captured = capsys.readouterr()
    assert wanted in captured.err and captured.out == ""
    assert not project.page.exists()


@pytest.mark.parametrize(
    ("words", "code", "wanted"),
    [
        ([], 0, "usage: simpletuner dataset report"),
        (["--help"], 0, "usage: simpletuner dataset report"),
        (["report", "--help"], 0, "max_files=10000"),
        (["reprot"], 2, 'did you mean "dataset report"?'),
        (["report", "--config", "nowhere.json"], 2, "nowhere.json: there is no such file"),
    ],
)
def test_the_command_explains_itself(
    words: list[str], code: int, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["dataset", *words]) == code
    captured = capsys.readouterr()
    assert wanted in (captured.err if code else captured.out)


def test_what_is_to_come_in_training_does_not_matter_here(project: Project) -> None:
    assert project.report("--use_ema") == 0
