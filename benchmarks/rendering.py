"""Clips out of a model folder, many prompts of one size at a time, for `benchmarks.quality`.

Uses `simplewan`'s loading, forward, sampling and VAE directly, without a run around them. Every prompt has noise from
its own seed, so that neither the batch nor the order of prompts changes what is asked of the model; rows that differ
in one feature start from the same noise. Models are loaded when a row is rendered and dropped behind it.

Legend: B batch, C channels, F frames, H height, W width, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simplewan.flavours import Flavour
from simplewan.mini.draw import Scene, caption, draw_frames
from simplewan.models.lora.attach import attach_changes
from simplewan.models.lora.read import read_file
from simplewan.models.wan.conditioning import extra_channels, first_frame_condition, first_frame_latent
from simplewan.models.wan.forward import WanForward
from simplewan.models.wan.loading import load_text_encoder, load_transformer, load_vae
from simplewan.models.wan.sources import present_experts
from simplewan.models.wan.text import encode_prompts, pad_embeds
from simplewan.models.wan.vae import decode, encode, place
from simplewan.options.groups.model import ModelOptions
from simplewan.validation.runner import to_frames
from simplewan.validation.sampling import (
    Guidance,
    initial_noise,
    make_scheduler,
    needs_negative,
    sample,
    scale_per_expert,
)


@dataclass(frozen=True)
class Prompt:
    """A scene to ask for by its caption, and the seed of its noise."""

    scene: Scene
    seed: int

    @property
    def text(self) -> str:
        """The caption."""
        return caption(self.scene)


@dataclass(frozen=True)
class Settings:
    """How clips are made. `boundary` is a sigma (0..1), None for the flavour's."""

    folder: Path
    flavour: Flavour
    num_steps: int
    guidance: Guidance
    shift: float
    boundary: float | None = None
    negative_prompt: str = ""
    scheduler: str = "unipc"
    batch: int = 32
    device: str = "cpu"

    @property
    def source(self) -> ModelOptions:
        """The folder as the loading functions want it."""
        return ModelOptions(pretrained_model_name_or_path=str(self.folder))

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts that the folder holds."""
        return present_experts(self.source, self.flavour)


def drawn(prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """The scenes' own pixels, uint8 (F, H, W, 3) each, as every function here returns them."""
    return [draw_frames(prompt.scene) for prompt in prompts]


