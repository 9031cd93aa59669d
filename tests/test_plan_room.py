"""Where the idle expert waits: on the device while both fit, else in memory, else on disk, else nowhere."""

from __future__ import annotations

import pytest

from simplewan.plan.room import GIB, Load, Room, choose_place

LORA = Load(weights=27 * GIB, states=GIB, gradients=GIB // 2)  # an expert of A14B in bf16, with an adapter


def room(*, device: int | None, memory: int, disk: int) -> Room:
    left = None if device is None else (device - 27) * GIB  # the first expert is on the device
    return Room(
        memory=memory * GIB,
        memory_total=2 * memory * GIB,
        disk=disk * GIB,
        device=left,
        device_total=(device or 0) * GIB,
    )


@pytest.mark.parametrize(
    ("device", "memory", "disk", "place"),
    [
        (80, 10, 10, "stay"),
        (48, 64, 10, "cpu"),
        (48, 59, 100, "disk"),
        (48, 30, 56, None),
        (None, 200, 0, "stay"),
        (None, 50, 100, "disk"),  # no device of its own: memory is where it would stay
        (None, 50, 20, None),
    ],
)
def test_the_first_place_with_room_is_taken(device: int | None, memory: int, disk: int, place: str | None) -> None:
    found = choose_place(room(device=device, memory=memory, disk=disk), LORA)
    assert (found[0] if found else None) == place
    if found:
        assert "GiB" in found[1]


def test_a_full_fine_tune_counts_its_optimiser_and_gradients() -> None:
    whole = Load(weights=10 * GIB, states=20 * GIB, gradients=10 * GIB)
    assert choose_place(Room(0, 0, 0, device=80 * GIB, device_total=80 * GIB), whole)[0] == "stay"  # 60 more, 20 left
    assert choose_place(Room(80 * GIB, 0, 0, device=79 * GIB, device_total=80 * GIB), whole)[0] == "cpu"


def test_states_that_are_there_already_are_not_counted_twice() -> None:
    states = 10 * GIB
    tight = Room(memory=64 * GIB, memory_total=64 * GIB, disk=0, device=60 * GIB, device_total=80 * GIB)
    resumed = Room(memory=64 * GIB, memory_total=64 * GIB, disk=0, device=50 * GIB, device_total=80 * GIB)
    new, again = (Load(weights=20 * GIB, states=states, gradients=0, held=held) for held in (0, states))
    places = [choose_place(tight, new), choose_place(resumed, again)]
    assert [found[0] for found in places if found] == ["stay", "stay"]
