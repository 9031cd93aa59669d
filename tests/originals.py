"""Tiny models written as Wan's own repositories and ComfyUI's files hold them, for the tests of weight files.

The names are made here by walking the modules, apart from the tables of the package, so that they check each other.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tiny import tiny_clip, tiny_text, tiny_transformer, tiny_vae, tiny_vae_ti2v
from torch import Tensor

Kind = Literal["t2v", "t2v-a14b", "i2v-2.1", "ti2v"]
T5_FILE, CLIP_FILE = "models_t5_umt5-xxl-enc-bf16.pth", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
CLIP_WIDTH = 160  # two heads, as wide as those of ViT-H
_RESIDUAL = ("norm1", "residual.0"), ("conv1", "residual.2"), ("norm2", "residual.3"), ("conv2", "residual.6")


def original_transformer(transformer: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a transformer under the names of Wan's own model."""
    pairs = [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
        ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
        ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
        ("proj_out", "head.head"),
        (".attn1.", ".self_attn."),
        (".attn2.", ".cross_attn."),
        (".add_k_proj", ".k_img"),
        (".add_v_proj", ".v_img"),
        (".norm_added_k", ".norm_k_img"),
        (".to_out.0", ".o"),
        (".to_q", ".q"),
        (".to_k", ".k"),
        (".to_v", ".v"),
        (".ffn.net.0.proj", ".ffn.0"),
        (".ffn.net.2", ".ffn.2"),
        (".norm2.", ".norm3."),
    ]
    state = {}
    for name, value in transformer.state_dict().items():
        if name.endswith("scale_shift_table"):
            name = "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        state[prefix + name] = value.contiguous()
    return state


def original_config(transformer: Any, kind: str) -> dict[str, Any]:
    """config.json as Wan's own repositories have it."""
    config = transformer.config
    return {
        "_class_name": "WanModel",
        "model_type": kind,
        "dim": config.num_attention_heads * config.attention_head_dim,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "in_dim": config.in_channels,
        "out_dim": config.out_channels,
        "num_heads": config.num_attention_heads,
        "num_layers": config.num_layers,
        "text_len": 512,
        "eps": 1e-06,
    }


def original_vae(vae: Any) -> dict[str, Tensor]:
    """The tensors of either VAE under the names of Wan's own."""
    state: dict[str, Tensor] = {}

    def put(module: Any, name: str) -> None:
        state.update({f"{name}.{key}": value.contiguous() for key, value in module.state_dict().items()})

    def block(module: Any, name: str) -> None:
        if not hasattr(module, "conv1"):  # a change of size
            return put(module, name)
        for ours, theirs in _RESIDUAL:
            put(getattr(module, ours), f"{name}.{theirs}")
        return put(module.conv_shortcut, f"{name}.shortcut")

    residual = vae.config.is_residual
    for side, stages, word in (
        ("encoder", vae.encoder.down_blocks, "downsamples"),
        ("decoder", vae.decoder.up_blocks, "upsamples"),
    ):
        half, flat = getattr(vae, side), 0
        put(half.conv_in, f"{side}.conv1")
        for number, stage in enumerate(stages):
            parts = [stage] if not hasattr(stage, "resnets") else list(stage.resnets)
            for change in ("downsampler", "upsampler"):
                parts += [getattr(stage, change)] if getattr(stage, change, None) is not None else []
            parts += list(getattr(stage, "upsamplers", None) or [])
            for index, part in enumerate(parts):
                block(part, f"{side}.{word}.{number}.{word}.{index}" if residual else f"{side}.{word}.{flat}")
                flat += 1
        block(half.mid_block.resnets[0], f"{side}.middle.0")
        put(half.mid_block.attentions[0], f"{side}.middle.1")
        block(half.mid_block.resnets[1], f"{side}.middle.2")
        put(half.norm_out, f"{side}.head.0")
        put(half.conv_out, f"{side}.head.2")
    put(vae.quant_conv, "conv1")
    put(vae.post_quant_conv, "conv2")
    assert len(state) == len(vae.state_dict())
    return state


def original_text(encoder: Any) -> dict[str, Tensor]:
    """The tensors of UMT5 under the names of Wan's own."""
    state = {"token_embedding.weight": encoder.shared.weight, "norm.weight": encoder.encoder.final_layer_norm.weight}
    for number, block in enumerate(encoder.encoder.block):
        attention, feed = block.layer[0], block.layer[1]
        parts = {
            "norm1": attention.layer_norm,
            **{f"attn.{name}": getattr(attention.SelfAttention, name) for name in "qkvo"},
            "pos_embedding.embedding": attention.SelfAttention.relative_attention_bias,
            "norm2": feed.layer_norm,
            "ffn.gate.0": feed.DenseReluDense.wi_0,
            "ffn.fc1": feed.DenseReluDense.wi_1,
            "ffn.fc2": feed.DenseReluDense.wo,
        }
        state |= {f"blocks.{number}.{name}.weight": part.weight for name, part in parts.items()}
    return {name: value.detach().clone() for name, value in state.items()}


