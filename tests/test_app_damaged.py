"""The real commands on damaged model files: exit code 2, the tensor's name, and nothing encoded or written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import (
    CLIP_WIDTH,
    fp8_scaled,
    original_clip,
    original_text,
    original_transformer,
    original_vae,
    save_original_model,
)
from runs import start, write_run
from safetensors.torch import load_file, save_file
from tiny import Model, save_tiny_model, tiny_clip, tiny_text, tiny_transformer, tiny_vae
from torch import Tensor

from simplewan.flavours import find_flavour
from simplewan.models.wan.loading import check_files

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def alone(fresh_accelerator: None) -> None:
    """Each command has an accelerator of its own."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    write_run(folder, clips=1, frames=5, max_train_steps=1)
    save_tiny_model(folder / "model", two_experts=True)
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole / "model", tmp_path / "model")


@pytest.fixture
def refuse(whole: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Starts a command that must refuse its model at once; returns what it told."""

    def starting(*arguments: str, command: str = "train", flavour: str = "t2v-mini-high") -> str:
        config, out = ("--config", str(whole / "config.json")), tmp_path / "out"
        usual = [f"model_flavour={flavour}", f"cache_dir={tmp_path / 'cache'}", f"output_dir={out}"]
        if not any(word.startswith("pretrained_model_name_or_path") for word in arguments):
            usual.append(f"pretrained_model_name_or_path={model}")
        if command == "sample":
            usual += ["prompt=a red circle", f"output={out / 'clips'}"]
        capfd.readouterr()
        assert start(command, *config, *usual, *arguments) == 2
        told = capfd.readouterr().err
        assert "Traceback" not in told and "aching" not in told, told
        assert not (tmp_path / "cache").exists() and not out.exists()
        return told

    return starting


def change(file: Path, edit: Callable[[State], Any]) -> str:
    """Edit the tensors of a file; the argument with which it is a base model's."""
    state = load_file(file)
    edit(state)
    save_file(state, file, metadata={"format": "pt"})
    return str(file)


def without(name: str) -> Callable[[State], Any]:
    return lambda state: state.pop(name)


def with_(name: str, *shape: int) -> Callable[[State], Any]:
    return lambda state: state.update({name: torch.zeros(shape)})


Q = "blocks.1.attn1.to_q.weight"
T5 = "encoder.block.1.layer.0.SelfAttention.q.weight"
FOLDERS = [
    ("transformer", without(Q), f"it lacks 1 tensors, {Q} among them"),
    ("transformer", with_(Q, 3, 3), f"{Q} has shape [3, 3], expected [32, 32]"),
    ("transformer", with_("extra.weight", 3), "it holds 1 that Wan has not, extra.weight among them"),
    ("vae", without("decoder.conv_in.weight"), "it lacks 1 tensors, decoder.conv_in.weight among them"),
    ("vae", with_("quant_conv.bias", 3), "quant_conv.bias has shape [3], expected [32]"),
    ("text_encoder", without(T5), f"lacks 1 of its weights, {T5} among them"),
    ("text_encoder", with_(T5, 3, 3), f"{T5} (it has shape [3, 3], expected [32, 32]) among them"),
]


@pytest.mark.parametrize(("part", "edit", "words"), FOLDERS)
def test_a_folder_of_diffusers(part: str, edit: Any, words: str, model: Path, refuse: Callable[..., str]) -> None:
    change(next((model / part).glob("*.safetensors")), edit)
    told = refuse()
    assert words in told and f"has a {part} " in told
    assert "LOAD REPORT" not in told  # which says that something was initialised


@pytest.mark.parametrize("command", ["cache", "sample"])
def test_no_command_begins_with_a_damaged_part(command: str, model: Path, refuse: Callable[..., str]) -> None:
    for part, edit, _ in (FOLDERS[0], FOLDERS[3], FOLDERS[5]):
        change(next((model / part).glob("*.safetensors")), edit)
    told = refuse(command=command)
    for _, _, words in (FOLDERS[0], FOLDERS[3], FOLDERS[5]):
        assert words in told


def test_the_other_expert_that_validation_needs(model: Path, refuse: Callable[..., str]) -> None:
    change(next((model / "transformer_2").glob("*.safetensors")), without(Q))
    validation = ("validation_disable=false", "wan_validation_load_other_stage=true", "validation_step_interval=1")
    told = refuse(*validation, flavour="t2v-a14b-2.2-high")
    assert f"has a transformer_2 that cannot be read: it lacks 1 tensors, {Q}" in told
    assert "or set wan_validation_load_other_stage" in told


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_shard_that_lacks_what_the_index_names(layout: str, tmp_path: Path, refuse: Callable[..., str]) -> None:
    if layout == "diffusers":
        folder = tmp_path / "model/transformer"
        state = load_file(next(folder.glob("*.safetensors")))
        next(folder.glob("*.safetensors")).unlink()
        names = [f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
        shards = {name: names[number % 2] for number, name in enumerate(state)}
        index = {"metadata": {}, "weight_map": shards}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
        for shard in names:
            part = {name: value for name, value in state.items() if shards[name] == shard and name != Q}
            save_file(part, folder / shard, metadata={"format": "pt"})
        assert f"it lacks 1 tensors, {Q} among them" in refuse()
        return
    save_original_model(tmp_path / "original", "t2v-a14b")
    argument = f"pretrained_model_name_or_path={tmp_path / 'original'}"
    for file in (tmp_path / "original/high_noise_model").glob("*.safetensors"):
        change(file, lambda state: [state.pop(name) for name in list(state) if name.startswith("blocks.1.")])
    told = refuse(argument, flavour="t2v-a14b-2.2-high")
    assert "its weights are 32 wide, 1 blocks, and its config.json says 32 wide, 2 blocks" in told


ORIGINAL = original_transformer(tiny_transformer(dim=128, heads=1))
WITHOUT_TEXT = {name: value for name, value in ORIGINAL.items() if not name.startswith("text_embedding.")}
FP8 = fp8_scaled(ORIGINAL, marker=True)
OTHER_FP8 = fp8_scaled(ORIGINAL, marker=False, suffix="weight_scale")
FFN = "blocks.1.ffn.0"


def less(state: State, name: str) -> State:
    assert name in state
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (less(ORIGINAL, f"{FFN}.weight"), f"it lacks 1 tensors, {FFN}.weight (diffusers' blocks.1.ffn.net.0.proj"),
        (WITHOUT_TEXT, "it lacks 4 tensors, text_embedding.0.weight"),
        (ORIGINAL | {f"{FFN}.weight": torch.zeros(3, 3)}, f"{FFN}.weight has shape [3, 3], expected [256, 128]"),
        (ORIGINAL | {"extra.thing": torch.ones(3)}, "it holds 1 that Wan has not, extra.thing"),
        (ORIGINAL | {"patch_embedding.weight": torch.zeros(3)}, "patch_embedding.weight has shape [3], expected 5"),
        (less(FP8, f"{FFN}.scale_weight"), f"{FFN}.weight is fp8 and has no scale"),
        (less(OTHER_FP8, f"{FFN}.weight_scale"), f"{FFN}.weight is fp8 and has no scale"),
        (FP8 | {f"{FFN}.scale_weight": torch.ones(3)}, f"{FFN}.weight has shape [256, 128] and scales of shape [3]"),
    ],
)
def test_a_transformer_in_one_file(state: State, words: str, tmp_path: Path, refuse: Callable[..., str]) -> None:
    for file, save in ((tmp_path / "high_noise.safetensors", save_file), (tmp_path / "high_noise.pth", torch.save)):
        save(dict(state), file)
        assert words in refuse(f"pretrained_transformer_model_name_or_path={file}"), file.name


