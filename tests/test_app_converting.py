"""`simpletuner export --to comfyui` of whole transformers: one file of Wan's own names that others read as the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from lora_files import pairs, spelled
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model, tiny_transformer

from simplewan.cli import main
from simplewan.recognition import recognise

pytestmark = pytest.mark.usefixtures("apart")
FILE = "transformer_comfyui{}.safetensors"


def write_run(folder: Path, flavour: str, *parts: str) -> Path:
    """What a full fine-tune leaves."""
    for seed, part in enumerate(parts, 1):
        tiny_transformer(seed=seed).save_pretrained(folder / part, max_shard_size="60KB" if seed == 1 else "1GB")
    (folder / "config.resolved.json").write_text(json.dumps({"model_type": "full", "model_flavour": flavour}))
    return folder


def as_diffusers_reads(file: Path) -> dict[str, torch.Tensor]:
    state = load_file(file)
    assert "blocks.0.self_attn.q.weight" in state  # ComfyUI knows a Wan model by such names
    return convert_wan_transformer_to_diffusers(state)


def test_both_experts_of_a_full_fine_tune_become_files(capfd: pytest.CaptureFixture[str]) -> None:
    write_run(Path("run"), "t2v-a14b-2.2", "transformer", "transformer_2")
    assert main(["export", "run", "--to", "comfyui", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    for each, expert, part in zip(told, ("high", "low"), ("transformer", "transformer_2"), strict=True):
        file = Path("run/export") / FILE.format(f"_{expert}_noise")
        assert (each["path"], each["expert"], each["unit"]) == (str(file), expert, "weights")
        source = WanTransformer3DModel.from_pretrained(Path("run") / part).state_dict()
        ours = as_diffusers_reads(file)
        assert ours.keys() == source.keys() and all(torch.equal(ours[name], source[name]) for name in source)
        with safe_open(file, framework="pt") as opened:
            assert opened.metadata()["expert"] == f"{expert}_noise" and opened.metadata()["task"] == "t2v"
        found = recognise(file)
        assert found is not None and (found.naming, found.expert) == ("original", expert)
        assert each["modules"] == len(load_file(file))


def test_a_place_that_cannot_be_written_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    write_run(Path("run"), "t2v-480p-1.3b-2.1", "transformer")
    Path("afile").write_text("mine")
    assert main(["export", "run", "--to", "comfyui", "output=afile/x"]) == 2
    said = capfd.readouterr().err
    assert f"command line: output = 'afile/x/{FILE.format('')}' cannot be written: afile is a file; name" in said


@pytest.mark.parametrize(
    ("flavour", "part", "ending"),
    [
        ("t2v-480p-1.3b-2.1", "transformer", ""),
        ("t2v-a14b-2.2-high", "transformer", "_high_noise"),
        ("t2v-a14b-2.2-low", "transformer_2", "_low_noise"),
    ],
)
def test_the_name_tells_the_expert_that_was_trained(flavour: str, part: str, ending: str) -> None:
    write_run(Path("run"), flavour, part)
    assert main(["export", "run", "--to", "comfyui", "dtype=bf16", "output=out"]) == 0
    state = load_file(Path("out") / FILE.format(ending))
    assert state["blocks.0.self_attn.q.weight"].dtype == torch.bfloat16


def test_a_transformer_alone_and_a_lora_go_together(capfd: pytest.CaptureFixture[str]) -> None:
    write_run(Path("run"), "t2v-480p-1.3b-2.1", "transformer")
    save_file(spelled(pairs(tiny_transformer(), seed=1), "universal"), "x.safetensors")
    words = ["export", "run/transformer", "x.safetensors", "--to", "comfyui", "output=out"]
    assert main(words) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [FILE.format(""), "x_comfyui.safetensors"]
    assert main(words) == 2
    assert "is there already" in capfd.readouterr().err
    assert main(["export", "run", "--to", "musubi"]) == 2
    assert "`export --to comfyui`" in capfd.readouterr().err


def test_what_was_written_is_a_base_to_render_with(tmp_path: Path) -> None:
    model = save_tiny_model(Path("model"))
    assert main(["export", "model/transformer", "--to", "comfyui", "output=one.safetensors"]) == 0
    words = ["sample", "prompt=a", "model_flavour=t2v-480p-1.3b-2.1", f"pretrained_model_name_or_path={model}"]
    words += ["validation_resolution=64x64", "validation_num_video_frames=5", "validation_num_inference_steps=2"]
    clips = []
    for name, more in (("folder", []), ("file", ["pretrained_transformer_model_name_or_path=one.safetensors"])):
        assert main([*words, *more, "adapter=none", "mixed_precision=no", f"output={name}"]) == 0
        clips.append(next(Path(name).glob("*.mp4")).read_bytes())
    assert clips[0] == clips[1]
