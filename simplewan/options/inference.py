"""Which flavour is meant when `model_flavour` is not set: from the model that the options name. No torch, no network.

Imports flavours and recognition. A repository tells by its name, what is local by its configurations and headers. What
two flavours share is settled by the name, else by the more common one, which is said; which expert of Wan 2.2 a file is
has to be told, since training the wrong one shows only much later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simplewan.errors import Problem
from simplewan.flavours import (
    DEFAULT_FLAVOUR,
    FLAVOURS,
    HIGH,
    LOW,
    Flavour,
    not_trained,
    of_repository,
    unsupported,
)
from simplewan.options.groups.model import ModelOptions
from simplewan.options.paths import Paths
from simplewan.recognition import TRANSFORMER, Found, part_in, recognise, told_version

BASE = "pretrained_model_name_or_path"
TRANSFORMER_KEYS = {
    HIGH: "pretrained_transformer_model_name_or_path",
    LOW: "pretrained_transformer_2_model_name_or_path",
}
_SUBFOLDER_KEYS = {HIGH: "pretrained_transformer_subfolder", LOW: "pretrained_transformer_2_subfolder"}
_PARTS = {HIGH: "transformer", LOW: "transformer_2"}
_TASK = re.compile(r"(?<![a-z0-9])(ti2v|t2v|i2v)(?![a-z0-9])")
_SIZE = re.compile(r"(?<![a-z0-9.])(1[._]3b|a14b|14b|5b)(?![a-z0-9])")
_RESOLUTION = re.compile(r"720|480")


@dataclass(frozen=True)
class Inferred:
    """A flavour, what it was inferred from (None: nothing was named), and what had to be assumed."""

    flavour: Flavour
    source: str | None = None
    assumed: str | None = None

    @property
    def announcement(self) -> str:
        """What a person should read of it who trains."""
        name = self.flavour.name
        parts = [self.told]
        if self.source is not None and self.flavour.boundary is not None and self.flavour.stage is None:
            parts.append(f"both experts are trained; {name}-high or {name}-low trains one")
        return "; ".join(parts)

    @property
    def told(self) -> str:
        """The same, without what concerns training alone."""
        if self.source is None:
            return f"model_flavour is not set, nor is a model named: {self.flavour.name}"
        told = f"model_flavour is {self.flavour.name}, by {self.source}"
        return f"{told}; {self.assumed}" if self.assumed else told


def infer_flavour(model: ModelOptions, paths: Paths) -> Inferred | Problem:
    """The flavour of the model that the options name, or why it must be set (a Problem, whose `where` is its key)."""
    base = model.pretrained_model_name_or_path
    if base is not None:
        folder = paths(Path(base))
        if folder.exists():
            return _of_folder(folder, base) if folder.is_dir() else _of_files(BASE, base, {HIGH: folder})
        return _of_name(base)
    named = {expert: str(value) for expert, key in TRANSFORMER_KEYS.items() if (value := getattr(model, key))}
    if not named:
        return Inferred(FLAVOURS[DEFAULT_FLAVOUR])
    first = next(iter(named))
    places = {expert: _place(model, paths, expert, name) for expert, name in named.items()}
    if not all(place.exists() for place in places.values()):
        return _of_name(named[first], TRANSFORMER_KEYS[first], single=first if len(named) == 1 else None)
    return _of_files(TRANSFORMER_KEYS[first], named[first], places)


def _place(model: ModelOptions, paths: Paths, expert: str, name: str) -> Path:
    """Where a transformer lies that has an option of its own: a file, its folder, or a model's folder."""
    path = paths(Path(name))
    subfolder = getattr(model, _SUBFOLDER_KEYS[expert])
    if not path.is_dir() or subfolder == "none":
        return path
    return path / subfolder if subfolder else part_in(path, _PARTS[expert]) or path


def _of_name(name: str, key: str = BASE, *, single: str | None = None) -> Inferred | Problem:
    """By the name of a repository, published or not; `single` is the one expert that is taken from it."""
    if (what := unsupported(name)) is not None:
        return Problem(key, f"is {what}, which is not trained here", key, name)
    if known := of_repository(name):
        row = known[0]
        if single is not None and row.boundary is not None:
            row = FLAVOURS[f"{row.name}-{single}"]
        return Inferred(row, f"the repository {name}")
    lowered = name.lower()
    task, size = _TASK.findall(lowered), _SIZE.findall(lowered)
    if task and (size or task[-1] == "ti2v"):
        told = _row(task[-1], size[-1].replace("_", ".") if size else "5b", lowered)
        if told is not None:
            return Inferred(told, f"the words in {name}", "set model_flavour if that is wrong")
    return Inferred(FLAVOURS[DEFAULT_FLAVOUR], f"default: {name} does not tell", "set model_flavour if that is wrong")


