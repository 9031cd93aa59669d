"""The tensors of one micro-batch, and their making from cached records.

Imports torch. Legend: B batch, C channels, F frames, H height, W width, L text tokens, D text width, N image tokens.
Cached records are views of mapped files; they are copied once, straight into the batch's (pinned) memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one bucket: `latents_BCFHW`, `prompt_embeds_BLD` with each prompt's length in tokens, and for
    each sample its name and whether its caption was dropped. Dtypes are those of the caches. `is_regularisation`: the
    base model's own prediction is the target.

    Of the first frame, where the model is given one: `condition_BCFHW`, the latents of the video that is the frame and
    then empty (I2V); `image_embeds_BND`, CLIP's (Wan 2.1 I2V); or, for each sample, the probability that it is trained
    with its own first latent frame given (TI2V; empty where that is never done)."""

    latents_BCFHW: torch.Tensor
    prompt_embeds_BLD: torch.Tensor
    text_lengths: tuple[int, ...]
    names: tuple[str, ...]
    caption_dropped: tuple[bool, ...]
    is_regularisation: bool = False
    condition_BCFHW: torch.Tensor | None = None
    image_embeds_BND: torch.Tensor | None = None
    first_frame_probabilities: tuple[float, ...] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`, dtypes kept; the copy does not block when the batch is pinned."""
        tensors = {name: value for name, value in self.__dict__.items() if isinstance(value, torch.Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


def collate(
    latents: Sequence[torch.Tensor],
    prompt_embeds: Sequence[torch.Tensor],
    *,
    names: Sequence[str],
    text_tokens: int,
    caption_dropped: Sequence[bool] | None = None,
    is_regularisation: bool = False,
    conditions: Sequence[torch.Tensor] = (),
    image_embeds: Sequence[torch.Tensor] = (),
    first_frame_probabilities: Sequence[float] = (),
    pin_memory: bool = False,
) -> Batch:
    """A `Batch` from latents (C, F, H, W) and text embeddings (l, D), l <= `text_tokens`, all on the CPU.

    Embeddings are padded with zeros to `text_tokens`, which Wan attends to. `conditions` (C, F, H, W) and
    `image_embeds` (N, D) are of all samples or none. `ValueError`, naming the sample, when shapes or dtypes do not fit
    together.
    """
    assert len(latents) == len(prompt_embeds) == len(names) > 0
    text = prompt_embeds[0]
    embeds_BLD = torch.empty((len(latents), text_tokens, text.shape[-1]), dtype=text.dtype, pin_memory=pin_memory)
    for at, (embeds, name) in enumerate(zip(prompt_embeds, names, strict=True)):
        if embeds.dim() != 2 or embeds.shape[1] != text.shape[1] or embeds.dtype != text.dtype:
            have, want = (f"{tuple(x.shape)} {x.dtype}" for x in (embeds, text))
            raise ValueError(f"the text embedding of {name} is {have}, that of {names[0]} in the same batch {want}")
        if len(embeds) > text_tokens:
            raise ValueError(f"the text embedding of {name} has {len(embeds)} tokens, more than {text_tokens}")
        embeds_BLD[at, : len(embeds)].copy_(embeds)
        embeds_BLD[at, len(embeds) :].zero_()
    return Batch(
        _stack("latents", latents, names, pin_memory=pin_memory),
        embeds_BLD,
        text_lengths=tuple(len(embeds) for embeds in prompt_embeds),
        names=tuple(names),
        caption_dropped=tuple(caption_dropped) if caption_dropped is not None else (False,) * len(names),
        is_regularisation=is_regularisation,
        condition_BCFHW=_stack("first frames", conditions, names, pin_memory=pin_memory) if conditions else None,
        image_embeds_BND=_stack("image embeddings", image_embeds, names, pin_memory=pin_memory)
        if image_embeds
        else None,
        first_frame_probabilities=tuple(first_frame_probabilities),
    )


def _stack(what: str, tensors: Sequence[torch.Tensor], names: Sequence[str], *, pin_memory: bool) -> torch.Tensor:
    """Tensors of one shape and dtype, copied into one. Raises ValueError, naming the sample, when one differs."""
    first = tensors[0]
    stacked = torch.empty((len(tensors), *first.shape), dtype=first.dtype, pin_memory=pin_memory)
    for row, tensor, name in zip(stacked, tensors, names, strict=True):
        if tensor.shape != first.shape or tensor.dtype != first.dtype:
            have, want = (f"{tuple(x.shape)} {x.dtype}" for x in (tensor, first))
            raise ValueError(f"the {what} of {name} are {have}, those of {names[0]} in the same batch {want}")
        row.copy_(tensor)
    return stacked
