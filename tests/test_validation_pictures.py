"""Contact sheets and the timestep histogram, read back as pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from simplewan.objectives.distributions import Sampling
from simplewan.objectives.flow import sample_sigmas
from simplewan.validation.clips import BACKGROUND, contact_sheet, font_for, save_png, spread_indices, wrap
from simplewan.validation.histogram import BOUNDARY_COLOUR, bin_counts, save_histogram, timestep_histogram


def clip(num_frames, height, width):
    """Frames that are told apart by their red value: the frame's number times 3."""
    frames = np.zeros((num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = 3 * np.arange(num_frames)[:, None, None]
    frames[..., 1] = 200
    return frames


def frame_numbers(sheet):
    """The numbers of the frames on a sheet of `clip`, in reading order."""
    pixels = np.asarray(sheet)
    reds = pixels[..., 0][(pixels[..., 1] == 200) & (pixels[..., 2] == 0)]
    return sorted({int(red) // 3 for red in reds})


def test_spread_holds_first_and_last():
    assert spread_indices(5, 8) == [0, 1, 2, 3, 4]
    assert spread_indices(81, 8) == [0, 11, 23, 34, 46, 57, 69, 80]
    assert spread_indices(1, 8) == [0]


@pytest.mark.parametrize(("num_frames", "height", "width"), [(17, 48, 64), (81, 480, 832), (1, 16, 16), (5, 832, 480)])
def test_sheet_shows_spread_frames_at_a_readable_size(num_frames, height, width):
    sheet = contact_sheet(clip(num_frames, height, width), caption="step 10, cat: A cat walks.")
    assert frame_numbers(sheet) == spread_indices(num_frames, 8)
    assert 128 <= max(sheet.size) <= 1400
    assert contact_sheet(clip(num_frames, height, width)).height < sheet.height


def test_tiny_frames_are_enlarged_without_smoothing():
    checker = np.indices((4, 32, 32)).sum(0) % 2 * 255
    sheet = contact_sheet(np.repeat(checker.astype(np.uint8)[..., None], 3, axis=-1))
    tile = np.asarray(sheet)[8:136, 8:136, 0]
    assert set(np.unique(tile)) == {0, 255} and (tile[:4, :4] == tile[0, 0]).all() and tile[0, 4] != tile[0, 0]


def test_an_empty_clip_is_refused():
    with pytest.raises(ValueError, match="frames of shape"):
        contact_sheet(np.zeros((0, 8, 8, 3), dtype=np.uint8))


@pytest.mark.parametrize("text", ["word " * 200, "x" * 900, "\u732b" * 300, "short", ""])
def test_captions_are_wrapped_and_cut(text):
    font = font_for(text, 15)
    lines = wrap(text, font, 300, 3)
    assert len(lines) <= 3 and all(font.getlength(line) <= 300 for line in lines)
    assert lines[-1].endswith("...") if len(text) > 100 else lines == ([text] if text else [])


def test_png_is_written_whole(tmp_path):
    sheet = contact_sheet(clip(5, 48, 64), caption="A cat.")
    save_png(sheet, tmp_path / "new" / "cat.png")
    with Image.open(tmp_path / "new" / "cat.png") as again:
        assert again.size == sheet.size and again.format == "PNG"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cat.png"]


def test_bins_hold_every_draw():
    counts = bin_counts(torch.tensor([0.0, 0.024, 0.026, 0.5, 0.875, 1.0]))
    assert sum(counts) == 6 and [counts[index] for index in (0, 1, 20, 35, 39)] == [2, 1, 1, 1, 1]


def test_histogram_shows_each_role_on_its_side(tmp_path):
    draws = {
        "high": sample_sigmas(5000, sampling=Sampling(), shift=12.0, bounds=(0.875, 1.0), generator=torch.Generator()),
        "low": sample_sigmas(5000, sampling=Sampling(), shift=12.0, bounds=(0.0, 0.875), generator=torch.Generator()),
    }
    save_histogram(tmp_path / "timesteps.png", draws, boundary=0.875)
    with Image.open(tmp_path / "timesteps.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    boundary = int(np.nonzero((pixels == BOUNDARY_COLOUR).all(-1).sum(0) > 200)[0][0])
    sides = {(92, 158, 255): lambda x: x >= boundary, (255, 158, 74): lambda x: x < boundary}
    for bars, is_side in sides.items():
        columns = np.nonzero((pixels == bars).all(-1).sum(0))[0]
        assert len(columns) > 20 and is_side(columns).all()
    assert (pixels == BACKGROUND).all(-1).mean() > 0.4


def test_histogram_needs_draws():
    with pytest.raises(ValueError):
        timestep_histogram({})
    with pytest.raises(ValueError):
        timestep_histogram({"high": torch.zeros(0)})