def _row(task: str, size: str, words: str) -> Flavour | None:
    if task == "ti2v":
        return FLAVOURS["ti2v-5b-2.2"]
    if size == "1.3b":
        return FLAVOURS["t2v-480p-1.3b-2.1"] if task == "t2v" else None
    if told_version(*reversed(words.split("/"))) == "2.2":
        return FLAVOURS[f"{task}-a14b-2.2"]
    if task == "t2v":
        return FLAVOURS["t2v-480p-14b-2.1"]
    return FLAVOURS["i2v-14b-2.1-720p" if "720" in words else "i2v-14b-2.1"]


def _of_folder(folder: Path, name: str) -> Inferred | Problem:
    """By a whole model on this machine, in either layout."""
    parts = {expert: part for expert in (HIGH, LOW) if (part := part_in(folder, _PARTS[expert])) is not None}
    boundary = model_index(folder).get("boundary_ratio")
    if not parts:
        return Inferred(FLAVOURS[DEFAULT_FLAVOUR], f"default: {name} holds no transformer")
    return _of_files(BASE, name, parts, two_experts=boundary is not None or len(parts) == 2)


def model_index(folder: Path) -> dict[str, object]:
    """What a model's folder tells of itself as a whole; {} where there is nothing."""
    try:
        content = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # what is wrong with it is told where the model is looked at
        return {}
    return content if isinstance(content, dict) else {}


def _of_files(key: str, name: str, places: dict[str, Path], *, two_experts: bool | None = None) -> Inferred | Problem:
    """By the transformers that are given, under the expert whose option (or folder) names them."""
    try:
        found = {expert: recognise(place) for expert, place in places.items()}
    except (OSError, ValueError) as error:
        return Problem(key, f"cannot be read: {error}", key, name, "copy or download it again")
    one = next(iter(found.values()))
    if one is None or one.kind != TRANSFORMER:  # what it is instead is told where the files are checked
        return Inferred(FLAVOURS[DEFAULT_FLAVOUR], f"default: {name} is no transformer that is known")
    if (what := not_trained(one.task, one.in_channels)) is not None:
        return Problem(key, f"is {what}, which is not trained here", key, name, "give a T2V, I2V or TI2V model")
    if two_experts or len(places) == 2:
        return Inferred(FLAVOURS[f"{one.task if one.task == 'i2v' else 't2v'}-a14b-2.2"], f"the two experts of {name}")
    expert, place = next(iter(places.items()))
    # The file's own name first, then its folder's. A name that ends in no file's ending has no stem.
    words = (place.stem if place.is_file() else place.name, place.parent.name, name)
    return _of_transformer(one, expert, key, name, words)


def _of_transformer(found: Found, expert: str, key: str, name: str, words: Sequence[str]) -> Inferred | Problem:
    """By one transformer: its inputs, its size, and where they do not settle it, the first of `words` that does."""
    source = f"the transformer in {name} ({found.width} wide, {found.blocks} blocks, {found.in_channels} channels)"
    row: str | None = None
    assumed: str | None = None
    if found.task == "ti2v":
        row = "ti2v-5b-2.2"
    elif found.task == "i2v" and found.image_dim:
        resolution = next((told[0] for each in words if (told := _RESOLUTION.search(each))), None)
        row = "i2v-14b-2.1-720p" if resolution == "720" else "i2v-14b-2.1"
        if resolution is None:
            assumed = "480p is assumed; i2v-14b-2.1-720p is the other"
    elif found.width == 5120 or found.task == "i2v":
        stage = found.expert or (LOW if expert == LOW else None)
        version = told_version(*words)
        if found.task == "t2v" and stage is None and version != "2.2":
            row = "t2v-480p-14b-2.1"
            if version is None:
                assumed = "an expert of Wan 2.2 looks the same: set t2v-a14b-2.2-high or -low if it is one"
        elif stage is None:
            fix = f"set model_flavour to {found.task}-a14b-2.2-high or {found.task}-a14b-2.2-low"
            return Problem(key, "is one expert of Wan 2.2, and nothing tells which", key, name, fix)
        elif key != BASE and stage != expert:
            fix = f"name it with {TRANSFORMER_KEYS[stage]}; a file is known by its name"
            return Problem(
                key, f"is the {stage}-noise expert of Wan 2.2, expected the {expert}-noise one", key, name, fix
            )
        else:
            row = f"{found.task}-a14b-2.2-{stage}"
    row = row or DEFAULT_FLAVOUR
    return Inferred(FLAVOURS[row], source, assumed)
