"""From a source to its clips through the scan: several sizes and lengths, places in a source, random choices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_helpers import caption, dataset, grey_index, scanned, write_clip

from simplewan.data.loading import load_clip
from simplewan.data.samples import Sample, Scan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 50 frames at 16 fps, one of 26, and an upright one."""
    root = tmp_path_factory.mktemp("clips")
    write_clip(root / "long.mp4", frames=50, size=(160, 96))
    write_clip(root / "short.mp4", frames=26, size=(160, 96))
    write_clip(root / "upright.mp4", frames=26, size=(96, 160))
    for path in root.glob("*.mp4"):
        caption(path)
    return root


def scan_of(folder: Path, tmp_path: Path, *, video: dict[str, Any] | None = None, **keys: Any) -> Scan:
    return scanned(dataset(folder, video=video, **keys), tmp_path / "index")


def starts(found: Scan, name: str) -> list[tuple[int, float]]:
    """(frames, start in frames at 16 fps) of each clip of a file."""
    samples = [sample for sample in found.samples if sample.source.path == name]
    return sorted((sample.clip.num_frames, sample.clip.start_seconds * 16) for sample in samples)


def first_frame(sample: Sample) -> int:
    return grey_index(load_clip(sample)[0].permute(1, 2, 0).numpy())


def test_each_resolution_gives_every_source_a_clip_of_its_own(folder: Path, tmp_path: Path) -> None:
    found = scan_of(folder, tmp_path, resolutions=["64x48", 32], resolution_type="pixel")
    assert found.buckets == {"64x48@9": 3, "48x32@9": 2, "32x48@9": 1}
    assert len({sample.id for sample in found.samples}) == 6
    assert {sample.id for sample in found.samples if sample.source.path == "long.mp4"} == {
        "clips/long.mp4#64x48@9+0.000s",
        "clips/long.mp4#48x32@9+0.000s",
    }
    assert len({sample.content for sample in found.samples}) == 3


def test_each_number_of_frames_gives_clips_and_what_is_too_short_is_said(folder: Path, tmp_path: Path) -> None:
    found = scan_of(folder, tmp_path, video={"num_frames": [1, 9, 40]})
    assert starts(found, "long.mp4") == [(1, 0.0), (9, 0.0), (37, 0.0)]
    assert starts(found, "short.mp4") == [(1, 0.0), (9, 0.0)]
    assert found.dropped == ()
    assert "2 clips are too short for 37 frames: short.mp4, upright.mp4" in found.notices
    assert "num_frames 40 -> 37: Wan's VAE takes 4n+1 frames" in found.notices


def test_tiles_of_a_source_hold_the_frames_that_follow_each_other(folder: Path, tmp_path: Path) -> None:
    found = scan_of(folder, tmp_path, video={"num_frames": 9, "extraction": "chunk", "scene_cuts": False})
    assert starts(found, "long.mp4") == [(9, 0.0), (9, 9.0), (9, 18.0), (9, 27.0), (9, 36.0)]
    assert starts(found, "short.mp4") == [(9, 0.0), (9, 9.0)]
    long = [sample for sample in found.samples if sample.source.path == "long.mp4"]
    shown = {sample.clip.start_seconds * 16: first_frame(sample) for sample in long}
    assert shown == {start: start % 28 for start in (0.0, 9.0, 18.0, 27.0, 36.0)}


def test_uniform_and_random_places(folder: Path, tmp_path: Path) -> None:
    spread = scan_of(folder, tmp_path, video={"extraction": "uniform", "frame_sample": 3, "scene_cuts": False})
    assert starts(spread, "long.mp4")[0] == (9, 0.0)
    assert starts(spread, "long.mp4")[-1] == (9, 41.0)
    assert len(starts(spread, "long.mp4")) == 3
    video = {"extraction": "random", "frame_sample": 3, "scene_cuts": False}
    one, again, other = (scan_of(folder, tmp_path, video=video, random_seed=seed) for seed in (0, 0, 1))
    assert one.samples == again.samples
    assert starts(one, "long.mp4") != starts(other, "long.mp4")


def test_full_takes_the_whole_source_up_to_max_frames(folder: Path, tmp_path: Path) -> None:
    assert scan_of(folder, tmp_path, video={"extraction": "full"}).buckets == {"64x48@25": 2, "64x48@49": 1}
    capped = scan_of(folder, tmp_path, video={"extraction": "full", "max_frames": 30})
    assert capped.buckets == {"64x48@25": 2, "64x48@29": 1}


