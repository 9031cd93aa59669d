"""From a sample to pixels: decode the frames that are used, resize, crop.

Imports torch, torchvision and this room. Frames are resized one at a time as they are decoded, in uint8: a clip never
stands in memory at its source's size.
Legend: F frames, C = 3 channels (RGB), H height, W width.
"""

from __future__ import annotations

import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from simplewan.data.buckets import Clip
from simplewan.data.media import MediaError, iter_frames
from simplewan.data.samples import Sample


def load_clip(sample: Sample) -> torch.Tensor:
    """The sample's pixels, (F, C, H, W) uint8 on the CPU; the same file gives the same bits.

    Raises MediaError when a frame does not decode or there are fewer than the scan promised.
    """
    clip = sample.clip
    frames_CHW = [
        fit_frame(torch.from_numpy(frame).permute(2, 0, 1), clip)
        for frame in iter_frames(
            sample.source,
            num_frames=clip.num_frames,
            fps=clip.sample_fps,
            start_seconds=clip.start_seconds,
            source_fps=clip.source_fps,
        )
    ]
    if len(frames_CHW) < clip.num_frames:
        raise MediaError(f"only {len(frames_CHW)} of the {clip.num_frames} frames that it promises decode")
    return torch.stack(frames_CHW)


def fit_frame(frame_CHW: torch.Tensor, clip: Clip) -> torch.Tensor:
    """One frame (C, h, w) uint8 resized (bicubic, antialiased) and cut as `clip` says: (C, H, W) uint8."""
    if clip.downsample_width:
        frame_CHW = _resize(frame_CHW, clip.downsample_height, clip.downsample_width)
    frame_CHW = _resize(frame_CHW, clip.resize_height, clip.resize_width)
    return transforms.crop(frame_CHW, clip.crop_top, clip.crop_left, clip.height, clip.width).contiguous()


def _resize(frame_CHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return transforms.resize(frame_CHW, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)


def to_pixels(frames_FCHW: torch.Tensor) -> torch.Tensor:
    """uint8 (F, C, H, W) -> float32 (C, F, H, W) in [-1, 1], as the VAE takes them: x / 127.5 - 1."""
    return (frames_FCHW.permute(1, 0, 2, 3).to(torch.float32) / 127.5 - 1.0).contiguous()
