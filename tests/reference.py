"""A Wan transformer written down from the papers, over a plain state dict in Wan's own names: slow, and easy to read.

The oracle of our forward and of file loading: it shares no code with simplewan or diffusers, and runs in float64.
Sources: Wan (arXiv 2503.20314) for the architecture; DiT (2212.09748) for the modulation; RoFormer (2104.09864) for
rotary positions, here on three axes; RMSNorm (1910.07467) of queries and keys. Names and shapes are those of the public
weight files.

Legend: C channels, F, H, W latent frames, height, width, S tokens, L text tokens, D width, N heads, E = D / N,
Q size of the sinusoid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
PATCH = (1, 2, 2)
EPS = 1e-6
IMAGE_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer; `image_dim` is the width of the CLIP tokens of Wan 2.1 I2V."""

    in_channels: int = 16
    out_channels: int = 16
    dim: int = 48
    heads: int = 2
    layers: int = 2
    ffn_dim: int = 80
    freq_dim: int = 32
    text_dim: int = 32
    image_dim: int | None = None


def random_state(shape: Shape, *, seed: int) -> State:
    """Every weight of a transformer of this shape, float32, none of them zero or one, so that none can go unused."""
    dim, wide = shape.dim, shape.ffn_dim
    sizes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, shape.in_channels, *PATCH),
        "patch_embedding.bias": (dim,),
        "head.modulation": (1, 2, dim),
    }

    def linear(name: str, inner: int, outer: int) -> None:
        sizes[f"{name}.weight"], sizes[f"{name}.bias"] = (outer, inner), (outer,)

    linear("time_embedding.0", shape.freq_dim, dim)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", dim, 6 * dim)
    linear("text_embedding.0", shape.text_dim, dim)
    linear("text_embedding.2", dim, dim)
    linear("head.head", dim, shape.out_channels * math.prod(PATCH))
    if shape.image_dim:
        linear("img_emb.proj.1", shape.image_dim, shape.image_dim)
        linear("img_emb.proj.3", shape.image_dim, dim)
        for norm, width in (("0", shape.image_dim), ("4", dim)):
            sizes[f"img_emb.proj.{norm}.weight"] = sizes[f"img_emb.proj.{norm}.bias"] = (width,)
    for block in (f"blocks.{index}" for index in range(shape.layers)):
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"{block}.{attention}.{part}", dim, dim)
            for norm in ("norm_q", "norm_k"):
                sizes[f"{block}.{attention}.{norm}.weight"] = (dim,)
        if shape.image_dim:
            linear(f"{block}.cross_attn.k_img", dim, dim)
            linear(f"{block}.cross_attn.v_img", dim, dim)
            sizes[f"{block}.cross_attn.norm_k_img.weight"] = (dim,)
        linear(f"{block}.ffn.0", dim, wide)
        linear(f"{block}.ffn.2", wide, dim)
        sizes[f"{block}.norm3.weight"] = sizes[f"{block}.norm3.bias"] = (dim,)
        sizes[f"{block}.modulation"] = (1, 6, dim)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, size in sizes.items():
        fan_in = math.prod(size[1:]) if len(size) > 1 and not name.endswith("modulation") else 16
        state[name] = torch.randn(size, generator=generator) / math.sqrt(fan_in)
        if len(size) == 1 and name.endswith("weight"):  # of a norm
            state[name] += 1
    return state