def parts_in_one_file() -> list[Any]:
    text, vae, clip = (
        original_text(tiny_text()[1]),
        original_vae(tiny_vae()),
        original_clip(tiny_clip(dim=CLIP_WIDTH)[1]),
    )
    return [
        ("vae", less(vae, "decoder.head.2.bias"), "it lacks 1 tensors, decoder.head.2.bias (diffusers' decoder.conv"),
        ("vae", vae | {"conv2.bias": torch.zeros(3)}, "conv2.bias has shape [3], expected [16]"),
        ("vae", vae | {"encoder.conv1.weight": torch.zeros(3)}, "encoder.conv1.weight has shape [3]"),
        ("t5", less(text, "blocks.1.ffn.fc2.weight"), "block.1.layer.1.DenseReluDense.wo.weight among them"),
        ("t5", less(text, "blocks.0.pos_embedding.embedding.weight"), "lacks encoder.block.0.layer.0.SelfAttention."),
        ("t5", text | {"blocks.1.extra.weight": torch.zeros(3)}, "that it has no place for, encoder.block.1.extra"),
        ("image_encoder", less(clip, "visual.transformer.1.mlp.0.bias"), "encoder.layers.1.mlp.fc1.bias among them"),
    ]  # fmt: skip


@pytest.mark.parametrize(("part", "state", "words"), parts_in_one_file())
def test_other_parts_in_one_file(
    part: str, state: State, words: str, model: Path, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    tiny_text()[0].save_pretrained(tmp_path / "google/umt5-xxl")
    flavour = "t2v-mini-high"
    if part == "image_encoder":
        shutil.rmtree(model)
        save_original_model(model, "i2v-2.1")
        flavour = "i2v-14b-2.1"
    for file, save in ((tmp_path / f"{part}.safetensors", save_file), (tmp_path / f"{part}.pth", torch.save)):
        save({name: value.contiguous() for name, value in state.items()}, file)
        told = refuse(f"pretrained_{part}_model_name_or_path={file}", flavour=flavour)
        assert words in told, file.name


@pytest.mark.parametrize("part", ["transformer", "vae", "t5"])
def test_a_pickle_with_code_is_told_in_our_own_words(part: str, tmp_path: Path, refuse: Callable[..., str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return exec, ("raise SystemExit(3)",)

    file = tmp_path / "evil_high_noise.pth"
    torch.save({**ORIGINAL, "a": Evil()}, file)
    tiny_text()[0].save_pretrained(tmp_path / "google/umt5-xxl")
    told = refuse(f"pretrained_{part}_model_name_or_path={file}")
    assert "evil_high_noise.pth refers to exec, which is no part of a tensor, and it is not run" in told
    assert "convert it to .safetensors with the tool that made it, or take another copy" in told
    assert "weights_only" not in told and "torch.load" not in told


@pytest.mark.parametrize("content", [b"", b"hello world", b"<html>" * 9])
def test_a_pickle_that_is_none(content: bytes, tmp_path: Path, refuse: Callable[..., str]) -> None:
    (tmp_path / "vae.pth").write_bytes(content)
    told = refuse(f"pretrained_vae_model_name_or_path={tmp_path / 'vae.pth'}")
    assert "has a vae that cannot be read: vae.pth is no" in told


def test_plain_fp8_and_old_pickles_are_still_taken(whole: Path, tmp_path: Path) -> None:
    """What the headers do not tell, or tell otherwise, and is right."""
    plain = {name: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value for name, value in ORIGINAL.items()}
    old = tmp_path / "high_noise.pth"
    torch.save(dict(ORIGINAL), old, _use_new_zipfile_serialization=False)
    save_file(plain, tmp_path / "fp8.safetensors")
    save_file(FP8, tmp_path / "scaled.safetensors")
    save_file(
        {f"model.diffusion_model.{name}": value for name, value in OTHER_FP8.items()}, tmp_path / "kj.safetensors"
    )
    for file in tmp_path.iterdir():
        check_files(
            Model(str(whole / "model"), pretrained_transformer_model_name_or_path=str(file)),
            find_flavour("t2v-mini-high"),
        )
