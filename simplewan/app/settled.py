"""What a run has settled beyond its options: the boundary and the shift in use, and the weights that it works with.

Options that are not set take the flavour's values, and a model's folder may get other contents: both may change between
two starts while no option does; and a folder may move, which changes nothing but an option. So the values and the
weights themselves are recorded, in every checkpoint and beside them. Imports roles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isclose
from pathlib import Path
from typing import Any

from simplewan.app.roles import boundary, training_shift
from simplewan.checkpoints.files import read_record
from simplewan.errors import Problem
from simplewan.flavours import EXPERT_SUBFOLDER
from simplewan.models.wan.loading import (
    image_encoder_fingerprint,
    text_encoder_fingerprint,
    transformer_fingerprint,
    vae_fingerprint,
)
from simplewan.models.wan.sources import needs_image_embeds, source
from simplewan.options import Loaded

SETTLED = "settled"  # the name of a checkpoint's part
FILE = f"{SETTLED}.json"
FIX = "or choose another output_dir for a new run"
# The options whose values in use are recorded.
_IN_USE = {"timestep_boundary": "boundary", "flow_schedule_shift": "shift"}
# Those that only say where weights are: what lies there is compared.
_PLACES = ("pretrained_", "revision", "variant")


def settled(loaded: Loaded, *, checkpoint: Path | None = None) -> dict[str, Any]:
    """Timestep of the boundary and shift (None: there is none), and a fingerprint of each part that the result depends
    on: the transformers that are trained, VAE, text encoder, image encoder.

    Reads a few megabytes of each, and downloads what is not here. What a `checkpoint` holds, that `differences` found
    to be the same, is not read again.
    """
    known = {} if checkpoint is None else recorded(checkpoint)
    prints = {part: known.get(part) or find() for part, find in _fingerprints(loaded).items()}
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
    for part, find in _fingerprints(loaded).items():
        if part in record and record[part] != (found := find()):
            place = source(loaded.options.model, loaded.flavour, part)
            message = f"has other weights than the run began with: {part} was {record[part]}, and is {found} now"
            fix = f"put the old weights back, {FIX}"
            problems.append(Problem(where, message, key=place.key, value=place.name, fix=fix))
    return problems


def told_by_options(changed: Sequence[str], record: Mapping[str, Any], loaded: Loaded) -> list[str]:
    """Of the options that differ those of which not the values in use, or the weights in place, are compared."""
    knows_weights = _fingerprints(loaded).keys() <= record.keys()
    return [
        key for key in changed if _IN_USE.get(key) not in record and not (knows_weights and key.startswith(_PLACES))
    ]


def _fingerprints(loaded: Loaded) -> dict[str, Callable[[], str]]:
    """By part, what tells its fingerprint."""
    model, flavour = loaded.options.model, loaded.flavour
    trained = [EXPERT_SUBFOLDER[expert] for expert in flavour.trained_experts]
    return {
        **{part: partial(transformer_fingerprint, model, flavour, part) for part in trained},
        "vae": partial(vae_fingerprint, model, flavour),
        "text_encoder": partial(text_encoder_fingerprint, model, flavour),
        **(
            {"image_encoder": partial(image_encoder_fingerprint, model, flavour)} if needs_image_embeds(flavour) else {}
        ),
    }


def _in_use(loaded: Loaded) -> dict[str, float | None]:
    edge = boundary(loaded)
    shift = None if loaded.options.flow.flow_schedule_auto_shift else training_shift(loaded)
    return {"boundary": None if edge is None else edge * 1000, "shift": shift}


def _same(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else isclose(one, other)
