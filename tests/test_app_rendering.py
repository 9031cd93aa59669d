"""Experts take turns on the device: one at a time while they render, the trained ones back in place afterwards."""

from __future__ import annotations

import torch
from torch import nn

from simplewan.app.rendering import Turns
from simplewan.app.roles import Expert


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
        turns.predict(torch.zeros(1), torch.zeros(1), torch.zeros(1, 3, 2), name)


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
    latents = turns.predict(torch.zeros(1), torch.zeros(1), torch.zeros(1, 3, 2), "high")
    assert latents.item() == 1 and moves == [("low", "cpu")]
