"""The tensors of one micro-batch, and their making from cached records.

Imports torch. Legend: B batch, C channels, F frames, H height, W width, L text tokens, D text width. Cached records are
views of mapped files; they are copied once, straight into the batch's (pinned) memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one bucket: `latents_BCFHW`, `prompt_embeds_BLD` with each prompt's length in tokens, and for
    each sample its name and whether its caption was dropped. Dtypes are those of the caches. `is_regularisation`: the
    base model's own prediction is the target."""

    latents_BCFHW: torch.Tensor
    prompt_embeds_BLD: torch.Tensor
    text_lengths: tuple[int, ...]
    names: tuple[str, ...]
    caption_dropped: tuple[bool, ...]
    is_regularisation: bool = False

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`, dtypes kept; the copy does not block when the batch is pinned."""
        return replace(
            self,
            latents_BCFHW=self.latents_BCFHW.to(device, non_blocking=True),
            prompt_embeds_BLD=self.prompt_embeds_BLD.to(device, non_blocking=True),
        )


def collate(
    latents: Sequence[torch.Tensor],
    prompt_embeds: Sequence[torch.Tensor],
    *,
    names: Sequence[str],
    text_tokens: int,
    caption_dropped: Sequence[bool] | None = None,
    is_regularisation: bool = False,
    pin_memory: bool = False,
) -> Batch:
    """A `Batch` from latents (C, F, H, W) and text embeddings (l, D), l <= `text_tokens`, all on the CPU.

    Embeddings are padded with zeros to `text_tokens`, which Wan attends to. `ValueError`, naming the sample, when
    shapes or dtypes do not fit together.
    """
    assert len(latents) == len(prompt_embeds) == len(names) > 0
    first, text = latents[0], prompt_embeds[0]
    latents_BCFHW = torch.empty((len(latents), *first.shape), dtype=first.dtype, pin_memory=pin_memory)
    embeds_BLD = torch.empty((len(latents), text_tokens, text.shape[-1]), dtype=text.dtype, pin_memory=pin_memory)
    for at, (latent, embeds, name) in enumerate(zip(latents, prompt_embeds, names, strict=True)):
        if latent.shape != first.shape or latent.dtype != first.dtype:
            have, want = (f"{tuple(x.shape)} {x.dtype}" for x in (latent, first))
            raise ValueError(f"the latents of {name} are {have}, those of {names[0]} in the same batch {want}")
        if embeds.dim() != 2 or embeds.shape[1] != text.shape[1] or embeds.dtype != text.dtype:
            have, want = (f"{tuple(x.shape)} {x.dtype}" for x in (embeds, text))
            raise ValueError(f"the text embedding of {name} is {have}, that of {names[0]} in the same batch {want}")
        if len(embeds) > text_tokens:
            raise ValueError(f"the text embedding of {name} has {len(embeds)} tokens, more than {text_tokens}")
        latents_BCFHW[at].copy_(latent)
        embeds_BLD[at, : len(embeds)].copy_(embeds)
        embeds_BLD[at, len(embeds) :].zero_()
    dropped = tuple(caption_dropped) if caption_dropped is not None else (False,) * len(names)
    lengths = tuple(len(embeds) for embeds in prompt_embeds)
    return Batch(latents_BCFHW, embeds_BLD, lengths, tuple(names), dropped, is_regularisation)
