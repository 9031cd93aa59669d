"""Pixels to normalised latents and back, with diffusers' AutoencoderKLWan. Imports torch only.

Legend: B batch, C channels, F frames, H height, W width. Which samples share a batch decides the last bits of the
latents, so the caller fixes the grouping.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def place(vae: Any, device: torch.device) -> Any:
    """The VAE on `device`; on the CPU with its 3D kernels in the layout that halves the time of a convolution there."""
    if device.type == "cpu":
        for module in vae.modules():
            if isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)
    return vae.to(device)


@torch.no_grad()
def encode(vae: Any, pixels_BCFHW: Tensor) -> Tensor:
    """Normalised latents (mode - latents_mean) / latents_std, float32, of pixels in [-1, 1].

    (B, 3, 4n+1, H, W) -> (B, z, n+1, H/8, W/8) for the VAE of Wan 2.1, strides 16 for that of 2.2. Pixels are moved
    to the VAE's device and dtype; the latents stay there. Raises ValueError for sizes that the strides do not divide.
    """
    frames, height, width = pixels_BCFHW.shape[2:]
    stride = vae.config.scale_factor_spatial
    if (frames - 1) % vae.config.scale_factor_temporal or height % stride or width % stride:
        raise ValueError(f"{frames} frames of {width}x{height}: need 4n+1 frames and multiples of {stride} pixels")
    mean, std = latent_statistics(vae)
    latents = vae.encode(pixels_BCFHW.to(vae.device, vae.dtype)).latent_dist.mode().float()
    return (latents - mean) / std


@torch.no_grad()
def decode(vae: Any, latents_BCFHW: Tensor) -> Tensor:
    """Pixels in [-1, 1], float32, of normalised latents; (B, z, n+1, h, w) -> (B, 3, 4n+1, H, W), as `encode` back."""
    mean, std = latent_statistics(vae)
    latents = latents_BCFHW.to(vae.device, torch.float32) * std + mean
    return vae.decode(latents.to(vae.dtype)).sample.float()


def latent_statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents per channel, float32 (1, z, 1, 1, 1), on its device."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean, device=vae.device, dtype=torch.float32).view(shape)
    std = torch.tensor(vae.config.latents_std, device=vae.device, dtype=torch.float32).view(shape)
    return mean, std
