"""Files for the tests of the dataset report: scenes that can be told apart, and a page taken to pieces."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image
from test_data_helpers import caption

from simplewan.data.media import write_mp4

VOID = ("meta", "img", "br", "link", "input", "hr")


def scene(seed: int, *, frames: int = 12, size: tuple[int, int] = (96, 64), speed: float = 1.0) -> np.ndarray:
    """Frames (F, H, W, 3) uint8 of smooth random colours in front of which a disc moves; a seed is a scene."""
    width, height = size
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 216, (4, 6, 3), np.uint8))
    ground = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
    colour, angle = rng.integers(0, 256, 3), rng.uniform(0, 6)
    down, across = np.mgrid[:height, :width]
    shown = []
    for number in range(frames):
        x = width * (0.5 + 0.3 * np.cos(angle + speed * number / 5))
        y = height * (0.5 + 0.3 * np.sin(angle + speed * number / 5))
        picture = ground.copy()
        picture[(across - x) ** 2 + (down - y) ** 2 < (height / 6) ** 2] = colour
        shown.append(picture)
    return np.stack(shown)


def put(path: Path, frames: np.ndarray, text: str | None = "a scene", *, rate: float = 16, crf: int = 16) -> Path:
    """Write a clip and, unless it is None, its caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, frames, rate, crf=crf)
    if text is not None:
        caption(path, text)
    return path


def resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])


class Page(HTMLParser):
    """The elements, the text and the attributes of a page; `unbalanced` says what was opened or closed wrongly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.unbalanced: list[str] = []
        self.text = ""
        self.style = ""
        self.feed(text)
        self.close()
        self.unbalanced += self.open

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.unbalanced.append(f"/{tag}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data + "\n"
