"""The names and sizes of Wan's two VAEs in their original files, told by diffusers' names. Pure; no torch.

The VAE of Wan 2.1 lists its blocks flat; that of 2.2 (TI2V) in stages. diffusers' own converter knows the first only,
with two residual blocks a stage; here both follow from the structure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_TOP = {
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
    "conv_in": "conv1",
    "norm_out": "head.0",
    "conv_out": "head.2",
    "mid_block.resnets.0": "middle.0",
    "mid_block.attentions.0": "middle.1",
    "mid_block.resnets.1": "middle.2",
}
# Mean and standard deviation of the latents of Wan 2.2's VAE (those of 2.1's are diffusers' defaults).
MEAN_22 = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
STD_22 = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip
_STAGE = re.compile(r"encoder\.downsamples\.(\d+)\.downsamples\.(\d+)\.residual\.2\.weight")
_FLAT = re.compile(r"encoder\.downsamples\.(\d+)\.(residual\.2|resample\.1)\.weight")


def original_vae_name(name: str, *, blocks: int, residual: bool) -> str:
    """The original name of diffusers' `name`; `blocks` residual blocks a stage of the encoder, one more in the decoder.

    `residual` is the VAE of Wan 2.2.
    """
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return _TOP[side] + "." + rest
    stage = re.fullmatch(r"(?:down|up)_blocks\.(\d+)\.(.+)", rest)
    if stage is None:
        return f"{side}.{_top(rest)}"
    index, inner = int(stage[1]), stage[2]
    down = "downsamples" if side == "encoder" else "upsamples"
    layer = re.fullmatch(r"(resnets\.(\d+)|downsampler|upsampler|upsamplers\.0)\.(.+)", inner)
    if layer is None:  # the flat list of 2.1's encoder
        return f"{side}.{down}.{index}.{_leaf(inner)}"
    length = blocks if side == "encoder" else blocks + 1
    place = length if layer[2] is None else int(layer[2])
    where = f"{index}.{down}.{place}" if residual else f"{index * (length + 1) + place}"
    return f"{side}.{down}.{where}.{_leaf(layer[3])}"


def _top(rest: str) -> str:
    for ours, theirs in _TOP.items():
        if rest.startswith(f"{ours}."):
            return f"{theirs}.{_leaf(rest.removeprefix(f'{ours}.'))}"
    raise KeyError(rest)


def _leaf(name: str) -> str:
    head, _, tail = name.partition(".")
    return f"{_RESIDUAL[head]}.{tail}" if head in _RESIDUAL else name


def vae_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """diffusers' configuration of a VAE in the original naming by its shapes. Raises ValueError for another."""
    needed = ("encoder.conv1.weight", "conv2.weight", "decoder.head.2.weight")
    if missing := [name for name in needed if name not in shapes]:
        raise ValueError(f"it is no Wan VAE in the original naming: it lacks {missing[0]}")
    convolutions = (*needed, *(name for name in shapes if _STAGE.fullmatch(name) or _FLAT.fullmatch(name)))
    if odd := [name for name in convolutions if len(shapes[name]) not in (4, 5)]:
        raise ValueError(f"{odd[0]} has shape {list(shapes[odd[0]])}, and is no convolution's")
    residual = any(map(_STAGE.fullmatch, shapes))
    stages = _stages(shapes) if residual else _flat_stages(shapes)
    base, latents = shapes["encoder.conv1.weight"][0], shapes["conv2.weight"][0]
    if not stages or latents != (48 if residual else 16):
        raise ValueError(f"it is no Wan VAE: {latents} channels, {len(stages)} stages")
    config: dict[str, Any] = {
        "base_dim": base,
        "z_dim": latents,
        "dim_mult": [widths[-1] // base for widths in stages],
        "num_res_blocks": len(stages[0]),
        "is_residual": residual,
    }
    if not residual:
        return config
    return config | {
        "decoder_base_dim": shapes["decoder.head.2.weight"][1] // config["dim_mult"][0],
        "in_channels": shapes["encoder.conv1.weight"][1],
        "out_channels": shapes["decoder.head.2.weight"][0],
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": list(MEAN_22),
        "latents_std": list(STD_22),
    }


def _stages(shapes: Mapping[str, tuple[int, ...]]) -> list[list[int]]:
    """The widths of the residual blocks of each stage of 2.2's encoder."""
    found = [(int(match[1]), shapes[name][0]) for name in shapes if (match := _STAGE.fullmatch(name))]
    return [[width for other, width in found if other == stage] for stage in sorted({stage for stage, _ in found})]


def _flat_stages(shapes: Mapping[str, tuple[int, ...]]) -> list[list[int]]:
    """The same for 2.1's, whose stages end where the size changes."""
    found = sorted((int(match[1]), match[2], shapes[name][0]) for name in shapes if (match := _FLAT.fullmatch(name)))
    stages: list[list[int]] = [[]]
    for _, kind, width in found:
        if kind == "residual.2":
            stages[-1].append(width)
        else:
            stages.append([])
    return [stage for stage in stages if stage]
