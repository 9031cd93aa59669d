"""stub"""

from __future__ import annotations


def clip_starts(available, num_frames, *, mode, frame_stride=1, frame_sample=1, cuts=(), draw=None):
    return list(range(0, available - num_frames + 1, num_frames if mode == "chunk" else frame_stride))
