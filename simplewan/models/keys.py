"""The two names of every module and parameter of a Wan transformer: diffusers' and the original. Pure; imports nothing.

The original names are those of Wan's own repository; ComfyUI, DiffSynth and LightX2V use them too. A name may be a
module's or a parameter's ("blocks.0.attn1.to_q" or "blocks.0.attn1.to_q.lora_A.weight"): what follows is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

UNIVERSAL_PREFIX = "diffusion_model."

_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE = {"add_k_proj": "k_img", "add_v_proj": "v_img", "norm_added_k": "norm_k_img"}
# diffusers numbers the norms in the order of use; the original's norm3 is the cross-attention's.
_BLOCK = {
    **{f"attn1.{ours}": f"self_attn.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"attn2.{ours}": f"cross_attn.{theirs}" for ours, theirs in (_ATTENTION | _IMAGE).items()},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm1": "norm1",
    "norm2": "norm3",
    "norm3": "norm2",
    "scale_shift_table": "modulation",
}
_TOP = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
_BLOCK_BACK = {theirs: ours for ours, theirs in _BLOCK.items()}
_TOP_BACK = {theirs: ours for ours, theirs in _TOP.items()}
_IN_BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")
_FLAT_BLOCK = re.compile(r"blocks_(\d+)_(.+)")
# In each naming: the name (dots kept, or underscores in their place) to diffusers' name.
_EXACT = {
    "original": (_BLOCK_BACK, _TOP_BACK),
    "diffusers": ({name: name for name in _BLOCK}, {name: name for name in _TOP}),
}
# Names of parameters: all else names a module, whose parameters are weight and bias.
_PARAMETERS = ("scale_shift_table", "pos_embed")


def to_original(name: str) -> str:
    """Wan's own name of diffusers' `name`. Raises KeyError for a name that is neither a module's nor below one."""
    return _translate(name, _BLOCK, _TOP)


def to_diffusers(name: str) -> str:
    """diffusers' name of Wan's own `name`, the inverse of `to_original`. Raises KeyError."""
    return _translate(name, _BLOCK_BACK, _TOP_BACK)


def find_module(name: str, *, naming: str) -> str | None:
    """diffusers' name of exactly the module or parameter `name`, in "original" or "diffusers" `naming`; None if none.

    Dots may be underscores, as in blocks_0_self_attn_q.
    """
    block, top = _EXACT[naming]
    if (inside := _IN_BLOCK.fullmatch(name)) is not None:
        return None if inside[2] not in block else inside[1] + block[inside[2]]
    if (flat := _FLAT_BLOCK.fullmatch(name)) is not None:
        found = next((ours for theirs, ours in block.items() if theirs.replace(".", "_") == flat[2]), None)
        return None if found is None else f"blocks.{flat[1]}.{found}"
    if name in top:
        return top[name]
    return next((ours for theirs, ours in top.items() if theirs.replace(".", "_") == name), None)


def is_parameter(name: str) -> bool:
    """Whether `name`, diffusers', is a parameter's, such as the modulation of a block, and not a module's."""
    return name.rpartition(".")[2] in _PARAMETERS


def _translate(name: str, block: Mapping[str, str], top: Mapping[str, str]) -> str:
    inside = _IN_BLOCK.fullmatch(name)
    if inside is None:
        return _rename(name, top)
    return inside[1] + _rename(inside[2], block)


def _rename(name: str, table: Mapping[str, str]) -> str:
    head, tail = name, ""
    while head:
        if head in table:
            return table[head] + tail
        head, _, last = head.rpartition(".")
        tail = f".{last}{tail}"
    raise KeyError(name)
