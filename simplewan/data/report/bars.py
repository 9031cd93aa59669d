"""Bars as inline SVG: a label, a bar and a count in each row. Imports nothing of this project.

Colours come from the page's classes, so that the bars are readable on light and on dark paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

ROW, TEXT_DROP = 22, 15
WIDTH = 340
GLYPH = 8.0  # no letter of a label is wider on average
MAX_LABEL, COUNT_ROOM, GAP = 160, 46, 8


def bars(title: str, rows: Sequence[tuple[str, int]], *, width: int = WIDTH) -> str:
    """One row for each (label, count); `title` is read to those who do not see it."""
    left = min(MAX_LABEL, max((len(label) for label, _ in rows), default=0) * GLYPH + 4)
    room = width - left - GAP - COUNT_ROOM
    largest = max((count for _, count in rows), default=0) or 1
    height = ROW * len(rows)
    parts = [
        f'<svg class="bars" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
        f' aria-label="{escape(title, quote=True)}">'
    ]
    for number, (label, count) in enumerate(rows):
        top, base = number * ROW, number * ROW + TEXT_DROP
        length = count / largest * room
        start = left + GAP
        parts.append(f'<text class="label" x="{left:g}" y="{base}">{escape(_cut(label))}</text>')
        if count:
            parts.append(f'<rect x="{start:g}" y="{top + 4}" width="{max(length, 1):.1f}" height="{ROW - 8}" rx="2"/>')
        parts.append(f'<text x="{start + max(length, 0) + 6:.1f}" y="{base}">{count:,}</text>')
    parts.append("</svg>")
    return "".join(parts)


def _cut(label: str) -> str:
    most = int(MAX_LABEL / GLYPH)
    return label if len(label) <= most else f"{label[: most - 1]}…"
