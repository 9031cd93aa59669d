"""What people's folders hold: damage, wrong names, odd shapes. Every file gives its frames or a clear reason."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data_helpers import grey_index, picture, write_clip

from simplewan.data.media import MediaError, decode_frames, iter_planes, probe
from simplewan.data.mediainfo import load_av
from simplewan.data.scenes import find_cuts

KINDS: dict[str, dict] = {
    "mp4": {"options": {"bf": "2", "g": "6"}},
    "mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=6"}},
    "webm": {"codec": "libvpx-vp9", "options": {"g": "6"}},
    "avi": {"codec": "mpeg4", "options": {"g": "6"}},
    "gif": {"codec": "gif", "pix_fmt": "rgb8"},
}


def noise(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sound file of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    pictures = [noise(number) for number in range(12)]
    files = {
        kind: write_clip(folder / f"a.{kind}", pictures=pictures, **keys).read_bytes() for kind, keys in KINDS.items()
    }
    for kind in ("png", "jpg", "webp", "bmp", "tiff"):
        Image.fromarray(pictures[0]).save(folder / f"a.{kind}")
        files[kind] = (folder / f"a.{kind}").read_bytes()
    return files


def frames_or_reason(path: Path) -> int | str:
    """How many frames decode, or the reason why it cannot be used; nothing else may happen."""
    try:
        info = probe(path)
        assert info.num_frames >= 1
        assert info.width > 0 < info.height
        frames = decode_frames(path)
        assert frames.shape[3] == 3
        decode_frames(path, start_seconds=info.times[-1] / 2, num_frames=1)
        find_cuts(path)
    except MediaError as error:
        # FFmpeg says that of a cut Matroska file, too, and it might be the disk
        assert error.lasting or "Input/output error" in error.reason
        assert error.reason
        return error.reason
    return len(frames)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from([*KINDS, "png", "jpg", "webp", "bmp", "tiff"]), share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off_gives_fewer_frames_or_a_reason(
    tmp_path: Path, whole: dict[str, bytes], kind: str, share: float
) -> None:
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(whole[kind][: int(share * len(whole[kind]))])
    found = frames_or_reason(path)
    if isinstance(found, int):
        assert found <= 12
    elif path.stat().st_size == 0:
        assert found == "the file is empty (0 bytes)"


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([*KINDS, "png", "jpg", "webp", "bmp", "tiff"]),
    share=st.floats(0, 1, exclude_max=True),
    damage=st.binary(min_size=1, max_size=40),
)
def test_a_file_with_other_bytes_in_it_neither_hangs_nor_crashes(
    tmp_path: Path, whole: dict[str, bytes], kind: str, share: float, damage: bytes
) -> None:
    content = bytearray(whole[kind])
    place = int(share * len(content))
    content[place : place + len(damage)] = damage
    path = tmp_path / f"damaged.{kind}"
    path.write_bytes(content)
    frames_or_reason(path)


@pytest.mark.parametrize(
    ("codec", "options", "least"),
    [
        ("libx264", {"crf": "20", "bf": "2"}, 12),
        ("libx265", {"x265-params": "log-level=none", "preset": "ultrafast"}, 4),
        ("mpeg4", {"qscale": "3"}, 16),
    ],
)
def test_damage_is_told_where_the_decoder_can_tell(tmp_path: Path, codec: str, options: dict, least: int) -> None:
    """With its usual settings the decoder of H.264 tells of one damage in ten, that of HEVC of none."""
    path = tmp_path / "a.mkv"
    moving = np.asarray(Image.fromarray(noise(0, (60, 40))).resize((600, 400), Image.BICUBIC))
    write_clip(
        path, pictures=[moving[n : n + 240, 2 * n : 2 * n + 320] for n in range(20)], codec=codec, options=options
    )
    content = path.read_bytes()
    with load_av().open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    rng = np.random.default_rng(1)
    told = 0
    for _ in range(20):
        begin, size = packets[rng.integers(len(packets))]
        place = begin + int(rng.integers(size // 8, size))
        damaged = bytearray(content)
        for position in range(place, min(begin + size, place + int(rng.integers(1, 30)))):
            damaged[position] ^= int(rng.integers(1, 255))
        path.write_bytes(damaged)
        try:
            decode_frames(path)
        except MediaError as error:
            assert "is damaged near" in error.reason
            told += 1
    assert told >= least


@pytest.mark.parametrize(
    ("kind", "name", "outcome"),
    [
        ("mp4", "a.webm", 12),
        ("mp4", "A.MOV", 12),
        ("webm", "a.avi", 12),
        ("gif", "a.mp4", 12),
        ("png", "a.jpg", 1),
        ("jpg", "a.PNG", 1),
        ("png", "a.mp4", 1),  # FFmpeg reads it as a clip of one frame
        ("mp4", "a.png", "is not a picture that can be read"),
    ],
)
def test_the_content_counts_and_not_the_ending(
    tmp_path: Path, whole: dict[str, bytes], kind: str, name: str, outcome: int | str
) -> None:
    (tmp_path / name).write_bytes(whole[kind])
    assert frames_or_reason(tmp_path / name) == outcome


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.avi", "a.gif", "a.png"])
@pytest.mark.parametrize("content", [b"\0", b"a text\n" * 200, bytes(5000), b"\xff" * 3000])
def test_what_is_no_media_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    reason = frames_or_reason(tmp_path / name)
    assert isinstance(reason, str)
    assert "does not decode" in reason or "not a picture" in reason


def test_sound_alone_is_named(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.avi"), "wb") as sound:
        sound.setparams((1, 2, 8000, 800, "NONE", ""))
        sound.writeframes(bytes(1600))
    av = load_av()
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    for name in ("a.avi", "a.mp4"):
        assert frames_or_reason(tmp_path / name) == "holds no video, only sound"


@pytest.mark.parametrize("name", ["a b.mp4", 'it\'s "so".mp4', "视频 剪辑.mp4", "100%d.mp4", "a:b.mp4", "-y.mp4"])
def test_any_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_clip(tmp_path / "plain.mp4", frames=3).rename(tmp_path / name)
    assert frames_or_reason(tmp_path / name) == 3
    monkeypatch.chdir(tmp_path)
    assert frames_or_reason(Path(name)) == 3
    Image.fromarray(picture(0)).save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(tmp_path / f"{name}.png")
    assert frames_or_reason(Path(f"{name}.png")) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_frame_is_a_clip(tmp_path: Path, kind: str) -> None:
    path = write_clip(tmp_path / f"a.{kind}", frames=1, **KINDS[kind])
    assert frames_or_reason(path) == 1
    assert probe(path).times == (0.0,)


@pytest.mark.parametrize("size", [(63, 47), (1, 1), (2, 999), (2000, 16), (17, 2000)])
def test_odd_and_extreme_shapes_come_out_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    gradient = np.zeros((size[1], size[0], 3), np.uint8)
    gradient[..., 0] = np.linspace(0, 255, size[0], dtype=np.uint8)[None, :]
    gradient[..., 1] = np.linspace(0, 255, size[1], dtype=np.uint8)[:, None]
    keys = {"codec": "ffv1", "options": {"level": "1"}}
    path = write_clip(tmp_path / "a.mkv", pictures=[gradient] * 2, **keys)
    Image.fromarray(gradient).save(tmp_path / "a.png")
    for file in (path, tmp_path / "a.png"):
        info = probe(file)
        assert (info.width, info.height) == size
        frames = decode_frames(file)
        assert frames.shape[1:] == (size[1], size[0], 3)
        if min(size) > 2:  # two columns share one sample of the colours
            assert np.abs(frames[0].astype(int) - gradient).mean() < 8
        for target in ((32, 32), (size[0] * 2, size[1])):
            planes = next(iter_planes(file, sizes=[target]))
            assert [plane.shape for plane in planes] == [target[::-1]] * 3
            if min(size) > 2:
                assert int(planes[0][:, 0].max()) < 40 < 200 < int(planes[0][:, -1].min())


def see_through(size: tuple[int, int]) -> np.ndarray:
    """Opaque red on the left, fully transparent blue on the right."""
    pixels = np.zeros((size[1], size[0], 4), np.uint8)
    pixels[:, : size[0] // 2] = (200, 0, 0, 255)
    pixels[:, size[0] // 2 :] = (0, 0, 255, 0)
    return pixels


@pytest.mark.parametrize(
    ("name", "settings_"),
    [
        ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuva444p10le"}),
        ("a.mkv", {"codec": "ffv1", "pix_fmt": "yuva420p"}),
        ("b.mkv", {"codec": "ffv1", "pix_fmt": "bgra"}),
        ("c.mov", {"codec": "png", "pix_fmt": "rgba"}),
        ("a.gif", {}),
        ("a.png", {}),
    ],
)
def test_what_is_transparent_becomes_white_at_any_size(tmp_path: Path, name: str, settings_: dict) -> None:
    pixels = see_through((64, 48))
    if name in ("a.gif", "a.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    else:
        write_clip(tmp_path / name, pictures=[pixels] * 2, **settings_)
    for sizes in ([], [(32, 24)], [(48, 36), (32, 24)]):
        red, green, blue = (plane.astype(int) for plane in next(iter_planes(tmp_path / name, sizes=sizes)))
        half = red.shape[1] // 2
        assert np.abs(red[:, : half - 3] - 200).max() < 12
        assert max(green[:, : half - 3].max(), blue[:, : half - 3].max()) < 12
        assert min(plane[:, half + 3 :].min() for plane in (red, green, blue)) > 243  # none of the hidden blue


@pytest.mark.parametrize(
    ("name", "codec", "options", "pix_fmt"),
    [
        ("a.mp4", "libx265", {"x265-params": "log-level=none"}, "yuv420p10le"),
        ("b.mp4", "libx264", {}, "yuv422p10le"),
        ("a.webm", "libvpx-vp9", {}, "yuv420p"),
    ],
)
def test_ten_bits_decode_and_hdr_is_remarked_on(
    tmp_path: Path, name: str, codec: str, options: dict, pix_fmt: str
) -> None:
    def pq(stream) -> None:
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = 16, 9, 9

    keys = {"codec": codec, "options": options, "pix_fmt": pix_fmt, "frames": 6}
    plain = write_clip(tmp_path / name, **keys)
    assert [grey_index(frame) for frame in decode_frames(plain)] == list(range(6))
    assert probe(plain).remarks == ()
    bright = write_clip(tmp_path / f"hdr {name}", stream_setup=pq, **keys)
    assert "is HDR" in probe(bright).remarks[0]
    assert len(decode_frames(bright)) == 6


def test_a_still_that_announces_a_huge_picture_is_refused(tmp_path: Path) -> None:
    """A few bytes of a PNG may announce any size; no memory is taken for it."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = struct.pack(">II", 60000, 60000)
    (tmp_path / "a.png").write_bytes(content)
    assert isinstance(frames_or_reason(tmp_path / "a.png"), str)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
def test_odd_tags_beside_the_orientation_do_not_matter(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "x", 6  # a description; to be turned by a quarter
    Image.fromarray(picture(3)).save(tmp_path / name, exif=exif)
    content = (tmp_path / name).read_bytes()
    described = struct.pack(">HHI", 0x010E, 2, 2)
    assert content.count(described) == 1
    damaged = content.replace(described, struct.pack(">HHI", 0x010E, 0, 2))  # of a type that there is not
    (tmp_path / name).write_bytes(damaged if name != "a.png" else content)  # PNG sums up its parts
    assert frames_or_reason(tmp_path / name) == 1
    assert (probe(tmp_path / name).width, probe(tmp_path / name).height) == (48, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_shown_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = noise(1, (8, 6))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    # Where the first row and the first column of what is stored are to be shown (EXIF 2.3, tag 0x0112).
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    assert np.array_equal(decode_frames(tmp_path / "a.png")[0], shown)


def test_titles_in_another_encoding_do_not_matter(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=3)
    content = path.read_bytes()
    assert content.count(b"Lavf") == 1
    path.write_bytes(content.replace(b"Lavf", b"L\xe4vf"))
    assert frames_or_reason(path) == 3
