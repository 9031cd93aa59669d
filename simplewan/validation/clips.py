"""What a rendered clip looks like on disk: the contact sheet (PNG) that people look at first, and the way to save it.

Imports Pillow, numpy and `data.atomic`. F frames, H height, W width. Drawn with Pillow alone: no plotting library, but
captions in other scripts than Latin need a font that the system has, else their letters are boxes.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simplewan.data.atomic import atomic_path

MAX_FRAMES = 8
MIN_SIDE, MAX_SIDE = 128, 320
MARGIN, LABEL_HEIGHT, CAPTION_SIZE, LABEL_SIZE = 8, 18, 15, 12
MAX_CAPTION_LINES = 3
BACKGROUND, INK, FAINT = (24, 24, 26), (235, 235, 235), (160, 160, 165)
# Pillow's own font has Latin letters only; these are looked up by name where fonts of the system lie.
WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "PingFang.ttc", "msyh.ttc", "DejaVuSans.ttf")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    frames_FHWC: np.ndarray, *, caption: str = "", max_frames: int = MAX_FRAMES, given_HWC: np.ndarray | None = None
) -> Image.Image:
    """Evenly spread frames in rows with their numbers, a caption below; uint8 (F, H, W, 3) -> RGB picture.

    First and last frame are among them. Tiny frames are enlarged by whole factors without smoothing, so that their
    pixels can be told apart; large ones are made smaller. `given_HWC`, the picture that the clip was to begin with,
    stands before them. Raises ValueError for an empty clip.
    """
    if frames_FHWC.ndim != 4 or frames_FHWC.shape[-1] != 3 or 0 in frames_FHWC.shape:
        raise ValueError(f"frames of shape {frames_FHWC.shape} are not (F, H, W, 3)")
    indices = spread_indices(len(frames_FHWC), max_frames)
    shown = [frames_FHWC[index] for index in indices]
    labels = [f"{index}" for index in indices]
    if given_HWC is not None:
        shown, labels = [given_HWC, *shown], ["given", *labels]
    tiles = [_fit(Image.fromarray(np.ascontiguousarray(frame))) for frame in shown]
    width, height = tiles[0].size
    columns = _columns(len(tiles), width, height)
    rows = -(-len(tiles) // columns)
    sheet_width = MARGIN + columns * (width + MARGIN)
    grid_height = MARGIN + rows * (height + LABEL_HEIGHT)
    font = font_for(caption, CAPTION_SIZE)
    lines = wrap(caption, font, sheet_width - 2 * MARGIN, MAX_CAPTION_LINES)
    line_height = CAPTION_SIZE + 6
    sheet = Image.new("RGB", (sheet_width, grid_height + len(lines) * line_height + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    label_font = font_for("0", LABEL_SIZE)
    for place, (label, tile) in enumerate(zip(labels, tiles, strict=True)):
        x = MARGIN + place % columns * (width + MARGIN)
        y = MARGIN + place // columns * (height + LABEL_HEIGHT)
        sheet.paste(tile, (x, y))
        draw.text((x, y + height + 2), label, fill=FAINT, font=label_font)
    for number, line in enumerate(lines):
        draw.text((MARGIN, grid_height + number * line_height + 2), line, fill=INK, font=font)
    return sheet


def save_png(image: Image.Image, path: Path) -> None:
    """Writes `image` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def spread_indices(num_frames: int, count: int) -> list[int]:
    """`count` frame numbers from first to last at even distances; all of them when there are no more."""
    if num_frames <= count:
        return list(range(num_frames))
    return [round(place * (num_frames - 1) / (count - 1)) for place in range(count)]


def font_for(text: str, size: int) -> Font:
    """Pillow's own font for Latin text, else the first font for other scripts that the system has."""
    if not text.isascii():
        for name in WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def wrap(text: str, font: Font, width: int, max_lines: int) -> list[str]:
    """`text` in at most `max_lines` lines of at most `width` pixels, the last one cut with "..." if need be."""
    words = text.split()
    lines: list[str] = []
    while words and len(lines) < max_lines:
        line, words = _take_line(words, font, width)
        lines.append(line)
    if words and lines:
        last = lines[-1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + "..."
    return lines


def _take_line(words: list[str], font: Font, width: int) -> tuple[str, list[str]]:
    """As many words as fit; a single one that does not (scripts without spaces) is cut between letters."""
    count = 1
    while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
        count += 1
    line = " ".join(words[:count])
    if count > 1 or font.getlength(line) <= width:
        return line, words[count:]
    letters = max(1, bisect_right(range(len(line) + 1), width, key=lambda count: font.getlength(line[:count])) - 1)
    return line[:letters], [line[letters:], *words[1:]]


def _fit(frame: Image.Image) -> Image.Image:
    """`frame` with its longer side between MIN_SIDE and MAX_SIDE pixels."""
    longer = max(frame.size)
    if longer < MIN_SIDE:
        factor = -(-MIN_SIDE // longer)
        return frame.resize((frame.width * factor, frame.height * factor), Image.Resampling.NEAREST)
    if longer > MAX_SIDE:
        width, height = (max(1, round(side * MAX_SIDE / longer)) for side in frame.size)
        return frame.resize((width, height), Image.Resampling.LANCZOS)
    return frame


def _columns(count: int, width: int, height: int) -> int:
    """Columns of the grid: full rows where possible, a sheet about twice as wide as it is high."""

    def penalty(columns: int) -> tuple[int, float]:
        rows = -(-count // columns)
        ratio = columns * width / (rows * height)
        return rows * columns - count, abs(np.log(ratio / 2))

    return min(range(1, count + 1), key=penalty)
