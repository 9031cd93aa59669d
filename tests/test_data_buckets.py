"""Bucket arithmetic and resampling: properties over all sizes, and the values that people know."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplewan.data.buckets import (
    FrameRule,
    SizeRule,
    centre_offset,
    cover_size,
    crop_offset,
    floor_frames,
    frames_to_take,
    make_clip,
    round_to_multiple,
    size_refusal,
    target_size,
)
from simplewan.data.resampling import pick_nearest, typical_rate

edges = st.integers(16, 5000)
multiples = st.sampled_from([16, 32])


@given(st.integers(1, 2000))
def test_frames_go_down_to_4n_plus_1(frames: int) -> None:
    floored = floor_frames(frames)
    assert floored % 4 == 1
    assert frames - 4 < floored <= frames


@given(edges, edges, multiples, st.sampled_from([("pixel", 480), ("pixel_area", 480), ("area", 0.4)]))
def test_every_source_gets_a_size_that_divides_and_a_crop_inside(
    width: int, height: int, multiple: int, resolution: tuple[str, float]
) -> None:
    rule = SizeRule(resolution[1], resolution[0], multiple=multiple, aspect_rounding=9)
    clip = make_clip(width, height, rule, num_frames=9, fps=16, sample_fps=16)
    assert clip.width % multiple == clip.height % multiple == 0
    assert 0 <= clip.crop_left <= clip.resize_width - clip.width
    assert 0 <= clip.crop_top <= clip.resize_height - clip.height
    # it just covers: one edge fits exactly, and the crop is from the middle
    assert clip.width == clip.resize_width or clip.height == clip.resize_height
    assert abs(clip.resize_width - clip.width - 2 * clip.crop_left) <= 1
    assert abs(clip.resize_height - clip.height - 2 * clip.crop_top) <= 1


@given(edges, edges, edges, edges)
def test_covering_keeps_the_aspect_to_the_pixel(width: int, height: int, across: int, down: int) -> None:
    covering = cover_size(width, height, (across, down))
    assert covering[0] >= across
    assert covering[1] >= down
    factor = max(across / width, down / height)
    assert abs(covering[0] - width * factor) <= 1
    assert abs(covering[1] - height * factor) <= 1


@given(st.floats(0.4, 2.5), st.integers(200, 1500))
def test_buckets_by_area_keep_area_and_aspect(aspect: float, edge: int) -> None:
    width, height = target_size(round(4000 * aspect), 4000, SizeRule(edge, "pixel_area", aspect_rounding=9))
    assert abs(width - edge * math.sqrt(aspect)) <= 9
    assert abs(height - edge / math.sqrt(aspect)) <= 9


@pytest.mark.parametrize(
    ("source", "rule", "expected"),
    [
        ((1280, 720), SizeRule(480, "pixel_area"), (640, 352)),
        ((832, 480), SizeRule(480, "pixel_area"), (624, 368)),
        ((1280, 720), SizeRule(480, "pixel"), (848, 480)),
        ((720, 1280), SizeRule(480, "pixel"), (480, 848)),
        ((1920, 1080), SizeRule(0.4, "area"), (848, 480)),
        ((1280, 720), SizeRule(480, "pixel_area", shape="square"), (480, 480)),
        ((1280, 720), SizeRule(480, "pixel_area", shape="closest", aspects=(1.0, 1.5)), (592, 384)),
        ((1280, 720), SizeRule(480, "pixel_area", multiple=32), (640, 352)),
        ((1920, 1080), SizeRule(0, exact=((832, 480), (480, 832))), (832, 480)),
        ((1080, 1920), SizeRule(0, exact=((832, 480), (480, 832))), (480, 832)),
        ((900, 1000), SizeRule(0, exact=((832, 480), (480, 832), (624, 624))), (624, 624)),
    ],
)
def test_sizes_that_people_know(source: tuple[int, int], rule: SizeRule, expected: tuple[int, int]) -> None:
    assert target_size(*source, rule) == expected


@given(edges, edges, edges, edges, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1, exclude_max=True))
def test_cuts_lie_inside_and_faces_as_near_the_middle_as_can_be(
    width: int, height: int, across: int, down: int, x: float, y: float, drawn: float
) -> None:
    covering, target = cover_size(width, height, (across, down)), (across, down)
    cuts = {
        "center": crop_offset(covering, target, "center"),
        "corner": crop_offset(covering, target, "corner"),
        "random": crop_offset(covering, target, "random", draw=(drawn, drawn)),
        "face": crop_offset(covering, target, "face", position=(x, y)),
    }
    for left, top in cuts.values():
        assert 0 <= left <= covering[0] - across
        assert 0 <= top <= covering[1] - down
    assert cuts["corner"] == (0, 0)
    assert cuts["center"] == centre_offset(covering, target) == crop_offset(covering, target, "face")
    for axis, place in ((0, x), (1, y)):
        off = place * covering[axis] - (cuts["face"][axis] + target[axis] / 2)
        nearest = min(
            abs(place * covering[axis] - (offset + target[axis] / 2))
            for offset in range(covering[axis] - target[axis] + 1)
        )
        assert abs(off) <= nearest + 1e-6


def test_random_cuts_reach_every_offset_equally_often() -> None:
    cuts = [crop_offset((10, 8), (7, 8), "random", draw=(number / 400, 0.999)) for number in range(400)]
    assert [cuts.count((left, 0)) for left in range(4)] == [100] * 4
    with pytest.raises(ValueError, match="no way to cut"):
        crop_offset((10, 8), (7, 8), "middle")


def test_rounding_goes_up_at_halves_and_never_to_nothing() -> None:
    assert [round_to_multiple(pixels, 16) for pixels in (1, 24, 40, 39.9)] == [16, 32, 48, 32]


def test_aspect_rounding_brings_nearly_equal_shapes_together() -> None:
    fine, coarse = (SizeRule(1000, "pixel_area", multiple=2, aspect_rounding=decimals) for decimals in (9, 1))
    assert target_size(1780, 1000, fine) != target_size(1820, 1000, fine)
    assert target_size(1780, 1000, coarse) == target_size(1820, 1000, coarse)


@given(edges, edges, st.integers(0, 4), st.sampled_from(["pixel", "pixel_area", "area"]))
def test_a_source_on_its_side_gets_the_same_size_on_its_side(w: int, h: int, decimals: int, kind: str) -> None:
    rule = SizeRule(0.4 if kind == "area" else 480, kind, aspect_rounding=decimals)
    assert target_size(w, h, rule) == target_size(h, w, rule)[::-1]


def test_bounds_are_in_the_unit_of_the_resolution_type() -> None:
    def kind(resolution_type: str, **bounds: float) -> str | None:
        refusal = size_refusal(1280, 720, SizeRule(480, resolution_type, **bounds))
        return refusal and refusal[0]

    assert kind("pixel", minimum=721) == "too small"
    assert kind("pixel", minimum=720) is None
    assert kind("pixel_area", minimum=961) == "too small"
    assert kind("pixel_area", minimum=960) is None
    assert kind("area", maximum=0.92) == "too large"
    assert kind("area", maximum=0.93) is None
    assert kind("area", maximum=0.5, target_downsample=0.45) is None
    assert kind("pixel", minimum_aspect=1.8) == kind("pixel", maximum_aspect=1.7) == "aspect ratio"
    assert kind("pixel", minimum_aspect=1.7, maximum_aspect=1.8) is None


def test_large_sources_are_first_downsampled_when_that_is_asked() -> None:
    rule = SizeRule(480, "pixel", maximum=1000, target_downsample=720)
    clip = make_clip(3840, 2160, rule, num_frames=1, fps=0, sample_fps=0)
    assert (clip.downsample_width, clip.downsample_height) == (1280, 720)
    assert make_clip(1280, 720, rule, num_frames=1, fps=0, sample_fps=0).downsample_width == 0


@pytest.mark.parametrize(
    ("available", "rule", "expected"),
    [
        (80, FrameRule(75, 73), 73),
        (73, FrameRule(75, 73), 73),
        (72, FrameRule(75, 73), None),
        (40, FrameRule(75, 20), None),  # accepted by min_frames, but the bucket needs 73
        (80, FrameRule(75, 81), None),
        (100, FrameRule(None, 1), 97),
        (100, FrameRule(None, 1, max_frames=50), 49),
        (100, FrameRule(None, 1, interval=25), 97),
        (95, FrameRule(None, 1, interval=25), 73),
        (20, FrameRule(None, 1, interval=25), 17),
        (8, FrameRule(None, 9), None),
        (1, FrameRule(1, 1), 1),
    ],
)
def test_frames_that_are_taken(available: int, rule: FrameRule, expected: int | None) -> None:
    assert frames_to_take(available, rule) == expected


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.sampled_from([8, 16, 25]))
def test_resampling_takes_the_nearest_frames_in_order_and_none_twice(intervals: list[int], fps: int) -> None:
    stamps = [0, *accumulate(intervals)]  # milliseconds
    end = stamps[-1] + intervals[-1]
    expected: list[int] = []
    for k in range(end * fps // 1000 + 1):
        time = Fraction(1000 * k, fps)
        nearest = min(range(len(stamps)), key=lambda i: (abs(stamps[i] - time), i))
        if time < end and nearest not in expected:
            expected.append(nearest)
    frames = ((stamp / 1000, index) for index, stamp in enumerate(stamps))
    assert [index for _, index in pick_nearest(frames, fps=fps)] == expected == sorted(set(expected))


@given(st.integers(2, 200), st.floats(5, 16))
def test_a_slower_source_keeps_every_frame(count: int, rate: float) -> None:
    times = [index / rate for index in range(count)]
    assert len(list(pick_nearest(((time, None) for time in times), fps=16.0))) == count


def test_the_rate_is_that_of_the_even_stretches() -> None:
    even = [round(index / 30, 3) for index in range(60)]
    assert typical_rate(even) == pytest.approx(30, rel=0.003)
    assert typical_rate(even + [time + 7 for time in even]) == pytest.approx(30, rel=0.003)
    assert typical_rate([0.0]) is None
