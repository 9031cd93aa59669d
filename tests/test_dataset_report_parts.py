"""The parts of the dataset report: hashes, groups, bins, spans, words, escaping; by closed forms and properties."""

from __future__ import annotations

import html
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from report_helpers import Page, resized, scene
from test_data_helpers import dataset, scanned, write_clip

from simplewan.data.report.bars import bars
from simplewan.data.report.distributions import MAX_ROWS, by_value, first_rows
from simplewan.data.report.duplicates import MAX_BITS, File, find_alike
from simplewan.data.report.findings import count_words, estimate_tokens, find_all
from simplewan.data.report.looking import Seen, spread
from simplewan.data.report.markup import esc
from simplewan.data.report.pictures import CELLS, Look, difference_hash, look_of, shrunk_size, whole
from simplewan.data.report.survey import covered
from simplewan.flavours import find_flavour


def look(frames: np.ndarray) -> Look:
    size = (frames.shape[2], frames.shape[1])
    return look_of([whole(frame, size) for frame in frames[:9:4]])


def bits(first: Look, second: Look) -> int:
    return max(bin(a ^ b).count("1") for a, b in zip(first.hashes, second.hashes, strict=True))


def grouped(looks: list[Look | None], contents: list[str] | None = None) -> list[set[int]]:
    files = [
        File(f"{number:05}", "clips", f"{number}.mp4", contents[number] if contents else str(number))
        for number in range(len(looks))
    ]
    seen = {file.path: found for file, found in zip(files, looks, strict=True) if found is not None}
    return [{int(file.path) for file in group.files} for group in find_alike(files, seen)]


def test_copies_look_the_same_and_mirrored_or_other_scenes_do_not() -> None:
    frames = scene(1, size=(192, 128))
    first = look(frames)
    rng = np.random.default_rng(0)
    noisy = np.clip(frames + rng.normal(0, 6, frames.shape), 0, 255).astype(np.uint8)
    copies = [resized(frames, (96, 64)), resized(frames, (160, 90)), noisy, np.clip(frames + np.uint8(5), 5, 255)]
    others = [scene(seed, size=(192, 128)) for seed in range(2, 12)]
    looks = [first, *map(look, copies), look(frames[:, :, ::-1]), look(frames[:, ::-1]), *map(look, others)]
    assert grouped(looks) == [{0, 1, 2, 3, 4}]
    assert all(bits(first, other) > MAX_BITS for other in looks[5:])


def test_the_same_ground_with_another_thing_on_it_is_not_the_same() -> None:
    """Outlines alone would call these equal."""
    red, blue = (np.full((9, 64, 96, 3), 120, np.uint8) for _ in range(2))
    red[:, 20:40, 30:60], blue[:, 20:40, 30:60] = (200, 60, 60), (60, 60, 200)
    assert bits(look(red), look(blue)) <= MAX_BITS
    assert grouped([look(red), look(blue), look(red)]) == [{0, 2}]


def test_a_small_thing_elsewhere_is_another_clip() -> None:
    """On average such clips hardly differ."""
    here, there = (scene(1, size=(192, 128))[:9].copy() for _ in range(2))
    here[:, 20:36, 20:36], there[:, 90:106, 150:166] = 255, 255
    assert bits(look(here), look(there)) <= MAX_BITS
    assert grouped([look(here), look(there)]) == []


def test_black_and_even_frames_are_never_called_the_same() -> None:
    assert grouped([look(np.full((9, 64, 96, 3), level, np.uint8)) for level in (0, 0, 130, 130)]) == []


def test_files_without_a_look_are_grouped_by_their_bytes() -> None:
    first = look(scene(1))
    assert grouped([first, None, None, first, look(scene(2))], ["a", "b", "b", "c", "d"]) == [{0, 3}, {1, 2}]
    assert grouped([first, None, look(resized(scene(1), (80, 48)))], ["a", "a", "b"]) == [{0, 1, 2}]


