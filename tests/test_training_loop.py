"""The loop against arithmetic done by hand: accumulation, clipping, figures, roles in turn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from simplewan.events import Event, Metric
from simplewan.training.loop import LoopSettings, train
from simplewan.training.roles import Role
from simplewan.training.signals import SignalWatch

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


class Counting:
    """A loader whose batches are 1.0, 2.0, 3.0, ..."""

    def __init__(self) -> None:
        self.handed_out = 0

    def next(self):
        self.handed_out += 1
        batch = SimpleNamespace(names=(f"clip {self.handed_out}",), value=float(self.handed_out))
        return batch, SimpleNamespace(epoch=0), {"position": self.handed_out}

    def close(self) -> None:
        pass


def make_role(name: str, accelerator: Accelerator) -> Role:
    """One weight, loss = weight * batch, so that a batch's gradient is its value; plain SGD at a rate of 1."""
    weight = torch.nn.Parameter(torch.zeros(1))
    return Role(
        name=name,
        parameters=[weight],
        optimizer=accelerator.prepare(torch.optim.SGD([weight], lr=1.0)),
        learning_rate=lambda _step: 1.0,
        loader=Counting(),
        loss=lambda batch, _generator, number: SimpleNamespace(
            value=(weight * batch.value).sum() + 1, metrics={"value": batch.value, "number": number}
        ),
        weights=lambda: {"weight": weight.detach()},
        load_weights=lambda _state: None,
    )


def run(*names: str, steps: int, accumulation: int, clip: float = 0.0, method: str = "norm"):
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation))
    roles = {name: make_role(name, accelerator) for name in names}
    heard: list[Event] = []
    train(
        roles,
        due=lambda step: (names[(step - 1) % len(names)],),
        settings=LoopSettings(seed=1, total_steps=steps, accumulation=accumulation, clip=clip, clip_method=method),
        accelerator=accelerator,
        hooks=(),
        signals=SignalWatch(),
        emit=heard.append,
    )
    return roles, [event for event in heard if isinstance(event, Metric)]


def test_a_step_takes_the_mean_gradient_and_reports_the_means_of_its_batches() -> None:
    roles, (first, second) = run("high", steps=2, accumulation=3)
    assert roles["high"].weights()["weight"].item() == pytest.approx(-((1 + 2 + 3) / 3 + (4 + 5 + 6) / 3))
    assert [first.values["value"], second.values["value"]] == [2, 5]
    assert [first.values["number"], second.values["number"]] == [1, 4]  # numbered 0 to 5
    assert first.loss == 1
    assert second.loss == pytest.approx(1 - 2 * 5)
    assert roles["high"].sampler_state == {"position": 6}


@pytest.mark.parametrize("method", ["norm", "value"])
def test_the_accumulated_gradient_is_clipped(method: str) -> None:
    roles, (metric,) = run("high", steps=1, accumulation=2, clip=0.25, method=method)
    assert roles["high"].weights()["weight"].item() == pytest.approx(-0.25, rel=1e-4)
    assert metric.values.get("grad_norm") == (1.5 if method == "norm" else None)


def test_roles_take_turns_with_batches_of_their_own() -> None:
    roles, metrics = run("high", "low", steps=4, accumulation=2)
    assert [metric.role for metric in metrics] == ["high", "low", "high", "low"]
    for role in roles.values():
        assert role.step == 2
        assert role.weights()["weight"].item() == pytest.approx(-(1.5 + 3.5))
