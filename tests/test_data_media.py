"""Reading and writing real files: counts, times, rotation, colours, and what is said of broken ones."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_helpers import grey_index, picture, write_clip

from simplewan.data.media import MediaError, decode_frames, iter_frames, probe, write_mp4
from simplewan.data.mediainfo import load_av


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.mp4", {"options": {"bf": "3"}}),
        ("a.mov", {"pix_fmt": "yuv420p10le"}),
        ("a.mkv", {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("b.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "12"}}),
        ("a.avi", {"options": {"bf": "3"}}),
        ("b.avi", {"codec": "mpeg4", "options": {"qscale": "2"}}),
        ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("full.mp4", {"pix_fmt": "yuvj420p"}),
    ],
)
def test_every_container_gives_its_frames_in_order(tmp_path: Path, name: str, settings: dict) -> None:
    path = write_clip(tmp_path / name, **settings)
    info = probe(path)
    assert (info.width, info.height, info.num_frames, info.is_image) == (64, 48, 20, False)
    assert info.fps == pytest.approx(16, rel=0.03 if name == "a.gif" else 0.005)
    frames = decode_frames(path)
    assert frames.shape == (20, 48, 64, 3)
    assert frames.dtype == np.uint8
    if name != "a.gif":  # its palette has few greys
        assert [grey_index(frame) for frame in frames] == list(range(20))


def test_frames_are_those_nearest_to_the_asked_times_though_the_source_is_uneven(tmp_path: Path) -> None:
    stamps = [0, 20, 70, 120, 130, 190, 250, 400, 410, 420, 500, 560]
    path = write_clip(tmp_path / "vfr.mp4", milliseconds=stamps)
    assert [round(time * 1000) for time in probe(path).times] == stamps
    expected: list[int] = []
    for k in range(10):  # 0, 62.5, ... 562.5 ms
        nearest = min(range(len(stamps)), key=lambda i: (abs(stamps[i] - k * 62.5), i))
        if nearest not in expected:
            expected.append(nearest)
    assert [grey_index(frame) for frame in iter_frames(path, fps=16)] == expected == [0, 2, 3, 5, 6, 7, 9, 10, 11]


def test_thirty_frames_a_second_become_sixteen_and_eight_stay_eight(tmp_path: Path) -> None:
    fast = write_clip(tmp_path / "fast.mp4", frames=27, rate=30)
    assert [grey_index(frame) for frame in iter_frames(fast, fps=16, num_frames=9)] == [0, 2, 4, 6, 7, 9, 11, 13, 15]
    slow = write_clip(tmp_path / "slow.mp4", frames=9, rate=8)
    assert [grey_index(frame) for frame in iter_frames(slow, fps=16)] == list(range(9))


def test_a_start_inside_the_file_is_reached_by_seeking(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=27 * 4, rate=16, options={"g": "12", "bf": "2"})
    every = decode_frames(path)
    later = decode_frames(path, fps=8, start_seconds=5.0, num_frames=7)
    assert np.array_equal(later, every[80:94:2])


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, rotation: int) -> None:
    path = write_clip(tmp_path / "turned.mp4", frames=2, rotation=rotation, marked=True)
    plain = decode_frames(write_clip(tmp_path / "plain.mp4", frames=2, marked=True))
    turned = decode_frames(path)
    assert np.array_equal(turned, np.rot90(plain, rotation // 90, axes=(1, 2)))
    info = probe(path)
    assert (info.height, info.width) == turned.shape[1:3]
    assert info.rotation == rotation % 360


def test_a_mirrored_display_matrix_is_applied(tmp_path: Path) -> None:
    setup = {"stream_setup": lambda stream: stream.set_display_rotation(0, hflip=True)}
    mirrored = decode_frames(write_clip(tmp_path / "a.mp4", frames=2, marked=True, **setup))
    plain = decode_frames(write_clip(tmp_path / "plain.mp4", frames=2, marked=True))
    assert np.array_equal(mirrored, plain[:, :, ::-1])


def test_oblong_pixels_count_in_the_shape(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path / "a.mp4", frames=2, aspect=Fraction(4, 3)))
    assert (info.width, info.height) == (85, 48)


@pytest.mark.parametrize("height", [48, 720])
def test_written_clips_come_back_with_their_colours(tmp_path: Path, height: int) -> None:
    colours = [(255, 255, 255), (0, 0, 0), (200, 40, 40), (30, 180, 60), (20, 40, 210)]
    frames = np.stack([np.broadcast_to(np.uint8(colour), (height, 64, 3)) for colour in colours])
    write_mp4(tmp_path / "new" / "a.mp4", frames, 16)
    back = decode_frames(tmp_path / "new" / "a.mp4")
    assert np.abs(back.astype(int) - frames).max() <= 3
    info = probe(tmp_path / "new" / "a.mp4")
    assert (info.num_frames, info.fps) == (5, pytest.approx(16))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:80, 0:80]
    waves = (127 + 60 * np.sin(x / 7) + 40 * np.cos(y / 5))[..., None] * np.array([1, 0.8, 0.6])
    frames = np.stack([waves] * 17)
    for number, frame in enumerate(frames):
        frame[(x - 4 * number) ** 2 + (y - 40) ** 2 < 400] = (200, 40, 40)
    frames = (frames + rng.normal(0, 3, frames.shape)).clip(0, 255).astype(np.uint8)
    written = set()
    for _ in range(24):
        used = [rng.integers(0, 255, size, dtype=np.uint8) for size in rng.integers(100, 60_000, 50)]
        del used  # memory that the encoder gets is not as fresh as in a new process
        write_mp4(tmp_path / "a.mp4", frames, 16)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1


def test_odd_sizes_lose_a_line_and_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    write_mp4(tmp_path / "odd.mp4", [picture(0, (51, 33))], 16)
    assert decode_frames(tmp_path / "odd.mp4").shape == (1, 32, 50, 3)
    write_mp4(tmp_path / "kept.mp4", [picture(3)] * 2, 16)
    before = (tmp_path / "kept.mp4").read_bytes()

    def failing():
        yield picture(0)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        write_mp4(tmp_path / "kept.mp4", failing(), 16)
    with pytest.raises(ValueError, match="at least one frame"):
        write_mp4(tmp_path / "none.mp4", [], 16)
    assert (tmp_path / "kept.mp4").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.mp4", "odd.mp4"]


def test_broken_files_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(b"this is not a video" * 50)
    (tmp_path / "noise.png").write_bytes(b"nor a picture")
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index is at the end
    with wave.open(str(tmp_path / "sound.avi"), "wb") as sound:
        sound.setparams((1, 2, 8000, 800, "NONE", ""))
        sound.writeframes(bytes(1600))
    Image.new("RGB", (64, 48), "red").save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) - 40])
    reasons = {}
    for path in sorted(tmp_path.iterdir()):
        if path.name != "whole.mp4":
            with pytest.raises(MediaError) as caught:
                probe(path)
            reasons[path.name] = caught.value.reason
    assert "empty (0 bytes)" in reasons["empty.mp4"]
    assert "no video, only sound" in reasons["sound.avi"]
    assert "not a picture" in reasons["noise.png"]
    assert all("does not decode" in reasons[name] for name in ("noise.mp4", "cut.mp4", "cut.png"))


def test_a_damaged_frame_is_an_error_not_what_the_decoder_makes_up(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.mp4"
    write_mp4(path, np.random.default_rng(0).integers(0, 255, (12, 96, 128, 3), dtype=np.uint8), 16)
    whole = decode_frames(path)
    with av.open(str(path)) as container:
        packet = sorted((p for p in container.demux(video=0) if p.size), key=lambda p: p.pts)[8]
    data = bytearray(path.read_bytes())
    for position in range(packet.pos + packet.size // 3, packet.pos + packet.size // 3 + 40):
        data[position] ^= 0x5A
    path.write_bytes(data)
    assert probe(path).num_frames == 12
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == 12  # the decoder hides the damage
    assert np.array_equal(decode_frames(path, num_frames=2), whole[:2])  # it lies behind these
    with pytest.raises(MediaError, match=r"is damaged near 0\.[45] seconds"):
        decode_frames(path, num_frames=12)


def test_a_file_cut_off_after_its_index_is_counted_as_it_is(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=40, options={"g": "1"}, size=(256, 192))
    import av

    with av.open(str(path)) as source, av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data[: len(data) * 3 // 4])
    info = probe(tmp_path / "b.mp4")
    assert 5 < info.num_frames < 40
    assert "of the 40 frames it announces" in info.remarks[0]


def test_pictures_are_turned_and_flattened_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(picture(3, marked=True)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(decode_frames(tmp_path / "turned.png")[0], np.rot90(picture(3, marked=True), -1))
    assert (probe(tmp_path / "turned.png").width, probe(tmp_path / "turned.png").is_image) == (48, True)
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (decode_frames(tmp_path / "clear.png") == 255).all()
    Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)).save(tmp_path / "deep.png")
    assert (decode_frames(tmp_path / "deep.png") == 0x80).all()
    Image.new("CMYK", (8, 8)).save(tmp_path / "cmyk.jpg")
    assert decode_frames(tmp_path / "cmyk.jpg").shape == (1, 8, 8, 3)
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    with pytest.raises(MediaError, match="animation of 2 frames"):
        probe(tmp_path / "moving.webp")


def test_transparent_gifs_are_flattened_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:8] = (200, 0, 0, 255)
    frames = [Image.fromarray(pixels), Image.fromarray(np.roll(pixels, 4, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=60, disposal=2)
    first = decode_frames(tmp_path / "a.gif")[0]
    assert (first[10:] == 255).all()
    assert (first[:8, :, 0] > 150).all()
    assert (first[:8, :, 1] < 30).all()


def test_ffmpeg_says_nothing_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its messages about a damaged file stay out of the terminal."""
    path = tmp_path / "damaged.mp4"
    write_mp4(path, np.random.default_rng(0).integers(0, 255, (9, 48, 64, 3), dtype=np.uint8), fps=16)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 4, len(content) // 2, 7):
        content[place] ^= 0x5A
    path.write_bytes(content)
    with pytest.raises(MediaError):
        decode_frames(path)
    assert capfd.readouterr() == ("", "")


def test_ffmpegs_messages_do_not_pass_through_python(capfd: pytest.CaptureFixture[str]) -> None:
    """A message of the one level that is not silenced is printed by FFmpeg; PyAV's log function would swallow it."""
    av = load_av()
    av.logging.log(av.logging.PANIC, "test", "printed by FFmpeg itself")
    assert "printed by FFmpeg itself" in capfd.readouterr().err
