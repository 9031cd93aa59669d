"""A run goes on only on the weights, and with the values, that it began with, though no option tells of a change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import start, write_tiny_run
from safetensors.torch import load_file, save_file
from tiny import save_tiny_image_model, tiny_transformer, tiny_vae

from simplewan.app.settled import differences, settled, told_by_options
from simplewan.flavours import FLAVOURS, find_flavour
from simplewan.models.keys import to_original
from simplewan.models.wan import sources
from simplewan.models.wan.loading import text_encoder_fingerprint, vae_fingerprint
from simplewan.models.wan.prints import part_prints
from simplewan.models.wan.sources import weights_fingerprint
from simplewan.options import load
from simplewan.options.groups.model import ModelOptions

Run = Callable[..., int]
LOW = "t2v-mini-low"


@pytest.fixture
def run(tmp_path: Path, fresh_accelerator: None) -> Run:
    config = write_tiny_run(tmp_path, two_experts=True, clips=2, model_flavour=LOW, learning_rate=1e-3)
    folder = f"output_dir={tmp_path / 'out'}"
    return lambda steps, *words: start("train", "--config", str(config), folder, f"max_train_steps={steps}", *words)


def put_other_weights(model: Path, part: str) -> None:
    tiny_transformer(seed=9).save_pretrained(model / part)


@pytest.mark.slow
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
    assert f"transformer_2 was {record['transformer_2']['weights']}, and is" in said and "Traceback" not in said
    assert "checkpoint-2 in" in said and "pretrained_model_name_or_path" in said and "another output_dir" in said
    shutil.rmtree(model / "transformer_2")
    shutil.copytree(kept / "transformer_2", model / "transformer_2")
    assert run(3, how) == 0


@pytest.mark.slow
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


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_tiny_run(tmp_path, two_experts=True, clips=2, model_flavour=LOW, learning_rate=1e-3, max_train_steps=1)


def told(config: Path, record: Mapping[str, Any], **options: object) -> str:
    """Why the run of `record` does not go on with these options; "" if it does."""
    loaded = load(config, list(options.items()), environ={})
    keys = told_by_options(list(options), record, loaded)
    return "\n".join([*keys, *map(str, differences(record, loaded, where="checkpoint-1"))])


def before(config: Path) -> dict[str, Any]:
    return json.loads(json.dumps(settled(load(config, environ={}))))


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def moved(tmp_path: Path, name: str) -> Path:
    return shutil.copytree(tmp_path / "model", tmp_path / name)


def test_a_variant_is_another_choice_of_the_same_files(run: Run, tmp_path: Path, capfd: Any) -> None:
    tiny_transformer(seed=9).save_pretrained(tmp_path / "model" / "transformer_2", variant="fp16")
    assert run(1) == 0
    assert run(2, "variant=fp16") == 2
    assert "variant = 'fp16' was the default when it was saved" in capfd.readouterr().err
    assert run(2) == 0


def test_a_subfolder_is_a_place(config: Path, tmp_path: Path) -> None:
    record, model = before(config), tmp_path / "model"
    shutil.copytree(model / "transformer_2", model / "copy")
    shutil.copytree(model / "transformer_2", model / "other")
    edit(model / "other" / "config.json", eps=1e-3)
    assert told(config, record, pretrained_transformer_2_subfolder="copy") == ""
    put_other_weights(model, "copy")
    for name in ("copy", "other"):
        assert "transformer_2 was" in told(config, record, pretrained_transformer_2_subfolder=name)


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("transformer_2", {"eps": 1e-3}),
        ("vae", {"latents_mean": [0.5] * 16}),
        ("text_encoder", {"layer_norm_epsilon": 1e-3}),
    ],
)
def test_a_configuration_is_compared_too(part: str, values: dict[str, Any], config: Path, tmp_path: Path) -> None:
    record, there = before(config), moved(tmp_path, "there")
    place = {"pretrained_model_name_or_path": str(there)}
    file = there / part / "config.json"
    edit(file, _diffusers_version="9.9", _name_or_path="elsewhere", transformers_version="9.9", dtype="bfloat16")
    assert told(config, record, **place) == ""
    edit(file, **values)
    assert f"has another configuration than the run began with: {part} was" in told(config, record, **place)
    # An older checkpoint has the print of the weights alone.
    if part == "transformer_2":
        record[part] = record[part]["weights"]
        assert told(config, record, **place) == ""
        put_other_weights(there, part)
        assert f"other weights than the run began with: {part} was {record[part]}" in told(config, record, **place)


def test_a_single_file_has_the_configuration_that_it_is_loaded_with(config: Path, tmp_path: Path) -> None:
    own, place = tmp_path / "own", "pretrained_transformer_2_model_name_or_path"
    own.mkdir()
    state = load_file(tmp_path / "model/transformer_2/diffusion_pytorch_model.safetensors")
    save_file({to_original(key): value for key, value in state.items()}, own / "low.safetensors")
    edit(config, **{place: str(own / "low.safetensors")})
    record = before(config)
    renamed = shutil.copytree(own, tmp_path / "renamed") / "low.safetensors"
    assert told(config, record, **{place: str(renamed.rename(renamed.with_name("x.safetensors")))}) == ""
    (own / "config.json").write_bytes((tmp_path / "model/transformer_2/config.json").read_bytes())
    assert told(config, record) == ""
    base = tmp_path / "model/transformer_2/config.json"  # as one of the hub: what it does not say has its default
    for file in (base, own / "config.json"):
        file.write_text(json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "eps"}))
    assert told(config, record) == ""
    edit(own / "config.json", eps=1e-3)
    assert "has another configuration than the run began with: transformer_2 was" in told(config, record)


def test_other_files_and_names_are_no_other_model(config: Path, tmp_path: Path) -> None:
    record, there = before(config), moved(tmp_path, "there")
    for part in ("vae", "text_encoder", "tokenizer", "transformer_2"):
        (there / part / "notes.json").write_text("{}")
    assert told(config, record, pretrained_model_name_or_path=str(there)) == ""
    weights = there / "vae" / "diffusion_pytorch_model.safetensors"
    weights = weights.rename(weights.with_name("another name.safetensors"))
    assert told(config, record, pretrained_vae_model_name_or_path=str(weights)) == ""
    weights.rename(weights.with_name("diffusion_pytorch_model.safetensors"))
    edit(there / "tokenizer" / "tokenizer_config.json", model_max_length=7)
    for key in ("pretrained_model_name_or_path", "pretrained_tokenizer_model_name_or_path"):
        said = told(config, record, **{key: str(there)})
        assert f"{key} = " in said and "has another tokenizer than the run began with: tokenizer was" in said


def test_the_processor_of_an_image_encoder_is_compared(tmp_path: Path) -> None:
    place = ModelOptions(pretrained_model_name_or_path=str(save_tiny_image_model(tmp_path / "model", "2.1")))
    flavour = find_flavour("i2v-14b-480p-2.1")
    found = part_prints(place, flavour, "image_encoder")
    assert {*found} == {"weights", "configuration", "image_processor"}
    edit(tmp_path / "model" / "image_processor" / "preprocessor_config.json", image_mean=[0, 0, 0])
    changed = part_prints(place, flavour, "image_encoder")
    assert [key for key in found if found[key] != changed[key]] == ["image_processor"]


def test_a_checkpoint_that_knows_the_transformers_alone(config: Path, tmp_path: Path) -> None:
    record = before(config)
    old = {key: record[key] for key in ("boundary", "shift")} | {"transformer_2": record["transformer_2"]["weights"]}
    place = {"pretrained_model_name_or_path": str(moved(tmp_path, "there"))}
    assert told(config, record, **place) == ""
    assert told(config, old, **place) == "pretrained_model_name_or_path"  # that the rest is the same cannot be told
    tiny_vae(seed=9).save_pretrained(tmp_path / "model" / "vae")
    assert told(config, old) == "" and "vae was" in told(config, record)
    put_other_weights(tmp_path / "model", "transformer_2")
    assert "transformer_2 was" in told(config, old)


def test_a_checkpoint_with_one_print_a_part(config: Path, tmp_path: Path) -> None:
    loaded = load(config, environ={})
    record = before(config)
    old = {**record, "transformer_2": record["transformer_2"]["weights"]}
    for part, print_of in (("vae", vae_fingerprint), ("text_encoder", text_encoder_fingerprint)):
        old[part] = print_of(loaded.options.model, loaded.flavour)
    place = {"pretrained_model_name_or_path": str(moved(tmp_path, "there"))}
    assert told(config, old, **place) == ""
    (tmp_path / "settled.json").write_text(json.dumps(old))
    assert settled(loaded, checkpoint=tmp_path) == record  # what is saved from now on holds all
    tiny_vae(seed=9).save_pretrained(tmp_path / "there" / "vae")
    assert "vae was" in told(config, old, **place)


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
