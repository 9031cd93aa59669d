"""The name of what a run was made with, for the metadata of what it exports. Imports loading and the catalogue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from simplewan.options.catalogue import catalogue, dataset_catalogue
from simplewan.options.load import Loaded
from simplewan.options.written import DATASETS

# What may change on the way and decides the result nevertheless: options of these groups, but for where one waits;
# and the length.
_DECIDING, _WAITING = ("optimizer", "experts"), "idle_expert"
_LENGTH = ("max_train_steps", "num_train_epochs")
# Where things lie. The flavour is named as it is, set or inferred.
_PLACES = ("pretrained_", "dataset_name", "aws_bucket_name", "aws_data_prefix", "model_flavour")


def config_hash(loaded: Loaded) -> str:
    """16 hex digits that name the flavour and the given options that decide the result, by their values in use: not
    where things lie, nor how it is watched."""
    among, entry_keys = catalogue(), dataset_catalogue()
    deciding = [key for key in loaded.resolved if key in among and _decides(key)]
    datasets = {dataset.id: dataset for dataset in loaded.datasets}
    entries = [
        _in_use(datasets[entry["id"]].__dict__, entry, [key for key in entry if not entry_keys[key].restart_safe])
        for entry in loaded.resolved[DATASETS]
    ]
    values = [loaded.flavour.name, _in_use(loaded.options.flat(), loaded.resolved, deciding), entries]
    text = json.dumps(values, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _decides(key: str) -> bool:
    declared = catalogue()[key]
    return not declared.restart_safe or key in _LENGTH or (declared.group in _DECIDING and key != _WAITING)


def _in_use(values: Mapping[str, Any], given: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The values of `keys`; of an object those that were given."""
    return {
        key: _in_use(values[key].__dict__, given[key], given[key])
        if isinstance(values[key], BaseModel) and isinstance(given[key], Mapping)
        else values[key]
        for key in keys
        if not key.startswith(_PLACES)
    }


def _plain(value: Any) -> Any:
    """Of a file its name, of a folder nothing."""
    if isinstance(value, Path):
        return value.name if value.suffix else None
    assert isinstance(value, BaseModel), f"a {type(value).__name__} is no value of an option"
    return value.__dict__
