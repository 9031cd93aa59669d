"""Where the expert waits whose turn it is not, decided from what there is room for. Pure arithmetic; sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
STEP_SHARE = 4  # a quarter of the device is left to what a step computes: activations, which nobody knows beforehand
MEMORY_SPARE = 4 * GIB  # for the rest of the program, and of the machine
DISK_SPARE = GIB


@dataclass(frozen=True)
class Load:
    """What one expert takes: its weights, and what its optimiser and its gradients will come to. `held` is how much of
    that the first one's optimiser takes already, as after a resume."""

    weights: int
    states: int
    gradients: int
    held: int = 0

    @property
    def resting(self) -> int:
        """What it takes while it waits."""
        return self.weights + self.states


@dataclass(frozen=True)
class Room:
    """What is free, after the weights of one of two experts are on the device. Without a device of its own (`device`
    None) that is the machine's memory."""

    memory: int
    memory_total: int
    disk: int
    device: int | None = None
    device_total: int = 0


def choose_place(room: Room, load: Load) -> tuple[str, str] | None:
    """("stay", "cpu" or "disk", why); None when there is room nowhere. `load` is that of each of two experts."""
    free, total, where = room.memory, room.memory_total, "memory"
    if room.device is not None:
        free, total, where = room.device, room.device_total, "device memory"
    more = load.weights + 2 * load.states + load.gradients - min(load.held, load.states)
    left = free - more
    if left >= total / STEP_SHARE:
        return "stay", f"both fit: of {_gib(total)} {where}, {_gib(left)} are left to compute in"
    short = f"both together would leave {_gib(max(left, 0))} of {_gib(total)} {where} to compute in"
    both = 2 * load.resting  # each keeps a place of its own
    if room.device is not None and room.memory - both >= MEMORY_SPARE:
        return "cpu", f"{short}; {_gib(both)} of {_gib(room.memory)} free memory hold them"
    if room.disk - both >= DISK_SPARE:
        memory = f", more than is free in memory ({_gib(room.memory)})" if room.device is not None else ""
        return "disk", f"{short}; they take {_gib(both)} on disk{memory}"
    return None


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
