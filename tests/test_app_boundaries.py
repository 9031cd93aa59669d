"""Where the experts change: `sample` keeps to what the weights were trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from runs import start, train_low
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline

from simplewan.flavours import FLAVOURS

pytestmark = pytest.mark.usefixtures("apart", "fresh_accelerator")
train = partial(train_low, max_train_steps=1)
QUICK = ("mixed_precision=no", "vae_dtype=fp32", "validation_resolution=48x32", "validation_num_video_frames=5")
ONE_STEP = "validation_num_inference_steps=1"
LOW_FILE = "pytorch_lora_weights_low_noise.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says of itself what its flavour does."""
    folder = tmp_path_factory.mktemp("boundaries") / "model"
    tiny_pipeline(two_experts=True, boundary=0.6).save_pretrained(folder)
    return folder


def sampled(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[bytes, float, str]:
    """The clip, the boundary in its record, and what was said."""
    capfd.readouterr()
    assert start("sample", "--json", *words) == 0
    captured = capfd.readouterr()
    (clip,) = json.loads(captured.out)
    return Path(clip["video"]).read_bytes(), clip["boundary"], captured.err


def retold(source: str, target: str, **metadata: str) -> str:
    """A copy of a LoRA with other metadata."""
    with safe_open(source, "pt") as file:
        old = file.metadata()
    save_file(load_file(source), target, metadata=old | metadata)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_is_rendered_with_the_boundary_of_its_training(
    kind: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    how = ("validation_disable=false", f"model_type={kind}")
    assert train(model, tmp_path, "timestep_boundary=900", *how) == 0
    config = ("--config", "config.json")
    clip, boundary, said = sampled(capfd, *config)
    assert clip == Path("out/validation/step-1/validation.mp4").read_bytes() and boundary == 900
    assert "timestep_boundary is 900, as these weights were trained; that of t2v-mini is 600" in said
    other, boundary, said = sampled(capfd, *config, "timestep_boundary=600")
    assert other != clip and boundary == 600
    assert "timestep_boundary is 600, but trained was out/" in said and "(step 1) with 900" in said
    assert "timestep_boundary" not in sampled(capfd, *config, ONE_STEP, "timestep_boundary=0.9")[2]
    assert "timestep_boundary" not in sampled(capfd, *config, ONE_STEP, "adapter=none")[2]


@pytest.mark.slow
def test_files_tell_it_and_those_that_disagree_are_told(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(model, tmp_path, "timestep_boundary=900") == 0
    low, base = f"adapter=out/{LOW_FILE}", ("model_flavour=t2v-mini", f"pretrained_model_name_or_path={model}")
    words = (*base, *QUICK, ONE_STEP, "prompt=a cat", low)
    _, boundary, said = sampled(capfd, *words)
    assert boundary == 900 and "timestep_boundary is 900, as these weights" in said
    high = retold(f"out/{LOW_FILE}", "high.safetensors", expert="high_noise", boundary="0.8")
    _, boundary, said = sampled(capfd, *words, f"adapter={high}")
    assert boundary == 600
    assert f"is 600, but trained was {high} with 800, out/{LOW_FILE} with 900; timestep_boundary= takes" in said
    for strange in ({"boundary": "x"}, {"boundary": "7"}, {"model_flavour": "i2v-mini"}):
        file = retold(f"out/{LOW_FILE}", "strange_low_noise.safetensors", **strange)
        assert sampled(capfd, *base, *QUICK, ONE_STEP, "prompt=a cat", f"adapter={file}")[1] == 600


def test_a_full_fine_tune_keeps_the_default_that_it_was_trained_with(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(model, tmp_path, "model_type=full") == 0
    monkeypatch.setitem(FLAVOURS, "t2v-mini-low", replace(FLAVOURS["t2v-mini-low"], boundary=0.9))
    _, boundary, said = sampled(capfd, "--config", "config.json", ONE_STEP)
    assert boundary == 600 and "timestep_boundary is 600, as these weights were trained" in said


@pytest.mark.slow
def test_a_folder_with_a_boundary_of_its_own_is_told(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (f"pretrained_model_name_or_path={model}", *QUICK, ONE_STEP, "prompt=a cat")
    _, boundary, said = sampled(capfd, *words)
    assert boundary == 875 and "model_flavour is t2v-a14b-2.2, by the two experts" in said and "trains one" not in said
    remark = "model_index.json in "
    assert f"{remark}{model} says 0.6" in said and "but 0.875 is used" in said and "timestep_boundary=0.6 takes" in said
    for own in (("model_flavour=t2v-mini",), ("timestep_boundary=0.6",), ("timestep_boundary=0.5",)):
        assert remark not in sampled(capfd, *words, *own)[2]
    capfd.readouterr()
    for flavour, told in (("t2v-a14b-2.2-low", True), ("t2v-mini-low", False)):
        shutil.rmtree("out", ignore_errors=True)
        assert train(model, tmp_path, f"model_flavour={flavour}", "validation_disable=true") == 0
        assert (remark in capfd.readouterr().err) == told
    # Weights that tell where they changed in training need no such word.
    low = (
        "--config",
        "config.json",
        "model_flavour=t2v-a14b-2.2",
        f"adapter={retold(f'out/{LOW_FILE}', 'low_noise.safetensors', model_flavour='t2v-a14b-2.2')}",
    )
    assert remark not in sampled(capfd, *low)[2]
