"""A picture of many clips for people who want to see what was scored: a line a clip, frames, words, and what is wrong.

Imports Pillow, numpy and `validation.clips`. Clips are shown at twice their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from simplewan.validation.clips import font_for, spread_indices, wrap

SHOWN_FRAMES, ZOOM, GAP, TEXT_WIDTH, LINE_HEIGHT, FONT_SIZE = 5, 2, 4, 640, 15, 12
MAX_ROWS = 20  # of one text
INK, RIGHT, WRONG, PAPER = (30, 30, 30), (0, 110, 50), (190, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class Line:
    """One clip: frames uint8 (F, H, W, 3), what was asked for, what was seen, and what of it is wrong."""

    frames: np.ndarray
    asked: str
    seen: str
    wrong: Sequence[str] = ()


def save_sheet(path: Path, lines: Sequence[Line]) -> None:
    """Writes the lines as one PNG."""
    pictures = [_line(line) for line in lines]
    height = sum(picture.height + GAP for picture in pictures)
    sheet = Image.new("RGB", (max(picture.width for picture in pictures), height), PAPER)
    top = 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _line(line: Line) -> Image.Image:
    chosen = spread_indices(len(line.frames), SHOWN_FRAMES)
    strip = np.concatenate(
        [np.pad(line.frames[index], ((0, 0), (0, GAP), (0, 0)), constant_values=255) for index in chosen], axis=1
    )
    frames = Image.fromarray(strip.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1))
    words = [(line.asked, INK), (line.seen, RIGHT if not line.wrong else INK), *((part, WRONG) for part in line.wrong)]
    font = font_for("", FONT_SIZE)
    wrapped = [(row, ink) for text, ink in words for row in wrap(text, font, TEXT_WIDTH - 4 * GAP, MAX_ROWS)]
    height = max(frames.height, LINE_HEIGHT * len(wrapped))
    picture = Image.new("RGB", (frames.width + TEXT_WIDTH, height), PAPER)
    picture.paste(frames, (0, 0))
    pen = ImageDraw.Draw(picture)
    for index, (row, ink) in enumerate(wrapped):
        pen.text((frames.width + 2 * GAP, index * LINE_HEIGHT), row, fill=ink, font=font)
    return picture
