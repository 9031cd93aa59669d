"""Scene cuts in clips that are written here: hard cuts are found to the frame, and nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_helpers import write_clip

from simplewan.data.media import MediaError, probe
from simplewan.data.scenes import cut_indices, find_cuts

SIZE = (160, 96)


def textures(count: int) -> list[np.ndarray]:
    """Pictures of blurred noise, larger than the clip, that have nothing in common."""
    rng = np.random.default_rng(5)
    return [
        np.asarray(Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).resize((600, 400), Image.BICUBIC))
        for _ in range(count)
    ]


TEXTURES = textures(5)


def view(texture: np.ndarray, x: float, y: float = 0.0) -> np.ndarray:
    left, top = round(x), round(y)
    return texture[top : top + SIZE[1], left : left + SIZE[0]]


def noisy(pictures: list[np.ndarray]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [(p + rng.normal(0, 6, p.shape)).clip(0, 255).astype(np.uint8) for p in pictures]


def found(path: Path, pictures: list[np.ndarray], **settings) -> list[int]:
    """The numbers of the frames at which scenes begin."""
    write_clip(path, pictures=noisy(pictures), **settings)
    times = probe(path).times
    return [times.index(cut) for cut in find_cuts(path)]


CUT = [view(TEXTURES[number // 12], 3 * (number % 12)) for number in range(48)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {}),
        ("a.mkv", {"milliseconds": [40 * i + (i % 3) * 9 for i in range(48)]}),
        ("late.mkv", {"first": 400}),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "b": "0", "crf": "40"}}),
        ("b.avi", {"codec": "mpeg4", "options": {"bf": "2", "qscale": "4"}}),
        ("deep.mp4", {"pix_fmt": "yuv420p10le"}),
    ],
)
def test_hard_cuts_are_found_to_the_frame(tmp_path: Path, name: str, settings: dict) -> None:
    assert found(tmp_path / name, CUT, **settings) == [12, 24, 36]


def test_dark_scenes_are_told_apart_and_short_ones_too(tmp_path: Path) -> None:
    dark = [(picture * 0.25).astype(np.uint8) for picture in CUT]
    assert found(tmp_path / "dark.mp4", dark) == [12, 24, 36]
    short = [view(TEXTURES[0], i) for i in range(12)] + [view(TEXTURES[1], i) for i in range(2)]
    assert found(tmp_path / "short.mp4", [*short, *(view(TEXTURES[2], i) for i in range(12))]) == [12, 14]
    black = [np.zeros((*SIZE[::-1], 3), np.uint8)] * 10
    assert found(tmp_path / "black.mp4", black + CUT[:12]) == [10]


def mixed(number: int, length: int) -> np.ndarray:
    share = min(1.0, max(0.0, (number - 10) / length))
    return view(TEXTURES[0], number) * (1 - share) + view(TEXTURES[1], number) * share


def zoomed(number: int) -> np.ndarray:
    factor = 1 + number / 10
    part = Image.fromarray(TEXTURES[2]).crop((100, 60, 100 + round(400 / factor), 60 + round(240 / factor)))
    return np.asarray(part.resize(SIZE, Image.BICUBIC))


def with_a_square(number: int) -> np.ndarray:
    picture = view(TEXTURES[3], 0).copy()
    if number >= 12:
        picture[30:62, 40:72] = (250, 240, 30)
    return picture


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("still", [view(TEXTURES[0], 0)] * 20),
        ("a small thing appears", [with_a_square(i) for i in range(24)]),
        ("flash", [view(TEXTURES[0], 2 * i) * 1.0 + (150 if i in (9, 20, 21) else 0) for i in range(30)]),
        ("white flash", [np.full((*SIZE[::-1], 3), 255) if i in (9, 10) else CUT[0] for i in range(20)]),
        ("strobe", [view(TEXTURES[0], 2 * i) * 1.0 + (100 if i % 4 < 2 else 0) for i in range(30)]),
        ("pan", [view(TEXTURES[0], 14 * i, 5 * i) for i in range(30)]),
        ("shaking", [view(TEXTURES[1], 60 + 9 * np.sin(2.1 * i), 60 + 9 * np.sin(1.7 * i)) for i in range(30)]),
        ("zoom", [zoomed(i) for i in range(25)]),
        ("dissolve", [mixed(i, 12) for i in range(34)]),
        ("fade through black", [view(TEXTURES[i // 15], i) * abs(1 - i / 15) for i in range(30)]),
    ],
)
def test_what_is_no_cut_is_not_taken_for_one(tmp_path: Path, name: str, pictures: list[np.ndarray]) -> None:
    assert found(tmp_path / f"{name}.mp4", pictures) == []


def test_pictures_and_single_frames_have_no_cuts_and_damage_is_reported(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    assert find_cuts(tmp_path / "a.png") == ()
    assert found(tmp_path / "one.mp4", CUT[:1]) == []
    assert found(tmp_path / "two.mp4", [CUT[0], CUT[12]]) == [1]
    (tmp_path / "noise.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(MediaError, match="does not decode"):
        find_cuts(tmp_path / "noise.mp4")


def test_a_cut_needs_all_frames_before_and_behind_to_differ() -> None:
    """differences[i][k]: how far frame i lies from frame i - 1 - k."""

    def rows(scenes: list[int]) -> list[list[float]]:
        return [[float(scenes[i] != scenes[i - 1 - k]) for k in range(min(i, 5))] for i in range(len(scenes))]

    assert cut_indices(rows([0, 0, 0, 0, 1, 1, 1, 1])) == [4]
    assert cut_indices(rows([0, 0, 0, 0, 1, 0, 0, 0, 0])) == []
    assert cut_indices(rows([0, 0, 0, 0, 1, 1, 0, 0, 0])) == []
    assert cut_indices(rows([])) == cut_indices(rows([0])) == []
