"""Faces: a drawn one that OpenCV's cascade takes for a face is found where it is, and nothing where there is none."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from simplewan.data.faces import find_face
from simplewan.errors import UserError

BACKGROUND = (70, 90, 110)


def drawn_face(size: int) -> Image.Image:
    """A schematic face, lit from above: hair, sockets and brows dark, nose and cheeks bright."""
    image = Image.new("RGB", (200, 200), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 5, 170, 150), fill=(60, 40, 30))
    draw.ellipse((40, 20, 160, 195), fill=(222, 180, 150))
    for left in (55, 105):
        draw.ellipse((left, 70, left + 40, 110), fill=(170, 125, 100))
        draw.ellipse((left + 6, 84, left + 34, 100), fill=(245, 245, 245))
        draw.ellipse((left + 13, 84, left + 27, 100), fill=(30, 20, 20))
        draw.rectangle((left + 2, 70, left + 38, 77), fill=(50, 30, 20))
    draw.polygon([(100, 85), (90, 130), (110, 130)], fill=(235, 195, 165))
    for left in (88, 102):
        draw.ellipse((left, 124, left + 10, 132), fill=(150, 100, 85))
    draw.ellipse((75, 145, 125, 163), fill=(160, 70, 70))
    draw.rectangle((77, 152, 123, 155), fill=(80, 30, 30))
    return image.filter(ImageFilter.GaussianBlur(2.5)).resize((size, size), Image.BICUBIC)


def scene(size: tuple[int, int], *faces: tuple[int, int, int]) -> np.ndarray:
    """A picture with faces of (edge, left, top)."""
    picture = Image.new("RGB", size, BACKGROUND)
    for edge, left, top in faces:
        picture.paste(drawn_face(edge), (left, top))
    return np.asarray(picture)


@pytest.mark.parametrize("face", [(200, 40, 30), (200, 500, 250), (120, 300, 100), (300, 450, 100)])
def test_a_face_is_found_where_it_is(face: tuple[int, int, int]) -> None:
    pytest.importorskip("cv2")
    edge, left, top = face
    position = find_face(scene((832, 480), face))
    assert position is not None
    assert abs(position[0] * 832 - (left + edge / 2)) < 0.1 * edge
    assert abs(position[1] * 480 - (top + edge / 2)) < 0.1 * edge


def test_the_largest_face_counts_also_in_a_large_upright_picture() -> None:
    pytest.importorskip("cv2")
    position = find_face(scene((1080, 1920), (250, 100, 200), (500, 400, 1200)))
    assert position is not None
    assert position[0] == pytest.approx(650 / 1080, abs=0.05)
    assert position[1] == pytest.approx(1450 / 1920, abs=0.05)


def test_no_face_is_found_where_there_is_none() -> None:
    pytest.importorskip("cv2")
    assert find_face(scene((832, 480))) is None
    assert find_face(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)) is None
    assert find_face(np.zeros((1, 1, 3), np.uint8)) is None


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'simplewan\[faces\]'"):
        find_face(scene((64, 48)))
