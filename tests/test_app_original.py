"""The real commands on models as Wan's own repositories and ComfyUI's files hold them, with nothing asked of a hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from originals import original_text, original_transformer, original_vae, save_original_model
from runs import notice, records, start, write_run
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model, tiny_text, tiny_transformer, tiny_vae

SIZE = ("validation_resolution=64x64", "validation_num_video_frames=5", "validation_num_inference_steps=3")
EXACT = ("mixed_precision=no", "vae_dtype=fp32")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, fresh_accelerator: None) -> None:
    def refuse(*_arguments: object, **_keys: object) -> Path:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)


def sample(output: Path, *arguments: str) -> bytes:
    assert start("sample", "prompt=a red circle moves left", f"output={output}", *SIZE, *EXACT, *arguments) == 0
    return next(output.glob("*.mp4")).read_bytes()


def train(output: Path, place: Path, *arguments: str) -> None:
    config = ("train", "--config", str(place / "config.json"), f"output_dir={output}")
    assert start(*config, "max_train_steps=2", f"cache_dir={output / 'cache'}", *arguments) == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips; one model in the two layouts; and its parts as single files."""
    folder = tmp_path_factory.mktemp("place")
    write_run(folder, clips=4, frames=9)
    save_tiny_model(folder / "diffusers", two_experts=True)
    save_original_model(folder / "original", "t2v-a14b")
    return folder


@pytest.mark.slow
def test_original_repositories_render_and_train_as_diffusers_folders_do(place: Path, tmp_path: Path) -> None:
    """The flavour is inferred, and announced; clips and trained weights are the same bytes."""
    clips, weights = [], []
    for layout in ("original", "diffusers"):
        model = f"pretrained_model_name_or_path={place / layout}"
        clips.append(sample(tmp_path / layout / "clips", model))
        train(tmp_path / layout / "run", place, model)
        told = notice(tmp_path / layout / "run", "model_flavour is")
        assert "t2v-a14b-2.2, by the two experts" in told and "t2v-a14b-2.2-high or t2v-a14b-2.2-low trains one" in told
        names = [f"pytorch_lora_weights_{expert}_noise.safetensors" for expert in ("high", "low")]
        weights.append({name: load_file(tmp_path / layout / "run" / name) for name in names})
    assert clips[0] == clips[1]
    for name, state in weights[0].items():
        assert state.keys() == weights[1][name].keys()
        assert all(torch.equal(value, weights[1][name][key]) for key, value in state.items())


@pytest.mark.slow
def test_single_files_render_and_train(place: Path, tmp_path: Path) -> None:
    """What a user of ComfyUI has, and no base model at all; the heads of this one are as wide as Wan's."""
    files = tmp_path / "models"
    files.mkdir()
    tokenizer, encoder = tiny_text()
    save_file(original_transformer(tiny_transformer(dim=128, heads=1)), files / "wan2.2_t2v_low_noise_14B.safetensors")
    save_file(original_vae(tiny_vae()), files / "wan_2.1_vae.safetensors")
    torch.save(original_text(encoder), files / "models_t5_umt5-xxl-enc-bf16.pth")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = (
        f"pretrained_transformer_2_model_name_or_path={files / 'wan2.2_t2v_low_noise_14B.safetensors'}",
        f"pretrained_vae_model_name_or_path={files / 'wan_2.1_vae.safetensors'}",
        f"pretrained_t5_model_name_or_path={files / 'models_t5_umt5-xxl-enc-bf16.pth'}",
        f"pretrained_tokenizer_model_name_or_path={tmp_path / 'tokenizer'}",
        "model_flavour=t2v-a14b-2.2-low",
    )
    assert sample(tmp_path / "clips", *model)
    train(tmp_path / "run", place, *model)
    assert {event["role"] for event in records(tmp_path / "run", "metric")} == {"low"}
    assert (tmp_path / "run/pytorch_lora_weights_low_noise.safetensors").exists()


def test_the_wrong_file_is_refused_at_once(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lora = tmp_path / "lora.safetensors"
    save_file({"diffusion_model.blocks.0.ffn.0.lora_A.weight": torch.zeros(4, 4)}, lora)
    wrong = (
        ("model_flavour=vace-14b", "is VACE"),
        ("pretrained_model_name_or_path=Wan-AI/Wan2.1-FLF2V-14B-720P", "first-and-last-frame"),
        (f"pretrained_transformer_model_name_or_path={lora}", "is a LoRA"),
        (f"pretrained_vae_model_name_or_path={place / 'original/models_t5_umt5-xxl-enc-bf16.pth'}", "is a UMT5"),
    )
    for argument, words in wrong:
        base = (
            () if argument.startswith("pretrained_model") else (f"pretrained_model_name_or_path={place / 'original'}",)
        )
        data = (f"data_backend_config={place / 'data.json'}", f"output_dir={tmp_path / 'out'}", "max_train_steps=1")
        assert start("train", *data, *base, argument) == 2
        told = capfd.readouterr().err
        assert words in told and "Traceback" not in told, told
    assert not (tmp_path / "out").exists()