def original_clip(encoder: Any) -> dict[str, Tensor]:
    """The tensors of a CLIP encoder under the names of Wan's own, with a stub of the text tower beside it."""
    weights = {key.removeprefix("vision_model."): value for key, value in encoder.state_dict().items()}
    width = encoder.config.hidden_size
    state = {
        "visual.patch_embedding.weight": weights["embeddings.patch_embedding.weight"],
        "visual.cls_embedding": weights["embeddings.class_embedding"].view(1, 1, width),
        "visual.pos_embedding": weights["embeddings.position_embedding.weight"][None],
        "visual.head": torch.zeros(width, 8),
        "textual.token_embedding.weight": torch.zeros(3, 4),
        "log_scale": torch.zeros(()),
    }
    for kind in ("weight", "bias"):
        state[f"visual.pre_norm.{kind}"] = weights[f"pre_layrnorm.{kind}"]
        state[f"visual.post_norm.{kind}"] = weights[f"post_layernorm.{kind}"]
        for number in range(encoder.config.num_hidden_layers):
            ours, theirs = f"encoder.layers.{number}", f"visual.transformer.{number}"
            fused = [weights[f"{ours}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            state[f"{theirs}.attn.to_qkv.{kind}"] = torch.cat(fused)
            for old, new in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("mlp.0", "mlp.fc1"),
                             ("mlp.2", "mlp.fc2"), ("attn.proj", "self_attn.out_proj")):  # fmt: skip
                state[f"{theirs}.{old}.{kind}"] = weights[f"{ours}.{new}.{kind}"]
    return {name: value.detach().clone() for name, value in state.items()}


def fp8_scaled(state: dict[str, Tensor], *, marker: bool, suffix: str = "scale_weight") -> dict[str, Tensor]:
    """The same with every matrix as fp8 and a scale a tensor, as ComfyUI has it."""
    scaled: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if marker else {}
    for name, value in state.items():
        if not name.endswith(".weight") or value.ndim != 2:
            scaled[name] = value
            continue
        scale = value.abs().max().float() / 448
        scaled[name] = (value.float() / scale).to(torch.float8_e4m3fn)
        scaled[f"{name.removesuffix('weight')}{suffix}"] = scale
        scaled[f"{name.removesuffix('weight')}scale_input"] = torch.ones(())
    return scaled


def sentencepiece(vocabulary: list[tuple[str, float]]) -> bytes:
    """A SentencePiece model of these pieces and scores, as a protocol buffer."""
    message = b""
    for text, score in vocabulary:
        piece = b"\x0a" + _length(text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18\x01"
        message += b"\x0a" + _length(piece)
    return message + b"\x12" + _length(b"\x18\x02")  # a trainer's settings, which nobody needs


def _length(content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([len(content)]) + content


def save_shards(transformer: Any, folder: Path, *, kind: str = "t2v", config: bool = True) -> Path:
    """A transformer in two shards with an index, as the official repositories have it."""
    folder.mkdir(parents=True, exist_ok=True)
    state = original_transformer(transformer)
    names = list(state)
    shards = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        shards |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": shards}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    if config:
        (folder / "config.json").write_text(json.dumps(original_config(transformer, kind)))
    return folder


def save_original_model(folder: Path, kind: Kind, *, seed: int = 0) -> Path:
    """A whole model laid out as the original repositories are, with the weights of tiny.save_tiny_model(seed)."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "t2v-a14b":
        save_shards(tiny_transformer(seed=seed), folder / "high_noise_model")
        save_shards(tiny_transformer(seed=seed + 1), folder / "low_noise_model")
    elif kind == "ti2v":
        save_shards(tiny_transformer(in_channels=48, out_channels=48, seed=seed), folder, kind="ti2v")
    elif kind == "i2v-2.1":
        save_shards(tiny_transformer(in_channels=36, image_dim=CLIP_WIDTH, seed=seed), folder, kind="i2v")
        torch.save(original_clip(tiny_clip(dim=CLIP_WIDTH, seed=seed)[1]), folder / CLIP_FILE)
    else:
        save_shards(tiny_transformer(seed=seed), folder)
    vae, name = (
        (tiny_vae_ti2v(seed=seed), "Wan2.2_VAE.pth") if kind == "ti2v" else (tiny_vae(seed=seed), "Wan2.1_VAE.pth")
    )
    torch.save(original_vae(vae), folder / name)
    tokenizer, encoder = tiny_text(seed=seed)
    torch.save(original_text(encoder), folder / T5_FILE)
    tokenizer.save_pretrained(folder / "google/umt5-xxl")
    return folder
