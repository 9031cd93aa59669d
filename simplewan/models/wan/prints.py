"""What a run's result takes from a part of the model, named by short prints: its weights, its configuration, and the
tokenizer or processor beside it.

Imports loading's neighbours. Unlike the fingerprints of cache keys these do not mind what the files of weights are
called, nor what else lies in a folder; the same weights in another format, or in other shards, are others.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simplewan.flavours import EXPERT_SUBFOLDER, Flavour
from simplewan.models.wan.original import described_config
from simplewan.models.wan.rehearsal import base_config, reading
from simplewan.models.wan.sources import (
    ModelSource,
    Source,
    files_fingerprint,
    part_path,
    source,
    weights_fingerprint,
)
from simplewan.recognition import of_config, read_config, recognise

WEIGHTS, CONFIGURATION = "weights", "configuration"
# What goes with a part and is found on its own: its print bears its name.
COMPANION = {"text_encoder": "tokenizer", "image_encoder": "image_processor"}
# What the libraries read of a companion's folder, which may be the encoder's own.
_COMPANION_FILES = {
    "tokenizer": (
        "tokenizer*.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
        "*.model",
    ),
    "image_processor": ("preprocessor_config.json",),
}
# Of a configuration: by which version it was written, and a number format that is not read.
_VOLATILE = ("transformers_version", "dtype", "torch_dtype")


def part_prints(model: ModelSource, flavour: Flavour, part: str) -> dict[str, str]:
    """16 hex digits each, by what they name; what there is none of is absent. Downloads what is not here.

    Raises UserError for files that cannot be read.
    """
    place = source(model, flavour, part)
    with reading(place):
        path = part_path(place)
        prints = {WEIGHTS: weights_fingerprint(path)}
        transformer = part in EXPERT_SUBFOLDER.values()
        config = _transformer_config(model, place, path) if transformer else _config_beside(path, part)
        if config is not None:
            prints[CONFIGURATION] = _print_of(config)
    if companion := COMPANION.get(part):
        place = source(model, flavour, companion)
        with reading(place):
            if found := _companion_print(part_path(place), companion):
                prints[companion] = found
    return prints


def _transformer_config(model: ModelSource, place: Source, path: Path) -> dict[str, Any] | None:
    """diffusers' configuration, as it is loaded: what has its default may be said or not. None of a pickled file."""
    if recognise(path) is None:
        return None
    from diffusers import WanTransformer3DModel

    config = described_config(path, configs=[base_config(model, place.part)])
    parameters = inspect.signature(WanTransformer3DModel.__init__).parameters
    usual = {name: parameter.default for name, parameter in parameters.items()}
    return {key: value for key, value in config.items() if key not in usual or _listed(usual[key]) != value}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _config_beside(path: Path, part: str) -> dict[str, Any] | None:
    """The configuration in a folder; that beside a file where it is one of such a part."""
    config = read_config(path if path.is_dir() else path.parent)
    found = of_config(config)
    own = path.is_dir() or (found is not None and found.kind == part)
    return config if config and own else None


def _companion_print(path: Path, companion: str) -> str | None:
    if path.is_file():  # a text encoder's file holds its tokenizer; the processor of CLIP's has none
        return weights_fingerprint(path) if companion == "tokenizer" else None
    return files_fingerprint({file for pattern in _COMPANION_FILES[companion] for file in path.glob(pattern)})


def _print_of(config: Mapping[str, Any]) -> str:
    lasting = {key: value for key, value in config.items() if not key.startswith("_") and key not in _VOLATILE}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]
