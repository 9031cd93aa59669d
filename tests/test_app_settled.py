"""A run goes on only on the weights, and with the values, that it began with, though no option tells of a change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import start, write_tiny_run
from safetensors.torch import load_file
from tiny import tiny_transformer, tiny_vae

from simplewan.flavours import FLAVOURS
from simplewan.models.wan import sources
from simplewan.models.wan.sources import weights_fingerprint

Run = Callable[..., int]
LOW = "t2v-mini-low"


@pytest.fixture
def run(tmp_path: Path, fresh_accelerator: None) -> Run:
    config = write_tiny_run(tmp_path, two_experts=True, clips=2, model_flavour=LOW, learning_rate=1e-3)
    folder = f"output_dir={tmp_path / 'out'}"
    return lambda steps, *words: start("train", "--config", str(config), folder, f"max_train_steps={steps}", *words)


def put_other_weights(model: Path, part: str) -> None:
    tiny_transformer(seed=9).save_pretrained(model / part)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_does_not_go_on_with_other_base_weights(
    kind: str, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    how = f"model_type={kind}"
    assert run(1, how) == 0
    model, kept = tmp_path / "model", tmp_path / "kept"
    shutil.copytree(model, kept)
    put_other_weights(model, "transformer")  # that of the expert which is not trained
    assert run(2, how) == 0
    put_other_weights(model, "transformer_2")
    capfd.readouterr()
    assert run(3, how) == 2
    said = capfd.readouterr().err
    record = json.loads((tmp_path / "out/checkpoint-2/settled.json").read_text())
    assert f"transformer_2 was {record['transformer_2']}, and is" in said and "Traceback" not in said
    assert "checkpoint-2 in" in said and "pretrained_model_name_or_path" in said and "another output_dir" in said
    shutil.rmtree(model / "transformer_2")
    shutil.copytree(kept / "transformer_2", model / "transformer_2")
    assert run(3, how) == 0


def test_a_model_may_move_but_not_change(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole"
    assert run(2, f"output_dir={whole}") == 0
    assert run(1) == 0
    (tmp_path / "model").rename(tmp_path / "moved")
    there = f"pretrained_model_name_or_path={tmp_path / 'moved'}"
    assert run(2, there) == 0
    assert "resuming from checkpoint-1; changed since: " in capfd.readouterr().err
    ours, straight = (
        load_file(folder / "pytorch_lora_weights_low_noise.safetensors") for folder in (tmp_path / "out", whole)
    )
    assert all(torch.equal(ours[name], tensor) for name, tensor in straight.items())
    shutil.copytree(tmp_path / "moved", tmp_path / "other")
    put_other_weights(tmp_path / "other", "transformer_2")
    tiny_vae(seed=9).save_pretrained(tmp_path / "other" / "vae")
    assert run(3, there.replace("moved", "other")) == 2
    said = capfd.readouterr().err
    for part in ("transformer_2", "vae"):
        assert f"has other weights than the run began with: {part} was" in said
    assert f"pretrained_model_name_or_path = '{tmp_path / 'other'}'" in said


def test_a_run_does_not_go_on_with_another_default_of_its_flavour(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(1) == 0
    monkeypatch.setitem(FLAVOURS, LOW, replace(FLAVOURS[LOW], boundary=0.7, training_shift=3.0))
    capfd.readouterr()
    assert run(2) == 2
    said = capfd.readouterr().err
    for key, now, before in (("timestep_boundary", 700, 600), ("flow_schedule_shift", 3, 5)):
        assert f"was {before} when it was saved" in said and f"set {key}={before}, or choose another" in said
        assert f"{key} = {now}" in said
    assert run(2, "timestep_boundary=600", "flow_schedule_shift=5") == 0
    assert run(3, "timestep_boundary=600", "flow_schedule_shift=2") == 2
    assert "was 5 when it was saved" in capfd.readouterr().err


def test_checkpoints_without_these_records_are_resumed(run: Run, tmp_path: Path) -> None:
    assert run(1) == 0
    checkpoint = tmp_path / "out" / "checkpoint-1"
    (checkpoint / "settled.json").unlink()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = [entry for entry in manifest["files"] if entry["file"] != "settled.json"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    put_other_weights(tmp_path / "model", "transformer_2")
    assert run(2, "timestep_boundary=700") == 2  # options are compared as ever
    assert run(2) == 0
    assert (tmp_path / "out/checkpoint-2/settled.json").is_file()


def test_the_fingerprint_is_that_of_the_bytes_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = tiny_transformer()
    transformer.save_pretrained(tmp_path / "one")
    transformer.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 2
    shutil.copytree(tmp_path / "shards", tmp_path / "moved")
    whole = weights_fingerprint(tmp_path / "one")
    shutil.copy(tmp_path / "one/diffusion_pytorch_model.safetensors", tmp_path / "named.safetensors")
    assert weights_fingerprint(tmp_path / "named.safetensors") == whole
    parts = weights_fingerprint(tmp_path / "shards")
    assert weights_fingerprint(tmp_path / "moved") == parts != whole
    changed = bytearray(shards[1].read_bytes())
    changed[-1] ^= 1
    (tmp_path / "moved" / shards[1].name).write_bytes(changed)
    assert weights_fingerprint(tmp_path / "moved") != parts
    # Of a large file places all over it are read, and not all of it.
    monkeypatch.setattr(sources, "WHOLE_FILE_BYTES", 2**16)
    monkeypatch.setattr(sources, "_SAMPLE_BYTES", 2**12)
    seen = set()
    for eighth in (None, 0, 4, 7):
        contents = bytearray(2**20)
        if eighth is not None:
            contents[eighth * 2**17 : (eighth + 1) * 2**17] = b"x" * 2**17
        (tmp_path / "large.safetensors").write_bytes(contents)
        seen.add(weights_fingerprint(tmp_path / "large.safetensors"))
    assert len(seen) == 4