def test_no_clip_straddles_a_scene_cut_unless_it_may(tmp_path: Path) -> None:
    import av

    path = tmp_path / "clips" / "scenes.mp4"
    path.parent.mkdir()
    noise = np.random.default_rng(0)
    textures = [noise.integers(0, 255, (6, 8, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8) for _ in range(2)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for index in range(40):
            frame = av.VideoFrame.from_ndarray(np.roll(textures[index >= 15], index, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    caption(path)
    video = {"extraction": "chunk", "num_frames": 9}
    cut = scan_of(path.parent, tmp_path, video=video)
    assert starts(cut, "scenes.mp4") == [(9, 0.0), (9, 15.0), (9, 24.0)]
    assert scan_of(path.parent, tmp_path, video=video).samples == cut.samples  # as the index has them
    free = scan_of(path.parent, tmp_path, video={**video, "scene_cuts": False})
    assert starts(free, "scenes.mp4") == [(9, 0.0), (9, 9.0), (9, 18.0), (9, 27.0)]
    long = scan_of(path.parent, tmp_path, video={**video, "num_frames": 29})
    assert "none of its 2 scenes has 29 frames (video.scene_cuts = false" in str(long.dropped[0])


def test_crops_are_where_the_style_says(folder: Path, tmp_path: Path) -> None:
    def offsets(**keys: Any) -> dict[str, tuple[int, int]]:
        found = scan_of(folder, tmp_path, crop=True, resolution=64, resolution_type="pixel", **keys)
        return {sample.name: (sample.clip.crop_left, sample.clip.crop_top) for sample in found.samples}

    assert offsets() == {"long.mp4": (21, 0), "short.mp4": (21, 0), "upright.mp4": (0, 21)}
    assert set(offsets(crop_style="corner").values()) == {(0, 0)}
    drawn = offsets(crop_style="random")
    assert drawn == offsets(crop_style="random")
    assert drawn != offsets(crop_style="random", random_seed=5)
    assert len(set(drawn.values())) == 3
    assert all(0 <= left <= 43 and 0 <= top <= 43 for left, top in drawn.values())


def test_random_aspects_come_from_the_buckets(folder: Path, tmp_path: Path) -> None:
    keys = {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [1.0, 0.5], "resolution": 64}
    shapes = set()
    for seed in range(6):
        found = scan_of(folder, tmp_path, random_seed=seed, **keys)
        assert {re.sub("@.*", "", bucket) for bucket in found.buckets} <= {"64x64", "48x96"}
        shapes |= set(found.buckets)
    assert len(shapes) == 2


def test_a_face_is_kept_in_the_crop(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def found_face(frame: np.ndarray) -> tuple[float, float]:
        looked.append(frame.shape)
        return 0.0, 0.5

    monkeypatch.setattr("simplewan.data.inspection.find_face", found_face)
    keys = {"crop": True, "crop_style": "face", "resolution": 64, "resolution_type": "pixel"}
    found = scan_of(folder, tmp_path, **keys)
    assert {(s.clip.crop_left, s.clip.crop_top) for s in found.samples if s.name != "upright.mp4"} == {(0, 0)}
    assert len(looked) == 3
    assert scan_of(folder, tmp_path, **keys) == found
    assert len(looked) == 3  # the index remembers


def test_what_is_too_large_is_made_smaller_where_a_size_to_do_so_is_given(folder: Path, tmp_path: Path) -> None:
    keys = {"resolution": 32, "resolution_type": "pixel", "maximum_image_size": 64}
    assert {item.kind for item in scan_of(folder, tmp_path, **keys).dropped} == {"too large"}
    found = scan_of(folder, tmp_path, **keys, target_downsample_size=48)
    assert found.dropped == ()
    assert {(s.clip.downsample_width, s.clip.downsample_height) for s in found.samples} == {(80, 48), (48, 80)}


def test_shapes_outside_the_limits_are_left_out(folder: Path, tmp_path: Path) -> None:
    wide = scan_of(folder, tmp_path, minimum_aspect_ratio=1.0)
    assert [(item.name, item.kind) for item in wide.dropped] == [("upright.mp4", "aspect ratio")]
    upright = scan_of(folder, tmp_path, maximum_aspect_ratio=1.0)
    assert [item.name for item in upright.dropped] == ["long.mp4", "short.mp4"]


def test_shapes_are_rounded_to_the_decimals_that_are_asked_for(folder: Path, tmp_path: Path) -> None:
    assert scan_of(folder, tmp_path, resolution=64).buckets == {"80x48@9": 2, "48x80@9": 1}
    assert scan_of(folder, tmp_path, resolution=64, aspect_bucket_rounding=0).buckets == {"96x48@9": 2, "48x96@9": 1}
