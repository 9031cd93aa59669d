"""Experts take turns on the device: one at a time while they render, the trained ones back in place afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from simplewan.app.rendering import Turns
from simplewan.app.roles import Expert
from simplewan.errors import TrainingFailure
from simplewan.flavours import find_flavour
from simplewan.validation.prompts import Prompt
from simplewan.validation.runner import Clip, Renderer, RenderSettings
from simplewan.validation.sampling import Conditioning


class Recorder(nn.Module):
    """Remembers where it was moved; its weight stays where it is, for a second device is not at hand."""

    def __init__(self, name: str, moves: list[tuple[str, str]]) -> None:
        super().__init__()
        self._name, self._moves = name, moves

    def to(self, device: torch.device | str) -> Recorder:
        self._moves.append((self._name, str(device)))
        return self


def make(*, resident: tuple[str, ...]) -> tuple[Turns, list[tuple[str, str]], list[str]]:
    moves: list[tuple[str, str]] = []
    loaded: list[str] = []

    def load(name: str) -> Expert:
        loaded.append(name)
        return Expert(name, Recorder(name, moves), lambda latents, timesteps, batch: latents, (0.0, 1.0))

    loads = {name: lambda name=name: load(name) for name in ("high", "low")}
    return Turns(loads, device=torch.device("meta"), text_tokens=8, resident=resident), moves, loaded


def ask(turns: Turns, *names: str) -> None:
    for name in names:
        turns.predict(torch.zeros(1), torch.zeros(1), Conditioning(torch.zeros(1, 3, 2)), name)


def test_only_the_expert_that_acts_is_on_the_device_and_each_is_loaded_when_its_turn_comes() -> None:
    turns, moves, loaded = make(resident=("low",))
    with turns.rendering():
        assert loaded == []
        ask(turns, "high", "high", "low", "high")
        assert loaded == ["high", "low"]
    assert moves == [
        ("low", "cpu"),
        ("high", "meta"),
        ("high", "cpu"),
        ("low", "meta"),
        ("low", "cpu"),
        ("high", "meta"),
        ("high", "cpu"),  # the trained one is back, the other waits
        ("low", "meta"),
    ]
    moves.clear()
    with turns.rendering():
        ask(turns, "low")
    assert moves == [] and len(loaded) == 2


def test_a_failure_puts_everything_back() -> None:
    turns, moves, _ = make(resident=("low",))
    try:
        with turns.rendering():
            ask(turns, "high")
            raise RuntimeError
    except RuntimeError:
        pass
    assert moves[-2:] == [("high", "cpu"), ("low", "meta")]


def test_with_one_expert_it_makes_all_steps() -> None:
    _, moves, _ = make(resident=())
    expert = Expert("low", Recorder("low", moves), lambda latents, timesteps, batch: latents + 1, (0.0, 1.0))
    turns = Turns({"low": lambda: expert}, device=torch.device("cpu"), text_tokens=8)
    latents = turns.predict(torch.zeros(1), torch.zeros(1), Conditioning(torch.zeros(1, 3, 2)), "high")
    assert latents.item() == 1 and moves == [("low", "cpu")]


class Halves(nn.Module):
    """Two weights; moving to the device fails behind the first while `room` is 0, and takes one of it else."""

    def __init__(self, room: list[int]) -> None:
        super().__init__()
        self.places, self._room = ["cpu", "cpu"], room

    def to(self, device: torch.device | str) -> Halves:
        self.places[0] = str(device)
        if str(device) != "cpu":
            if not self._room[0]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self._room[0] -= 1
        self.places[1] = str(device)
        return self


def halves(*rooms: int) -> tuple[Turns, dict[str, Halves]]:
    """A low-noise expert in training and a high-noise one, with how many moves to the device each can make."""
    networks = {name: Halves([room]) for name, room in zip(("low", "high"), rooms, strict=True)}
    networks["low"].places = ["meta", "meta"]
    loads = {
        name: lambda name=name, network=network: Expert(
            name, network, lambda latents, timesteps, batch: latents, (0, 1)
        )
        for name, network in networks.items()
    }
    return Turns(loads, device=torch.device("meta"), text_tokens=8, resident=("low",)), networks


def test_an_expert_that_does_not_fit_is_moved_off_and_the_trained_one_put_back() -> None:
    turns, networks = halves(1, 0)
    with pytest.raises(torch.OutOfMemoryError), turns.rendering():
        ask(turns, "high")
    assert networks["high"].places == ["cpu", "cpu"] and networks["low"].places == ["meta", "meta"]


@pytest.mark.parametrize("rooms", [(0, 1), (0, 0)])
def test_a_trained_expert_that_cannot_be_put_back_ends_the_training(rooms: tuple[int, int], tmp_path: Path) -> None:
    """Going on would be a step of an expert that lies on two devices."""
    turns, networks = halves(*rooms)
    events: list[object] = []
    renderer = Renderer(
        RenderSettings(
            folder=tmp_path,
            flavour=find_flavour("t2v-mini-low"),
            prompts=(),
            sizes=((16, 16),),
            num_frames=1,
            num_steps=1,
            guidance=1.0,
            shift=3.0,
            seed=1,
            negative_prompt="",
            scheduler="unipc",
        ),
        open_predict=turns.rendering,
        embeds=lambda text: torch.zeros(1, 3, 2),
        decode=lambda latents: torch.zeros(1, 3, 1, 16, 16),
        emit=events.append,
    )
    clip = Clip(Prompt("a", "a"), (16, 16), 1, tmp_path / "a.mp4", tmp_path / "a.png", "a")
    with pytest.raises(TrainingFailure, match="transformer_2, which is trained, cannot be put back"):
        renderer.run([clip], label="a", where="a", rendered=lambda clip, seconds: None)
    assert networks["low"].places == networks["high"].places == ["cpu", "cpu"]
