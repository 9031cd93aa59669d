"""The weights that a LoRA can change, by diffusers' name and shape: of the model that is there, or the one it tells of.

The names are those of diffusers' WanTransformer3DModel itself, made without memory (on the meta device).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from simplewan.flavours import SIZES, Size
from simplewan.models.lora.change import Change

# The published models by their width.
_PUBLISHED = {size.width: size for size in SIZES.values()}
_IMAGE = "condition_embedder.image_embedder"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """What a file's shapes tell of its model; None where they do not. `blocks` counts up to the last changed."""

    width: int | None
    feed_forward: int | None
    blocks: int
    in_channels: int | None
    image: bool

    @property
    def model(self) -> str:
        """The model in words."""
        known = _PUBLISHED.get(self.width or 0)
        if known is None:
            return f"of no published size ({self.width or '?'} wide, at least {self.blocks} blocks)"
        if self.image:
            return f"Wan 2.1 I2V {known.name} (CLIP's image tokens)"
        if self.in_channels == 36:
            return f"Wan I2V {known.name}"
        return {
            "1.3B": "Wan 2.1 T2V 1.3B",
            "5B": "Wan 2.2 TI2V 5B",
            "14B": "Wan 14B: 2.1, or an expert of 2.2 A14B",
        }[known.name]

    def fault(self) -> str | None:
        """What in the shapes fits no model of this width."""
        known = _PUBLISHED.get(self.width or 0)
        if known is None:
            return None
        if self.blocks > known.blocks:
            return f"it changes block {self.blocks - 1}, and Wan {known.name} has {known.blocks}"
        if self.feed_forward not in (None, known.feed_forward):
            return f"its feed-forward is {self.feed_forward} wide, and that of Wan {known.name} {known.feed_forward}"
        return None


def sizes_of(changes: Sequence[Change]) -> Sizes:
    """What the shapes of the changes tell."""
    shapes = {change.module: shape for change in changes if (shape := change.shape) is not None}
    width = feed_forward = None
    for module, shape in shapes.items():
        if "attn" in module and ".add_" not in module and len(shape) == 2:
            width = shape[1]
        elif module.endswith("ffn.net.0.proj"):
            feed_forward, width = shape[:2]
        elif module.endswith("ffn.net.2"):
            width, feed_forward = shape[:2]
    blocks = [int(change.module.split(".")[1]) for change in changes if change.module.startswith("blocks.")]
    patch = shapes.get("patch_embedding", ())
    image = any(".add_" in change.module or change.module.startswith(_IMAGE) for change in changes)
    return Sizes(width, feed_forward, max(blocks, default=-1) + 1, patch[1] if len(patch) == 5 else None, image)


def shapes_told(changes: Sequence[Change]) -> Shapes:
    """The weights of the model that the changes are for, as far as they tell; Wan's own sizes where it is published."""
    sizes, shapes = sizes_of(changes), {change.module: change.shape or () for change in changes}
    width = sizes.width or max((shape[0] for shape in shapes.values() if len(shape) == 2), default=0)
    if not width:
        raise ValueError("nothing in it tells the width of its model")
    model = _PUBLISHED.get(width) or Size("", width, sizes.feed_forward or width, sizes.blocks, 16)

    def told(module: str, axis: int, otherwise: int) -> int:
        shape = shapes.get(module, ())
        return shape[axis] if len(shape) > axis else otherwise

    embedder = "condition_embedder"
    image_dim = told(f"{_IMAGE}.ff.net.2", 1, 1280) if sizes.image else None
    return shapes_of(
        {
            "num_attention_heads": width // 128 or 1,
            "attention_head_dim": 128 if width >= 128 else width,
            "in_channels": told("patch_embedding", 1, model.latent_channels),
            "out_channels": told("proj_out", 0, model.latent_channels * 4) // 4,
            "text_dim": told(f"{embedder}.text_embedder.linear_1", 1, 4096),
            "freq_dim": told(f"{embedder}.time_embedder.linear_1", 1, 256),
            "ffn_dim": model.feed_forward,
            "num_layers": model.blocks,
            "image_dim": image_dim,
            "added_kv_proj_dim": width if sizes.image else None,
        }
    )


def shapes_of(config: Mapping[str, Any]) -> Shapes:
    """The weights of a transformer, from diffusers' configuration of it."""
    return {name: tuple(parameter.shape) for name, parameter in empty_model(config).named_parameters()}


def config_text(config: Mapping[str, Any]) -> str:
    """A config.json that says all that diffusers' own would."""
    return str(empty_model(config).to_json_string())


def empty_model(config: Mapping[str, Any]) -> Any:
    """A WanTransformer3DModel without memory, from diffusers' configuration of it."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        return WanTransformer3DModel.from_config(dict(config))
