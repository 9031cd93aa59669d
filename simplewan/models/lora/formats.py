"""The names in LoRA files: what a key of any tool means, and how each tool's keys are written. Pure; no torch.

One grammar reads all tools: a prefix, a module in Wan's own names or diffusers' (dots, or underscores in their place),
and what the tensor is. It is generous on purpose; the verifier has its own, narrow reading of what is written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from simplewan.models.keys import UNIVERSAL_PREFIX, find_module

ORIGINAL, DIFFUSERS = "original", "diffusers"
_DOTTED = (
    "base_model.model.",
    "model.diffusion_model.",
    UNIVERSAL_PREFIX,
    "transformer_2.",
    "transformer.",
    "pipe.dit.",
    "unet.",
)
_FLAT = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")
_MARKS = re.compile(r"attn[12][._]|ffn[._]net[._]|condition_embedder|proj_out|scale_shift_table")
_PARTS = {
    "lora_A": "down",
    "lora_down": "down",
    "lora.down": "down",
    "lora_B": "up",
    "lora_up": "up",
    "lora.up": "up",
    "lora_mid": "mid",
    "lora_magnitude_vector": "magnitude",
    "dora_scale": "dora_scale",
    "alpha": "alpha",
    "diff": "diff",
    "diff_b": "diff_b",
    "diff_m": "diff_m",
    "w_norm": "diff",
    "b_norm": "diff_b",
}
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
_PARTS |= {name: name for name in (*LOKR, *LOHA)}
# The longest first: diff_b is no diff. PEFT puts the adapter's name between lora_A and weight.
_WORDS = "|".join(re.escape(word) for word in sorted(_PARTS, key=len, reverse=True))
_KEY = re.compile(rf"(?P<module>.+?)\.(?P<part>{_WORDS})(?:\.(?!weight$|bias$)\w+)?(?P<kind>\.weight|\.bias)?")


@dataclass(frozen=True)
class Key:
    """What a key says: diffusers' name of the module (or parameter), what the tensor is to it, and the prefix."""

    module: str
    part: str
    prefix: str
    word: str


@dataclass(frozen=True)
class Convention:
    """How a tool's keys are written.

    `fold` multiplies alpha / rank into the up matrix, and writes no alpha, for readers that know none. `lycoris`,
    `dora` and `whole` (changes of whole weights, such as norms) say what the tool knows besides LoRA; `bias` is its
    word for the change of a LoRA's bias, `modulation` that of a modulation table, None where it knows none.
    """

    name: str
    prefix: str
    naming: str
    text: str
    flat: bool = False
    down: str = "lora_A.weight"
    up: str = "lora_B.weight"
    fold: bool = True
    lycoris: bool = True
    dora: bool = True
    whole: bool = True
    bias: str | None = None
    modulation: str | None = None


_UNIVERSAL = Convention(
    "universal",
    UNIVERSAL_PREFIX,
    ORIGINAL,
    "diffusion_model, lora_A and lora_B, alpha folded in (scale 1)",
    bias="diff_b",
    modulation="diff_m",
)
# How kohya's tools and lycoris-lora spell a pair; alpha stands beside it.
_KOHYA: dict[str, Any] = {"flat": True, "down": "lora_down.weight", "up": "lora_up.weight", "fold": False}
CONVENTIONS = {
    row.name: row
    for row in (
        _UNIVERSAL,
        replace(_UNIVERSAL, name="comfyui", modulation="modulation.diff"),
        Convention(
            "diffusers",
            "transformer.",
            DIFFUSERS,
            "transformer, diffusers' names, lora_A and lora_B, alpha folded in (scale 1)",
            lycoris=False,
            dora=False,
            whole=False,
            bias="lora_B.bias",
        ),
        Convention(
            "musubi",
            "lora_unet_",
            ORIGINAL,
            "lora_unet, lora_down and lora_up, alpha",
            **_KOHYA,
            dora=False,
            whole=False,
        ),
        Convention(
            "lycoris",
            "lycoris_",
            DIFFUSERS,
            "lycoris, diffusers' names, the factors and alpha of lycoris-lora",
            **_KOHYA,
        ),
    )
}


def naming_of(keys: Iterable[str]) -> str:
    """Whose names a file's modules have: diffusers' when one key has a word that only diffusers uses."""
    return DIFFUSERS if any(_MARKS.search(key) for key in keys) else ORIGINAL


def parse_key(key: str, *, naming: str) -> Key | None:
    """What `key` means; None if it is of no part of a Wan transformer that this knows."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    prefix, name = _split(found["module"])
    part = _PARTS[found["part"]]
    if found["kind"] == ".bias":
        if part != "up":
            return None
        part = "up_bias"
    if part == "diff_m":
        # The modulation table of the block (or head) that is named.
        name = f"{name}_modulation" if prefix in _FLAT else f"{name}.modulation"
        module = find_module(name, naming=ORIGINAL)
        return None if module is None else Key(module, "diff", prefix, found["part"])
    module = find_module(name, naming=naming)
    return None if module is None else Key(module, part, prefix, found["part"])


def _split(name: str) -> tuple[str, str]:
    """(prefix, the rest); dotted prefixes may stand behind each other."""
    rest = name
    while (prefix := next((prefix for prefix in _DOTTED if rest.startswith(prefix)), None)) is not None:
        rest = rest[len(prefix) :]
    if rest != name:
        return name[: len(name) - len(rest)], rest
    prefix = next((prefix for prefix in _FLAT if name.startswith(prefix)), "")
    return prefix, name[len(prefix) :]