def test_pictures_are_not_compared_with_clips() -> None:
    frames = scene(1)
    still = look_of([whole(frames[4], (96, 64))])
    assert len(still.hashes) == 1 and still.motion is None
    assert grouped([look(frames), still, still]) == [{1, 2}]


@given(st.lists(st.integers(0, 12), min_size=2, max_size=40), st.integers(0, 5))
def test_groups_are_the_closure_of_looking_the_same(kinds: list[int], seed: int) -> None:
    """Files of one kind lie on a path: each looks like the next, the ends need not look like one another."""
    rng = np.random.default_rng(seed)
    bases = rng.integers(60, 180, (13, 2 * CELLS * CELLS * 3))
    hashes = rng.integers(0, 2**63, (13, 2), dtype=np.uint64)
    counts = [kinds[:at].count(kind) for at, kind in enumerate(kinds)]
    looks = []
    for kind, count in zip(kinds, counts, strict=True):
        drifted = (bases[kind] + count).astype(np.uint8)  # from one to the next the mean is moved by one
        flipped = tuple(int(value) ^ ((1 << min(count, 60)) - 1) for value in hashes[kind])
        looks.append(Look(flipped, drifted.tobytes(), 120.0, 50.0, b"", (1, 1)))
    wanted = [{at for at, other in enumerate(kinds) if other == kind} for kind in set(kinds) if kinds.count(kind) > 1]
    assert sorted(map(sorted, grouped(looks))) == sorted(map(sorted, wanted))


def test_ten_thousand_files_are_compared_in_seconds() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(90, 150, (10_000, 2 * CELLS * CELLS * 3), np.uint8)  # all of nearly the same brightness
    hashes = rng.integers(0, 2**63, (10_000, 2), dtype=np.uint64)
    cells[7_001], hashes[7_001] = cells[3] + 1, hashes[3] ^ np.uint64(5)
    looks: list[Look | None] = [
        Look(tuple(map(int, pair)), some.tobytes(), 120.0, 50.0, b"", (1, 1))
        for pair, some in zip(hashes, cells, strict=True)
    ]
    began = time.process_time()
    assert grouped(looks) == [{3, 7_001}]
    assert time.process_time() - began < 10


def test_the_hash_has_a_bit_for_each_step_to_brighter() -> None:
    rising = np.tile(np.arange(0, 180, 20, dtype=np.uint8), (8, 1))
    picture = Image.fromarray(np.repeat(rising[..., None], 3, 2))
    assert difference_hash(picture) == 2**64 - 1
    assert difference_hash(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0
    rising[0] = 77
    assert difference_hash(Image.fromarray(np.repeat(rising[..., None], 3, 2))) == 2**56 - 1


@given(st.integers(1, 8000), st.integers(1, 8000))
def test_shrunk_pictures_can_be_laid_out(width: int, height: int) -> None:
    across, down = shrunk_size(width, height)
    assert across * down == pytest.approx(17_500, rel=0.03) and 0.24 < across / down < 4.1


@given(st.lists(st.floats(0, 5000).map(lambda value: round(value, 2)), max_size=200))
def test_every_value_is_in_one_row(values: list[float]) -> None:
    rows = by_value(values)
    assert sum(count for _, count in rows) == len(values)
    assert len(rows) <= MAX_ROWS + 1
    assert len({label for label, _ in rows}) == len(rows)


def test_bins_have_round_edges_and_a_long_tail_has_one() -> None:
    assert by_value([1, 2, 2, 3]) == (("1", 1), ("2", 2), ("3", 1))
    rows = by_value([value / 10 for value in range(100)])
    assert rows[0] == ("0 \u2013 2", 20) and len(rows) == 5
    tailed = by_value([*range(100), 10_000])
    assert tailed[-1] == ("100 and more", 1) and tailed[0] == ("0 \u2013 20", 20)


def test_the_rows_that_are_left_over_are_counted() -> None:
    rows = [(str(number), 100 - number) for number in range(12)]
    assert first_rows(rows, 12) == tuple(rows)
    assert first_rows(rows, 4) == (("0", 100), ("1", 99), ("2", 98), ("9 others", sum(100 - n for n in range(3, 12))))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=12))
