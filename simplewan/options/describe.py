"""Declarations as records: what `simpletuner options` lists, prints as JSON, and docs/OPTIONS.md is made of.

Imports the catalogue. One record an option, plain JSON values, so that every listing says the same.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simplewan.options.catalogue import catalogue, coming, dataset_catalogue, group_models
from simplewan.options.declare import Declared, declarations
from simplewan.options.foreign import MUSUBI, RENAMED
from simplewan.options.later import in_words
from simplewan.options.values import plain
from simplewan.options.webhooks import WebhookOptions

DATASETS = "datasets"
WEBHOOKS = "webhooks"
TRAINERS = ("kohya", "musubi", "diffusion-pipe")
_OF_DATASET = " of a dataset"


def option_records() -> list[dict[str, Any]]:
    """Every key of config.json."""
    return [_record(key, declared, catalogue()) for key, declared in catalogue().items()]


def dataset_records() -> list[dict[str, Any]]:
    """Every key of an entry of the dataset file; those of its "video" object as "video.KEY"."""
    among = dataset_catalogue()
    return [{**_record(key, declared, among), "group": DATASETS} for key, declared in among.items()]


def webhook_records() -> list[dict[str, Any]]:
    """Every key of an object of `webhook_config`."""
    among = declarations(WebhookOptions)
    return [{**_record(key, declared, among), "group": WEBHOOKS} for key, declared in among.items()]


def group_titles() -> dict[str, str]:
    """Group name -> what it holds, the first line of its file."""
    titles = {}
    for name, model in group_models().items():
        text = inspect.getdoc(inspect.getmodule(model)) or ""
        title = text.splitlines()[0].removeprefix("Options of ").removeprefix("Options that ").rstrip(".")
        titles[name] = title[:1].upper() + title[1:]
    return titles


def search(records: Iterable[Mapping[str, Any]], words: Sequence[str]) -> list[Mapping[str, Any]]:
    """The records in which every word occurs: in the key, its names elsewhere, the help, the choices or the group.

    Those in whose keys every word begins a word come first.
    """
    wanted = [word.lower().lstrip("-").replace("-", "_") for word in words]
    matching = [record for record in records if all(word in _haystack(record) for word in wanted)]
    return sorted(matching, key=lambda record: not all(_begins(word, record["key"]) for word in wanted))


def _begins(word: str, key: str) -> bool:
    return f"_{word}" in f"_{key.replace('.', '_')}"


def value_text(value: Any) -> str:
    """A JSON value as people write it: none, true, a, b."""
    if value is None or value == "" or value == []:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def limits_text(record: Mapping[str, Any]) -> str:
    """Unit and bounds in words, e.g. "steps, at least 0"."""
    low, high = record["minimum"], record["maximum"]
    bounds = (
        f"{low:g} to {high:g}"
        if low is not None and high is not None
        else f"at least {low:g}"
        if low is not None
        else ""
    )
    return ", ".join(part for part in (record["unit"] or "", bounds) if part)


def _haystack(record: Mapping[str, Any]) -> str:
    parts = (record["key"], record["help"], record["group"], *record["choices"], *record["later_choices"])
    if record["other_names"]:
        parts += (*record["other_names"], *TRAINERS)
    return " ".join(parts).lower() + " " + " ".join(parts).lower().replace("-", "_")


def _other_names(key: str, *, of_dataset: bool) -> list[str]:
    """What other trainers call an option, and what it was called before."""
    name = key.rpartition(".")[2]
    return [
        other
        for other, ours in (*MUSUBI.items(), *RENAMED.items())
        if (_OF_DATASET in ours) == of_dataset and name in re.findall(r"\w+", ours.partition(_OF_DATASET)[0])
    ]


def _record(key: str, declared: Declared, among: dict[str, Declared]) -> dict[str, Any]:
    return {
        "key": key,
        "group": declared.group,
        "type": declared.type_name,
        "default": plain(declared.default),
        "unit": declared.unit,
        "minimum": declared.minimum,
        "maximum": declared.maximum,
        "choices": list(declared.choices),
        "later_choices": dict(declared.later_choices),
        "to_come": coming(declared, among),
        "needs": in_words(declared.conditions) or None,
        "comfort": declared.comfort,
        "other_names": _other_names(key, of_dataset=among is not catalogue()),
        "restart_safe": declared.restart_safe,
        "secret": declared.secret,
        "help": declared.help,
    }