def uniform_noise(prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """Pixels of uniform noise."""
    shapes = [(p.scene.num_frames, p.scene.height, p.scene.width, 3) for p in prompts]
    return [
        np.random.default_rng(prompt.seed).integers(0, 256, shape, dtype=np.uint8)
        for prompt, shape in zip(prompts, shapes, strict=True)
    ]


def reconstructed(prompts: Sequence[Prompt], settings: Settings) -> list[np.ndarray]:
    """The scenes' pixels after the VAE's encoder and decoder: what a perfect transformer would reach."""
    vae = place(load_vae(settings.source, settings.flavour, torch.float32), torch.device(settings.device))

    def render(group: Sequence[Prompt]) -> Tensor:
        return decode(vae, encode(vae, _pixels(drawn(group))))

    return _in_batches(prompts, settings.batch, render)


def first_frame(prompt: Prompt) -> np.ndarray:
    """The scene's own first frame, uint8 (H, W, 3)."""
    return draw_frames(replace(prompt.scene, num_frames=1))[0]


def first_frames(group: Sequence[Prompt]) -> Tensor:
    """The scenes' own first frames as the VAE takes them, (B, 3, H, W) float32 in [-1, 1]."""
    return _pixels([first_frame(prompt)[None] for prompt in group])[:, :, 0]


def _pixels(clips: Sequence[np.ndarray]) -> Tensor:
    """Clips as the VAE takes them, (B, 3, F, H, W) float32 in [-1, 1]."""
    frames = torch.from_numpy(np.stack(clips).astype(np.float32) / 127.5 - 1)
    return frames.permute(0, 4, 1, 2, 3)


def decoded_noise(prompts: Sequence[Prompt], settings: Settings) -> list[np.ndarray]:
    """Normal latent noise through the VAE's decoder: what a transformer that learned nothing might show."""
    vae = place(load_vae(settings.source, settings.flavour, torch.float32), torch.device(settings.device))
    return _in_batches(prompts, settings.batch, lambda group: decode(vae, noise(group, settings.flavour)))


def generated(prompts: Sequence[Prompt], settings: Settings, loras: dict[str, Path] | None = None) -> list[np.ndarray]:
    """Clips rendered from the captions, and from the scenes' first frames by models that take one; `loras` names a LoRA
    file for an expert.

    Raises UserError or ValueError when a part or a file does not fit.
    """
    embeds = _embeds(prompts, settings)
    loras = loras or {}
    if unused := sorted(set(loras) - set(settings.experts)):
        raise ValueError(f"{loras[unused[0]]}: {settings.folder} has no {unused[0]}-noise expert to put it on")
    forwards = {expert: WanForward(load_expert(settings, expert, loras.get(expert))) for expert in settings.experts}
    usual = settings.flavour.boundary if settings.boundary is None else settings.boundary
    boundary = usual if len(forwards) > 1 else None
    first, alone = next(iter(forwards.items()))  # makes all steps where it has no other beside it
    guidance = settings.guidance if len(forwards) > 1 else scale_per_expert(settings.guidance)[first]
    vae = place(load_vae(settings.source, settings.flavour, torch.float32), torch.device(settings.device))
    tokens = settings.flavour.text_tokens

    def render(group: Sequence[Prompt]) -> Tensor:
        extra = held = None
        if settings.flavour.extra_channels:
            extra = extra_channels(first_frame_condition(vae, first_frames(group), group[0].scene.num_frames))
        elif settings.flavour.holds_first_frame:
            held = first_frame_latent(vae, first_frames(group))

        def given(texts: Sequence[str]) -> tuple[Tensor, list[int]]:
            asked = [embeds[text] for text in texts]
            return pad_embeds(asked, tokens), [len(each) for each in asked]

        def predict(latents: Tensor, timesteps: Tensor, text: tuple[Tensor, list[int]], expert: str) -> Tensor:
            hidden = latents if extra is None else torch.cat([latents, extra], dim=1)
            text_BLD, lengths = text
            forward = forwards.get(expert, alone)
            return forward(hidden, timesteps, text_BLD, text_lengths=lengths).to(latents.dtype)

        latents = sample(
            predict,
            make_scheduler(settings.scheduler, settings.shift),
            noise(group, settings.flavour).to(settings.device),
            given([prompt.text for prompt in group]),
            given([settings.negative_prompt] * len(group)) if needs_negative(guidance) else None,
            num_steps=settings.num_steps,
            guidance=guidance,
            boundary=boundary,
            first_frame_BC1HW=held,
        )
        return decode(vae, latents)

    with torch.inference_mode():
        return _in_batches(prompts, settings.batch, render)


def noise(group: Sequence[Prompt], flavour: Flavour) -> Tensor:
    """The latents that the prompts of one size start from, (B, C, F, H, W) float32, each from its own seed."""
    scene, vae = group[0].scene, flavour.vae
    frames = (scene.num_frames - 1) // vae.temporal_stride + 1
    shape = (1, vae.latent_channels, frames, scene.height // vae.spatial_stride, scene.width // vae.spatial_stride)
    return torch.cat([initial_noise(shape, seed=prompt.seed) for prompt in group])


def load_expert(settings: Settings, expert: str, lora: Path | None) -> torch.nn.Module:
    """A transformer on the device, with its LoRA. Raises UserError, or ValueError where that does not fit."""
    transformer = load_transformer(settings.source, settings.flavour, expert, torch.float32)
    if lora is not None:
        found = attach_changes(transformer, read_file(lora).changes, strength=1.0, name="lora")
        if found.lost:
            raise ValueError(f"{lora}: {found}")
    return transformer.to(torch.device(settings.device))


def _embeds(prompts: Sequence[Prompt], settings: Settings) -> dict[str, Tensor]:
    """The trimmed embedding (L, D) of every text, each encoded once."""
    tokenizer, encoder = load_text_encoder(settings.source, settings.flavour, torch.float32)
    encoder.to(torch.device(settings.device))
    texts = list(dict.fromkeys([settings.negative_prompt, *(prompt.text for prompt in prompts)]))
    embeds: dict[str, Tensor] = {}
    for start in range(0, len(texts), settings.batch):
        part = texts[start : start + settings.batch]
        found = encode_prompts(tokenizer, encoder, part, max_tokens=settings.flavour.text_tokens)
        embeds |= dict(zip(part, found, strict=True))
    return embeds


def _in_batches(
    prompts: Sequence[Prompt], batch: int, render: Callable[[Sequence[Prompt]], Tensor]
) -> list[np.ndarray]:
    """`render` for at most `batch` prompts of one shape at a time; the frames come back in the prompts' order."""
    shapes: dict[tuple[int, int, int], list[int]] = {}
    for index, prompt in enumerate(prompts):
        shapes.setdefault((prompt.scene.width, prompt.scene.height, prompt.scene.num_frames), []).append(index)
    clips: dict[int, np.ndarray] = {}
    for indices in shapes.values():
        for start in range(0, len(indices), batch):
            part = indices[start : start + batch]
            pixels_BCFHW = render([prompts[index] for index in part])
            clips |= {index: to_frames(clip.unsqueeze(0)) for index, clip in zip(part, pixels_BCFHW, strict=True)}
    return [clips[index] for index in range(len(prompts))]
