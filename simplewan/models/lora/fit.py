"""What of a file's changes a model has a place for, by names and shapes alone: merging and rendering ask the same.

Imports torch for shapes. A change without a place may be left out, if that is wished; one of another shape never fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from simplewan.errors import some
from simplewan.models.lora.change import Change
from simplewan.models.lora.skeleton import Shapes, Sizes, sizes_of, sizes_of_model


class Misfit(ValueError):
    """The changes and the base are of different models."""


@dataclass(frozen=True)
class Fit:
    """`kept` are the changes that the base has a place for, `lost` the names of the others, out of `modules`.

    `models` says what both are of, `shallow` that blocks of the base are deeper than all that is changed.
    """

    kept: tuple[Change, ...]
    lost: tuple[str, ...]
    modules: int
    models: str
    shallow: str | None

    @property
    def kept_modules(self) -> int:
        return len({change.module for change in self.kept})

    def __str__(self) -> str:
        found = f"only {self.kept_modules} of its {self.modules} modules are in the base"
        return f"{found}, not {some(self.lost)}{self.models}"


def fit(changes: Sequence[Change], shapes: Shapes) -> Fit:
    """How the changes fit a transformer whose weights have these shapes, by diffusers' names.

    Raises Misfit, which says what the changes and the base are of, when none has a place or a shape differs.
    """
    kept: list[Change] = []
    lost: list[str] = []
    for change in changes:
        bias = f"{change.module}.bias"
        if weight_of(change, shapes) is None:
            lost.append(change.module)
        elif change.bias is not None and bias not in shapes:
            lost.append(bias)
            if change.factors:
                kept.append(replace(change, bias=None))
        else:
            kept.append(change)
    ours, theirs = sizes_of(changes), sizes_of_model(shapes)
    shallow = None
    if 0 < ours.blocks < theirs.blocks:
        shallow = f"changes nothing behind block {ours.blocks - 1}, and the base has {theirs.blocks} blocks"
    modules = len({change.module for change in changes})
    found = Fit(tuple(kept), tuple(lost), modules, _other_model(ours, theirs), shallow)
    if not kept:
        raise Misfit(f"none of its {found.modules} modules is in the base, such as {some(lost)}{found.models}")
    for change in kept:
        if (fault := misfit(change, shapes)) is not None:
            raise Misfit(f"{fault}{found.models}")
    return found


def _other_model(ours: Sizes, theirs: Sizes) -> str:
    """That the changes are for another model than the base, as far as they tell; "" when nothing contradicts.

    What a file does not touch tells nothing: that of an I2V model may have no inputs and no image tokens.
    """
    if ours.width is None:
        return ""
    if (
        ours.width != theirs.width
        or ours.blocks > theirs.blocks
        or (ours.image and not theirs.image)
        or (ours.in_channels != theirs.in_channels and None not in (ours.in_channels, theirs.in_channels))
    ) and ours.model != theirs.model:
        return f"; it is for {ours.model}, the base is {theirs.model}"
    if ours.feed_forward != theirs.feed_forward and None not in (ours.feed_forward, theirs.feed_forward):
        return f"; its feed-forward is {ours.feed_forward} wide, the base's {theirs.feed_forward}"
    return ""


def weight_of(change: Change, shapes: Shapes) -> tuple[int, ...] | None:
    """The shape of the weight that is changed: that of a module, or a parameter; None if there is none."""
    return shapes.get(f"{change.module}.weight", shapes.get(change.module))


def misfit(change: Change, shapes: Shapes) -> str | None:
    """Which shape of a change is not that of the weight or the bias it is added to; None when all are."""
    weight, shape = weight_of(change, shapes), change.shape
    if weight is None:
        return f"the base has no {change.module}"
    if shape is not None and (torch.Size(shape).numel() != torch.Size(weight).numel() or shape[0] != weight[0]):
        return f"{change.module} is {shape}, the base's is {weight}"
    if change.dora is not None and not _magnitudes_fit(tuple(change.dora.shape), weight):
        return f"the dora_scale of {change.module} is {tuple(change.dora.shape)}, the base's weight is {weight}"
    bias = shapes.get(f"{change.module}.bias")
    if change.bias is not None and tuple(change.bias.shape) != bias:
        return f"the bias of {change.module} is {tuple(change.bias.shape)}, the base's is {bias}"
    return None


def _magnitudes_fit(dora: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Whether there is one for each row of a matrix (or kernel), or for each column."""
    return len(weight) > 1 and torch.Size(dora).numel() == weight[0 if dora[0] == weight[0] else 1]
