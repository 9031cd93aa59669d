"""Several real processes at one store, also killed ones; and failures among random items that shift nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from caching import fill_quietly
from hypothesis import given, settings
from hypothesis import strategies as st

from simplewan.caches.fill import ItemError
from simplewan.caches.house import verify
from simplewan.caches.keys import Item
from simplewan.caches.store import Store
from simplewan.caches.turns import Turns

CONTEXT = multiprocessing.get_context("spawn")
COUNT = 100

pytestmark = pytest.mark.slow


def items_of(count: int) -> list[Item]:
    return [Item(f"i{n:03d}", {"content": n}, f"shape{n % 3}") for n in range(count)]


def value(item: Item) -> torch.Tensor:
    return torch.full((50,), float(item.components["content"]))


def work(
    folder: str,
    barrier: Any,
    results: Any,
    *,
    batch_size: int,
    look_seconds: float,
    dies_after: int = 10**9,
    seconds: float = 0.02,
) -> None:
    """Fill the store, after everybody is ready; die in the middle of an encode if asked to."""
    store = Store(folder)
    encoded: list[str] = []

    def encode(group):
        if len(encoded) >= dies_after:
            results.put((encoded, -1))
            time.sleep(0.5)  # until the queue's thread has sent that
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds * len(group))
        encoded.extend(item.name for item in group)
        return [value(item) for item in group]

    barrier.wait(60)
    filled = fill_quietly(
        store, items_of(COUNT), encode, batch_size=batch_size, flush_records=5, look_seconds=look_seconds
    )
    good = sum(torch.equal(store.get(key), torch.full((50,), float(name[1:]))) for name, key in filled.keys.items())
    results.put((encoded, good))


def together(folder: Path, *settings: dict[str, Any]) -> list[tuple[list[str], int]]:
    """What each of these processes encoded, and how many good records it found at the end (-1: it was killed)."""
    barrier, results = CONTEXT.Barrier(len(settings)), CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=work, args=(str(folder), barrier, results), kwargs=each, daemon=True)
        for each in settings
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _process in processes]
    for process in processes:
        process.join(60)
    expected = sorted(-signal.SIGKILL if good == -1 else 0 for _encoded, good in found)
    assert sorted(process.exitcode for process in processes) == expected
    return found


def check_whole(folder: Path) -> None:
    store = Store(folder)
    assert store.removed_leftovers == [] and store.damaged == {} and verify(store) == {}
    assert all(path.suffix == ".safetensors" for path in folder.iterdir())
    wanted = {torch.full((50,), float(n)).numpy().tobytes() for n in range(COUNT)}
    assert {store.get(key).numpy().tobytes() for key in store.keys()} == wanted  # noqa: SIM118  a store is no dict


@pytest.mark.parametrize("batch_size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_share_the_work(tmp_path, batch_size):
    setting = {"batch_size": batch_size, "look_seconds": 0.05}
    found = together(tmp_path, setting, setting)
    encoded = sum(len(names) for names, _good in found)
    assert all(good == COUNT for _names, good in found)
    assert COUNT <= encoded < 1.4 * COUNT
    assert min(len(names) for names, _good in found) > 0.1 * COUNT
    check_whole(tmp_path)


def test_a_killed_process_is_no_hindrance(tmp_path):
    setting = {"batch_size": 1, "look_seconds": 0.05}
    found = together(tmp_path, setting, {**setting, "dies_after": 18})
    (killed,) = (names for names, good in found if good == -1)
    (survivor,) = (names for names, good in found if good != -1)
    assert len(killed) == 18
    assert len(survivor) < COUNT, "what the killed one wrote is not encoded again"
    assert len(set(survivor) | set(killed)) == COUNT
    check_whole(tmp_path)


def test_a_process_that_is_alone_goes_through_the_plan_in_order():
    turns = Turns("a", alone=True)
    pending = dict.fromkeys([0, 1, 2, 5, 6, 9])
    order = []
    while pending:
        order.append(turns.next(pending))
        del pending[order[-1]]
    assert order == [0, 1, 2, 5, 6, 9]


def test_in_company_each_begins_elsewhere_and_keeps_to_runs():
    pending = dict.fromkeys(range(1000))
    starts = {Turns(str(seed), alone=False).next(pending) for seed in range(20)}
    assert len(starts) > 15
    turns = Turns("a", alone=False)
    order = []
    while pending:
        order.append(turns.next(pending))
        del pending[order[-1]]
    assert sorted(order) == list(range(1000))
    assert sum(b == a + 1 for a, b in pairwise(order)) > 950
    turns.meet(here=True)
    assert turns.next(dict.fromkeys(range(1000))) != order[-1] + 1


def test_what_another_wrote_meanwhile_is_neither_encoded_nor_written_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("simplewan.caches.fill.LOOKS_PART", 10**9)
    store, other, items = Store(tmp_path), Store(tmp_path), items_of(30)
    encoded: list[str] = []

    def encode(group):
        encoded.extend(item.name for item in group)
        if len(encoded) == 5:  # another process is done with all but two, and also with what is not yet written here
            rest = [item for item in items if item.name not in encoded]
            for item in [*rest[:-2], *(item for item in items if item.name in encoded[:3])]:
                other.put({item.key: (value(item), {"names": [item.name], "components": dict(item.components)})})
        return [value(item) for item in group]

    filled = fill_quietly(store, items, encode, flush_seconds=10**6, look_seconds=0)
    assert len(encoded) == 7 and filled.encoded == 7 and filled.reused == 23
    assert all(torch.equal(store.get(filled.keys[item.name]), value(item)) for item in items)
    records = [record.key for shard in Store(tmp_path).shards().values() for record in shard.records]
    assert len(records) == len(set(records)) == 30


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_failures_among_random_items_shift_nobody(data):
    numbers = data.draw(st.lists(st.integers(0, 10**4), unique=True, min_size=1, max_size=25))
    shapes = data.draw(st.integers(1, 3))
    items = [Item(f"{n}", {"content": n}, f"shape{n % shapes}") for n in numbers]
    raising = data.draw(st.sets(st.sampled_from(numbers)))
    not_finite = data.draw(st.sets(st.sampled_from(numbers)))
    batch_size = data.draw(st.integers(1, 5))
    limits = {"flush_records": data.draw(st.integers(1, 6))}
    stops = data.draw(st.lists(st.integers(1, 8), max_size=3))

    class Stop(Exception):
        pass

    def encode(group):
        """A batch in which each row is its own item's, as a network gives them."""
        for item in data.draw(st.permutations(group)):
            if item.components["content"] in raising:
                raise ItemError(item.name, "it does not decode")
        batch = torch.stack([value(item) for item in group])
        for row, item in enumerate(group):
            if item.components["content"] in not_finite:
                batch[row, 3] = float("inf")
        return batch.unbind()

    def run(folder: str, stop_after: int):
        left = [stop_after]

        def check():
            left[0] -= 1
            if left[0] < 0:
                raise Stop

        return fill_quietly(Store(folder), items, encode, batch_size=batch_size, check=check, **limits)

    with tempfile.TemporaryDirectory() as folder:
        for stop in stops:
            try:
                run(folder, stop)
            except Stop:
                continue
        filled = run(folder, 10**9)
        store = Store(folder)
        assert set(filled.failed) == {str(n) for n in raising | not_finite}
        assert filled.keys.keys() == {item.name for item in items} - filled.failed.keys()
        by_name = {item.name: item for item in items}
        for name, key in filled.keys.items():
            assert torch.equal(store.get(key), value(by_name[name]))
        for key in store.keys():  # noqa: SIM118  also those that nobody asks for any more
            (name,) = store.record(key).names
            assert torch.equal(store.get(key), value(by_name[name]))
