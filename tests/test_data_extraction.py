"""Where clips start: properties over all sources, and the pictures that musubi-tuner's documentation draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simplewan.data.draws import uniform
from simplewan.data.extraction import MODES, clip_starts, scene_bounds

lengths = st.integers(1, 40)
sources = st.integers(0, 400)
numbers = st.integers(1, 12)
cut_lists = st.lists(st.integers(-5, 420), max_size=8)
KEEPING_SCENES = ("chunk", "slide", "uniform", "random")


def seeded_draw(seed: int, content: str) -> Callable[[int], float]:
    return partial(uniform, seed, "clips", content)


def starts(available: int, num_frames: int, mode: str, **keys) -> list[int]:
    return clip_starts(available, num_frames, mode=mode, draw=seeded_draw(0, "content"), **keys)


@given(sources, lengths, st.sampled_from(MODES), numbers, numbers, cut_lists)
def test_clips_lie_inside_in_order_none_twice_and_always_the_same(
    available: int, num_frames: int, mode: str, stride: int, sample: int, cuts: list[int]
) -> None:
    keys = {"frame_stride": stride, "frame_sample": sample, "cuts": cuts}
    found = starts(available, num_frames, mode, **keys)
    assert found == sorted(set(found))
    assert all(0 <= start <= available - num_frames for start in found)
    assert found == starts(available, num_frames, mode, **keys)
    if available < num_frames:
        assert found == []


@given(sources, lengths, st.sampled_from(KEEPING_SCENES), numbers, numbers, cut_lists)
def test_no_clip_shows_parts_of_two_scenes(
    available: int, num_frames: int, mode: str, stride: int, sample: int, cuts: list[int]
) -> None:
    for start in starts(available, num_frames, mode, frame_stride=stride, frame_sample=sample, cuts=cuts):
        assert not any(start < cut < start + num_frames for cut in cuts)


@given(sources, lengths, cut_lists)
def test_chunks_are_disjoint_and_leave_less_than_one_behind_in_each_scene(
    available: int, num_frames: int, cuts: list[int]
) -> None:
    found = starts(available, num_frames, "chunk", cuts=cuts)
    frames = [frame for start in found for frame in range(start, start + num_frames)]
    assert len(set(frames)) == len(frames)
    for begin, end in scene_bounds(available, cuts):
        inside = [start for start in found if begin <= start < end]
        assert inside == [begin + number * num_frames for number in range((end - begin) // num_frames)]


@given(st.integers(1, 400), lengths, numbers, cut_lists)
def test_as_many_uniform_and_random_clips_as_were_asked_for_where_they_fit(
    available: int, num_frames: int, sample: int, cuts: list[int]
) -> None:
    fitting = starts(available, num_frames, "slide", cuts=cuts)
    uniform = starts(available, num_frames, "uniform", frame_sample=sample, cuts=cuts)
    drawn = starts(available, num_frames, "random", frame_sample=sample, cuts=cuts)
    assert len(uniform) == len(drawn) == min(sample, len(fitting))
    assert set(uniform) <= set(fitting)
    if len(uniform) > 1:
        assert (uniform[0], uniform[-1]) == (fitting[0], fitting[-1])
        places = [fitting.index(start) for start in uniform]
        gaps = [later - earlier for earlier, later in pairwise(places)]
        assert max(gaps) - min(gaps) <= 1
    more = starts(available, num_frames, "random", frame_sample=sample + 1, cuts=cuts)
    assert set(drawn) <= set(more)


@pytest.mark.parametrize(
    ("mode", "num_frames", "keys", "expected"),
    [  # a source of 40 frames
        ("head", 25, {}, [0]),
        ("full", 37, {}, [0]),
        ("chunk", 13, {}, [0, 13, 26]),
        ("chunk", 25, {}, [0]),
        ("slide", 1, {"frame_stride": 10}, [0, 10, 20, 30]),
        ("slide", 13, {"frame_stride": 10}, [0, 10, 20]),
        ("slide", 25, {"frame_stride": 10}, [0, 10]),
        ("uniform", 1, {"frame_sample": 4}, [0, 13, 26, 39]),
        ("uniform", 13, {"frame_sample": 4}, [0, 9, 18, 27]),
        ("uniform", 25, {"frame_sample": 4}, [0, 5, 10, 15]),
        ("uniform", 25, {"frame_sample": 1}, [0]),
        ("chunk", 13, {"cuts": [15, 30]}, [0, 15]),
        ("slide", 9, {"frame_stride": 4, "cuts": [20]}, [0, 4, 8, 20, 24, 28]),
        ("uniform", 9, {"frame_sample": 2, "cuts": [20, 25]}, [0, 31]),
        ("head", 25, {"cuts": [3]}, [0]),
    ],
)
def test_starts_that_people_know(mode: str, num_frames: int, keys: dict, expected: list[int]) -> None:
    assert starts(40, num_frames, mode, **keys) == expected


def test_random_starts_follow_seed_and_content_and_reach_everything() -> None:
    def drawn(seed: int, content: str) -> list[int]:
        return clip_starts(100, 17, mode="random", frame_sample=5, draw=seeded_draw(seed, content))

    assert drawn(1, "a") == drawn(1, "a")
    assert len({tuple(drawn(seed, content)) for seed in range(5) for content in "ab"}) == 10
    assert {start for seed in range(200) for start in drawn(seed, "a")} == set(range(84))
    values = [seeded_draw(7, "a")(number) for number in range(2000)]
    assert 0 <= min(values) < max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.03
    assert clip_starts(20, 17, mode="random", frame_sample=9, draw=seeded_draw(0, "a")) == [0, 1, 2, 3]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="no mode of extraction; there are head, chunk"):
        clip_starts(40, 9, mode="middle")
