"""The first frame as CLIP sees it, for Wan 2.1 I2V, equal to WanImageToVideoPipeline's. Imports torch only.

Wan 2.2 I2V and TI2V take no such embeddings (`sources.needs_image_embeds`). Which frames share a batch decides the last
bits of the embeddings, so the caller fixes the grouping.

Legend: B batch, C = 3 channels (RGB), H height, W width, N image tokens (257 of ViT-H/14), D width (1280).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def encode_image(processor: Any, encoder: Any, frames_BCHW: Tensor) -> Tensor:
    """The penultimate hidden states of the CLIP encoder, (B, 3, H, W) -> (B, N, D), in its dtype and on its device.

    Frames are uint8, or floats in [-1, 1] as the VAE takes them, which are turned back into the uint8 they came from.
    The processor (transformers', on torchvision) resizes the shorter side to 224 and cuts out the middle, on the CPU,
    so that every device is given the same pixels. diffusers shows CLIP the image before it is fitted to the video's
    size; what is shown here is the caller's choice. Raises ValueError for what is not a batch of RGB frames.
    """
    frames = list(_to_uint8(frames_BCHW).cpu())
    pixels_BCHW = processor(images=frames, return_tensors="pt").pixel_values
    device = next(encoder.parameters()).device
    # The layer before the last, unnormalised: what the image projection of Wan 2.1 was trained on.
    return encoder(pixels_BCHW.to(device), output_hidden_states=True).hidden_states[-2]


def _to_uint8(frames_BCHW: Tensor) -> Tensor:
    """Undoes x / 127.5 - 1; exact for float32, bfloat16 and float16, whose errors are below half a step."""
    if frames_BCHW.ndim != 4 or frames_BCHW.shape[1] != 3:
        raise ValueError(f"frames of shape {tuple(frames_BCHW.shape)}: need (B, 3, H, W)")
    if frames_BCHW.dtype == torch.uint8:
        return frames_BCHW
    if not frames_BCHW.is_floating_point():
        raise ValueError(f"frames of {frames_BCHW.dtype}: need uint8, or floats in [-1, 1]")
    return ((frames_BCHW.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
