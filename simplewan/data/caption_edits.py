"""Edits of captions: filters, the instance prompt before them, orders of tags.

Imports errors and this room, options for their types alone. They are made before text is encoded, so a caption that is
edited otherwise is another text in the cache.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from math import factorial
from pathlib import Path
from typing import TYPE_CHECKING

from simplewan.data.captions import CaptionError
from simplewan.data.draws import draw
from simplewan.errors import Problem, UserError

if TYPE_CHECKING:
    from simplewan.options.datasets import DatasetOptions

# s/PATTERN/REPLACEMENT/ with a slash in either written as \/ .
_SUBSTITUTION = re.compile(r"^s/((?:[^/\\]|\\.)+)/((?:[^/\\]|\\.)*)/(i?)$")

# So many draws for each order that is asked for; nearly all orders of few tags take several.
TRIES = 50

Replace = Callable[[str], str]


class Edits:
    """The edits that a dataset asks for. Raises UserError for filters that cannot be read."""

    def __init__(self, dataset: DatasetOptions) -> None:
        is_prompt = dataset.only_instance_prompt or dataset.caption_strategy == "instanceprompt"
        self._prepend = dataset.instance_prompt if dataset.prepend_instance_prompt and not is_prompt else None
        self._filters = [_filter(text, dataset) for text in _filter_texts(dataset)]
        self._count, self._keep = dataset.caption_shuffle_count, dataset.caption_shuffle_keep
        self._separator, self._seed = dataset.caption_separator, dataset.random_seed

    def __call__(self, name: str, variants: Iterable[str]) -> tuple[str, ...]:
        """The variants of the file `name` as they are trained, each once. Raises CaptionError when none is left."""
        edited: list[str] = []
        for variant in variants:
            text = variant
            for replace in self._filters:
                text = replace(text)
            if text.strip() or not variant.strip():
                edited += self._orders(name, text.strip())
        if not edited:
            raise CaptionError("empty caption", "caption_filter_list leaves nothing of its caption")
        if self._prepend:
            edited = [f"{self._prepend} {text}".strip() for text in edited]
        return tuple(dict.fromkeys(edited))

    def _orders(self, name: str, caption: str) -> list[str]:
        """The caption, or as many orders of its tags as are asked for (fewer where there are not so many)."""
        if not self._count:
            return [caption]
        tags = [tag.strip() for tag in caption.split(self._separator) if tag.strip()]
        fixed, loose = tags[: self._keep], tags[self._keep :]
        between = f"{self._separator.strip()} " if self._separator.strip() else self._separator
        orders: dict[str, None] = {}
        number = 0
        while len(orders) < min(self._count, factorial(min(len(set(loose)), 12))) and number < TRIES * self._count:
            place = partial(draw, self._seed, "tags", name, number)
            orders[between.join((*fixed, *sorted(loose, key=place)))] = None
            number += 1
        return list(orders)


def _filter_texts(dataset: DatasetOptions) -> tuple[str, ...]:
    """The filters as they are written: a list, or the lines (or JSON list) of a file."""
    given = dataset.caption_filter_list
    if not isinstance(given, Path):
        return given or ()
    where = f'dataset "{dataset.id}"'
    try:
        text = given.expanduser().read_text(encoding="utf-8-sig")
        if given.suffix.lower() == ".json":
            return tuple(str(item) for item in json.loads(text))
    except OSError as error:
        fix = "name a text file with one filter a line, or write a list"
        message = f"cannot be read: {error.strerror}"
        raise UserError(Problem(where, message, "caption_filter_list", str(given), fix)) from None
    except (ValueError, TypeError) as error:
        raise UserError(Problem(where, f"is not a list of texts: {error}", "caption_filter_list", str(given))) from None
    return tuple(line for line in text.splitlines() if line.strip())


def _filter(text: str, dataset: DatasetOptions) -> Replace:
    """What a filter does: "s/PATTERN/REPLACEMENT/" (with i: in any case) replaces, any other text is removed."""
    if not text.startswith("s/"):
        return lambda caption: caption.replace(text, "")
    match = _SUBSTITUTION.match(text)
    try:
        if match is None:
            raise ValueError("write s/PATTERN/REPLACEMENT/")
        pattern = re.compile(match[1].replace("\\/", "/"), re.IGNORECASE if match[3] else 0)
        replacement = match[2].replace("\\/", "/")
        re.compile(f"(?:{pattern.pattern})|", pattern.flags).sub(replacement, "")  # a group that is not there
    except (ValueError, re.error, IndexError) as error:
        where = f'dataset "{dataset.id}"'
        raise UserError(Problem(where, f"is no replacement: {error}", "caption_filter_list", text)) from None
    return lambda caption: pattern.sub(replacement, caption)
