"""From samples to pixels: the right frames, the right cut, the same bits, and errors where frames are missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_helpers import caption, dataset, grey_index, scanned, write_clip

from simplewan.data.loading import load_clip, to_pixels
from simplewan.data.media import MediaError, decode_frames


def only_sample(folder: Path, index: Path, **keys):
    (sample,) = scanned(dataset(folder, **keys), index).samples
    return sample


def test_a_fast_clip_is_resampled_resized_and_cut_the_same_each_time(tmp_path: Path) -> None:
    caption(write_clip(tmp_path / "c" / "a.mp4", frames=27, rate=30, size=(200, 96)))
    sample = only_sample(tmp_path / "c", tmp_path / "index")
    assert (sample.clip.resize_width, sample.clip.resize_height, sample.clip.crop_left) == (100, 48, 18)
    frames_FCHW = load_clip(sample)
    assert frames_FCHW.shape == (9, 3, 48, 64)
    assert frames_FCHW.dtype == torch.uint8
    shown = [grey_index(frame.permute(1, 2, 0).numpy()) for frame in frames_FCHW]
    assert shown == [0, 2, 4, 6, 7, 9, 11, 13, 15]
    assert torch.equal(load_clip(sample), frames_FCHW)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    assert torch.equal(load_clip(sample), frames_FCHW)
    torch.set_num_threads(threads)


def test_a_clip_that_fits_is_not_touched(tmp_path: Path) -> None:
    caption(write_clip(tmp_path / "c" / "a.mp4", marked=True))
    frames_FCHW = load_clip(only_sample(tmp_path / "c", tmp_path / "index"))
    plain = decode_frames(tmp_path / "c" / "a.mp4", num_frames=9)
    assert np.array_equal(frames_FCHW.permute(0, 2, 3, 1).numpy(), plain)


def test_the_cut_is_from_the_middle(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], (48, 1, 3))  # 120 wide
    (tmp_path / "c").mkdir()
    Image.fromarray(ramp).save(tmp_path / "c" / "a.png")
    caption(tmp_path / "c" / "a.png")
    sample = only_sample(tmp_path / "c", tmp_path / "index", dataset_type="image")
    assert torch.equal(load_clip(sample)[0, 0, 0], torch.arange(56, 184, 2, dtype=torch.uint8))


def test_rotation_comes_before_resizing(tmp_path: Path) -> None:
    caption(write_clip(tmp_path / "c" / "a.mp4", rotation=90, marked=True))  # shown upright: 48 wide, 64 high
    sample = only_sample(tmp_path / "c", tmp_path / "index", resolution="48x64")
    assert sample.clip.resize_width == 48
    frame_CHW = load_clip(sample)[0]
    assert frame_CHW[0, -4, 4] > 150 > frame_CHW[0, 4, 4]  # the mark went from the upper left to the lower left


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.mov"])
def test_resizing_is_antialiased(tmp_path: Path, name: str) -> None:
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    (tmp_path / "c").mkdir()
    if name == "a.png":
        Image.fromarray(stripes).save(tmp_path / "c" / name)
    else:  # in YUV, and in RGB
        codec = {
            "a.mp4": {"codec": "libx264", "pix_fmt": "yuv444p"},
            "a.mov": {"codec": "libx264rgb", "pix_fmt": "rgb24"},
        }
        write_clip(tmp_path / "c" / name, pictures=[stripes] * 9, options={"crf": "0"}, **codec[name])
    caption(tmp_path / "c" / name)
    sample = only_sample(tmp_path / "c", tmp_path / "index", video={"num_frames": 1})
    assert (sample.clip.resize_width, sample.clip.width) == (64, 64)
    frame_CHW = load_clip(sample)[0]
    assert 120 < int(frame_CHW[:, :, 2:-2].min()) <= int(frame_CHW[:, :, 2:-2].max()) < 136
    assert 100 < int(frame_CHW.min()) <= int(frame_CHW.max()) < 156  # at the edges the stripes are not even


def test_a_first_downsample_goes_through_the_smaller_size(tmp_path: Path) -> None:
    caption(write_clip(tmp_path / "c" / "a.mp4", size=(320, 240), marked=True))
    keys = {"resolution_type": "pixel", "maximum_image_size": 200, "target_downsample_size": 120}
    sample = only_sample(tmp_path / "c", tmp_path / "index", **keys)
    assert (sample.clip.downsample_width, sample.clip.downsample_height) == (160, 120)
    direct = load_clip(replace(sample, clip=replace(sample.clip, downsample_width=0, downsample_height=0)))
    frames_FCHW = load_clip(sample)
    assert frames_FCHW.shape == direct.shape
    assert not torch.equal(frames_FCHW, direct)


def test_missing_frames_and_files_are_errors_with_a_reason(tmp_path: Path) -> None:
    caption(write_clip(tmp_path / "c" / "a.mp4", frames=9))
    sample = only_sample(tmp_path / "c", tmp_path / "index")
    write_clip(tmp_path / "c" / "a.mp4", frames=5)
    with pytest.raises(MediaError, match="only 5 of the 9 frames"):
        load_clip(sample)
    (tmp_path / "c" / "a.mp4").unlink()
    with pytest.raises(MediaError, match="cannot be read"):
        load_clip(sample)


def test_pixels_are_in_minus_one_to_one() -> None:
    frames_FCHW = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    pixels_CFHW = to_pixels(frames_FCHW)
    assert pixels_CFHW.shape == (3, 3, 2, 2)
    assert pixels_CFHW.dtype == torch.float32
    assert torch.allclose(pixels_CFHW[0, :, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))
