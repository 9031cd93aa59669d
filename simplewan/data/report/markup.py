"""The small parts that a page is written with: escaped text, pictures, numbers with units. Imports no part of it.

Names and captions are anybody's text: whatever goes into a page goes through `esc`, attributes too.
"""

from __future__ import annotations

import html
from base64 import b64encode
from collections.abc import Iterable

from simplewan.data.buckets import Size


def esc(text: object) -> str:
    """Text for an element or an attribute in double quotes; control characters and lone surrogates are made visible."""
    shown = "".join(letter if _is_plain(letter) else f"\\x{ord(letter):02x}" for letter in str(text))
    return html.escape(shown, quote=True)


def _is_plain(letter: str) -> bool:
    return (letter >= " " and not "\x7f" <= letter <= "\x9f" and not "\ud800" <= letter <= "\udfff") or letter in "\n\t"


def jpeg(content: bytes) -> str:
    """The address of a picture that is inside the page."""
    return f"data:image/jpeg;base64,{b64encode(content).decode('ascii')}"


def picture(content: bytes, size: Size, about: str) -> str:
    """A picture in the flow of the page."""
    return f'<img src="{jpeg(content)}" width="{size[0]}" height="{size[1]}" alt="{esc(about)}">'


def name(text: str) -> str:
    """The name of a file or a clip."""
    return f'<span class="name" dir="auto">{esc(text)}</span>'


def fold(summary: str, inside: str) -> str:
    """Something that is shown when it is asked for; `summary` is text, `inside` HTML."""
    return f"<details><summary>{esc(summary)}</summary>{inside}</details>"


def listed(items: Iterable[str]) -> str:
    """A list of pieces of HTML."""
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def size_text(size: Size) -> str:
    return f"{size[0]} \u00d7 {size[1]}"


def seconds_text(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 60 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def counted(count: int, one: str, many: str | None = None) -> str:
    """ "1 clip", "2,000 clips"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
