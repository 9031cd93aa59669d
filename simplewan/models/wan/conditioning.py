"""What the models are given of a first frame: extra channels (I2V) or a latent frame kept clean (TI2V). Imports vae.

I2V, Wan 2.1 and 2.2: behind the noisy latents, on channels, a mask and the latents of the video that begins with the
frame and is empty after it:

    torch.cat([noisy, extra_channels(first_frame_condition(vae, frame, num_frames))], dim=1)

TI2V: no channels; latent frame 0 is the image, at timestep 0, and has no part in the loss:

    velocity(transformer, hold_first_frame(noisy, first_frame_latent(vae, frame)), frame_timesteps(timestep, F), text)

Both as WanImageToVideoPipeline does it (there `expand_timesteps` means TI2V).

Legend: B batch, C channels, F latent frames, H, W latent height and width; of pixels where that is said.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from simplewan.models.wan.vae import encode

MASK_CHANNELS = 4  # the pixel frames of a latent frame


def first_frame_condition(vae: Any, first_frame_BCHW: Tensor, num_frames: int) -> Tensor:
    """Normalised latents of a video of `num_frames` that is the first frame and then grey (0), as `vae.encode` gives.

    Pixels (B, 3, h, w) in [-1, 1] -> (B, C, F, H, W) float32 on the VAE's device. Raises ValueError for sizes that do
    not fit, as `encode` does.
    """
    first = _placed(vae, first_frame_BCHW)
    batch, channels, _one, height, width = first.shape
    rest = first.new_zeros(batch, channels, num_frames - 1, height, width)
    return encode(vae, torch.cat([first, rest], dim=2))


def condition_mask(latents_BCFHW: Tensor) -> Tensor:
    """1 on the pixel frames that are given, else 0: (B, 4, F, H, W) for latents of that batch and size, in their dtype.

    The channels are the four pixel frames of a latent frame; latent frame 0 holds one, which counts four times.
    """
    batch, _channels, frames, height, width = latents_BCFHW.shape
    mask_B4FHW = latents_BCFHW.new_zeros(batch, MASK_CHANNELS, frames, height, width)
    mask_B4FHW[:, :, 0] = 1
    return mask_B4FHW


def extra_channels(condition_BCFHW: Tensor) -> Tensor:
    """What the transformer of I2V takes behind the noisy latents: mask and condition, (B, 4 + C, F, H, W)."""
    return torch.cat([condition_mask(condition_BCFHW), condition_BCFHW], dim=1)


def first_frame_latent(vae: Any, first_frame_BCHW: Tensor) -> Tensor:
    """Normalised latents of the frame alone: pixels (B, 3, h, w) in [-1, 1] -> (B, C, 1, H, W) float32.

    The VAE is causal and takes the first frame by itself: this is, to rounding, latent frame 0 of every video that
    begins with the frame, so that a cached clip has its own image latent in it.
    """
    return encode(vae, _placed(vae, first_frame_BCHW))


def hold_first_frame(latents_BCFHW: Tensor, first_BC1HW: Tensor) -> Tensor:
    """The (noisy) latents with the image in latent frame 0, same shape."""
    return torch.cat([first_BC1HW.to(latents_BCFHW), latents_BCFHW[:, :, 1:]], dim=2)


def frame_timesteps(timestep_B: Tensor, latent_frames: int) -> Tensor:
    """Timesteps (B,) -> (B, F), 0 at latent frame 0: one modulation row a latent frame, as `velocity` takes them."""
    timesteps_BF = timestep_B[:, None].repeat(1, latent_frames)
    timesteps_BF[:, 0] = 0
    return timesteps_BF


def _placed(vae: Any, frame_BCHW: Tensor) -> Tensor:
    """(B, 3, h, w) -> (B, 3, 1, h, w) on the VAE's device, in its dtype, so that zeros behind it are made there."""
    return frame_BCHW.to(vae.device, vae.dtype).unsqueeze(2)
