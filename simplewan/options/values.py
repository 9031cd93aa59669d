"""The values that options hold beyond plain numbers and text: sizes, resolutions, timesteps, lists.

What lives here: the parsers and the annotated types made from them. Imports pydantic and nothing of this project. Every
parser accepts what people write ("832x480", 480, [3.0, 4.0], "a,b") and gives one form, so that nobody else parses.
A string among the annotations is the type's name in the documentation.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

Size = tuple[int, int]

_SIZE = re.compile(r"^\s*(\d+)\s*[xX]\s*(\d+)\s*$")


def parse_size(value: Any) -> Size:
    """(width, height) in pixels from "832x480" or [832, 480]. Raises ValueError."""
    if isinstance(value, str) and (match := _SIZE.match(value)):
        size = int(match[1]), int(match[2])
    elif isinstance(value, (list, tuple)) and len(value) == 2 and all(type(edge) is int for edge in value):
        size = value[0], value[1]
    else:
        raise ValueError('is not a size; write width x height, e.g. "832x480"')
    if min(size) < 1:
        raise ValueError("is not a size; both edges must be at least 1 pixel")
    return size


def parse_sizes(value: Any) -> tuple[Size, ...]:
    """One or several sizes: "832x480", "832x480,480x832" or a list."""
    if isinstance(value, str):
        value = value.split(",")
    elif isinstance(value, (list, tuple)) and len(value) == 2 and all(type(edge) is int for edge in value):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        return (parse_size(value),)
    return tuple(parse_size(item) for item in value)


def parse_resolution(value: Any) -> float | tuple[Size, ...]:
    """A number in the unit of resolution_type, or exact sizes."""
    number = _as_number(value)
    if number is None:
        try:
            return parse_sizes(value)
        except ValueError:
            raise ValueError('is neither a number nor a size like "832x480" (or a list of sizes)') from None
    if number <= 0:
        raise ValueError("must be greater than 0")
    return int(number) if number == int(number) else number


def parse_resolutions(value: Any) -> tuple[float | tuple[Size, ...], ...]:
    """A list of resolutions; each is a number or a size."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return tuple(parse_resolution(item) for item in items)


def parse_validation_sizes(value: Any) -> tuple[Size, ...]:
    """Sizes; a lone number is a square of that edge."""
    number = _as_number(value)
    return parse_sizes(f"{int(number)}x{int(number)}" if number is not None else value)


def parse_timestep(value: Any) -> Any:
    """A timestep 0..1000; a value up to 1 is a fraction of 1000."""
    number = _as_number(value)
    if number is None:
        return value
    if not 0 <= number <= 1000:
        raise ValueError("is not a timestep 0..1000")
    return number * 1000.0 if number <= 1.0 else number


def parse_shift(value: Any) -> Any:
    """A flow shift above 0; 0, which means off, is the shift that moves nothing, 1."""
    number = _as_number(value)
    if number is None:
        return value
    if number < 0:
        raise ValueError("must be at least 0")
    return number or 1.0


def parse_words(value: Any) -> Any:
    """A list of words from "a,b", a list, or nothing ("none")."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (list, tuple)):
        return tuple(item for item in value if not (isinstance(item, str) and item.lower() == "none"))
    return value


def parse_numbers(value: Any) -> Any:
    """A tuple of numbers from one number, "3,4", or a list."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return (value,)


def plain(value: Any) -> Any:
    """A default as the JSON value that people would write, without asking pydantic (which would build its models)."""
    if isinstance(value, tuple):
        items = list(value)
        return _write_resolution(value) if items and isinstance(items[0], tuple) else _write_list(map(plain, items))
    return str(value) if isinstance(value, Path) else value


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)):
        return None
    # A whole number of Python's has no end, and may be none of the computer's. NaN compares as false.
    if not abs(value) <= sys.float_info.max:
        raise ValueError("is too large a number" if isinstance(value, int) else "is not a finite number")
    return float(value)


def _write_resolution(value: float | tuple[Size, ...]) -> Any:
    if isinstance(value, (int, float)):
        return value
    sizes = [f"{width}x{height}" for width, height in value]
    return sizes[0] if len(sizes) == 1 else sizes


def _write_resolutions(value: Iterable[float | tuple[Size, ...]]) -> Any:
    return [_write_resolution(item) for item in value]


def _write_list(value: Iterable[Any]) -> Any:
    items = list(value)
    return items[0] if len(items) == 1 else items


Resolution = Annotated[
    int | float | tuple[Size, ...],
    BeforeValidator(parse_resolution),
    PlainSerializer(_write_resolution),
    "number, WxH or list of WxH",
]
Resolutions = Annotated[
    tuple[int | float | tuple[Size, ...], ...],
    BeforeValidator(parse_resolutions),
    PlainSerializer(_write_resolutions),
    "list of numbers and WxH",
]
ValidationSizes = Annotated[
    tuple[Size, ...],
    BeforeValidator(parse_validation_sizes),
    PlainSerializer(_write_resolution),
    "WxH or list of WxH",
]
Timestep = Annotated[float, BeforeValidator(parse_timestep), "timestep 0..1000, or fraction 0..1"]
Shift = Annotated[float, BeforeValidator(parse_shift), "number"]
Words = Annotated[tuple[str, ...], BeforeValidator(parse_words), PlainSerializer(_write_list), "text or list of text"]
Numbers = Annotated[
    tuple[float, ...], BeforeValidator(parse_numbers), PlainSerializer(_write_list), "number or list of numbers"
]
Integers = Annotated[
    tuple[int, ...], BeforeValidator(parse_numbers), PlainSerializer(_write_list), "whole number or list of them"
]