def test_what_spans_cover_is_counted_once(pairs: list[tuple[int, int]]) -> None:
    spans = [(start, start + length) for start, length in pairs]
    assert covered(spans) == len({second for start, end in spans for second in range(start, end)})


@given(st.integers(0, 60), st.integers(0, 20))
def test_what_is_shown_is_spread_from_the_first_to_the_last(count: int, wanted: int) -> None:
    chosen = spread(range(count), wanted)  # type: ignore[arg-type]
    assert len(chosen) == min(count, wanted) == len(set(chosen)) and list(chosen) == sorted(chosen)
    assert wanted < 2 or not count or (chosen[0], chosen[-1]) == (0, count - 1)


def test_words_are_counted_in_languages_with_and_without_spaces() -> None:
    assert count_words("A red fox, trotting; it's snowing 3 times.") == 8
    assert count_words("一只红色的狐狸") == 7
    assert count_words("a 狐狸 runs") == 4
    assert count_words("... - !") == 0
    assert estimate_tokens("word " * 400) > 512 > estimate_tokens("word " * 300)


@given(st.text(alphabet=st.characters(), max_size=60))
def test_any_text_survives_the_page_and_stays_text(text: str) -> None:
    page = Page(f'<p title="{esc(text)}">{esc(text)}</p>')
    assert page.unbalanced == [] and page.elements == ["p"] and [key for key, _ in page.attributes] == ["title"]
    esc(text).encode("utf-8")
    plain = "".join(letter for letter in text if letter.isprintable())
    assert all(letter in page.text for letter in plain)


def test_control_characters_and_half_surrogates_are_made_visible() -> None:
    assert esc("a\x00b\ud800c\x1b[1m") == r"a\x00b\xd800c\x1b[1m"
    assert html.unescape(esc("\"<&>'\n")) == "\"<&>'\n"


def test_bars_are_as_long_as_their_counts() -> None:
    svg = bars("Sizes & more", [("832x480", 40), ("<b>", 10), ("none", 0)])
    page = Page(svg)
    widths = [float(value) for key, value in page.attributes if key == "width"][1:]
    assert widths[0] == pytest.approx(4 * widths[1], abs=0.5) and len(widths) == 2
    assert page.unbalanced == [] and "<b>" in page.text and 'aria-label="Sizes &amp; more"' in svg


def test_gaps_are_found_where_the_clip_is(tmp_path) -> None:
    stamps = [*range(0, 500, 62), *range(1000, 2000, 62)]
    write_clip(tmp_path / "clips" / "jumps.mkv", milliseconds=stamps, size=(64, 48))
    write_clip(tmp_path / "clips" / "even.mkv", milliseconds=range(0, 1500, 62), size=(64, 48))
    for name in ("jumps", "even"):
        (tmp_path / "clips" / f"{name}.txt").write_text("a clip")
    found = scanned(dataset(tmp_path / "clips", video={"num_frames": 17}), tmp_path / "index")
    (finding,) = find_all([found], Seen({}, {}, {}, {}), find_flavour("t2v-mini-low"))
    assert (finding.kind, [(mark.name, mark.detail) for mark in finding.marks]) == ("gaps", [("jumps.mkv", "1 gap")])
    behind = replace(found, samples=tuple(_moved(sample, 1.0, 13) for sample in found.samples))
    assert find_all([behind], Seen({}, {}, {}, {}), find_flavour("t2v-mini-low")) == []


def _moved(sample, start: float, num_frames: int):
    return replace(sample, clip=replace(sample.clip, start_seconds=start, num_frames=num_frames))
