"""What a role is made of: the optimiser's settings from the options."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from simplewan.app.roles import optimizer_settings
from simplewan.flavours import find_flavour
from simplewan.options.groups.experts import ExpertOptions
from simplewan.options.groups.optimizer import OptimizerOptions


@pytest.mark.parametrize(
    ("given", "betas"),
    [
        ({"optimizer": "optimi-lion"}, (0.9, 0.99)),
        ({"optimizer": "optimi-lion", "optimizer_beta1": 0.95}, (0.95, 0.99)),
        ({"optimizer": "optimi-lion", "optimizer_beta2": 0.98}, (0.9, 0.98)),
        ({"optimizer": "adamw", "adam_beta1": 0.8, "optimizer_beta2": 0.95}, (0.8, 0.95)),
        ({"optimizer": "bnb-adamw8bit"}, (0.9, 0.999)),
    ],
)
def test_each_beta_acts_alone(given: dict[str, object], betas: tuple[float, float]) -> None:
    options = SimpleNamespace(optimizer=OptimizerOptions(**given), experts=ExpertOptions())
    context = SimpleNamespace(options=options, flavour=find_flavour("t2v-mini-low"))
    assert optimizer_settings(context, "low").betas == betas  # type: ignore[arg-type]
