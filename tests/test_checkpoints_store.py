"""Checkpoints: what is read is what was written, damage is noticed, rotation keeps the newest."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from killing import user

from simplewan.checkpoints import CheckpointStore, DamagedCheckpoint, OutputLock
from simplewan.checkpoints.files import sha256
from simplewan.errors import UserError
from simplewan.events import Event, Notice


def store(folder: Path, *, limit: int = 0, heard: list[Event] | None = None) -> CheckpointStore:
    return CheckpointStore(folder, limit=limit, emit=(heard if heard is not None else []).append)


def optimizer_after(steps: int) -> torch.optim.Optimizer:
    weights = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.AdamW([weights], lr=0.1)
    for _ in range(steps):
        weights.grad = weights.detach() * 0.3
        optimizer.step()
    return optimizer


def save(checkpoints: CheckpointStore, step: int) -> Path:
    parts = {
        "high.weights": {"a": torch.arange(6.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)},
        "high.optimizer": optimizer_after(step).state_dict(),
        "high.position": {"step": step, "sampler": {"epoch": 1, "carried": [["x", 0]]}},
    }
    return checkpoints.save(step, parts, record={"seed": 42})


def test_parts_come_back_exactly(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    path = save(checkpoints, 3)
    assert checkpoints.verify(path) == 3
    weights = checkpoints.read(path, "high.weights")
    assert torch.equal(weights["a"], torch.arange(6.0))
    assert weights["b"].dtype == torch.bfloat16
    fresh = optimizer_after(0)
    fresh.load_state_dict(checkpoints.read(path, "high.optimizer"))
    assert torch.equal(
        fresh.state_dict()["state"][0]["exp_avg"], optimizer_after(3).state_dict()["state"][0]["exp_avg"]
    )
    assert checkpoints.read(path, "high.position") == {"step": 3, "sampler": {"epoch": 1, "carried": [["x", 0]]}}
    assert json.loads((path / "config.resolved.json").read_text()) == {"seed": 42}


def test_a_place_that_cannot_be_written_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"output_dir = .* cannot be written"), OutputLock(folder):
            pass


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    checkpoints = store(tmp_path, limit=2)
    for step in (1, 2, 3, 10):
        save(checkpoints, step)
    assert checkpoints.steps() == [3, 10]
    one = store(tmp_path / "one", limit=1)
    for step in (1, 2, 3):
        save(one, step)
    assert one.steps() == [3]


@pytest.mark.parametrize("damage", ["flip", "missing", "no manifest", "torn manifest"])
def test_latest_skips_a_damaged_one_and_says_so(tmp_path: Path, damage: str) -> None:
    heard: list[Event] = []
    checkpoints = store(tmp_path, heard=heard)
    good, bad = save(checkpoints, 1), save(checkpoints, 2)
    victim = bad / "high.weights.safetensors"
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(bytes(content))
    elif damage == "missing":
        victim.unlink()
    elif damage == "no manifest":
        (bad / "manifest.json").unlink()
    else:
        (bad / "manifest.json").write_text('{"step": 2, "fi')
    with pytest.raises(DamagedCheckpoint):
        checkpoints.verify(bad)
    assert checkpoints.find("latest") == (good, checkpoints.verify(good))
    assert any(isinstance(event, Notice) and "checkpoint-2" in event.message for event in heard)
    with pytest.raises(UserError, match="latest"):
        checkpoints.find("checkpoint-2")
    assert checkpoints.find("none") is None


def test_a_named_checkpoint_that_is_absent_is_answered_with_those_there_are(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    with pytest.raises(UserError, match=r"is not there: .*; there are no checkpoints yet"):
        checkpoints.find("checkpoint-9")
    save(checkpoints, 2)
    save(checkpoints, 4)
    with pytest.raises(UserError, match=r"is not there: .*; there are checkpoint-2, checkpoint-4"):
        checkpoints.find("checkpoint-9")


def test_saving_again_replaces_a_damaged_one(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    (save(checkpoints, 2) / "manifest.json").unlink()
    assert checkpoints.verify(save(checkpoints, 2)) == 2


def test_resuming_earlier_sets_later_ones_aside(tmp_path: Path) -> None:
    checkpoints = store(tmp_path)
    save(checkpoints, 1)
    save(checkpoints, 2)
    checkpoints.set_aside_after(1)
    assert checkpoints.steps() == [1]
    assert (tmp_path / "set-aside-1-checkpoint-2" / "manifest.json").exists()


def test_leftovers_of_a_killed_save_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint-5.1.tmp").mkdir()
    assert store(tmp_path).steps() == []
    assert list(tmp_path.iterdir()) == []


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with user(OutputLock(tmp_path).__enter__) as number:  # noqa: SIM117
        with pytest.raises(UserError, match=f"process {number}"), OutputLock(tmp_path):
            pass
    with OutputLock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_checkpoint_that_vanishes_while_it_is_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    checkpoints = store(tmp_path, heard=heard)
    older, newer = save(checkpoints, 1), save(checkpoints, 2)

    def removed(path: Path) -> str:
        if newer.is_dir() and path.parent == newer:
            shutil.rmtree(newer)
        return sha256(path)

    monkeypatch.setattr("simplewan.checkpoints.store.sha256", removed)
    assert checkpoints.find("latest") == (older, checkpoints.verify(older))
    assert any("checkpoint-2 was removed while it was read" in str(event) for event in heard)
