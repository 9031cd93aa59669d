"""How many bytes caches and checkpoints take. Exact counts of tensors; file headers are not counted."""

from __future__ import annotations

from simplewan.flavours import VaeKind

ADAM_STATES = 2


def latents_bytes(*, width: int, height: int, num_frames: int, vae: VaeKind, bytes_per_value: int) -> int:
    """Bytes of one clip's cached latents; pixels and frames as the VAE sees them (num_frames = 4n+1)."""
    latent_frames = (num_frames - 1) // vae.temporal_stride + 1
    positions = latent_frames * (height // vae.spatial_stride) * (width // vae.spatial_stride)
    return vae.latent_channels * positions * bytes_per_value


def text_bytes(*, tokens: int, width: int, bytes_per_value: int) -> int:
    """Bytes of one cached prompt of `tokens` tokens; padding is not stored."""
    return tokens * width * bytes_per_value


def lora_bytes(*, parameters: int, optimizer_states: int = ADAM_STATES, bytes_per_value: int = 4) -> int:
    """Bytes of one checkpoint of a LoRA: its weights twice (exact, and in the universal format) and the optimiser."""
    return parameters * bytes_per_value * (2 + optimizer_states)
