"""A start inside a file: the very frames of a full decode, reached from the key frame before it where that is sure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
import pytest
from test_data_helpers import write_clip

from simplewan.data import seeking
from simplewan.data.media import decode_frames, iter_frames, probe
from simplewan.data.resampling import pick_nearest

FRAMES = 100
KEY_EVERY = 20
OPEN = f"open-gop=1:keyint={KEY_EVERY}:min-keyint={KEY_EVERY}:bframes=3:scenecut=0"
CLOSED = {"g": str(KEY_EVERY), "bf": "3"}
UNEVEN = list(accumulate([0, *np.random.default_rng(2).integers(8, 110, FRAMES - 1).tolist()]))


def pictures() -> list[np.ndarray]:
    """Pictures that all differ and are cheap to code: blocks that stand still, and one that moves and changes."""
    rng = np.random.default_rng(0)
    ground = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    found = []
    for number in range(FRAMES):
        found.append(ground.copy())
        top, left = number * 3 % 40, number * 5 % 56
        found[-1][top : top + 8, left : left + 8] = rng.integers(0, 255, 3)
    return found


PICTURES = pictures()
CLIPS: dict[str, dict] = {
    "b-frames.mp4": {"options": CLOSED},
    "b-frames.mkv": {"options": CLOSED},
    "open.mp4": {"options": {"x264-params": OPEN}},
    "open.mkv": {"options": {"x264-params": OPEN}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": f"log-level=none:{OPEN}"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "20", "cpu-used": "8", "lag-in-frames": "12"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "20", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "9"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "20"}},
    "mpeg4-b.avi": {"codec": "mpeg4", "options": {"g": "20", "bf": "2"}},
    "b-frames.avi": {"options": CLOSED},
    "open.avi": {"options": {"x264-params": OPEN}},
    "no b-frames.avi": {"options": {"g": "20", "bf": "0"}},
    "uneven.mp4": {"options": CLOSED, "milliseconds": UNEVEN},
    "uneven.mkv": {"options": CLOSED, "milliseconds": UNEVEN},
    "late.mkv": {"options": CLOSED, "first": 500},
    "late.mp4": {"options": CLOSED, "first": 37},
    "fragments.mp4": {"options": CLOSED, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
}
# There no key frame is to be had, or none that is sure.
FROM_THE_BEGINNING: dict[str, dict] = {
    "refreshed.mkv": {"options": {"x264-params": f"keyint={KEY_EVERY}:intra-refresh=1:bframes=0"}},
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "one key frame.mp4": {"options": {"bf": "3"}},
}


def remuxed(path: Path, target: Path, *, seconds: float = 0.0, without_groups: int = 0) -> Path:
    """A copy of the packets, shifted in time (what lies before 0 is cut off by an edit list), less the first groups."""
    import av

    groups = 0
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is None:
                continue
            groups += packet.is_keyframe
            if groups > without_groups:
                packet.pts += round(seconds / packet.time_base)
                packet.dts += round(seconds / packet.time_base)
                packet.stream = copy
                out.mux(packet)
    return target


def written(folder: Path, name: str) -> Path:
    if name in CLIPS or name in FROM_THE_BEGINNING:
        return write_clip(folder / name, pictures=PICTURES, **{**CLIPS, **FROM_THE_BEGINNING}[name])
    kind = name.split()[0]
    whole = write_clip(folder / "whole.mp4", pictures=PICTURES, **CLIPS["open.mp4" if kind == "cut" else kind])
    if kind == "cut":
        return remuxed(whole, folder / name, without_groups=2)
    return remuxed(whole, folder / name, seconds=-1.3)


EDITED = [
    "b-frames.mp4 shifted.mp4",
    "b-frames.mp4 shifted.mov",
    "open.mp4 shifted.mp4",
    "cut open.mp4",
    "cut open.mkv",
]


class Watch:
    """How many frames were decoded, and whether the last attempt went to a key frame."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.sought = 0, False
        decoded, from_key_frame = seeking.decoded, seeking._from_key_frame

        def counting(*arguments, **keys) -> Iterator:
            for frame in decoded(*arguments, **keys):
                self.count += 1
                yield frame

        def telling(*arguments) -> Iterator | None:
            frames = from_key_frame(*arguments)
            self.sought = frames is not None
            return frames

        monkeypatch.setattr(seeking, "decoded", counting)
        monkeypatch.setattr(seeking, "_from_key_frame", telling)


@pytest.mark.parametrize("name", [*CLIPS, *EDITED, *FROM_THE_BEGINNING])
def test_a_start_inside_gives_the_frames_of_a_full_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = written(tmp_path, name)
    every, own_times = decode_frames(path), probe(path).times
    assert len(every) == len(own_times) > 40
    assert len({frame.tobytes() for frame in every}) > 0.9 * len(every)  # or nothing could be told apart
    watch = Watch(monkeypatch)
    for source_fps in (0.0, 24.0):
        times = [index / source_fps for index in range(len(every))] if source_fps else own_times
        for share, fps in ((0.02, 0), (0.31, 8), (0.5, 0), (0.501, 16), (0.75, 16), (0.9, 0), (0.99, 8), (1.1, 16)):
            start, watch.count, watch.sought = share * times[-1], 0, False
            picked = pick_nearest(zip(times, range(len(every)), strict=True), fps=fps, start_seconds=start)
            expected = [every[index] for _, index in islice(picked, 4)]
            keys = {"fps": fps, "start_seconds": start, "source_fps": source_fps}
            found = list(iter_frames(path, num_frames=4, **keys))
            assert len(found) == len(expected), keys
            assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True)), keys
            if name not in FROM_THE_BEGINNING and 0.3 < share < 1:
                assert watch.sought
                assert watch.count <= 1 + 2 * KEY_EVERY + 4 * max(1, 16 // (fps or 16)) + 8, keys


def test_a_seek_that_ends_behind_the_start_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some files come to rest at the next key frame; here every seek does."""
    path = write_clip(tmp_path / "a.mkv", pictures=PICTURES, options=CLOSED)
    expected = decode_frames(path)[33:36]
    stamp = seeking._Read.stamp
    monkeypatch.setattr(seeking._Read, "stamp", lambda clock, seconds: stamp(clock, seconds + 5.0))
    watch = Watch(monkeypatch)
    assert np.array_equal(decode_frames(path, start_seconds=33 / 16, num_frames=3), expected)
    assert not watch.sought


def test_a_seek_that_ends_a_little_behind_is_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mkv", pictures=PICTURES, options=CLOSED)
    expected = decode_frames(path)[58:61]
    stamp = seeking._Read.stamp
    monkeypatch.setattr(seeking._Read, "stamp", lambda clock, seconds: stamp(clock, seconds + 0.5))
    watch = Watch(monkeypatch)
    assert np.array_equal(decode_frames(path, start_seconds=58 / 16, num_frames=3), expected)
    assert watch.sought
