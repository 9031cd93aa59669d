"""What is saved with a run, and what may change when it is resumed.

Imports the catalogue. The record is flat and in the order of declaration: normalised values, except that paths, and
text with `{env:NAME}` or a placeholder in it, stay as they were written; secrets are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from simplewan.options.catalogue import catalogue, dataset_catalogue, group_models
from simplewan.options.datasets import DatasetOptions
from simplewan.options.declare import Declared
from simplewan.options.problems import from_text, is_address, redact
from simplewan.options.sources import Given, holds_token

DATASETS = "datasets"


def as_saved(found: Mapping[str, Given], group: BaseModel, among: Mapping[str, Declared]) -> dict[str, Any]:
    """The given keys of one group, JSON values in the order of declaration."""
    dumped = group.model_dump(mode="json")
    saved = {}
    for key in dumped:
        if key in found:
            raw, value = _parsed(found[key].value, among[key]), getattr(group, key)
            names_file = isinstance(value, Path) and not is_address(raw)  # no secret, though what the file holds is
            told = _unexpanded(raw, value, dumped[key])
            saved[key] = told if names_file and among[key].secret else redact(key, told, among[key])
    return saved


def _parsed(raw: Any, declared: Declared) -> Any:
    """A list or an object that was written as text, so that its parts are looked at one by one."""
    try:
        return from_text(raw, declared)
    except ValueError:  # a mistake, told elsewhere; or it is not JSON before tokens are expanded
        return raw


def is_record(content: Mapping[str, Any]) -> bool:
    """Whether a file holds what was saved with a run: its datasets beside its options, which no configuration has."""
    return isinstance(content.get(DATASETS), list) and content.keys() - {DATASETS} <= catalogue().keys()


def _unexpanded(raw: Any, value: Any, dumped: Any) -> Any:
    """`dumped`, with what was written as a path or with a token in it as it was written."""
    if holds_token(raw) or (isinstance(raw, str) and isinstance(value, Path)):
        return raw
    if isinstance(raw, Mapping) and isinstance(dumped, Mapping):
        inner = value.__dict__ if isinstance(value, BaseModel) else value
        return {
            key: _unexpanded(raw[key], inner.get(key) if isinstance(inner, Mapping) else None, dumped[key])
            for key in dumped
            if key in raw
        }
    if isinstance(raw, list) and isinstance(dumped, list) and len(raw) == len(dumped):
        inner = value if isinstance(value, (list, tuple)) else dumped
        return [_unexpanded(*items) for items in zip(raw, inner, dumped, strict=True)]
    return raw if _any_token(raw) else dumped


def _any_token(raw: Any) -> bool:
    if isinstance(raw, (Mapping, list, tuple)):
        return any(map(_any_token, raw.values() if isinstance(raw, Mapping) else raw))
    return holds_token(raw)


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], facts: Mapping[str, bool] | None = None) -> list[str]:
    """The keys that differ between two saved records and may not differ when a run is resumed.

    A key that is absent has its default. One that the flavour does not read, by its `facts`, may differ. Datasets are
    compared by id: "datasets.ID.KEY", or "datasets.ID" for one that came or went.
    """
    untrue = {fact for fact, holds in (facts or {}).items() if not holds}
    read = [item for item in catalogue().values() if untrue.isdisjoint(switch for switch, _ in item.conditions)]
    changed = _differing(old, new, read, _defaults())
    before = {entry.get("id"): entry for entry in old.get(DATASETS, [])}
    after = {entry.get("id"): entry for entry in new.get(DATASETS, [])}
    defaults = DatasetOptions().model_dump(mode="json")
    declared = [item for key, item in dataset_catalogue().items() if "." not in key]
    for name in sorted({*before, *after}, key=str):
        one, other = before.get(name), after.get(name)
        if (one or other or {}).get("dataset_type") == "text_embeds":
            continue
        if one is None or other is None:
            changed.append(f"{DATASETS}.{name}")
        else:
            changed.extend(f"{DATASETS}.{name}.{key}" for key in _differing(one, other, declared, defaults))
    return changed


def _defaults() -> dict[str, Any]:
    return {key: value for model in group_models().values() for key, value in model().model_dump(mode="json").items()}


def _differing(
    old: Mapping[str, Any], new: Mapping[str, Any], among: Iterable[Declared], defaults: Mapping[str, Any]
) -> list[str]:
    return [
        declared.key
        for declared in among
        if not declared.restart_safe and _full(old, declared.key, defaults) != _full(new, declared.key, defaults)
    ]


def _full(record: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> Any:
    value, default = record.get(key, defaults[key]), defaults[key]
    return {**default, **value} if isinstance(value, Mapping) and isinstance(default, Mapping) else value
