"""Modules built from files alone: transformer, VAE, UMT5 and CLIP in the original naming. Imports torch and keys.

The sizes come from the shapes, what no shape tells from Wan's constants or from a configuration beside the file;
nothing is asked of a hub. Modules are made without memory and are given the tensors of the file, so a model is in
memory once; of tensors that are descriptions alone (weights.py) a model is made that is one, too. What the libraries
keep in float32 is taken as float32 from the file. A tensor too few, too many or of another shape is a ValueError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simplewan.headers import Header, Info, read_headers, weight_files
from simplewan.models.keys import to_diffusers, to_original
from simplewan.models.wan.vae_names import original_vae_name, vae_config
from simplewan.models.wan.weights import Weights
from simplewan.recognition import (
    CLIP_HEAD_WIDTH,
    CLIP_PREFIXES,
    DIFFUSERS,
    HEAD_WIDTH,
    TRANSFORMER,
    VAE,
    Found,
    inside,
    inside_vae,
    of_config,
    of_header,
    read_config,
)

# Tensors that other tools put into files of a text or image encoder, and the module has no use for.
_UNUSED = ("spiece_model", "logit_scale", "encoder.embed_tokens.weight", "lm_head.weight")
# The other half of a whole UMT5 or CLIP, and what brings both towers of CLIP together.
_UNUSED_STARTS = ("decoder.", "text_model.", "text_projection.", "visual_projection.")
_T5 = {
    "token_embedding": "shared",
    "norm": "encoder.final_layer_norm",
    "norm1": "layer.0.layer_norm",
    "attn": "layer.0.SelfAttention",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
_CLIP = {
    "patch_embedding.weight": "embeddings.patch_embedding.weight",
    "cls_embedding": "embeddings.class_embedding",
    "pos_embedding": "embeddings.position_embedding.weight",
    "pre_norm": "pre_layrnorm",
    "post_norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def build_transformer(weights: Weights, dtype: torch.dtype, *, configs: Iterable[Mapping[str, Any]]) -> Any:
    """A WanTransformer3DModel from the weights of a file or a folder of shards, in either naming.

    `configs` may tell what no shape does; the first that is of a model of these sizes is taken. Raises ValueError.
    """
    from diffusers import WanTransformer3DModel

    found = _described(weights)
    transformer = _without_memory(WanTransformer3DModel, transformer_config(found, configs))
    # Both namings have a norm2, not the same one.
    translate, back = (str, str) if found.naming == DIFFUSERS else (_diffusers_name, to_original)
    theirs = {translate(bare): whole for bare, whole in inside(dict.fromkeys(weights.names)).items()}
    ignored = WanTransformer3DModel._keys_to_ignore_on_load_unexpected
    theirs = {name: whole for name, whole in theirs.items() if not any(word in name for word in ignored)}
    kept = set(WanTransformer3DModel._keep_in_fp32_modules)
    names = {name: back(name) for name in transformer.state_dict()} | theirs
    _fill(transformer, weights, names, lambda name: torch.float32 if kept & set(name.split(".")) else dtype)
    return transformer


def build_as_configured(cls: Any, config: Mapping[str, Any], weights: Weights, dtype: torch.dtype) -> Any:
    """A module of diffusers by its own configuration, from weights in diffusers' naming. Raises ValueError."""
    module = _without_memory(cls, config)
    ignored = cls._keys_to_ignore_on_load_unexpected or ()
    names = (*module.state_dict(), *(name for name in weights.names if not any(word in name for word in ignored)))
    _fill(module, weights, {name: name for name in names}, lambda _name: dtype)
    return module


