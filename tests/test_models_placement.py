"""Models that wait: whatever the shelf, they come back with the same bits, and can be read while they wait."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from mmap import PAGESIZE
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from simplewan.models import placement
from simplewan.models.placement import FileBlocks, Placement, Placements, memory_block, module_slots
from simplewan.training.optimizers import OPTIMIZERS, OptimizerSettings, make_optimizer, optimizer_states

CPU = torch.device("cpu")
MakeBlock = Callable[[int], Tensor]


class Net(nn.Module):
    """A frozen linear of odd sizes in bf16, a trained one, an empty and a scalar parameter, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(7, 5, dtype=torch.bfloat16).requires_grad_(False)
        self.trained = nn.Linear(5, 3)
        self.nothing = nn.Parameter(torch.empty(0, 3), requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("table", torch.rand(3, dtype=torch.float64), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.trained(self.frozen(inputs).float()) * self.scale * self.table).float()


@pytest.fixture(params=["memory", "file"])
def make_block(request: pytest.FixtureRequest, tmp_path: Path) -> MakeBlock:
    return memory_block if request.param == "memory" else FileBlocks(tmp_path / "idle")


def optimizer_of(module: nn.Module, name: str) -> torch.optim.Optimizer:
    settings = OptimizerSettings(name=name, lr=1e-2, betas=None, eps=None, weight_decay=0.1)
    trained = [each for each in module.parameters() if each.requires_grad]
    return Accelerator(cpu=True).prepare(make_optimizer(trained, settings))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    module(torch.randn(4, 7, dtype=torch.bfloat16)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "bnb-adamw8bit"])
def test_training_with_pauses_gives_the_same_bits(name: str, make_block: MakeBlock) -> None:
    straight, pausing = Net(), Net()
    optimizers = [optimizer_of(net, name) for net in (straight, pausing)]
    place = Placement(pausing, lambda: optimizer_states(optimizers[1]), device=CPU, make_block=make_block)
    for seed in range(4):
        place.park()
        assert place.is_parked
        place.fetch()
        step(straight, optimizers[0], seed)
        step(pausing, optimizers[1], seed)
    place.park()  # and what waits can be read
    for one, other in zip(module_slots(straight), module_slots(pausing), strict=True):
        assert torch.equal(one.get(), other.get()) and one.get().dtype == other.get().dtype
    states = [optimizer.state_dict()["state"] if name != "muon" else optimizer.state_dict() for optimizer in optimizers]
    assert str(states[0]) == str(states[1])


def test_what_waits_lies_on_the_shelf_and_is_written_again_only_if_it_changed(tmp_path: Path) -> None:
    net, made, files = Net(), [], FileBlocks(tmp_path)

    def make_block(size: int) -> Tensor:
        made.append(files(size))
        return made[-1]

    optimizer = optimizer_of(net, "adamw")
    place = Placement(net, lambda: optimizer_states(optimizer), device=CPU, make_block=make_block)
    place.park()
    assert len(made) == 1 and net.frozen.weight.untyped_storage().data_ptr() == made[0].untyped_storage().data_ptr()
    assert all(slot.get().data_ptr() % placement.ALIGNMENT == 0 for slot in module_slots(net) if slot.get().numel())
    kept = net.frozen.weight.data
    place.fetch()
    assert net.frozen.weight.data_ptr() != kept.data_ptr()
    step(net, optimizer, 0)
    before = copy.deepcopy(net.trained.weight.data)
    net.frozen.weight.data.zero_()  # which nobody does: it shows that frozen weights are not written a second time
    place.park()
    assert len(made) == 2  # the optimiser has states now
    assert net.frozen.weight.data.abs().sum() > 0 and torch.equal(net.trained.weight, before)
    moments = [value for state in optimizer_states(optimizer) for value in state.values()]
    assert all(value.untyped_storage().data_ptr() == made[1].untyped_storage().data_ptr() for value in moments)


def test_a_device_that_is_too_small_leaves_it_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    place = Placement(net, lambda: iter(()), device=CPU, make_block=memory_block)
    place.park()
    before = [slot.get() for slot in module_slots(net)]
    calls = iter(range(100))

    def too_small(self: Tensor, *arguments: object, **keywords: object) -> Tensor:
        if next(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.clone()

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(Tensor, "to", too_small)
        place.fetch()
    assert place.is_parked
    for slot, tensor in zip(module_slots(net), before, strict=True):
        assert slot.get().data_ptr() == tensor.data_ptr()
    place.fetch()
    assert not place.is_parked


def test_memory_is_pinned_by_whole_pages_for_as_long_as_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: dict[int, int] = {}

    class Runtime:
        def cudaHostRegister(self, address: int, size: int, _flags: int) -> int:
            assert address % PAGESIZE == size % PAGESIZE == 0
            pinned[address] = size
            return 0

        def cudaHostUnregister(self, address: int) -> None:
            del pinned[address]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    block = memory_block(PAGESIZE + 1)
    view = block[4:8].view(torch.float32)
    del block
    assert list(pinned.values()) == [2 * PAGESIZE]
    view.fill_(1)
    del view
    assert not pinned
    states: dict[str, Tensor] = {"one": torch.zeros(3)}
    place = Placement(nn.Identity(), lambda: iter([states]), device=CPU, make_block=memory_block)
    for _ in range(3):
        place.park()
        assert len(pinned) == 1
        place.fetch()
        states[f"more {len(states)}"] = torch.zeros(5)  # other tensors: another block


def test_one_at_a_time_is_on_the_device() -> None:
    nets = {name: Net() for name in ("high", "low")}
    places = Placements()

    def on_device() -> set[str]:
        return {name for name in nets if not places.is_parked(name)}

    places.activate("low")  # nothing may be moved: nothing is
    assert on_device() == {"high", "low"}
    for name, net in nets.items():
        places.add(name, Placement(net, lambda: iter(()), device=CPU, make_block=memory_block))
        if name == "high":
            places.park_all()
    assert on_device() == {"low"}
    for name in ("high", "high", "low"):
        places.activate(name)
        assert on_device() == {name}


def test_a_disk_without_room_is_noticed_before_anything_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        FileBlocks(tmp_path)(64)
