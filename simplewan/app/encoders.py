"""What fills the caches: each loads its model when it is first called, and is dropped when its caches are full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from simplewan.app.context import DTYPES, Context
from simplewan.caches.fill import ItemError
from simplewan.caches.keys import Item
from simplewan.data.loading import load_clip, to_pixels
from simplewan.data.mediainfo import MediaError
from simplewan.data.samples import Sample
from simplewan.events import Stage
from simplewan.models.wan.conditioning import first_frame_condition
from simplewan.models.wan.image import encode_image
from simplewan.models.wan.loading import load_image_encoder, load_text_encoder, load_vae
from simplewan.models.wan.text import encode_prompts
from simplewan.models.wan.vae import encode, place

FRAMES = "frames"  # the component that says how many frames a condition is for


class TextEncoder:
    """Encodes prompts; loads tokenizer and encoder at the first call."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._models: tuple[object, torch.nn.Module] | None = None

    def __call__(self, items: Sequence[Item]) -> Sequence[torch.Tensor]:
        return self.encode([str(item.components["prompt"]) for item in items])

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """The embedding (L, D) of each prompt, not padded, on the device; they go through the encoder together."""
        if self._models is None:
            self._context.emit(Stage("text_encoder", "Loading the text encoder"))
            context = self._context
            tokenizer, encoder = load_text_encoder(context.options.model, context.flavour, context.weight_dtype)
            self._models = tokenizer, encoder.to(self._context.device)
        tokenizer, encoder = self._models
        return encode_prompts(tokenizer, encoder, prompts, max_tokens=self._context.flavour.text_tokens)


class Vae:
    """The VAE of a run, loaded when it is first asked for; those who encode with it share it."""

    def __init__(self, context: Context, loaded: torch.nn.Module | None = None) -> None:
        self._context = context
        self._vae = loaded
        self.dtype = DTYPES[context.options.caches.vae_dtype]

    def __call__(self) -> torch.nn.Module:
        if self._vae is None:
            self._context.emit(Stage("vae", "Loading the VAE"))
            options, flavour = self._context.options.model, self._context.flavour
            self._vae = place(load_vae(options, flavour, self.dtype), self._context.device)
        return self._vae

    def pixels(self, items: Sequence[Item], samples: Mapping[str, Sample]) -> torch.Tensor:
        """The clips of items, (B, C, F, H, W) in [-1, 1] on the device. Raises ItemError."""
        return torch.stack([read_clip(item, samples) for item in items]).to(self._context.device, self.dtype)


def read_clip(item: Item, samples: Mapping[str, Sample]) -> torch.Tensor:
    """The clip of an item, (C, F, H, W) in [-1, 1]. Raises ItemError when it does not decode."""
    try:
        return to_pixels(load_clip(samples[item.name]))
    except MediaError as error:
        raise ItemError(item.name, str(error)) from error


class VaeEncoder:
    """Decodes clips and encodes them to latents. `broken` gathers those whose files are damaged, by the item's name."""

    def __init__(self, vae: Vae, samples: Mapping[str, Sample]) -> None:
        self._vae, self._samples = vae, samples
        self.broken: dict[str, str] = {}

    def __call__(self, items: Sequence[Item]) -> Sequence[torch.Tensor]:
        try:
            pixels_BCFHW = self._vae.pixels(items, self._samples)
        except ItemError as error:
            if isinstance(error.__cause__, MediaError) and error.__cause__.lasting:
                self.broken[error.name] = error.reason
            raise
        return list(encode(self._vae(), pixels_BCFHW).to(self._vae.dtype).cpu())


class ConditionEncoder:
    """Decodes first frames and encodes them as image-to-video models take them, each followed by empty frames."""

    def __init__(self, vae: Vae, first_frames: Mapping[str, Sample]) -> None:
        self._vae, self._first_frames = vae, first_frames

    def __call__(self, items: Sequence[Item]) -> Sequence[torch.Tensor]:
        pixels_BCHW = self._vae.pixels(items, self._first_frames)[:, :, 0]
        num_frames = int(str(items[0].components[FRAMES]))
        condition_BCFHW = first_frame_condition(self._vae(), pixels_BCHW, num_frames)
        return list(condition_BCFHW.to(self._vae.dtype).cpu())


class ImageEncoder:
    """Decodes first frames and encodes them with CLIP, in float32; loads it at the first call."""

    def __init__(self, context: Context, first_frames: Mapping[str, Sample]) -> None:
        self._context, self._first_frames = context, first_frames
        self._models: tuple[Any, torch.nn.Module] | None = None

    def __call__(self, items: Sequence[Item]) -> Sequence[torch.Tensor]:
        if self._models is None:
            self._context.emit(Stage("image_encoder", "Loading the image encoder"))
            options, flavour = self._context.options.model, self._context.flavour
            processor, encoder = load_image_encoder(options, flavour, torch.float32)
            self._models = processor, encoder.to(self._context.device)
        frames_BCHW = torch.stack([read_clip(item, self._first_frames)[:, 0] for item in items])
        return list(encode_image(*self._models, frames_BCHW).to(self._context.weight_dtype).cpu())
