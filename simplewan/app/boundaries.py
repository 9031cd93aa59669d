"""At which noise the experts change when clips are rendered: where the user says, else where the weights were trained.

An expert that acts on noise that it was not trained on shows in the clips alone. Training asks what the model's folder
says of it. Imports weights and roles.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose
from pathlib import Path

from simplewan.app.context import Context
from simplewan.app.roles import boundary
from simplewan.app.weights import Weights
from simplewan.flavours import EXPERT_SUBFOLDER, Flavour, other_model
from simplewan.models.wan.sources import source
from simplewan.options import Loaded
from simplewan.options.inference import model_index


def rendering_boundary(context: Context, weights: Mapping[str, Weights]) -> float | None:
    """The sigma at which the experts change with these weights, which is announced where the flavour's is another.

    Warns of weights that were trained with another one than is used, and of those that were not trained with the same.
    """
    used = boundary(context)
    if used is None:
        return None
    key, own = "timestep_boundary", context.options.flow.timestep_boundary
    told = told_boundaries(weights, context.flavour)
    if not told and (remark := boundary_remark(context.loaded)) is not None:
        context.say(remark, warning=True)
    if own is None and told:
        first = next(iter(told.values()))
        if all(isclose(each, first) for each in told.values()):
            if not isclose(first, used):
                usual = f"that of {context.flavour.model_name} is {_shown(used)}"
                context.say(f"{key} is {_shown(first)}, as these weights were trained; {usual}")
            return first
    others = [f"{place} with {_shown(each)}" for place, each in told.items() if not isclose(each, used)]
    if others:
        fix = "" if own is not None else f"; {key}= takes another"
        context.say(f"{key} is {_shown(used)}, but trained was {', '.join(others)}{fix}", warning=True)
    return used


def boundary_remark(loaded: Loaded) -> str | None:
    """What to say of a folder with both experts whose own boundary is another than the flavour's, which is used."""
    used, options, flavour = boundary(loaded), loaded.options, loaded.flavour
    if used is None or options.flow.timestep_boundary is not None:
        return None
    places = [source(options.model, flavour, EXPERT_SUBFOLDER[expert]) for expert in flavour.experts]
    if not all(place.is_base and place.is_local for place in places):
        return None  # transformers from elsewhere are not what the folder speaks of
    folder = Path(places[0].name).expanduser()
    own = model_index(folder).get("boundary_ratio")
    if not isinstance(own, float) or isclose(own, used):
        return None
    return (
        f"model_index.json in {folder} says {own:g} for the boundary of the experts, but {used:g} is used, that of "
        f"{flavour.model_name}; timestep_boundary={own:g} takes the model's"
    )


def told_boundaries(weights: Mapping[str, Weights], flavour: Flavour) -> dict[str, float]:
    """Where the experts changed in training, by the name of the weights that tell it; another model's tell nothing."""
    told: dict[str, float | None] = {}
    for each in weights.values():
        if each.boundary is not None:
            told[str(each)] = each.boundary
            continue
        for lora in each.loras:
            if other_model(lora.metadata, flavour) is None:
                told[str(lora)] = _sigma(lora.metadata.get("boundary", ""))
    return {place: boundary for place, boundary in told.items() if boundary is not None}


def _sigma(text: str) -> float | None:
    """A boundary in a file's metadata, which others may have written."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _shown(sigma: float) -> str:
    return f"{sigma * 1000:g}"
