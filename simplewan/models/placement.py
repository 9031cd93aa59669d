"""Where a model waits while another one is on the device: on a shelf in the machine's memory, or in a file.

Imports torch and numpy only. A shelf is one block of bytes cut into views, one for each tensor. What waits *is* those
views, on the CPU: it can be read, saved and exported as it waits, whether its block is memory or a mapped file. Frozen
weights are written to the shelf once and copied to the device whenever their turn comes; what training changes is
copied both ways. Nothing is converted, so the bits are the same wherever a model waits.

The trade-off: frozen weights keep their place on the shelf while they are on the device too, for they need not be
copied back then, which halves the time of a change.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ALIGNMENT = 64  # of every view; kernels may sum in another order where memory is aligned otherwise
MakeBlock = Callable[[int], Tensor]


@dataclass(frozen=True)
class Slot:
    """A place that holds a tensor. `changes` is false for what training leaves alone."""

    get: Callable[[], Tensor]
    put: Callable[[Tensor], None]
    changes: bool


def module_slots(module: nn.Module) -> list[Slot]:
    """The parameters and buffers of a module; only parameters that are trained change."""

    def parameter_slot(parameter: nn.Parameter) -> Slot:
        return Slot(lambda: parameter.data, lambda tensor: setattr(parameter, "data", tensor), parameter.requires_grad)

    def buffer_slot(owner: nn.Module, name: str) -> Slot:
        return Slot(lambda: owner._buffers[name], lambda tensor: owner._buffers.update({name: tensor}), changes=False)  # type: ignore[return-value]

    parameters = [parameter_slot(parameter) for parameter in module.parameters()]
    buffers = [
        buffer_slot(owner, name)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    return parameters + buffers


def state_slots(states: Iterator[dict[str, Any]], device: torch.device) -> list[Slot]:
    """The tensors of an optimiser's states that are on the device; some optimisers keep their counters on the CPU."""

    def slot(state: dict[str, Any], key: str) -> Slot:
        return Slot(lambda: state[key], lambda tensor: state.update({key: tensor}), changes=True)

    return [
        slot(state, key)
        for state in states
        for key, value in state.items()
        if isinstance(value, Tensor) and value.device.type == device.type
    ]


def own_memory(module: nn.Module) -> None:
    """Have all tensors of a module on the CPU in aligned memory of their own, as those that come from a shelf have.

    Weights that were read from a file are mapped, wherever they lie in it; products of matrices then differ in their
    last bits from those of the same weights elsewhere.
    """
    for slot in module_slots(module):
        if slot.get().device.type == "cpu":
            slot.put(slot.get().clone(memory_format=torch.contiguous_format))


class Shelf:
    """Room for some tensors. The block is made when they are first put there, and anew when they are other tensors."""

    def __init__(self, slots: Callable[[], list[Slot]], make_block: MakeBlock) -> None:
        self._slots, self._make_block = slots, make_block
        self._waiting: list[Slot] = []
        self._views: list[Tensor] = []

    def park(self) -> None:
        """From the device to the shelf."""
        self._waiting = self._slots()
        tensors = [slot.get() for slot in self._waiting]
        is_new = [(view.shape, view.dtype) for view in self._views] != [(each.shape, each.dtype) for each in tensors]
        outgrown = self._views  # until the device has copied: it may still be reading from there
        if is_new:
            self._views = cut(self._make_block, tensors)
        for slot, tensor, view in zip(self._waiting, tensors, self._views, strict=True):
            if is_new or slot.changes:
                view.copy_(tensor)
            slot.put(view)
        del outgrown

    def fetch(self, device: torch.device) -> None:
        """From the shelf to the device; always a copy, so that the shelf keeps what does not change."""
        for slot, view in zip(self._waiting, self._views, strict=True):
            slot.put(view.to(device, copy=True, non_blocking=True))

    def undo(self) -> None:
        """After a fetch that failed half way: what waited waits as before."""
        for slot, view in zip(self._waiting, self._views, strict=True):
            slot.put(view)


def cut(make_block: MakeBlock, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of one new block of bytes, with the shapes and dtypes of `like`."""
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in like]
    if not like:
        return []
    block = make_block(sum(sizes))
    views, start = [], 0
    for tensor, size in zip(like, sizes, strict=True):
        views.append(block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += size
    return views


class Placement:
    """A model with its optimiser, on the device or waiting. `states` gives the optimiser's state of each parameter."""

    def __init__(
        self,
        module: nn.Module,
        states: Callable[[], Iterator[dict[str, Any]]],
        *,
        device: torch.device,
        make_block: MakeBlock,
    ) -> None:
        self._module, self._device = module, device
        self._shelves = (
            Shelf(lambda: module_slots(module), make_block),
            Shelf(lambda: state_slots(states(), device), make_block),
        )
        self.is_parked = False

    def park(self) -> None:
        """Off the device."""
        if self.is_parked:
            return
        assert all(parameter.grad is None for parameter in self._module.parameters()), "parked in the midst of a step"
        for shelf in self._shelves:
            shelf.park()
        self.is_parked = True

    def fetch(self) -> None:
        """Onto the device. Raises what the device raises when it is too small; then all of it waits as before."""
        if not self.is_parked:
            return
        try:
            for shelf in self._shelves:
                shelf.fetch(self._device)
        except RuntimeError:
            for shelf in self._shelves:
                shelf.undo()
            raise
        self.is_parked = False


def memory_block(size: int) -> Tensor:
    """A block in memory, pinned where there is CUDA, so that copies run at full speed. Raises OSError.

    Registered rather than allocated as pinned: torch's own allocator rounds each size up to a power of two. Whole pages
    of its own, since pages are what is pinned, and no longer so when the last view is gone, before they are given back.
    """
    pages = -(-size // PAGESIZE) * PAGESIZE
    memory = np.empty(pages + PAGESIZE, dtype=np.uint8)
    start = -memory.ctypes.data % PAGESIZE
    block = torch.from_numpy(memory[start : start + size])
    if size and torch.cuda.is_available():
        runtime, address = torch.cuda.cudart(), block.data_ptr()
        if code := int(runtime.cudaHostRegister(address, pages, 0)):
            raise OSError(f"{size / 2**30:.1f} GiB of memory cannot be pinned (CUDA error {code})")
        weakref.finalize(memory, runtime.cudaHostUnregister, address).atexit = False
    return block


class FileBlocks:
    """Makes blocks that are files below `folder`, mapped into memory. Whoever owns the folder removes it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder, 0

    def __call__(self, size: int) -> Tensor:
        """Raises OSError when the disk is full: the room is taken now, since a mapped file without it kills the run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._made}.bin"
        self._made += 1
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        return torch.from_file(str(path), shared=True, size=size, dtype=torch.uint8)


class Placements:
    """The models that take turns on the device. One that was not added stays there."""

    def __init__(self) -> None:
        self._placed: dict[str, Placement] = {}

    def add(self, name: str, placement: Placement) -> None:
        """`name`, which is on the device now, may be moved off it."""
        self._placed[name] = placement

    def activate(self, name: str) -> None:
        """Have `name` on the device, and off it all others that may be moved."""
        if not self.is_parked(name):
            return
        self.park_all()
        self._placed[name].fetch()

    def park_all(self) -> None:
        """Off the device, whatever may be moved."""
        for placement in self._placed.values():
            placement.park()

    def is_parked(self, name: str) -> bool:
        """Whether it waits."""
        return name in self._placed and self._placed[name].is_parked
