"""Which LoRA `simpletuner sample` gives to which expert, what it adds up to, and which are refused or warned of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_files import lycoris_tensors
from safetensors.torch import save_file
from sampling import HIGH_FILE, LOW_FILE, PROMPT, latents_seen, sample, write_lora
from tiny import save_tiny_model, tiny_transformer

from simplewan.app import rendering
from simplewan.cli import main
from simplewan.models.adapters import adapter_state, add_lora
from simplewan.models.lora.write import save_lora
from simplewan.options.groups.adapter import AdapterOptions
from simplewan.recognition import told_expert

pytestmark = pytest.mark.usefixtures("apart", "fresh_accelerator")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("sample") / "model", two_experts=True)


@pytest.fixture
def latents(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    return latents_seen(monkeypatch)


def test_a_file_tells_its_expert_by_its_name_or_is_asked_for_it(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mute = write_lora(tmp_path / "mute.safetensors", "high", seed=1, tells=False)
    assert sample(model, "prompt=a cat", f"adapter={mute}") == 2
    assert "adapter_high= or adapter_low=" in capfd.readouterr().err
    named = shutil.copy(mute, tmp_path / "Fox-LowNoise-v2.safetensors")
    quick = ("prompt=a cat", "validation_num_inference_steps=4", "adapter_scale=2", "timestep_boundary=875")
    for words, expert in (((f"adapter={named}",), "low"), ((f"adapter_high={mute}",), "high")):
        assert sample(model, *quick, *words) == 0
        said = capfd.readouterr().err
        assert f"{expert}-noise expert, 2 of 4 steps: {words[0].split('=')[1]}, strength 2" in said
    assert sample(model, "prompt=a cat", f"adapter_low={mute}", "model_flavour=t2v-480p-1.3b-2.1") == 2
    assert "has one expert" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("fox_high_noise", "high"),
        ("wan2.2-LOW-noise", "low"),
        ("lownoise-fox", "low"),
        ("FoxHighNoise2", "high"),
        ("14bHigh_Noise", "high"),
        ("slow_noise", None),
        ("glow-noise-v2", None),
        ("yellow_noise", None),
        ("GlowNoise", None),
        ("high_noise_and_low_noise", None),
        ("noise_high", None),
    ],
)
def test_only_a_word_of_its_own_tells_an_expert(name: str, expert: str | None) -> None:
    assert told_expert(name) == expert


@pytest.mark.slow
def test_a_lora_of_another_model_or_expert_is_warned_of(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_lora(tmp_path / "x.safetensors", "high", seed=1)
    quick = ("prompt=a cat", "validation_num_inference_steps=1")
    for words, wanted in (
        ((f"adapter={file}",), None),
        ((f"adapter_low={file}",), "trained for the high-noise expert, and is put on the low-noise one"),
        (
            (f"adapter={file}", "model_flavour=t2v-480p-1.3b-2.1"),
            "was trained for t2v-mini-high, and is put on t2v-480p",
        ),
        (
            (f"adapter_low={file}", "model_flavour=t2v-a14b-2.2"),
            "is put on t2v-a14b-2.2; for the high-noise expert, and is put on the low-noise one",
        ),
    ):
        assert sample(model, *quick, *words) == 0
        said = capfd.readouterr().err
        assert (wanted is None and "trained for" not in said) or (wanted is not None and wanted in said), said


def test_of_a_folder_an_expert_gets_what_is_not_the_others(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for expert, name in (("high", HIGH_FILE), ("low", LOW_FILE)):
        write_lora(tmp_path / "both" / name, expert, seed=1, tells=False)
    quick = ("prompt=a cat", "validation_num_inference_steps=4")
    assert sample(model, *quick, f"adapter_high={tmp_path / 'both'}") == 0
    said = capfd.readouterr().err
    assert HIGH_FILE in said and LOW_FILE not in said
    (tmp_path / "both" / HIGH_FILE).unlink()
    assert sample(model, *quick, f"adapter_high={tmp_path / 'both'}") == 2
    assert "holds no LoRA (.safetensors)" in capfd.readouterr().err


def test_a_strength_of_no_lora_is_remarked_on(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sample(model, "prompt=a cat", "validation_num_inference_steps=1", "adapter_scale=0.5") == 0
    assert capfd.readouterr().err.count("adapter_scale = 0.5 has no effect") == 1


def test_a_folder_of_a_run_under_way_leads_to_its_checkpoint(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_lora(tmp_path / "out" / "checkpoint-20" / LOW_FILE, "low", seed=1)
    (tmp_path / "out" / "checkpoint-30").mkdir()  # without LoRAs it leads nowhere
    assert sample(model, "prompt=a cat", "adapter=out") == 2
    assert "name a checkpoint in it: out/checkpoint-20" in capfd.readouterr().err


@pytest.mark.slow
def test_several_loras_add_up(model: Path, tmp_path: Path, latents: list[torch.Tensor]) -> None:
    """The same LoRA twice is the LoRA at twice its strength; ranks of several files may differ."""
    file = write_lora(tmp_path / "a_high_noise.safetensors", "high", seed=1)
    other = write_lora(tmp_path / "b_high_noise.safetensors", "high", seed=2, rank=8)
    for words in (
        (f"adapter={file}", f"adapter={file}"),
        (f"adapter={file}", "adapter_scale=2"),
        (f"adapter={file}", f"adapter={other}"),
    ):
        assert sample(model, "prompt=a cat", *words) == 0
    torch.testing.assert_close(latents[0], latents[1], rtol=0, atol=1e-4)
    assert (latents[0] - latents[2]).abs().max() > 1e-2


def test_two_states_of_one_run_are_warned_of(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    old, new, other = (run / "checkpoint-2/a.safetensors", run / "a.safetensors", run / "b.safetensors")
    for seed, file in enumerate((old, new, other)):
        write_lora(file, "high", seed=seed)
    for files, warned in (((old, new), True), ((new, other), False)):
        words = [f"adapter={file}" for file in files]
        assert sample(model, "prompt=a cat", "validation_num_inference_steps=1", *words) == 0
        assert ("are of one run: what they change adds up" in capfd.readouterr().err) == warned


def test_a_lora_of_fewer_blocks_than_the_base_is_warned_of(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for layers in (1, 2):
        file = write_lora(tmp_path / f"{layers}_high_noise.safetensors", "high", seed=1, layers=layers)
        assert sample(model, "prompt=a cat", "validation_num_inference_steps=1", f"adapter={file}") == 0
        said = f"warning: {file} changes nothing behind block 0, and the base has 2 blocks"
        assert (said in capfd.readouterr().err) == (layers == 1)


@pytest.mark.slow
def test_lycoris_acts_as_merged_into_the_base(model: Path, latents: list[torch.Tensor]) -> None:
    save_file(lycoris_tensors("lokr", factor=4)[1], "x_high_noise.safetensors")
    assert sample(model, f"prompt={PROMPT}", "adapter=x_high_noise.safetensors", "adapter_scale=0.5") == 0
    words = ("export", "x_high_noise.safetensors", "--to", "merged", f"base={model}", "scale=0.5", "output=merged")
    assert main([*words]) == 0
    merged = "pretrained_transformer_model_name_or_path=merged"
    assert sample(model, f"prompt={PROMPT}", "adapter=none", merged) == 0
    assert sample(model, f"prompt={PROMPT}", "adapter=none") == 0
    with_file, with_merged, base = latents
    torch.testing.assert_close(with_file, with_merged, rtol=0, atol=1e-5)
    assert (with_file - base).abs().max() > 1e-3


def other_keys(path: Path) -> Path:
    save_file({f"diffusion_model.blocks.9.self_attn.q.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}, path)
    return path


def no_lora(path: Path) -> Path:
    save_file({"something": torch.zeros(1)}, path)
    return path


def no_safetensors(path: Path) -> Path:
    path.write_text("hello")
    return path


def wider(path: Path) -> Path:
    transformer = tiny_transformer(dim=48)
    add_lora(transformer, AdapterOptions(lora_rank=4), seed=1)
    save_lora(path, adapter_state(transformer), scale=1.0, metadata={}, transformer=transformer)
    return path


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (other_keys, "none of its 1 modules is in the base"),
        (wider, "the base is a model of no published size (32 wide"),
        (no_lora, "is no LoRA of a Wan transformer"),
        (no_safetensors, 'is no safetensors file: it begins with "hello"'),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(
    make: Callable[[Path], Path], wanted: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sample(model, "prompt=a cat", f"adapter={make(tmp_path / 'x_high_noise.safetensors')}") == 2
    captured = capfd.readouterr()
    assert wanted in captured.err and "Traceback" not in captured.err and captured.out == ""
    assert not list(tmp_path.rglob("*.mp4"))


def test_weights_that_do_not_fit_are_told_apart_from_clips(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rendering.Turns, "predict", full)
    assert sample(model, "prompt=a cat") == 1
    said = capfd.readouterr().err
    assert "smaller clips" in said and "weights" not in said
    monkeypatch.setattr(rendering.Turns, "load_all", full)
    assert sample(model, "prompt=a cat") == 1
    said = capfd.readouterr().err
    assert "too little memory for the model's weights" in said and "smaller clips" not in said


def test_a_model_with_one_transformer_needs_no_expert(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_lora(tmp_path / "x.safetensors", "high", seed=1, tells=False)
    words = ("model_flavour=t2v-480p-1.3b-2.1", f"adapter={file}", "prompt=a cat", "--json")
    assert sample(model, *words) == 0
    captured = capfd.readouterr()
    (clip,) = json.loads(captured.out)
    assert clip["note"] is None and clip["boundary"] is None and "transformer, 6 of 6 steps" in captured.err
