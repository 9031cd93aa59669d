"""What fills the caches: each loads its model when it is first called, and is dropped when its caches are full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from simplewan.app.context import DTYPES, Context
from simplewan.caches.fill import ItemError
from simplewan.caches.keys import Item
from simplewan.data.loading import load_clip, to_pixels
from simplewan.data.mediainfo import MediaError
from simplewan.data.samples import Sample
from simplewan.events import Stage
from simplewan.models.wan.loading import load_text_encoder, load_vae
from simplewan.models.wan.text import encode_prompts
from simplewan.models.wan.vae import encode, place


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


class VaeEncoder:
    """Decodes clips and encodes them to latents; loads the VAE at the first call."""

    def __init__(self, context: Context, samples: Mapping[str, Sample]) -> None:
        self._context = context
        self._samples = samples
        self._vae: torch.nn.Module | None = None
        self._dtype = DTYPES[context.options.caches.vae_dtype]

    def __call__(self, items: Sequence[Item]) -> Sequence[torch.Tensor]:
        if self._vae is None:
            self._context.emit(Stage("vae", "Loading the VAE"))
            options, flavour = self._context.options.model, self._context.flavour
            self._vae = place(load_vae(options, flavour, self._dtype), self._context.device)
        clips = []
        for item in items:
            try:
                clips.append(to_pixels(load_clip(self._samples[item.name])))
            except MediaError as error:
                raise ItemError(item.name, str(error)) from error
        pixels_BCFHW = torch.stack(clips).to(self._context.device, self._dtype)
        return list(encode(self._vae, pixels_BCFHW).to(self._dtype).cpu())
