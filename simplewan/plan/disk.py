"""How many bytes caches take. Exact counts of tensors; file headers are not counted."""

from __future__ import annotations

from simplewan.flavours import VaeKind


def latents_bytes(*, width: int, height: int, num_frames: int, vae: VaeKind, bytes_per_value: int) -> int:
    """Bytes of one clip's cached latents; pixels and frames as the VAE sees them (num_frames = 4n+1)."""
    latent_frames = (num_frames - 1) // vae.temporal_stride + 1
    positions = latent_frames * (height // vae.spatial_stride) * (width // vae.spatial_stride)
    return vae.latent_channels * positions * bytes_per_value
