"""Media in places without local files: the same bits through a stream, only the bytes that are needed, and errors."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_helpers import grey_index, write_clip

from simplewan.data import seeking
from simplewan.data.backends import Entry, LocalBackend, Source
from simplewan.data.buckets import Clip
from simplewan.data.loading import load_clip
from simplewan.data.media import MediaError, decode_frames, iter_frames, probe
from simplewan.data.samples import Sample
from simplewan.data.scenes import find_cuts


class Memory:
    """A place that holds files in memory and remembers which of their bytes it handed out."""

    root = "memory://"

    def __init__(self, **files: bytes) -> None:
        self.files = files
        self.read_bytes = bytearray()
        self.breaks_at: int | None = None
        self.failure = OSError(errno.EIO, "the line is down")

    def list(self) -> Iterator[Entry]:
        return iter([Entry(path, len(content), "1") for path, content in sorted(self.files.items())])

    def stat(self, path: str) -> Entry:
        return Entry(path, len(self.files[path]), "1")

    def open(self, path: str) -> BinaryIO:
        if path not in self.files:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
        self.read_bytes = bytearray(len(self.files[path]))
        return _Stream(self, self.files[path])

    def read(self, path: str) -> bytes:
        return self.files[path]

    def local_path(self, path: str) -> Path | None:
        return None

    def identity(self, entry: Entry) -> str | None:
        return None

    def share_read(self, begin: float, end: float) -> float:
        """How much was read of the part between two fractions of the file."""
        part = self.read_bytes[int(begin * len(self.read_bytes)) : int(end * len(self.read_bytes))]
        return sum(part) / len(part)


class _Stream(io.BytesIO):
    name = 3  # as of a file without one

    def __init__(self, place: Memory, content: bytes) -> None:
        super().__init__(content)
        self._place = place

    def read(self, size: int | None = -1) -> bytes:
        begin = self.tell()
        if self._place.breaks_at is not None and begin >= self._place.breaks_at:
            raise self._place.failure
        content = super().read(size)
        self._place.read_bytes[begin : begin + len(content)] = b"\1" * len(content)
        return content


def remote(path: Path) -> Source:
    """The file in a place of its own."""
    return Source(Memory(**{path.name: path.read_bytes()}), path.name)


def noise(number: int, size: tuple[int, int] = (160, 96)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five minutes and twenty seconds at 4 frames a second, a key frame every 5 seconds."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    pictures = [noise(number % 97, (64, 48)) for number in range(320 * 4)]
    return write_clip(path, rate=4, pictures=pictures, options={"g": "20", "preset": "ultrafast", "crf": "30"})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {"options": {"bf": "3", "g": "8"}}),
        ("a.mkv", {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=8"}}),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"g": "8"}}),
        ("a.avi", {"codec": "mpeg4", "options": {"g": "8"}}),
        ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    ],
)
def test_a_stream_gives_the_same_as_a_file(tmp_path: Path, name: str, settings: dict) -> None:
    path = write_clip(tmp_path / name, frames=40, marked=True, **settings)
    assert probe(remote(path)) == probe(path) == probe(str(path)) == probe(Source(LocalBackend(tmp_path), name))
    assert np.array_equal(decode_frames(remote(path)), decode_frames(path))
    keys = {"start_seconds": 1.1, "num_frames": 6, "fps": 8.0}
    assert np.array_equal(decode_frames(remote(path), **keys), decode_frames(path, **keys))
    assert find_cuts(remote(path)) == find_cuts(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tiff"])
def test_a_picture_from_a_stream_is_the_same(tmp_path: Path, name: str) -> None:
    Image.fromarray(noise(0)).save(tmp_path / name)
    assert np.array_equal(decode_frames(remote(tmp_path / name)), decode_frames(tmp_path / name))
    assert probe(remote(tmp_path / name)) == probe(tmp_path / name)


def test_load_clip_takes_a_sample_of_any_place(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=40, size=(200, 96), options={"g": "8"}, marked=True)
    clip = Clip(64, 48, 9, 16.0, 16.0, 0.0, 1.2, 100, 48, 18, 0)
    here = load_clip(Sample("c/a.mp4", "c", Source(LocalBackend(tmp_path), "a.mp4"), "", (), clip))
    there = load_clip(Sample("c/a.mp4", "c", remote(path), "", (), clip))
    assert torch.equal(here, there)
    assert grey_index(here[0].permute(1, 2, 0).numpy()) == 19  # 1.2 seconds at 16 frames a second


def test_a_second_at_the_end_is_taken_without_reading_the_middle(long_clip: Path) -> None:
    source = remote(long_clip)
    last = decode_frames(source, start_seconds=318.5, num_frames=4)
    assert np.array_equal(last, decode_frames(long_clip)[318 * 4 + 2 :][:4])
    assert source.backend.share_read(0.05, 0.95) == 0.0
    assert source.backend.share_read(0, 1) < 0.06


def test_frames_at_minute_five_are_decoded_from_the_key_frame_before(
    long_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    decoded = seeking.decoded

    def counting(*arguments, **keys) -> Iterator:
        nonlocal count
        for frame in decoded(*arguments, **keys):
            count += 1
            yield frame

    monkeypatch.setattr(seeking, "decoded", counting)
    source = remote(long_clip)
    frames = list(iter_frames(source, start_seconds=303.0, num_frames=8, fps=2.0))
    assert len(frames) == 8
    # the first frame of all, from the key frame at 300 s to 303 s, every other one of 15, and at most two behind
    assert 1 + 12 + 15 + 1 <= count <= 1 + 12 + 15 + 2
    assert source.backend.share_read(0.02, 0.9) == 0.0


def test_frames_that_are_counted_take_what_lies_before_them_and_no_more(long_clip: Path) -> None:
    source = remote(long_clip)
    counted = decode_frames(source, start_seconds=16.0, num_frames=4, source_fps=8.0)
    assert np.array_equal(counted, decode_frames(long_clip)[128:132])
    assert source.backend.share_read(0.14, 0.98) == 0.0
    assert source.backend.share_read(0.0, 0.1) == 1.0


def test_what_fails_in_a_place_is_worth_another_try(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", pictures=[noise(number) for number in range(60)], options={"g": "10"})
    content = path.read_bytes()
    Image.fromarray(noise(0)).save(tmp_path / "a.png")
    assert probe(remote(path)).num_frames == 60
    for place in (0, 32768, len(content) // 3, len(content) // 2, len(content) - 5000):
        source = remote(path)
        source.backend.breaks_at = place
        for attempt in (probe, decode_frames, find_cuts, lambda it: decode_frames(it, start_seconds=2.0)):
            with pytest.raises(MediaError, match="cannot be read: the line is down") as caught:
                attempt(source)
            assert not caught.value.lasting
    picture_source = remote(tmp_path / "a.png")
    picture_source.backend.breaks_at = 0
    with pytest.raises(MediaError, match="cannot be read: the line is down") as caught:
        probe(picture_source)
    assert not caught.value.lasting
    picture_source.backend.failure = OSError("no words for it")
    with pytest.raises(MediaError, match="cannot be read: no words for it"):
        probe(picture_source)


def test_missing_and_empty_files_of_a_place_are_refused(tmp_path: Path) -> None:
    place = Memory(**{"empty.mp4": b"", "empty.png": b"", "cut.png": b"\x89PNG\r\n"})
    for name in ("gone.mp4", "gone.png"):
        with pytest.raises(MediaError, match="cannot be read: there is no such object") as caught:
            probe(Source(place, name))
        assert not caught.value.lasting
    for name in ("empty.mp4", "empty.png"):
        with pytest.raises(MediaError, match=r"empty \(0 bytes\)") as caught:
            probe(Source(place, name))
        assert caught.value.lasting
    with pytest.raises(MediaError, match="not a picture") as caught:
        probe(Source(place, "cut.png"))
    assert caught.value.lasting
    for name in ("gone.mp4", "gone.png"):
        with pytest.raises(MediaError, match="cannot be read: No such file"):
            probe(tmp_path / name)


def test_a_reader_that_stops_early_closes_the_stream(tmp_path: Path) -> None:
    source = remote(write_clip(tmp_path / "a.mp4", frames=30))
    opened: list[BinaryIO] = []
    original = source.backend.open

    def opening(path: str) -> BinaryIO:
        opened.append(original(path))
        return opened[-1]

    source.backend.open = opening
    frames = iter_frames(source, start_seconds=0.5)
    assert grey_index(next(frames)) == 8
    frames.close()
    assert opened
    assert all(stream.closed for stream in opened)
