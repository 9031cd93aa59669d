"""Scanning: what is found, what is dropped and why, what is announced, and the index that makes a second scan cheap."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_data_helpers import caption, dataset, scanned, write_clip

from simplewan.data.captions import CaptionError, parse_captions
from simplewan.data.notices import datasets_problem, dropped_notice
from simplewan.errors import Interrupted, UserError
from simplewan.events import Event, Progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clips of 20 frames with names that try the code: a shared stem, spaces, quotes, Chinese, a subfolder."""
    root = tmp_path / "my clips"
    first = write_clip(root / "a.mp4")
    for name in ('b b\'s "c".mp4', "片段.mp4", "deep/er/a.mp4", "X.MP4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(first, root / name)
        caption(root / name, f"the clip {name}")
    write_clip(root / "a.mov", rate=8)
    caption(root / "a.mp4", "\ufeffone\r\n\r\n  two \n")
    return root


def names(items: object) -> list[str]:
    return [item.name for item in items]  # type: ignore[attr-defined]


def test_samples_are_sorted_named_by_path_and_share_captions_by_stem(folder: Path, tmp_path: Path) -> None:
    found = scanned(dataset(folder), tmp_path / "index")
    assert names(found.samples) == ["X.MP4", "a.mov", "a.mp4", 'b b\'s "c".mp4', "deep/er/a.mp4", "片段.mp4"]
    assert found.dropped == ()
    by_name = {sample.name: sample for sample in found.samples}
    assert by_name["a.mov"].captions == by_name["a.mp4"].captions == ("one", "two")
    assert by_name["deep/er/a.mp4"].captions == ("the clip deep/er/a.mp4",)
    assert by_name["a.mov"].content != by_name["a.mp4"].content == by_name["片段.mp4"].content
    assert by_name["a.mp4"].id == "clips/a.mp4"
    assert Path(by_name["a.mp4"].path) == folder / "a.mp4"
    assert by_name["a.mp4"].bucket == "64x48@9"
    assert (by_name["a.mov"].clip.fps, by_name["a.mov"].clip.sample_fps) == (8.0, 16.0)
    assert found.notices == ("1 clip is slower than 16 fps and keeps its rate: a.mov (8 fps)",)


def test_hidden_and_unfinished_files_are_not_seen(folder: Path, tmp_path: Path) -> None:
    for name in (".a.mp4", "c.mp4.part", "d.mp4.tmp", ".hidden/a.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "a.mp4", folder / name)
    assert len(scanned(dataset(folder), tmp_path / "index").samples) == 6


def test_loops_of_links_end(folder: Path, tmp_path: Path) -> None:
    (folder / "deep" / "up").symlink_to(folder)
    (folder / "across").symlink_to(folder / "deep")
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(folder / "a.mp4", outside / "z.mp4")
    caption(outside / "z.mp4")
    (folder / "linked").symlink_to(outside)
    (folder / "dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    found = scanned(dataset(folder), tmp_path / "index")
    assert len(found.samples) == 7
    assert "linked/z.mp4" in names(found.samples)


def test_a_second_scan_opens_nothing_and_finds_the_same(folder: Path, tmp_path: Path) -> None:
    first = scanned(dataset(folder), tmp_path / "index")
    stat = (folder / "a.mp4").stat()
    (folder / "a.mp4").write_bytes(b"x" * stat.st_size)  # would be dropped if it were opened
    os.utime(folder / "a.mp4", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    events: list[Event] = []
    second = scanned(dataset(folder), tmp_path / "index", emit=events.append)
    assert (second, events) == (first, [])


def test_a_change_is_seen_whatever_changed(folder: Path, tmp_path: Path) -> None:
    first = scanned(dataset(folder), tmp_path / "index")
    write_clip(folder / "a.mp4", frames=21)
    caption(folder / "X.MP4", "another caption")
    (folder / "片段.mp4").unlink()
    events: list[Event] = []
    second = scanned(dataset(folder), tmp_path / "index", emit=events.append)
    before = {sample.name: sample for sample in first.samples}
    after = {sample.name: sample for sample in second.samples}
    assert before["a.mp4"].content != after["a.mp4"].content
    assert after["X.MP4"].captions == ("another caption",)
    assert set(before) - set(after) == {"片段.mp4"}
    assert [event.total for event in events if isinstance(event, Progress)] == [1, 1, 1]  # read, captions, hashed
    other = scanned(dataset(folder, video={"num_frames": 5}, resolution=32), tmp_path / "index", emit=events.append)
    assert {sample.bucket for sample in other.samples} == {"32x32@5"}
    assert len(events) == 3  # other options: the index still holds


def test_an_index_that_is_no_database_is_made_anew(folder: Path, tmp_path: Path) -> None:
    first = scanned(dataset(folder), tmp_path / "index")
    (tmp_path / "index" / "clips.sqlite").write_bytes(b"garbage" * 1000)
    assert scanned(dataset(folder), tmp_path / "index") == first


def test_an_index_in_use_is_a_users_error(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scanned(dataset(folder), tmp_path / "index")
    monkeypatch.setattr("simplewan.data.index.LOCK_SECONDS", 0.05)
    other = sqlite3.connect(tmp_path / "index" / "clips.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert scanned(dataset(folder), tmp_path / "index") == before  # nothing is to be written
    (folder / "a.mp4").touch()
    with pytest.raises(UserError, match="locked"):
        scanned(dataset(folder), tmp_path / "index")
    other.close()


SCANNING = """
import sys
sys.path[:0] = [{tests!r}, "."]
from pathlib import Path
from test_data_helpers import dataset, scanned
found = scanned(dataset(Path({folder!r}), dataset_type="image"), Path({index!r}))
print(len(found.samples), len(found.dropped))
"""


def test_two_processes_may_scan_one_dataset_at_once(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    for index in range(120):
        Image.new("RGB", (64, 48), (index, 0, 0)).save(root / f"{index:03}.png")
        caption(root / f"{index:03}.png")
    code = SCANNING.format(tests=str(Path(__file__).parent), folder=str(root), index=str(tmp_path / "index"))
    pair = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].split() for process in pair] == [["120", "0"]] * 2
    events: list[Event] = []
    found = scanned(dataset(root, dataset_type="image"), tmp_path / "index", emit=events.append)
    assert (len(found.samples), events) == (120, [])  # what both found is there


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, "."]
from pathlib import Path
from test_data_helpers import dataset, scanned
import simplewan.data.index, simplewan.data.inspection
simplewan.data.index.WRITE_FACTS = 50
simplewan.data.inspection.TELL_SECONDS = 0
def emit(event):
    if event.current == 61:
        os.kill(os.getpid(), signal.SIGKILL)
scanned(dataset(Path({folder!r}), dataset_type="image"), Path({index!r}), emit=emit)
"""


def test_a_scan_that_was_killed_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    for index in range(70):
        Image.new("RGB", (64, 48), (index, 0, 0)).save(root / f"{index:02}.png")
        caption(root / f"{index:02}.png")
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(root), index=str(tmp_path / "index"))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    events: list[Event] = []
    found = scanned(dataset(root, dataset_type="image"), tmp_path / "index", emit=events.append)
    assert found == scanned(dataset(root, dataset_type="image"), tmp_path / "fresh")
    assert len(found.samples) == 70
    reading = [event for event in events if isinstance(event, Progress) and event.label == "Reading clips"]
    assert {event.total for event in reading} == {20}


def test_an_interrupt_passes_and_what_was_found_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simplewan.data.inspection.TELL_SECONDS", 0)
    events: list[Event] = []

    def check() -> None:
        if len(events) == 3:
            raise Interrupted("SIGINT", 130)

    with pytest.raises(Interrupted):
        scanned(dataset(folder), tmp_path / "index", emit=events.append, check=check)
    more: list[Event] = []
    scanned(dataset(folder), tmp_path / "index", emit=more.append)
    assert next(event.total for event in more if isinstance(event, Progress)) == 3


def test_every_dropped_file_has_its_reason(folder: Path, tmp_path: Path) -> None:
    (folder / "empty.mp4").write_bytes(b"")
    write_clip(folder / "short.mp4", frames=5)
    write_clip(folder / "fast.mp4", frames=14, rate=30)
    write_clip(folder / "silent.mp4")
    write_clip(folder / "mute.mp4")
    write_clip(folder / "latin.mp4")
    shutil.copy(folder / "a.mp4", folder / "named.mp4")
    caption(folder / "named.mp4.x")
    (folder / "named.mp4.txt").write_text("almost")
    (folder / "mute.txt").write_text(" \n\n")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    shutil.copy(folder / "a.mp4", os.fsencode(folder) + b"/bad\xff.mp4")
    (folder / "old.wmv").write_bytes(b"...")
    found = scanned(dataset(folder), tmp_path / "index")
    reasons = {item.name: item.reason for item in found.dropped}
    assert reasons == {
        "bad\\xff.mp4": "its name is not valid UTF-8; rename it",
        "empty.mp4": "the file is empty (0 bytes)",
        "fast.mp4": "has 8 frames at 16 fps (the file's 14 resampled), 9 are needed",
        "latin.mp4": "its caption latin.txt is not UTF-8 (byte 3); save it as UTF-8",
        "mute.mp4": "its caption mute.txt is empty",
        "named.mp4": "no caption file named.txt; rename named.mp4.txt",
        "short.mp4": "has 5 frames at 16 fps, 9 are needed",
        "silent.mp4": "no caption file silent.txt beside it",
    }
    assert len(found.samples) == 6
    notice = dropped_notice(found)
    assert notice is not None
    assert notice.startswith(
        "clips: 8 of 14 files are left out: 2 too short, 2 no caption, 1 unreadable name, 1 broken"
    )
    assert "; the longest has 8 frames at the model's rate: video.num_frames = 5 takes it; `simpletuner" in notice
    assert any(".wmv (1)" in text for text in found.notices)
    assert scanned(dataset(folder), tmp_path / "index") == found  # reasons come from the index too


def test_when_nothing_is_left_the_error_says_why_and_what_would_help(folder: Path, tmp_path: Path) -> None:
    good = scanned(dataset(folder), tmp_path / "index")
    empty = scanned(dataset(folder, video={"num_frames": 81}), tmp_path / "index")
    assert datasets_problem([good]) is None
    error = str(datasets_problem([good, empty]))
    assert "nothing is left of 6 files" in error
    assert "6 too short" in error
    assert "a.mp4 (has 20 frames at 16 fps, 81 are needed)" in error
    assert "and 1 more" in error
    assert "video.num_frames = 17" in error
    (tmp_path / "nothing").mkdir()
    assert "holds no file" in str(datasets_problem([scanned(dataset(tmp_path / "nothing"), tmp_path / "index")]))
    with pytest.raises(UserError, match="does not exist"):
        scanned(dataset(tmp_path / "absent"), tmp_path / "index")


def test_what_wan_cannot_take_is_announced(folder: Path, tmp_path: Path) -> None:
    found = scanned(dataset(folder, resolution="100x81", video={"num_frames": 20}), tmp_path / "index")
    assert {sample.bucket for sample in found.samples} == {"96x80@17"}
    assert found.notices[:2] == (
        "num_frames 20 -> 17: Wan's VAE takes 4n+1 frames",
        "resolution 100x81 -> 96x80: this model takes sizes that divide by 16",
    )
    assert "6 clips are smaller than the size to train at and enlarged" in found.notices[3]
    assert "a.mp4 (64x48 to 96x80, 1.67 times)" in found.notices[3]
    big = scanned(dataset(folder, resolution=64), tmp_path / "index", flavour="ti2v-5b-2.2")
    assert big.samples[0].bucket == "64x64@9"
    assert big.samples[0].clip.sample_fps == 24


def test_the_size_that_a_number_lands_on_is_said_with_the_exact_alternative(tmp_path: Path) -> None:
    for name, size in (("a.mp4", (1280, 720)), ("b.mp4", (832, 480))):
        caption(write_clip(tmp_path / "wide" / name, frames=1, size=size))
    found = scanned(dataset(tmp_path / "wide", resolution=480, video={"num_frames": 1}), tmp_path / "index")
    assert found.notices[0] == (
        "resolution 480 pixel_area lands on 640x352 (1 clip; sources of 1280x720), 624x368 (1 clip; sources of "
        '832x480); exact sizes: resolution = "832x480"'
    )


def test_clips_of_many_lengths_keep_them_and_pictures_are_clips_of_one_frame(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(folder / "still.png")
    caption(folder / "still.png")
    by_length = {"num_frames": 9, "bucket_strategy": "resolution_frames"}
    found = scanned(dataset(folder, video=by_length), tmp_path / "index")
    assert found.buckets == {"64x48@17": 6, "64x48@1": 1}
    assert any("1 picture is trained on" in notice for notice in found.notices)
    capped = scanned(dataset(folder, video={**by_length, "max_frames": 15, "frame_interval": 7}), tmp_path / "index")
    assert capped.buckets == {"64x48@13": 6, "64x48@1": 1}
    fixed = scanned(dataset(folder), tmp_path / "index")
    assert [str(item) for item in fixed.dropped] == ["still.png (a picture has 1 frame, 9 are needed)"]
    assert (dropped_notice(fixed) or "").endswith('; an entry of dataset_type "image" takes pictures')
    longest = scanned(dataset(folder, video={"max_frames": 19}), tmp_path / "index")
    assert {item.kind for item in longest.dropped} == {"too long", "too short"}
    images = scanned(dataset(folder, dataset_type="image"), tmp_path / "index")
    assert images.buckets == {"64x48@1": 1}
    assert len(images.dropped) == 6


def test_the_sources_own_rate_can_be_kept_or_corrected(folder: Path, tmp_path: Path) -> None:
    write_clip(folder / "fast.mp4", frames=20, rate=30)
    caption(folder / "fast.mp4")
    kept = {s.name: s.clip for s in scanned(dataset(folder, video={"keep_source_fps": True}), tmp_path / "i").samples}
    assert (kept["fast.mp4"].fps, kept["fast.mp4"].sample_fps) == (30, 0)
    wrong = {s.name: s.clip for s in scanned(dataset(folder, video={"source_fps": 32}), tmp_path / "i").samples}
    assert (wrong["a.mp4"].fps, wrong["a.mp4"].source_fps) == (16, 32)


def test_scanning_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, '.']\n"
        "from pathlib import Path\nfrom test_data_helpers import dataset\n"
        "import simplewan.data.scan, simplewan.data.media, simplewan.data.notices\n"
        "assert not {'av', 'PIL', 'torch'} & set(sys.modules)\n"
        "from test_data_helpers import scanned\n"
        f"assert scanned(dataset(Path({str(folder)!r})), Path({str(tmp_path / 'index')!r})).samples\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_captions_are_lines_of_utf8() -> None:
    assert parse_captions("\ufeff  猫 \r\rtwo\u2028still two\n\n".encode(), "a.txt") == ("猫", "two\u2028still two")
    for content, reason in ((b"\xff\xfea\0", "not UTF-8"), (b"\n \t\n", "empty")):
        with pytest.raises(CaptionError, match=reason):
            parse_captions(content, "a.txt")