def _without_memory(cls: Any, config: Mapping[str, Any]) -> Any:
    """A module of diffusers without memory, but for its rotary tables, which no file holds."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        return cls.from_config(dict(config))


def described_config(path: Path, *, configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """diffusers' configuration of the transformer in a file or folder, by its headers alone.

    A folder in diffusers' layout has one; of all else it is made as where the model is loaded: by the shapes, and for
    what they do not tell by what lies beside the file, or by `configs`. Raises ValueError for what is no transformer.
    """
    beside = read_config(path if path.is_dir() else path.parent)
    own = of_config(beside) if path.is_dir() else None
    if own is not None and own.naming == DIFFUSERS and own.kind == TRANSFORMER:
        return {key: value for key, value in beside.items() if not key.startswith("_")}
    header = read_headers(weight_files(path))
    found = None if header is None else of_header(header)
    return transformer_config(_sound(found), [beside, *configs])


def transformer_config(found: Found, configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """diffusers' configuration of a transformer by its shapes, and by the first of `configs` that fits them.

    Raises ValueError when the number of heads is nowhere said and does not follow from the width.
    """
    assert found.width is not None, "a transformer that was recognised has a width"
    config: dict[str, Any] = {
        "in_channels": found.in_channels,
        "num_layers": found.blocks,
        "image_dim": found.image_dim or None,
        "added_kv_proj_dim": found.width if found.image_dim else None,
        **found.sizes,
    }
    fitting = (each for each in configs if (other := of_config(each)) and other.size == found.size)
    known = next(fitting, {})
    heads = known.get("num_heads") or known.get("num_attention_heads")
    if heads is None and found.width % HEAD_WIDTH:
        raise ValueError(f"it is {found.width} wide, and no config.json beside it says how many heads that are")
    heads = heads or found.width // HEAD_WIDTH
    config |= {"num_attention_heads": heads, "attention_head_dim": found.width // heads}
    return config | {key: known[key] for key in ("eps", "rope_max_seq_len") if key in known}


def _diffusers_name(name: str) -> str:
    """diffusers' name of a transformer's tensor in the original naming; unknown ones stay, and are told by `_fill`."""
    try:
        return to_diffusers(name)
    except KeyError:
        return name


def build_vae(file: Path, weights: Weights, dtype: torch.dtype) -> Any:
    """An AutoencoderKLWan of either kind from one file in the original naming, or in diffusers' with a config.json.

    Raises ValueError.
    """
    from diffusers import AutoencoderKLWan

    inner = inside_vae(weights.shapes)
    named_as_diffusers = "decoder.conv_in.weight" in inner
    shapes = {bare: weights.shapes[name] for bare, name in inner.items()}
    config = _vae_config_beside(file) if named_as_diffusers else vae_config(shapes)
    vae = _without_memory(AutoencoderKLWan, config)
    names = {name: name for name in vae.state_dict()}
    if not named_as_diffusers:
        kind = {"blocks": config["num_res_blocks"], "residual": config["is_residual"]}
        names = {name: original_vae_name(name, **kind) for name in names}
    surplus = {name: name for name in set(inner) - set(names.values())}
    # What the file lacks is asked for by its bare name, and told by it.
    names = {name: inner.get(bare, bare) for name, bare in (names | surplus).items()}
    _fill(vae, weights, names, lambda _name: dtype)
    return vae


def _vae_config_beside(file: Path) -> dict[str, Any]:
    config = read_config(file.parent)
    found = of_config(config)
    if found is None or found.kind != VAE:
        raise ValueError("it is named as in diffusers, and config.json, which it needs, is not beside it")
    return config


def is_unused(name: str) -> bool:
    """Whether a tensor in a file of UMT5 or CLIP is one that the encoder has no use for, whatever is in it."""
    return name in _UNUSED or name.startswith(_UNUSED_STARTS) or name.endswith("position_ids")


def build_text_encoder(weights: Weights, dtype: torch.dtype) -> tuple[Any, Mapping[str, Any]]:
    """(UMT5EncoderModel, what transformers says of missing weights) from one file in the original or HF's naming."""
    from transformers import UMT5Config, UMT5EncoderModel

    # What transformers keeps in float32 where half precision would overflow.
    kept = set(UMT5EncoderModel._keep_in_fp32_modules or ()) if dtype == torch.float16 else set()
    named = {_t5_name(name): name for name in weights.names if not is_unused(name)}
    state = {
        ours: weights[name].to(torch.float32 if kept & set(ours.split(".")) else dtype) for ours, name in named.items()
    }
    first = "encoder.block.0.layer"
    positions = f"{first}.0.SelfAttention.relative_attention_bias.weight"
    matrices = (f"{first}.0.SelfAttention.q.weight", f"{first}.1.DenseReluDense.wi_0.weight", positions)
    _require(state, dict.fromkeys(("shared.weight", *matrices), 2))
    buckets, heads = state[positions].shape
    config = UMT5Config(
        vocab_size=state["shared.weight"].shape[0],
        d_model=state["shared.weight"].shape[1],
        d_kv=state[f"{first}.0.SelfAttention.q.weight"].shape[0] // heads,
        d_ff=state[f"{first}.1.DenseReluDense.wi_0.weight"].shape[0],
        num_layers=_count(state, r"encoder\.block\.(\d+)\."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )
    return from_state(UMT5EncoderModel, config, state, dtype)


def _t5_name(name: str) -> str:
    """transformers' name of a tensor of UMT5 in the original naming; others stay as they are."""
    inside_block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    start, rest = (f"encoder.block.{inside_block[1]}.", inside_block[2]) if inside_block else ("", name)
    return start + _renamed(rest, _T5)


def build_image_encoder(weights: Weights, dtype: torch.dtype) -> tuple[Any, Mapping[str, Any]]:
    """(CLIPVisionModel, what transformers says of missing weights) from one file in the original or HF's naming."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    state: dict[str, Tensor] = {}
    if any(name.startswith("visual.") for name in weights.names):
        for name in weights.names:  # the text tower beside it is not needed
            if name.startswith("visual.") and name != "visual.head":
                state.update(_clip_tensors(name.removeprefix("visual."), weights[name].to(dtype)))
    else:
        prefix = next(p for p in CLIP_PREFIXES if any(name.startswith(p) for name in weights.names))
        kept = (name for name in weights.names if not is_unused(name))
        state = {name.removeprefix(prefix): weights[name].to(dtype) for name in kept}
    patch, position = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"
    _require(state, {patch: 4, position: 2, "encoder.layers.0.mlp.fc1.weight": 2})
    width, size = state[patch].shape[0], state[patch].shape[-1]
    if width % CLIP_HEAD_WIDTH:
        raise ValueError(f"its image encoder is {width} wide: not CLIP's ViT-H, whose heads are {CLIP_HEAD_WIDTH} wide")
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_count(state, r"encoder\.layers\.(\d+)\."),
        num_attention_heads=width // CLIP_HEAD_WIDTH,
        image_size=math.isqrt(state[position].shape[0] - 1) * size,
        patch_size=size,
        hidden_act="gelu",
    )
    return from_state(CLIPVisionModel, config, state, dtype)


def _clip_tensors(name: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor of the original vision tower under transformers' names; queries, keys and values lie in one there."""
    inside_layer = re.fullmatch(r"transformer\.(\d+)\.(.+)", name)
    start, rest = (f"encoder.layers.{inside_layer[1]}.", inside_layer[2]) if inside_layer else ("", name)
    if rest.startswith("attn.to_qkv."):
        kind = rest.rpartition(".")[2]
        return {f"{start}self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", value.chunk(3), strict=True)}
    if rest in ("cls_embedding", "pos_embedding"):
        value = value.flatten() if rest == "cls_embedding" else value.squeeze(0)
    return {start + _renamed(rest, _CLIP): value}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """`name` with its longest beginning that the table has replaced."""
    head = name
    while head:
        if head in table:
            return table[head] + name.removeprefix(head)
        head = head.rpartition(".")[0]
    return name


