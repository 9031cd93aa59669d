"""The accelerator of a run does what the options say, whatever the environment says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from simplewan.app.device import free_memory, make_accelerator, memory_text
from simplewan.events import Event, Notice, silent
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


def test_several_gpus_are_one_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    said: list[Event] = []
    make_accelerator(options(), said.append)
    assert [event.message for event in said if isinstance(event, Notice)] == [
        "4 GPUs are present; this run uses one, cpu"
    ]


def test_the_memory_in_use_is_shown_where_there_is_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.cuda.is_available() or memory_text() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: int(11.25 * 2**30))
    text = memory_text()
    assert text is not None and text() == "11.2 GiB"


def test_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    free, total = free_memory(tmp_path)  # no container
    assert 0 < free <= total
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\ninactive_file 1500000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path)[1] == total
    (tmp_path / "memory.max").write_text("4000000\n")
    assert free_memory(tmp_path) == (2500000, 4000000)
