"""From a sample to pixels: decode the frames that are used, resized on the way, and cut them.

Imports torch and this room. Frames are resized one at a time as they are decoded, in uint8: a clip never stands in
memory at its source's size.
Legend: F frames, C = 3 channels (RGB), H height, W width.
"""

from __future__ import annotations

import numpy as np
import torch

from simplewan.data.buckets import Clip
from simplewan.data.media import MediaError, MediaInfo, iter_planes, probe
from simplewan.data.samples import Sample

SAME_RATE = 0.01  # rates this near to each other count as equal


def load_clip(sample: Sample) -> torch.Tensor:
    """The sample's pixels, (F, C, H, W) uint8 on the CPU; the same file gives the same bits.

    Raises MediaError when a frame does not decode, there are fewer than the scan promised, or a table was wrong.
    """
    if sample.described is not None:
        _compare(sample.described, probe(sample.source))
    clip = sample.clip
    # Allocated by numpy, which asks for large pages: of small ones there would be ten thousands to be cleared.
    frames_FCHW = np.empty((clip.num_frames, 3, clip.height, clip.width), np.uint8)
    down, across = slice(clip.crop_top, clip.crop_top + clip.height), slice(clip.crop_left, clip.crop_left + clip.width)
    count = 0
    for planes in iter_planes(
        sample.source,
        sizes=_sizes(clip),
        num_frames=clip.num_frames,
        fps=clip.sample_fps,
        start_seconds=clip.start_seconds,
        source_fps=clip.source_fps,
    ):
        for channel, plane in enumerate(planes):
            frames_FCHW[count, channel] = plane[down, across]
        count += 1
    if count < clip.num_frames:
        raise MediaError(f"only {count} of the {clip.num_frames} frames that it promises decode")
    return torch.from_numpy(frames_FCHW)


def _compare(said: MediaInfo, found: MediaInfo) -> None:
    """Raises MediaError when a table says another size or rate, or more frames, than a file has."""
    if (said.width, said.height) != (found.width, found.height):
        raise MediaError(f"is {found.width}x{found.height}; the table says {said.width}x{said.height}")
    if said.num_frames > found.num_frames:
        raise MediaError(f"has {found.num_frames} frames; the table says {said.num_frames}")
    if abs(said.fps - found.fps) > SAME_RATE * found.fps:
        raise MediaError(f"has {found.fps:g} frames a second; the table says {said.fps:g}")


def _sizes(clip: Clip) -> list[tuple[int, int]]:
    """The sizes that a frame goes through before it is cut."""
    first = [(clip.downsample_width, clip.downsample_height)] if clip.downsample_width else []
    return [*first, (clip.resize_width, clip.resize_height)]


def to_pixels(frames_FCHW: torch.Tensor) -> torch.Tensor:
    """uint8 (F, C, H, W) -> float32 (C, F, H, W) in [-1, 1], as the VAE takes them: x / 127.5 - 1."""
    return (frames_FCHW.permute(1, 0, 2, 3).to(torch.float32) / 127.5 - 1.0).contiguous()
