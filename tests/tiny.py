"""Tiny models of the real classes, built in code and seeded, for everybody's tests. Nothing is downloaded.

`save_tiny_model(folder)` writes a diffusers WanPipeline folder (transformer, optionally transformer_2, VAE, UMT5 text
encoder, tokenizer, scheduler) of a few hundred kilobytes, `save_tiny_image_model(folder)` one of I2V or TI2V, with a
CLIP encoder where Wan has one; the other builders return one module each, in eval mode.
The global torch generator is left as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT_DIM = 32
CLIP_DIM = 24
ImageKind = Literal["2.1", "2.2", "ti2v"]
WORDS = tuple(
    """
    a an the of in on at with and to is are red green blue yellow white black circle square ball cat dog man woman
    moves left right up down slowly quickly small large drawn by hand video pictures photo clip test prompt still
    moving camera hiker snow candy crayons press hydraulic colourful background
""".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Model:
    """Where the files of a model are, as the options say it."""

    pretrained_model_name_or_path: str | None = None
    pretrained_transformer_model_name_or_path: str | None = None
    pretrained_transformer_subfolder: str | None = None
    pretrained_transformer_2_model_name_or_path: str | None = None
    pretrained_transformer_2_subfolder: str | None = None
    pretrained_vae_model_name_or_path: str | None = None
    pretrained_t5_model_name_or_path: str | None = None
    pretrained_tokenizer_model_name_or_path: str | None = None
    pretrained_image_encoder_model_name_or_path: str | None = None
    revision: str | None = None
    variant: str | None = None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside the block only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tiny_transformer(
    *,
    dim: int = 32,
    heads: int = 2,
    layers: int = 2,
    ffn_dim: int | None = None,
    in_channels: int = 16,
    out_channels: int = 16,
    text_dim: int = TEXT_DIM,
    image_dim: int | None = None,
    seed: int = 0,
) -> WanTransformer3DModel:
    """A WanTransformer3DModel; `image_dim` gives it the image tokens of Wan 2.1 I2V. float32, eval mode."""
    with seeded(seed):
        transformer = WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=dim // heads,
            in_channels=in_channels,
            out_channels=out_channels,
            text_dim=text_dim,
            freq_dim=32,
            ffn_dim=ffn_dim or 2 * dim,
            num_layers=layers,
            image_dim=image_dim,
            added_kv_proj_dim=dim if image_dim else None,
            rope_max_seq_len=64,
        )
    return transformer.eval()


def tiny_vae(*, base_dim: int = 8, z_dim: int = 16, seed: int = 0) -> AutoencoderKLWan:
    """An AutoencoderKLWan with the strides of Wan 2.1 (4, 8, 8) and Wan 2.1's own latents_mean and latents_std."""
    with seeded(seed):
        vae = AutoencoderKLWan(base_dim=base_dim, z_dim=z_dim, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return vae.eval()


def tiny_vae_ti2v(*, base_dim: int = 4, seed: int = 0) -> AutoencoderKLWan:
    """An AutoencoderKLWan as Wan 2.2's TI2V has it: 48 channels, strides (4, 16, 16), residual, patches of 2 x 2."""
    values = torch.Generator().manual_seed(seed)
    with seeded(seed):
        vae = AutoencoderKLWan(
            base_dim=base_dim,
            decoder_base_dim=base_dim,
            z_dim=48,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            in_channels=12,
            out_channels=12,
            is_residual=True,
            patch_size=2,
            scale_factor_spatial=16,
            latents_mean=(torch.randn(48, generator=values) / 10).tolist(),
            latents_std=(torch.rand(48, generator=values) + 0.5).tolist(),
        )
    return vae.eval()


def tiny_clip(*, dim: int = CLIP_DIM, layers: int = 3, seed: int = 0) -> tuple[CLIPImageProcessor, CLIPVisionModel]:
    """An image processor (224 pixels) and a CLIP encoder with patches of 14, so 257 tokens. float32, eval mode."""
    with seeded(seed):
        config = CLIPVisionConfig(
            hidden_size=dim,
            intermediate_size=2 * dim,
            num_hidden_layers=layers,
            num_attention_heads=2,
            image_size=224,
            patch_size=14,
            projection_dim=dim,
            hidden_act="gelu",
        )
        encoder = CLIPVisionModel(config)
    return CLIPImageProcessor(), encoder.eval()


def tiny_text(
    *, dim: int = TEXT_DIM, words: Sequence[str] = WORDS, seed: int = 0
) -> tuple[T5Tokenizer, UMT5EncoderModel]:
    """A tokenizer over `words` and single characters, and a UMT5 encoder of two layers. float32, eval mode."""
    characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()-_/&<>"
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    vocabulary += [(f"\u2581{word}", -2.0) for word in dict.fromkeys(words)]
    vocabulary += [(character, -6.0) for character in characters]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)
    with seeded(seed):
        config = UMT5Config(
            vocab_size=len(vocabulary), d_model=dim, d_kv=dim // 2, d_ff=2 * dim, num_layers=2, num_heads=2
        )
        encoder = UMT5EncoderModel(config)
    return tokenizer, encoder.eval()


def tiny_pipeline(*, two_experts: bool = False, boundary: float = 0.875, seed: int = 0, **sizes: int) -> WanPipeline:
    """A whole WanPipeline of tiny parts; `sizes` go to `tiny_transformer`."""
    tokenizer, encoder = tiny_text(seed=seed)
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=tiny_vae(seed=seed),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        transformer=tiny_transformer(seed=seed, **sizes),
        transformer_2=tiny_transformer(seed=seed + 1, **sizes) if two_experts else None,
        boundary_ratio=boundary if two_experts else None,
    )


def save_tiny_model(folder: Path, *, two_experts: bool = False, seed: int = 0, **sizes: int) -> Path:
    """Write a diffusers WanPipeline folder and return it."""
    tiny_pipeline(two_experts=two_experts, seed=seed, **sizes).save_pretrained(folder)
    return folder


def tiny_image_pipeline(kind: ImageKind, *, boundary: float = 0.9, seed: int = 0) -> WanImageToVideoPipeline:
    """A whole WanImageToVideoPipeline of tiny parts: I2V of Wan 2.1 (CLIP), of 2.2 (two experts, no CLIP), or TI2V."""
    tokenizer, encoder = tiny_text(seed=seed)
    processor, image_encoder = tiny_clip(seed=seed) if kind == "2.1" else (None, None)
    sizes: dict[str, int] = {"in_channels": 48, "out_channels": 48} if kind == "ti2v" else {"in_channels": 36}
    image_dim = CLIP_DIM if kind == "2.1" else None
    return WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=tiny_vae_ti2v(seed=seed) if kind == "ti2v" else tiny_vae(seed=seed),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0
        ),
        image_processor=processor,
        image_encoder=image_encoder,
        transformer=tiny_transformer(image_dim=image_dim, seed=seed, **sizes),
        transformer_2=tiny_transformer(seed=seed + 1, **sizes) if kind == "2.2" else None,
        boundary_ratio=boundary if kind == "2.2" else None,
        expand_timesteps=kind == "ti2v",
    )


def save_tiny_image_model(folder: Path, kind: ImageKind, *, seed: int = 0) -> Path:
    """Write a diffusers WanImageToVideoPipeline folder and return it."""
    tiny_image_pipeline(kind, seed=seed).save_pretrained(folder)
    return folder
