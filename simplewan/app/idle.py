"""The place of the expert whose turn it is not: what the options say, or what there is room for.

The result of a run is the same wherever it waits, so that another start may choose another place.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from simplewan.app.context import Context
from simplewan.app.device import free_memory
from simplewan.app.roles import Expert
from simplewan.errors import Problem, TrainingFailure, UserError
from simplewan.models.placement import FileBlocks, Placement, Placements, memory_block, module_slots
from simplewan.plan.room import GIB, Load, Room, choose_place
from simplewan.training.optimizers import optimizer_states
from simplewan.training.roles import Role

FOLDER = ".idle-experts.tmp"  # a name that the next start clears away, should this one be killed
STATE_BYTES = 8  # that an optimiser keeps for each trained number, at most: two float32
AUTO, STAY, CPU, DISK = "auto", "stay", "cpu", "disk"


class IdleExperts:
    """Puts experts away and brings them back. A context manager, at whose end the files are removed.

    `place` is where they wait; None as long as there is but one. `before` is where they waited at the checkpoint.
    """

    def __init__(self, context: Context, *, before: str | None = None) -> None:
        self._context, self._before = context, before
        self._names = context.flavour.trained_experts
        self._placements = Placements()
        self._folder = context.output / FOLDER
        self._make_block = memory_block
        self.place: str | None = None

    def __enter__(self) -> IdleExperts:
        return self

    def __exit__(self, *_ending: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def activate(self, name: str) -> None:
        """Have this expert on the device. Raises TrainingFailure when there is no room for the other."""
        with _room_is_needed():
            self._placements.activate(name)

    def take_in(self, expert: Expert, role: Role, *, more_to_come: bool) -> None:
        """An expert was loaded, onto the device; where it may not stay, it makes room for one that is to come.

        Raises UserError when there is room nowhere, TrainingFailure when the place runs out of it.
        """
        if len(self._names) == 1:
            return
        if self.place is None:
            self.place = self._choose(expert, role)
            if self.place == DISK:
                self._make_block = FileBlocks(self._folder)
        if self.place == STAY:
            return
        states = partial(optimizer_states, role.optimizer)
        self._placements.add(
            expert.name,
            Placement(expert.transformer, states, device=self._context.device, make_block=self._make_block),
        )
        if more_to_come:
            with _room_is_needed():
                self._placements.park_all()

    def _choose(self, expert: Expert, role: Role) -> str:
        context, wanted = self._context, self._context.options.experts.idle_expert
        on_cpu = context.device.type == "cpu"
        if wanted != AUTO:
            if wanted == CPU and on_cpu:
                context.say("idle_expert = cpu is the same as stay: this machine computes on its CPU")
                return STAY
            return wanted
        room, load = measure_room(context), measure_load(expert, role.optimizer)
        found = choose_place(room, load)
        if found is None:
            raise _no_room(room, load)
        place, why = found
        where = {STAY: "on the device", CPU: "in the machine's memory", DISK: "on disk"}[place]
        changed = f", where it was {self._before} before" if self._before not in (None, place) else ""
        context.say(f"idle_expert auto: {place}{changed}; the expert whose turn it is not waits {where}: {why}")
        return place


def measure_load(expert: Expert, optimizer: torch.optim.Optimizer) -> Load:
    """What an expert takes, with what its optimiser will come to, and holds already."""
    states = (value for state in optimizer_states(optimizer) for value in state.values())
    held = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    trained = sum(each.numel() for each in expert.transformer.parameters() if each.requires_grad)
    weights = sum(slot.get().nbytes for slot in module_slots(expert.transformer))
    return Load(weights=weights, states=STATE_BYTES * trained, gradients=4 * trained, held=held)


def measure_room(context: Context) -> Room:
    """What is free now."""
    free, total = free_memory()
    disk = shutil.disk_usage(context.output).free
    if context.device.type != "cuda":
        return Room(memory=free, memory_total=total, disk=disk)
    device, device_total = torch.cuda.mem_get_info(context.device)
    return Room(memory=free, memory_total=total, disk=disk, device=device, device_total=device_total)


def _no_room(room: Room, load: Load) -> UserError:
    message = (
        f"each expert takes {load.resting / GIB:.1f} GiB while it waits; {room.memory / GIB:.1f} GiB of memory and "
        f"{room.disk / GIB:.1f} GiB on the disk of output_dir are free"
    )
    fix = "free some, train one expert a run, or set idle_expert if you know better"
    return UserError(Problem("experts", message, "idle_expert", AUTO, fix))


@contextmanager
def _room_is_needed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise TrainingFailure(f"there is no room for the expert that waits: {reason}; set idle_expert") from error