def forward(
    state: State,
    latents_CFHW: Tensor,
    timestep: Tensor,
    text_LD: Tensor,
    image_LD: Tensor | None = None,
    *,
    heads: int,
    angles_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The velocity of one sample, (C, F, H, W) -> (out channels, F, H, W), in the dtype of `latents_CFHW`.

    `timestep` 0..1000: one number (), or one for each token (S,), tokens in the order of frames, rows, columns.
    `angles_dtype` is that of the timesteps' sinusoids: in float32 an angle near 1000 is off by 3e-5.
    """
    state = {name: value.to(latents_CFHW.dtype) for name, value in state.items()}
    grid = tuple(size // step for size, step in zip(latents_CFHW.shape[1:], PATCH, strict=True))
    tokens_SD = embed_patches(state, latents_CFHW, grid)
    times_S = timestep.to(latents_CFHW.dtype).expand(len(tokens_SD))
    sinusoids = sinusoid(times_S, state["time_embedding.0.weight"].shape[1], angles_dtype)
    time_SD = linear(state, "time_embedding.0", sinusoids)
    time_SD = linear(state, "time_embedding.2", silu(time_SD))
    modulation_S6D = linear(state, "time_projection.1", silu(time_SD)).unflatten(1, (6, -1))
    context_LD = linear(state, "text_embedding.2", gelu_tanh(linear(state, "text_embedding.0", text_LD)))
    if image_LD is not None:
        image_LD = embed_image(state, image_LD)
    angles_SE = rotary_angles(grid, tokens_SD.shape[1] // heads).to(tokens_SD.dtype)
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for layer in range(layers):
        prefix = f"blocks.{layer}"
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (state[f"{prefix}.modulation"] + modulation_S6D).unbind(1)
        normed = layer_norm(tokens_SD) * (1 + scale) + shift
        tokens_SD = tokens_SD + gate * self_attention(state, f"{prefix}.self_attn", normed, angles_SE, heads)
        normed = layer_norm(tokens_SD) * state[f"{prefix}.norm3.weight"] + state[f"{prefix}.norm3.bias"]
        tokens_SD = tokens_SD + cross_attention(state, f"{prefix}.cross_attn", normed, context_LD, image_LD, heads)
        normed = layer_norm(tokens_SD) * (1 + ffn_scale) + ffn_shift
        inner = gelu_tanh(linear(state, f"{prefix}.ffn.0", normed))
        tokens_SD = tokens_SD + ffn_gate * linear(state, f"{prefix}.ffn.2", inner)
    shift, scale = (state["head.modulation"] + time_SD.unsqueeze(1)).unbind(1)
    patches = linear(state, "head.head", layer_norm(tokens_SD) * (1 + scale) + shift)
    return put_patches_back(patches, grid)


def embed_patches(state: State, latents_CFHW: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Each patch of 1 x 2 x 2 latents times the kernel; (S, D)."""
    kernel, bias = state["patch_embedding.weight"], state["patch_embedding.bias"]
    tokens = []
    for f, h, w in positions(grid):
        patch = latents_CFHW[:, f : f + 1, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        tokens.append((kernel * patch).sum(dim=(1, 2, 3, 4)) + bias)
    return torch.stack(tokens)


def put_patches_back(patches_SP: Tensor, grid: tuple[int, ...]) -> Tensor:
    """A token's values are its patch, channels last; (C, F, H, W)."""
    frames, rows, columns = grid
    channels = patches_SP.shape[1] // math.prod(PATCH)
    result = patches_SP.new_empty(channels, frames, 2 * rows, 2 * columns)
    for patch, (f, h, w) in zip(patches_SP, positions(grid), strict=True):
        result[:, f, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2] = patch.view(2, 2, channels).permute(2, 0, 1)
    return result


def positions(grid: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Frame, row and column of every token, in their order."""
    frames, rows, columns = grid
    return [(f, h, w) for f in range(frames) for h in range(rows) for w in range(columns)]


def sinusoid(times_S: Tensor, size: int, angles_dtype: torch.dtype) -> Tensor:
    """cos and sin of t * 10000^(-i / (Q/2)); (S, Q) in the dtype of the times."""
    half = size // 2
    rates = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=angles_dtype))
    angles = times_S[:, None].to(angles_dtype) * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(times_S.dtype)


def embed_image(state: State, image_LD: Tensor) -> Tensor:
    """CLIP tokens as the blocks read them: norm, two layers, norm."""
    normed = layer_norm(image_LD, IMAGE_NORM_EPS) * state["img_emb.proj.0.weight"] + state["img_emb.proj.0.bias"]
    inner = linear(state, "img_emb.proj.1", normed)
    inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
    outer = layer_norm(linear(state, "img_emb.proj.3", inner), IMAGE_NORM_EPS)
    return outer * state["img_emb.proj.4.weight"] + state["img_emb.proj.4.bias"]


def rotary_angles(grid: tuple[int, ...], head_dim: int) -> Tensor:
    """The angle of every pair of a head's values at every token, (S, E/2): pairs of time, then of rows, then columns.

    Rows and columns have a third of the pairs each, rounded down; time has what is left.
    """
    third = head_dim // 6
    pairs = (head_dim // 2 - 2 * third, third, third)
    angles = []
    for place in positions(grid):
        of_token = [at * 10000.0 ** (-i / count) for at, count in zip(place, pairs, strict=True) for i in range(count)]
        angles.append(of_token)
    return torch.tensor(angles, dtype=torch.float64)


def rotate(values_NSE: Tensor, angles_SE: Tensor) -> Tensor:
    """Turn each pair (values 2i and 2i + 1) by its angle."""
    first, second = values_NSE[..., 0::2], values_NSE[..., 1::2]
    cos, sin = angles_SE.cos(), angles_SE.sin()
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2)


def self_attention(state: State, name: str, tokens_SD: Tensor, angles_SE: Tensor, heads: int) -> Tensor:
    query = split(rms_norm(linear(state, f"{name}.q", tokens_SD), state[f"{name}.norm_q.weight"]), heads)
    key = split(rms_norm(linear(state, f"{name}.k", tokens_SD), state[f"{name}.norm_k.weight"]), heads)
    value = split(linear(state, f"{name}.v", tokens_SD), heads)
    return linear(state, f"{name}.o", attend(rotate(query, angles_SE), rotate(key, angles_SE), value))


def cross_attention(
    state: State, name: str, tokens_SD: Tensor, context_LD: Tensor, image_LD: Tensor | None, heads: int
) -> Tensor:
    """Attention to the text; to the image tokens with keys and values of their own, the two results added."""
    query = split(rms_norm(linear(state, f"{name}.q", tokens_SD), state[f"{name}.norm_q.weight"]), heads)
    key = split(rms_norm(linear(state, f"{name}.k", context_LD), state[f"{name}.norm_k.weight"]), heads)
    result = attend(query, key, split(linear(state, f"{name}.v", context_LD), heads))
    if image_LD is not None:
        key = split(rms_norm(linear(state, f"{name}.k_img", image_LD), state[f"{name}.norm_k_img.weight"]), heads)
        result = result + attend(query, key, split(linear(state, f"{name}.v_img", image_LD), heads))
    return linear(state, f"{name}.o", result)


def attend(query_NSE: Tensor, key_NLE: Tensor, value_NLE: Tensor) -> Tensor:
    """softmax(q k / sqrt(E)) v, heads joined: (S, D)."""
    scores = query_NSE @ key_NLE.transpose(1, 2) / math.sqrt(query_NSE.shape[-1])
    return (scores.softmax(dim=-1) @ value_NLE).transpose(0, 1).flatten(1)


def split(values_SD: Tensor, heads: int) -> Tensor:
    return values_SD.unflatten(1, (heads, -1)).transpose(0, 1)


def linear(state: State, name: str, values: Tensor) -> Tensor:
    return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(values: Tensor, eps: float = EPS) -> Tensor:
    centred = values - values.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(dim=-1, keepdim=True) + eps)


def rms_norm(values: Tensor, weight: Tensor) -> Tensor:
    return values / torch.sqrt(values.square().mean(dim=-1, keepdim=True) + EPS) * weight


def silu(values: Tensor) -> Tensor:
    return values * torch.sigmoid(values)


def gelu_tanh(values: Tensor) -> Tensor:
    return values * (1 + torch.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3))) / 2
