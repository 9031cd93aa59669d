"""What a run has settled beyond its options: the boundary and the shift in use, and which base weights it trains.

Options that are not set take the flavour's values, and a model's folder may get other contents: both may change between
two starts while no option does. So they are recorded in every checkpoint and beside them. Imports roles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any

from simplewan.app.roles import boundary, training_shift
from simplewan.checkpoints.files import read_record
from simplewan.errors import Problem
from simplewan.flavours import EXPERT_SUBFOLDER
from simplewan.models.wan.loading import transformer_fingerprint
from simplewan.models.wan.sources import source
from simplewan.options import Loaded

SETTLED = "settled"  # the name of a checkpoint's part
FILE = f"{SETTLED}.json"
FIX = "or choose another output_dir for a new run"
# The options whose values in use are recorded.
_IN_USE = {"timestep_boundary": "boundary", "flow_schedule_shift": "shift"}
_OF_MODEL = ("pretrained_", "model_flavour", "revision", "variant")


def settled(loaded: Loaded, *, checkpoint: Path | None = None) -> dict[str, Any]:
    """Timestep of the boundary and shift (None: there is none), and a fingerprint of each transformer that is trained.

    Reads a few megabytes of each, and downloads what is not here. What a `checkpoint` holds, that `differences` found
    to be the same, is not read again.
    """
    options, flavour = loaded.options, loaded.flavour
    known = {} if checkpoint is None else recorded(checkpoint)
    parts = [EXPERT_SUBFOLDER[expert] for expert in flavour.trained_experts]
    prints = {part: known.get(part) or transformer_fingerprint(options.model, flavour, part) for part in parts}
    return {**_in_use(loaded), **prints}


def recorded(folder: Path) -> dict[str, Any]:
    """What was settled of a checkpoint, or of the run in `folder`; {} where that was not yet recorded."""
    return read_record(folder / FILE)


def differences(record: Mapping[str, Any], loaded: Loaded, *, changed: Sequence[str], where: str) -> list[Problem]:
    """What differs from a checkpoint's record; `changed` are the options that do, and are told elsewhere."""
    now, problems = _in_use(loaded), []
    for key, name in _IN_USE.items():
        if name in record and not _same(record[name], now[name]):
            fix = f"set {key}={record[name]:g}, {FIX}" if record[name] is not None else FIX.removeprefix("or ")
            was = "none" if record[name] is None else f"{record[name]:g}"
            problems.append(Problem(where, f"was {was} when it was saved", key=key, value=now[name], fix=fix))
    if any(key.startswith(_OF_MODEL) for key in changed):
        return problems  # another model is named: that it holds other weights goes without saying
    options, flavour = loaded.options, loaded.flavour
    for part in [EXPERT_SUBFOLDER[expert] for expert in flavour.trained_experts]:
        if part in record and record[part] != (found := transformer_fingerprint(options.model, flavour, part)):
            place = source(options.model, flavour, part)
            message = f"was trained on other weights: {part} was {record[part]}, and is {found} now"
            fix = f"put the old weights back, {FIX}"
            problems.append(Problem(where, message, key=place.key, value=place.name, fix=fix))
    return problems


def told_by_options(changed: Sequence[str], record: Mapping[str, Any]) -> list[str]:
    """Of the options that differ those of which not the values in use are compared."""
    return [key for key in changed if _IN_USE.get(key) not in record]


def _in_use(loaded: Loaded) -> dict[str, float | None]:
    edge = boundary(loaded)
    shift = None if loaded.options.flow.flow_schedule_auto_shift else training_shift(loaded)
    return {"boundary": None if edge is None else edge * 1000, "shift": shift}


def _same(one: float | None, other: float | None) -> bool:
    return one == other if one is None or other is None else isclose(one, other)
