"""Filling: what is encoded, what is reused, what a kill, a failure or a change does to the records."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simplewan.caches.fill import ItemError, fill
from simplewan.caches.groups import cut_keys, encode_groups
from simplewan.caches.keys import Item
from simplewan.caches.store import Store
from simplewan.errors import Interrupted
from simplewan.events import Notice, Progress, silent


def items_of(count: int, group: str = "a", **changes: object) -> list[Item]:
    return [Item(f"clip{i:03d}", {"content": f"c{i}", "crop_left": 0, **changes}, group) for i in range(count)]


class Encoder:
    """The result depends on the item and on who it is encoded with, as a batch through a real network does."""

    def __init__(self, *, bad: tuple[str, ...] = (), not_finite: tuple[str, ...] = ()) -> None:
        self.bad, self.not_finite = bad, not_finite
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, items):
        self.calls.append(tuple(item.name for item in items))
        for item in items:
            if item.name in self.bad:
                raise ItemError(item.name, "the file does not decode")
        company = sum(int(item.key[:6], 16) for item in items) % 997
        batch = torch.stack([torch.full((2, 3), int(item.key[:6], 16) * 1e-3 + company) for item in items])
        for position, item in enumerate(items):
            if item.name in self.not_finite:
                batch[position, 0, 1] = float("nan")
        return list(batch.to(torch.bfloat16))

    @property
    def names(self) -> list[str]:
        return sorted(name for call in self.calls for name in call)


def run(store, items, encode, *, batch_size=1, emit=silent, check=lambda: None, **limits):
    return fill(
        store, items, encode, batch_size=batch_size, label="VAE latents", key="vae", emit=emit, check=check, **limits
    )


def bits(folder: Path, keys) -> dict[str, bytes]:
    store = Store(folder)
    return {key: store.get(key).view(torch.uint8).numpy().tobytes() for key in keys}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_everything_is_encoded_once_then_reused(tmp_path, batch_size):
    items, encoder = items_of(11) + items_of(5, group="b", fps=16), Encoder()
    items = [replace(item, name=f"{item.group}/{item.name}") for item in items]
    first = run(Store(tmp_path), items, encoder, batch_size=batch_size)
    assert (first.encoded, first.reused) == (16, 0)
    assert encoder.names == sorted(item.name for item in items)
    assert all(len({name[0] for name in call}) == 1 for call in encoder.calls), "shape classes do not mix"
    assert max(map(len, encoder.calls)) <= batch_size
    again = run(Store(tmp_path), items, Encoder(bad=tuple(first.keys)), batch_size=batch_size)
    assert (again.encoded, again.reused, again.keys, again.changed) == (0, 16, first.keys, {})


@pytest.mark.parametrize("batch_size", [1, 3])
def test_interrupted_and_resumed_has_the_same_bits(tmp_path, batch_size):
    items = items_of(20)
    whole = run(Store(tmp_path / "whole"), items, Encoder(), batch_size=batch_size)
    rng = random.Random(5)
    resumed, attempts, encoded = None, 0, 0
    while resumed is None:
        attempts += 1
        left = [rng.randint(1, 4)]

        def check(left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Interrupted("SIGINT", 130)

        store = Store(tmp_path / "parts")
        before = len(store)
        try:
            shuffled = rng.sample(items, len(items))
            resumed = run(store, shuffled, Encoder(), batch_size=batch_size, check=check)
        except Interrupted:
            assert len(Store(tmp_path / "parts")) > before, "what was encoded before the interrupt is on disk"
    encoded = len(Store(tmp_path / "parts"))
    assert attempts > 2 and encoded == 20
    assert resumed.keys == whole.keys
    assert bits(tmp_path / "parts", whole.keys.values()) == bits(tmp_path / "whole", whole.keys.values())


@given(st.sets(st.integers(0, 10**6), min_size=1, max_size=60), st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_an_added_item_changes_only_the_group_it_falls_into(numbers, added, batch_size):
    def groups(chosen):
        items = [Item(str(number), {"content": number}) for number in chosen]
        return {tuple(item.name for item in group.items) for group in encode_groups(items, batch_size=batch_size)}

    before, after = groups(numbers), groups(numbers | {added})
    assert sorted(name for group in after for name in group) == sorted(map(str, numbers | {added}))
    assert all(1 <= len(group) <= batch_size for group in after)
    assert len(before - after) <= 1
    touched = {name for group in before - after for name in group} | {str(added)}
    assert {name for group in after - before for name in group} <= touched


def test_cuts_are_not_needlessly_small():
    keys = sorted(Item(str(number), {"content": number}).key for number in range(4000))
    assert len(keys) / len(cut_keys(keys, 4)) > 2.4
    assert [key for cut in cut_keys(keys, 4) for key in cut] == keys


def test_a_changed_crop_reencodes_its_item_and_says_so(tmp_path):
    items, events = items_of(6), []
    run(Store(tmp_path), items, Encoder())
    items[2] = replace(items[2], components={**items[2].components, "crop_left": 8})
    encoder = Encoder()
    filled = run(Store(tmp_path), items, encoder, emit=events.append)
    assert encoder.calls == [("clip002",)]
    assert filled.changed == {"clip002": ("crop_left",)} and filled.reused == 5
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert "1 of 6" in notice.message and "crop_left" in notice.message and "clip002" in notice.message


def test_a_changed_neighbour_is_named_as_the_reason(tmp_path):
    items = items_of(12)
    run(Store(tmp_path), items, Encoder(), batch_size=4)
    group = next(group for group in encode_groups(items, batch_size=4) if len(group.items) > 2)
    rest = [item for item in items if item != group.items[0]]
    filled = run(Store(tmp_path), rest, Encoder(), batch_size=4)
    assert {item.name for item in group.items[1:]} <= set(filled.changed)
    assert set(filled.changed.values()) == {("encode group",)}


def test_names_share_a_record_and_renaming_encodes_nothing(tmp_path):
    items = [Item("a#0", {"caption": "x"}), Item("b#0", {"caption": "x"}), Item("c#0", {"caption": "y"})]
    encoder = Encoder()
    filled = run(Store(tmp_path), items, encoder)
    assert encoder.calls in ([("a#0",), ("c#0",)], [("c#0",), ("a#0",)])
    assert filled.keys["a#0"] == filled.keys["b#0"] != filled.keys["c#0"]
    assert (filled.encoded, filled.reused) == (2, 0)
    renamed = run(Store(tmp_path), [Item("z", {"caption": "y"})], Encoder(bad=("z",)))
    assert renamed.reused == 1
    with pytest.raises(ValueError, match="a#0"):
        run(Store(tmp_path), [items[0], Item("a#0", {"caption": "other"})], Encoder())


@pytest.mark.parametrize("kind", ["bad", "not_finite"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_failing_item_shifts_nobody(tmp_path, kind, batch_size):
    items = items_of(14)
    without = run(Store(tmp_path / "without"), items[:5] + items[6:], Encoder(), batch_size=batch_size)
    events = []
    filled = run(
        Store(tmp_path / "with"), items, Encoder(**{kind: ("clip005",)}), batch_size=batch_size, emit=events.append
    )
    assert list(filled.failed) == ["clip005"] and "clip005" not in filled.keys
    assert filled.keys == without.keys
    assert bits(tmp_path / "with", filled.keys.values()) == bits(tmp_path / "without", filled.keys.values())
    assert [event for event in events if isinstance(event, Notice) and "clip005" in event.message]
    once_more = Encoder(**{kind: ("clip005",)})
    again = run(Store(tmp_path / "with"), items, once_more, batch_size=batch_size)
    assert again.keys == filled.keys and again.encoded == 0
    assert all("clip005" in call for call in once_more.calls), "only the broken item is tried again"


def test_a_wrong_number_of_results_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 items"):
        run(Store(tmp_path), items_of(3), lambda items: [])


def test_flushes_by_bytes_and_by_seconds(tmp_path):
    run(Store(tmp_path / "bytes"), items_of(10), Encoder(), flush_bytes=24)
    assert len(list((tmp_path / "bytes").glob("*.safetensors"))) == 5
    seconds = iter(range(0, 1000, 7))
    run(Store(tmp_path / "seconds"), items_of(10), Encoder(), clock=lambda: next(seconds))
    assert 2 <= len(list((tmp_path / "seconds").glob("*.safetensors"))) < 10


def test_progress_counts_what_is_missing(tmp_path):
    run(Store(tmp_path), items_of(4), Encoder())
    events = []
    run(Store(tmp_path), items_of(7), Encoder(), emit=events.append)
    progress = [(event.current, event.total) for event in events if isinstance(event, Progress)]
    assert progress == [(0, 3), (1, 3), (2, 3), (3, 3)]
    events.clear()
    run(Store(tmp_path), items_of(7), Encoder(), emit=events.append)
    assert events == []


def test_keys_refuse_what_has_no_canonical_form():
    assert Item("a", {"x": 1, "y": "ü"}).key == Item("b", {"y": "ü", "x": 1}, "other").key
    assert Item("a", {"x": 1}).key != Item("a", {"x": "1"}).key
    with pytest.raises(ValueError, match="JSON"):
        _ = Item("a", {"x": float("nan")}).key
    with pytest.raises(TypeError, match="x"):
        _ = Item("a", {"x": [1]}).key
