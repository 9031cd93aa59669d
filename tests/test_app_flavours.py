"""Training one expert of Wan 2.2 A14B, on a tiny model with both: the right transformer, timesteps and file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import WanPipeline, WanTransformer3DModel
from runs import records, write_tiny_run
from safetensors import safe_open
from serving import receiving
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simplewan.app.rendering import Turns
from simplewan.cli import main

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

LOW_FILE = "pytorch_lora_weights_low_noise.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of two experts and six clips."""
    folder = tmp_path_factory.mktemp("a14b")
    seen = {"validation_disable": False, "disable_benchmark": True, "report_to": "tensorboard"}
    write_tiny_run(folder, two_experts=True, clips=6, frames=9, learning_rate=1e-2, max_train_steps=3, **seen)
    return folder


@pytest.mark.parametrize(
    ("stage", "subfolder", "low", "high"), [("high", "transformer", 875, 1000), ("low", "transformer_2", 0, 875)]
)
def test_a_stage_trains_its_own_expert(
    stage: str, subfolder: str, low: float, high: float, place: Path, tmp_path: Path
) -> None:
    arguments = ["train", "--config", str(place / "config.json"), f"output_dir={tmp_path}"]
    with receiving() as receiver:
        hook = json.dumps({"callback_url": f"{receiver.address}/hook"})
        assert main([*arguments, f"model_flavour=t2v-14b-2.2-{stage}", f"webhook_config={hook}"]) == 0
    metrics = records(tmp_path, "metric")
    assert all(low <= event["timestep"] <= high and event["role"] == stage for event in metrics)
    assert [event["note"] for event in records(tmp_path, "validation")] == ["single expert"]
    [rendered] = receiver.of_type("validation.video")
    assert "single expert" in rendered["message"] and rendered["record"]["note"] == "single expert"
    assert [post["record"]["step"] for post in receiver.of_type("training.progress")] == [1, 2, 3]
    assert [post["status"] for post in receiver.of_type("training.summary")] == ["finished"]
    path = tmp_path / f"pytorch_lora_weights_{stage}_noise.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["expert"], metadata["boundary"]) == (f"{stage}_noise", "0.875")
    # What diffusers makes of the file is what was trained: base and adapter of this expert, not of the other.
    pipeline = WanPipeline.from_pretrained(place / "model")
    pipeline.load_lora_weights(tmp_path, weight_name=path.name, load_into_transformer_2=stage == "low")
    loaded = pipeline.transformer_2 if stage == "low" else pipeline.transformer
    base = WanTransformer3DModel.from_pretrained(place / "model", subfolder=subfolder)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, 16, 2, 8, 8, generator=generator),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": torch.randn(1, 512, 32, generator=generator),
    }
    with torch.no_grad():
        with_lora, without = loaded(**inputs).sample, base(**inputs).sample
        loaded.disable_adapters()
        assert torch.equal(loaded(**inputs).sample, without)
    assert (with_lora - without).abs().max() > 1e-4
    board = EventAccumulator(str(next((tmp_path / "logs").iterdir())))
    board.Reload()
    assert [event.step for event in board.Scalars(f"{stage}/loss")] == [1, 2, 3]


@pytest.mark.slow
def test_the_other_stage_renders_its_side_of_the_boundary(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the other expert loaded, a trained low expert changes nothing above the boundary, and its base all below."""
    asked: list[tuple[str, float]] = []
    predict = Turns.predict

    def watch(self: Turns, latents: torch.Tensor, timesteps: torch.Tensor, *rest: object) -> torch.Tensor:
        asked.append((rest[-1], timesteps.item()))
        return predict(self, latents, timesteps, *rest)

    monkeypatch.setattr(Turns, "predict", watch)
    arguments = ["train", "--config", str(place / "config.json"), "model_flavour=t2v-a14b-2.2-low", "max_train_steps=2"]
    both = "wan_validation_load_other_stage=true"
    rest = ["validation_num_inference_steps=6", "validation_shift=5", "validation_guidance=[1, 2]"]
    assert main([*arguments, *rest, both, f"output_dir={tmp_path / 'both'}"]) == 0
    assert [expert for expert, _ in asked] == ["high"] * 6 + ["low"] * 3  # guidance 2 above, none below
    assert all((timestep >= 875) == (expert == "high") for expert, timestep in asked)
    AcceleratorState._reset_state(reset_partial_state=True)
    asked.clear()
    assert main([*arguments, *rest, f"output_dir={tmp_path / 'alone'}"]) == 0
    assert len(asked) == 6  # with its own guidance, which is none
    notes = {
        name: [event.get("note") for event in records(tmp_path / name, "validation")] for name in ("both", "alone")
    }
    assert notes == {"both": [None], "alone": ["single expert"]}
    # Rendering with another expert in between leaves training as it is.
    assert (tmp_path / "both" / LOW_FILE).read_bytes() == (tmp_path / "alone" / LOW_FILE).read_bytes()
    clips = [(tmp_path / name / "validation" / "step-2" / "validation.mp4").read_bytes() for name in notes]
    assert clips[0] != clips[1]


def test_a_missing_other_stage_is_refused_before_anything_starts(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(place / "model", model)
    shutil.rmtree(model / "transformer")
    arguments = ["train", "--config", str(place / "config.json"), f"output_dir={tmp_path / 'out'}"]
    arguments += [f"pretrained_model_name_or_path={model}", "model_flavour=t2v-a14b-2.2-low", "max_train_steps=1"]
    assert main([*arguments, "wan_validation_load_other_stage=true"]) == 2
    message = capfd.readouterr().err
    assert str(model) in message and "has no transformer/" in message
    assert "wan_validation_load_other_stage" in message and not (tmp_path / "out").exists()
    assert main([*arguments, "wan_validation_load_other_stage=true", "validation_disable=true"]) == 0


def test_a_boundary_of_ones_own_cuts_the_timesteps(place: Path, tmp_path: Path) -> None:
    arguments = ["train", "--config", str(place / "config.json"), f"output_dir={tmp_path}", "validation_disable=true"]
    own = ["model_flavour=t2v-a14b-2.2-low", "timestep_boundary=500", "min_timestep=450", "flow_schedule_shift=1"]
    assert main([*arguments, *own]) == 0
    assert all(450 <= event["timestep"] <= 500 for event in records(tmp_path, "metric"))


def test_the_wrong_model_is_refused_at_once(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--config", str(place / "config.json"), f"output_dir={tmp_path}"]
    assert main([*arguments, "model_flavour=i2v-a14b-2.2-high"]) == 2
    assert main([*arguments, "pretrained_model_name_or_path=no/where/at/all"]) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_a_model_of_no_published_size_is_remarked_on(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--config", str(place / "config.json"), "validation_disable=true", "max_train_steps=1"]
    assert main([*arguments, f"output_dir={tmp_path / 'real'}", "model_flavour=t2v-480p-1.3b-2.1"]) == 0
    assert "is 32 wide, 2 blocks; t2v-480p-1.3b-2.1 is 1536 wide, 30 blocks" in capfd.readouterr().err
    assert main([*arguments, f"output_dir={tmp_path / 'mini'}", "model_flavour=t2v-mini-high"]) == 0
    assert "is this the model" not in capfd.readouterr().err
