"""Conversion and resizing against a computation in float64 that is written here, from the definitions."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_helpers import picture, write_clip

from simplewan.data import pixels
from simplewan.data.media import decode_frames, iter_planes
from simplewan.data.mediainfo import load_av

SIZE = (150, 90)
# Luma weights of red and blue: ITU-R BT.601 and BT.709.
WEIGHTS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722)}
SUBSAMPLING = {"yuv420p": (2, 2), "yuv422p": (2, 1), "yuv444p": (1, 1), "yuv420p10le": (2, 2), "yuv422p10le": (2, 1)}


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.6 (IEEE ASSP-29, 1981)."""
    a, x = -0.6, np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def weights(samples: int, places: np.ndarray, step: float) -> np.ndarray:
    """(outputs, samples): how much each sample counts at each place; the edges are repeated outwards."""
    width = max(1.0, step)
    margin = int(2 * width) + 3
    spread = cubic((np.arange(-margin, samples + margin)[None] - places[:, None]) / width)
    inside = spread[:, margin:-margin].copy()
    inside[:, 0] += spread[:, :margin].sum(axis=1)
    inside[:, -1] += spread[:, -margin:].sum(axis=1)
    return inside / inside.sum(axis=1, keepdims=True)


def reference(
    planes: list[np.ndarray],
    size: tuple[int, int],
    matrix: str,
    *,
    full: bool = False,
    bits: int = 8,
    left: bool = False,
) -> np.ndarray:
    """(3, H, W) in 0..255. Chroma lies in the middle of its pixels, or beside the left ones (H.273, types 1 and 0)."""
    height, width = planes[0].shape
    x, y = ((np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(size, (width, height), strict=True))
    found = []
    for plane in planes:
        across, down = round(width / plane.shape[1]), round(height / plane.shape[0])
        columns = weights(plane.shape[1], (x - (0 if left else (across - 1) / 2)) / across, width / size[0] / across)
        lines = weights(plane.shape[0], (y - (down - 1) / 2) / down, height / size[1] / down)
        found.append(lines @ (plane / 2.0 ** (bits - 8)) @ columns.T)
    luma, cb, cr = found
    if full:
        luma, cb, cr = luma / 255, (cb - 128) / 255, (cr - 128) / 255
    else:
        luma, cb, cr = (luma - 16) / 219, (cb - 128) / 224, (cr - 128) / 224
    red_weight, blue_weight = WEIGHTS[matrix]
    red, blue = luma + 2 * (1 - red_weight) * cr, luma + 2 * (1 - blue_weight) * cb
    green = (luma - red_weight * red - blue_weight * blue) / (1 - red_weight - blue_weight)
    return np.clip(np.stack([red, green, blue]) * 255, 0, 255)


def frame_of(pix_fmt: str, *, size: tuple[int, int] = SIZE, seed: int = 0):
    """A frame whose planes are smooth noise inside the range, and those planes."""
    av = load_av()
    rng = np.random.default_rng(seed)
    frame = av.VideoFrame(*size, pix_fmt)
    planes = []
    bits = 10 if "10" in pix_fmt else 8
    for plane in frame.planes:
        coarse = Image.fromarray(rng.integers(60, 190, (plane.height // 4 + 2, plane.width // 4 + 2), dtype=np.uint8))
        values = np.asarray(coarse.resize((plane.width, plane.height), Image.BICUBIC)).astype(np.uint16)
        values = values << (bits - 8) | rng.integers(0, 1 << (bits - 8), values.shape).astype(np.uint16)
        planes.append(values.astype(float))
        lines = np.zeros((plane.height, plane.line_size), np.uint8)
        stored = values.astype("<u2" if bits > 8 else np.uint8)
        lines[:, : stored.shape[1] * stored.itemsize] = stored.view(np.uint8).reshape(plane.height, -1)
        plane.update(lines.tobytes())
    return frame, planes, bits


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((first - second) ** 2)))


@pytest.mark.parametrize("pix_fmt", SUBSAMPLING)
@pytest.mark.parametrize("target", [SIZE, (146, 90), (75, 45), (37, 22), (220, 133)])
def test_pixels_equal_a_computation_in_float64_but_for_the_rounding(pix_fmt: str, target: tuple[int, int]) -> None:
    """Rounding to whole numbers alone leaves 10 log10(12 * 255^2) = 58.9 dB."""
    frame, planes, bits = frame_of(pix_fmt)
    for colorspace, matrix, colour_range in ((5, "601", 1), (1, "709", 1), (1, "709", 2), (2, "601", 0)):
        frame.colorspace, frame.color_range = colorspace, colour_range
        found = np.stack(pixels.Converter([target])(frame)).astype(float)
        expected = reference(planes, target, matrix, full=colour_range == 2, bits=bits)
        assert psnr(found, expected) > 57.5, (colorspace, colour_range)


@pytest.mark.parametrize(("height", "matrix"), [(718, "601"), (720, "709")])
def test_colours_that_name_no_matrix_are_those_of_their_size(height: int, matrix: str) -> None:
    frame, planes, _ = frame_of("yuv420p", size=(32, height))
    found = np.stack(pixels.Converter([(32, 100)])(frame)).astype(float)
    other = {"601": "709", "709": "601"}[matrix]
    assert psnr(found, reference(planes, (32, 100), matrix)) > 57.5 > psnr(found, reference(planes, (32, 100), other))


def test_the_place_of_chroma_is_that_of_the_file(tmp_path: Path) -> None:
    """H.264 puts it beside the left pixels; taken for the middle it would be half a pixel off."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(60, 190, (24, 40, 3), dtype=np.uint8)).resize(SIZE, Image.BICUBIC)
    path = write_clip(tmp_path / "a.mp4", pictures=[np.asarray(noise)], options={"qp": "0"})
    with load_av().open(str(path)) as container:
        frame = next(container.decode(video=0))
        stored = [
            np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width].astype(float)
            for plane in frame.planes
        ]
    found = np.stack(next(iter_planes(path, sizes=[(146, 90)]))).astype(float)
    assert psnr(found, reference(stored, (146, 90), "601", left=True)) > 57.5
    assert psnr(found, reference(stored, (146, 90), "601", left=False)) < 50


def test_what_is_shrunk_much_is_averaged_and_not_picked() -> None:
    """A pattern of single lines becomes an even grey."""
    frame, _, _ = frame_of("yuv444p", size=(320, 240))
    lines = np.tile(np.uint8([16, 235]), 160)
    for plane, values in zip(frame.planes, (lines, 128, 128), strict=True):
        content = np.zeros((240, plane.line_size), np.uint8)
        content[:, :320] = values
        plane.update(content.tobytes())
    for target in ((80, 60), (100, 75), (32, 24)):
        for plane in pixels.Converter([target])(frame):
            assert np.ptp(plane[:, 4:-4].astype(int)) <= 6
            assert abs(float(plane[:, 4:-4].mean()) - 127.5) < 1


def test_the_bits_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, _, _ = frame_of("yuv420p", size=(640, 360))
    found = set()
    for threads in (1, 2, 3, 7, 0):
        monkeypatch.setattr(pixels, "CONVERSION_THREADS", threads)
        for sizes in ([(416, 240)], [(500, 280), (333, 187)]):
            found.add((len(sizes), np.stack(pixels.Converter(sizes)(frame)).tobytes()))
    assert len(found) == 2


def test_two_steps_are_the_one_and_then_the_other(tmp_path: Path) -> None:
    """The first step stays in YUV, which rounds differently; a step straight to the end gives another picture."""
    frame, _, _ = frame_of("yuv420p", size=(320, 240), seed=4)
    both = np.stack(pixels.Converter([(100, 75), (200, 150)])(frame)).astype(float)
    small = np.stack(pixels.Converter([(100, 75)])(frame), axis=-1)
    then = pixels.resized(small, [(200, 150)]).transpose(2, 0, 1).astype(float)
    straight = np.stack(pixels.Converter([(200, 150)])(frame)).astype(float)
    assert psnr(both, then) > 40 > psnr(both, straight)
    for name, keys in (("a.mov", {"codec": "libx264rgb", "pix_fmt": "rgb24"}), ("a.mkv", {})):
        write_clip(tmp_path / name, size=(320, 240), frames=1, marked=True, **keys)
        planes = next(iter_planes(tmp_path / name, sizes=[(100, 75), (200, 150)]))
        assert {plane.shape for plane in planes} == {(150, 200)}


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_sizes_are_those_of_the_picture_as_shown(tmp_path: Path, rotation: int) -> None:
    keys = {"frames": 1, "marked": True, "aspect": Fraction(4, 3), "options": {"crf": "1"}}
    path = write_clip(tmp_path / "a.mp4", rotation=rotation, **keys)
    shown = np.rot90(picture(0, marked=True), rotation // 90)
    size = (48, 85) if rotation % 180 else (85, 48)  # pixels are a third wider than high
    for sizes in ([size], [(size[0] * 2, size[1] * 2), size]):
        planes = np.stack(next(iter_planes(tmp_path / "a.mp4", sizes=sizes)), axis=-1)
        expected = np.asarray(Image.fromarray(shown).resize(size, Image.BICUBIC))
        assert planes.shape == expected.shape
        assert np.abs(planes.astype(int) - expected).mean() < 6
    assert np.array_equal(np.stack(next(iter_planes(path)), axis=-1), decode_frames(path)[0])


def test_pictures_and_rgb_clips_are_resized_by_the_same_means(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    write_clip(tmp_path / "a.mkv", pictures=[noise], codec="ffv1", pix_fmt="bgr0")
    picture_planes, clip_planes = (
        np.stack(next(iter_planes(tmp_path / name, sizes=[(37, 29)]))) for name in ("a.png", "a.mkv")
    )
    assert np.array_equal(picture_planes, clip_planes)
    assert np.array_equal(
        picture_planes, np.asarray(Image.fromarray(noise).resize((37, 29), Image.BICUBIC)).transpose(2, 0, 1)
    )