def _described(weights: Weights) -> Found:
    tensors = {name: Info("F32", shape) for name, shape in weights.shapes.items()}
    return _sound(of_header(Header(tensors)))


def _sound(found: Found | None) -> Found:
    if found is None or found.kind != TRANSFORMER:
        raise ValueError("it holds no Wan transformer")
    if found.misfit is not None:
        raise ValueError(found.misfit)
    return found


def _fill(module: Any, weights: Weights, names: Mapping[str, str], dtype_of: Callable[[str], torch.dtype]) -> None:
    """Give a module without memory its tensors. Raises ValueError.

    `names` is the module's name -> the file's, or what that would be of a tensor that the file lacks.
    """
    wanted, there = module.state_dict(), set(weights.names)
    missing = [name for name in wanted if names[name] not in there]
    surplus = [names[name] for name in names if name not in wanted]
    if missing or surplus:
        first = "" if not missing else names[missing[0]]
        ours = "" if not missing or missing[0] == first else f" (diffusers' {missing[0]})"
        lacks = [f"it lacks {len(missing)} tensors, {first}{ours} among them"] if missing else []
        holds = [f"it holds {len(surplus)} that Wan has not, {surplus[0]} among them"] if surplus else []
        raise ValueError("; ".join(lacks + holds))
    state = {}
    for name, expected in wanted.items():
        value = weights[names[name]]
        if value.shape != expected.shape:
            raise ValueError(f"{names[name]} has shape {list(value.shape)}, expected {list(expected.shape)}")
        state[name] = value.to(dtype_of(name)).contiguous()
    module.load_state_dict(state, assign=True)


def from_state(cls: Any, config: Any, state: dict[str, Tensor], dtype: torch.dtype) -> tuple[Any, Mapping[str, Any]]:
    model, told = cls.from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        device_map="meta" if all(value.is_meta for value in state.values()) else None,
        ignore_mismatched_sizes=True,  # told by the caller, with what is missing
        output_loading_info=True,
    )
    return model, told


def _require(state: Mapping[str, Tensor], ranks: Mapping[str, int]) -> None:
    """Refuse what lacks one of these tensors, or has it with another number of dimensions."""
    for name, rank in ranks.items():
        if name not in state:
            raise ValueError(f"it lacks {name}")
        if state[name].ndim != rank:
            raise ValueError(f"{name} has shape {list(state[name].shape)}, expected {rank} dimensions")


def _count(state: Iterable[str], pattern: str) -> int:
    return len({match[1] for name in state if (match := re.match(pattern, name))})
