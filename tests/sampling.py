"""`simpletuner sample` on a tiny model, LoRAs for it, and the same clip by WanPipeline, for tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from runs import start
from tiny import tiny_transformer

from simplewan.app import rendering
from simplewan.flavours import find_flavour
from simplewan.models.adapters import adapter_parameters, adapter_state, add_lora
from simplewan.models.lora.write import lora_metadata, save_lora
from simplewan.options.groups.adapter import AdapterOptions
from simplewan.validation.sampling import initial_noise

PROMPT = "a red circle moves left"
NEGATIVE = "static, blurry, low quality, watermark, text"
SIZE = ("validation_resolution=48x32", "validation_num_video_frames=5", "validation_num_inference_steps=6")
HIGH_FILE, LOW_FILE = (f"pytorch_lora_weights_{expert}_noise.safetensors" for expert in ("high", "low"))


def sample(model: Path, *words: str) -> int:
    """The command with the tiny model and a tiny clip, unless `words` say otherwise."""
    place = (f"pretrained_model_name_or_path={model}", "mixed_precision=no", "vae_dtype=fp32")
    given = {word.split("=")[0] for word in words}
    usual = ("model_flavour=t2v-mini-low", *place, *SIZE)
    return start("sample", *(word for word in usual if word.split("=")[0] not in given), *words)


def write_lora(path: Path, expert: str, *, seed: int, layers: int = 2, rank: int = 4, tells: bool = True) -> Path:
    """A LoRA with an effect, made for a tiny transformer; without `tells` nothing in it names the expert."""
    transformer = tiny_transformer(layers=layers)
    add_lora(transformer, AdapterOptions(lora_rank=rank), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(transformer).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    flavour = find_flavour(f"t2v-mini-{expert}")
    metadata = lora_metadata(flavour, expert, rank=rank, alpha=rank, base_model="x", shift=None) if tells else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_lora(path, adapter_state(transformer), scale=1.0, metadata=metadata, transformer=transformer)
    return path


def by_diffusers(model: Path, *, loras: dict[str, tuple[Path, float]], seed: int = 42) -> torch.Tensor:
    """The latents of the same clip by WanPipeline, guidance 2 below the boundary and 4 above."""
    pipeline = WanPipeline.from_pretrained(model)  # its scheduler has shift 3
    pipeline.set_progress_bar_config(disable=True)
    for expert, (file, scale) in loras.items():
        pipeline.load_lora_weights(
            file.parent, weight_name=file.name, adapter_name="a", load_into_transformer_2=expert == "low"
        )
        (pipeline.transformer_2 if expert == "low" else pipeline.transformer).set_adapters("a", scale)
    return pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=48,
        height=32,
        num_frames=5,
        num_inference_steps=6,
        guidance_scale=4.0,
        guidance_scale_2=2.0,
        latents=initial_noise((1, 16, 2, 4, 6), seed=seed),
        output_type="latent",
    ).frames


def latents_seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What goes into the VAE from now on, clip by clip."""
    seen: list[torch.Tensor] = []
    decode = rendering.decode
    monkeypatch.setattr(rendering, "decode", lambda vae, each: (seen.append(each), decode(vae, each))[1])
    return seen
