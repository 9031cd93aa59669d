"""What a run has settled beyond its options: the boundary and the shift in use, and the weights that it works with.

Options that are not set take the flavour's values, and a model's folder may get other contents: both may change between
two starts while no option does; and a folder may move, which changes nothing but an option. So the values and the
weights themselves are recorded, in every checkpoint and beside them. Imports roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any

from simplewan.app.roles import boundary, training_shift
from simplewan.checkpoints.files import read_record
from simplewan.errors import Problem
from simplewan.flavours import EXPERT_SUBFOLDER, Flavour
from simplewan.models.wan.loading import image_encoder_fingerprint, text_encoder_fingerprint, vae_fingerprint
from simplewan.models.wan.prints import COMPANION, CONFIGURATION, WEIGHTS, part_prints
from simplewan.models.wan.sources import needs_image_embeds, source
from simplewan.options import Loaded
from simplewan.options.groups.model import ModelOptions

SETTLED = "settled"  # the name of a checkpoint's part
FILE = f"{SETTLED}.json"
FIX = "or choose another output_dir for a new run"
# The options whose values in use are recorded.
_IN_USE = {"timestep_boundary": "boundary", "flow_schedule_shift": "shift"}
# Those that only say where weights are: what lies there is compared. `variant` chooses among what lies there.
_PLACES = ("pretrained_", "revision")
_CHANGED = {
    WEIGHTS: "other weights",
    CONFIGURATION: "another configuration",
    "tokenizer": "another tokenizer",
    "image_processor": "another image processor",
}
# By part what it held before there were several prints of each; of a transformer that of the weights.
_SINGLE = {
    "vae": vae_fingerprint,
    "text_encoder": text_encoder_fingerprint,
    "image_encoder": image_encoder_fingerprint,
}


def settled(loaded: Loaded, *, checkpoint: Path | None = None) -> dict[str, Any]:
    """Timestep of the boundary and shift (None: there is none), and the prints of each part that the result depends on:
    the transformers that are trained, VAE, text encoder, image encoder.

    Reads some megabytes of each, and downloads what is not here. What a `checkpoint` holds, that `differences` found
    to be the same, is not read again, unless an older version wrote it.
    """
    known = {} if checkpoint is None else recorded(checkpoint)
    model, flavour = loaded.options.model, loaded.flavour
    prints = {
        part: known[part] if isinstance(known.get(part), dict) else part_prints(model, flavour, part)
        for part in _parts(flavour)
    }
    return {**_in_use(loaded), **prints}


def recorded(folder: Path) -> dict[str, Any]:
    """What was settled of a checkpoint, or of the run in `folder`; {} where that was not yet recorded."""
    return read_record(folder / FILE)


def differences(record: Mapping[str, Any], loaded: Loaded, *, where: str) -> list[Problem]:
    """What differs from a checkpoint's record."""
    now, problems = _in_use(loaded), []
    for key, name in _IN_USE.items():
        if name in record and not _same(record[name], now[name]):
            fix = f"set {key}={record[name]:g}, {FIX}" if record[name] is not None else FIX.removeprefix("or ")
            was = "none" if record[name] is None else f"{record[name]:g}"
            problems.append(Problem(where, f"was {was} when it was saved", key=key, value=now[name], fix=fix))
    for part in _parts(loaded.flavour):
        if part in record:
            problems += _part_differences(record[part], loaded, part, where=where)
    return problems


def trained_on_others(folder: Path, model: ModelOptions, flavour: Flavour, part: str) -> bool:
    """Whether the run or the checkpoint in `folder` tells that it trained on other files of weights than those now."""
    was = recorded(folder).get(part)
    before = was if was is None or isinstance(was, str) else was.get(WEIGHTS)
    return before is not None and part_prints(model, flavour, part)[WEIGHTS] != before


def _part_differences(was: Mapping[str, str] | str, loaded: Loaded, part: str, *, where: str) -> list[Problem]:
    model, flavour = loaded.options.model, loaded.flavour
    if isinstance(was, str) and part in _SINGLE:
        now = {WEIGHTS: _SINGLE[part](model, flavour)}
    else:
        now = part_prints(model, flavour, part)
    problems = []
    for kind, before in ({WEIGHTS: was} if isinstance(was, str) else was).items():
        if (found := now.get(kind, "none")) != before:
            named = kind if kind == COMPANION.get(part) else part
            place = source(model, flavour, named)
            message = f"has {_CHANGED[kind]} than the run began with: {named} was {before}, and is {found} now"
            fix = f"put the old files back, {FIX}"
            problems.append(Problem(where, message, key=place.key, value=place.name, fix=fix))
    return problems


def told_by_options(changed: Sequence[str], record: Mapping[str, Any], loaded: Loaded) -> list[str]:
    """Of the options that differ those of which not the values in use, or the weights in place, are compared."""
    knows_weights = record.keys() >= {*_parts(loaded.flavour)}
    return [
        key for key in changed if _IN_USE.get(key) not in record and not (knows_weights and key.startswith(_PLACES))
    ]


def _parts(flavour: Flavour) -> list[str]:
    """The parts that are compared."""
    trained = [EXPERT_SUBFOLDER[expert] for expert in flavour.trained_experts]
    return [*trained, "vae", "text_encoder", *(["image_encoder"] if needs_image_embeds(flavour) else [])]


def _in_use(loaded: Loaded) -> dict[str, float | None]:
    edge = boundary(loaded)
    shift = None if loaded.options.flow.flow_schedule_auto_shift else training_shift(loaded)
    return {"boundary": None if edge is None else edge * 1000, "shift": shift}


def _same(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else isclose(one, other)
