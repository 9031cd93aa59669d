"""The accelerator of a run does what the options say, whatever the environment says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState

from simplewan.app.device import make_accelerator
from simplewan.events import silent
from simplewan.options.catalogue import Options, group_models
from simplewan.options.groups.optimizer import OptimizerOptions
from simplewan.options.groups.run import RunOptions


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


def options(*, accumulation: int = 1, deterministic: bool = False) -> Options:
    groups = {name: model() for name, model in group_models().items()}
    groups["optimizer"] = OptimizerOptions(mixed_precision="no", gradient_accumulation_steps=accumulation)
    groups["run"] = RunOptions(deterministic=deterministic)
    return Options(**groups)  # type: ignore[arg-type]


def test_deterministic_is_more_than_a_warning() -> None:
    make_accelerator(options(deterministic=True), silent)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


def test_the_environment_does_not_change_the_accumulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    assert make_accelerator(options(accumulation=2), silent).gradient_accumulation_steps == 2
