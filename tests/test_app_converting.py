"""`simpletuner export --to comfyui` of whole transformers: one file of Wan's own names that others read as the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from lora_files import pairs, spelled
from originals import fp8_scaled, original_config, original_transformer
from runs import start, write_tiny_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import save_tiny_model, tiny_transformer

from simplewan.app import converting
from simplewan.checkpoints import CheckpointStore
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


def told(words: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """What a refused export says; nothing is written then, and there is no traceback."""
    before = sorted(Path().rglob("*"))
    assert main(["export", *words, "--to", "comfyui"]) == 2
    assert sorted(Path().rglob("*")) == before
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err and captured.out == ""
    return captured.err


def lora(name: str = "x.safetensors", **metadata: str) -> None:
    save_file(spelled(pairs(tiny_transformer(), seed=1), "universal"), name, metadata=metadata or None)


@pytest.mark.parametrize("flavour", ["{env:FL}", "t2v-of-others", ["t2v"]])
def test_a_flavour_that_is_not_known_says_nothing(flavour: str) -> None:
    write_run(Path("run"), flavour, "transformer", "transformer_2")
    assert main(["export", "run", "--to", "comfyui"]) == 0
    for expert in ("high", "low"):
        with safe_open(Path("run/export") / FILE.format(f"_{expert}_noise"), framework="pt") as opened:
            assert opened.metadata() == {"format": "pt", "expert": f"{expert}_noise"}


def test_models_of_others_are_refused_by_name(capfd: pytest.CaptureFixture[str]) -> None:
    Path("flux/transformer").mkdir(parents=True)
    Path("flux/transformer/config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    write_run(Path("vace"), "t2v-480p-1.3b-2.1", "transformer")
    file = Path("vace/transformer/other.safetensors")
    save_file({"vace_blocks.0.proj_in.weight": torch.zeros(2, 2)}, file)
    for index in Path("vace/transformer").glob("*.index.json"):
        content = json.loads(index.read_text())
        content["weight_map"]["vace_blocks.0.proj_in.weight"] = file.name
        index.write_text(json.dumps(content))
    Path("broken/transformer").mkdir(parents=True)
    Path("broken/transformer/config.json").write_text("{")
    said = told(["flux", "vace", "broken", "typo.safetensors"], capfd)
    assert "flux/transformer: cannot be written as one file: it holds no Wan transformer" in said
    assert "vace/transformer: cannot be written as one file: vace_blocks.0.proj_in.weight is no weight of a Wan" in said
    assert "broken/transformer: cannot be written as one file: has a config.json that is no JSON" in said
    assert "typo.safetensors: there is no such file" in said


@pytest.mark.parametrize(("place", "folder"), [(".", "transformer_2"), ("..", "transformer_2/sub")])
def test_a_place_without_a_name_is_known_by_its_folder(
    place: str, folder: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = write_run(Path("run").absolute(), "t2v-a14b-2.2", "transformer", "transformer_2")
    (run / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(run / folder)
    assert main(["export", place, "--to", "comfyui", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)
    assert (found["source"], found["expert"]) == (place, "low")
    assert found["path"] == str(run / "export" / FILE.format("_low_noise"))
    with safe_open(found["path"], framework="pt") as opened:
        assert opened.metadata()["model_flavour"] == "t2v-a14b-2.2"


def test_what_has_no_meaning_for_whole_models_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    write_run(Path("run"), "t2v-a14b-2.2", "transformer", "transformer_2")
    words = ["run", "scale=0.5", "alpha=4", "as_lora=4", f"base={save_tiny_model(Path('model'))}", "layout=diffusers"]
    said = told([*words, "--drop", "expert=low"], capfd)
    for asked in ("scale = 0.5", "alpha = 4.0", "as_lora = 4", "base = 'model'", "layout = 'diffusers'", "--drop"):
        assert f"command line: {asked} has no meaning for whole models" in said
    assert "run/transformer: expert = 'low' contradicts the model, which is the high-noise expert" in said
    assert "run/transformer_2: expert" not in said
    assert "the low-noise expert" in told(["run/transformer_2", "expert=high"], capfd)
    assert main(["export", "run/transformer_2", "--to", "comfyui", "expert=low", "scale=1"]) == 0


def test_an_expert_may_be_said_where_nothing_tells() -> None:
    write_run(Path("run"), "t2v-of-others", "transformer")
    assert main(["export", "run", "--to", "comfyui", "expert=low"]) == 0
    assert Path("run/export", FILE.format("_low_noise")).is_file()


def test_all_places_are_looked_at_before_the_first_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    write_run(Path("run"), "t2v-480p-1.3b-2.1", "transformer")
    lora()
    assert "typo.safetensors: there is no such file" in told(["run", "typo.safetensors"], capfd)
    said = told(["run", "x.safetensors", "output=one.safetensors", "--overwrite"], capfd)
    assert "one.safetensors' would be written more than once" in said
    save_file({"lora_unet_blocks_0_self_attn_q.what": torch.zeros(2)}, "odd.safetensors")
    assert "odd.safetensors" in told(["run", "odd.safetensors"], capfd)
    write_run(Path("other"), "t2v-480p-1.3b-2.1", "transformer")
    assert "more than once" in told(["run", "other", "output=out"], capfd)
    assert "more than once" in told(["run", "other", "output=run/../out.safetensors"], capfd)


@pytest.mark.parametrize("output", ["run/transformer", "run/transformer/export", "run/transformer/one.safetensors"])
def test_nothing_is_written_into_what_is_read(output: str, capfd: pytest.CaptureFixture[str]) -> None:
    write_run(Path("run"), "t2v-480p-1.3b-2.1", "transformer")
    assert "is inside what is read" in told(["run", f"output={output}", "--overwrite"], capfd)


def test_a_place_named_twice_is_one() -> None:
    write_run(Path("run"), "t2v-480p-1.3b-2.1", "transformer")
    assert main(["export", "run", "run/transformer", str(Path("run").absolute()), "--to", "comfyui"]) == 0


def test_a_folder_with_loras_stands_for_them(capfd: pytest.CaptureFixture[str]) -> None:
    model = save_tiny_model(Path("model"))
    lora("model/style.safetensors")
    assert main(["export", "model", "--to", "comfyui", "output=out", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)
    assert (found["source"], found["unit"]) == ("model/style.safetensors", "modules")
    assert main(["export", str(model / "transformer"), "--to", "comfyui", "output=out", "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)
    assert found["unit"] == "weights"


def test_a_transformer_beside_is_no_lora() -> None:
    save_tiny_model(Path("model"))
    for _ in range(2):
        assert main(["export", "model", "--to", "comfyui", "output=model", "--overwrite"]) == 0
    assert Path("model", FILE.format("")).is_file()


def test_a_run_that_is_going_on_is_told_as_ever(capfd: pytest.CaptureFixture[str]) -> None:
    Path("run/checkpoint-3").mkdir(parents=True)
    for folder in ("run", "run/checkpoint-3"):
        Path(folder, "config.resolved.json").write_text(json.dumps({"model_type": "full", "model_flavour": "{env:F}"}))
    assert "it is written to run/transformer or ..._2 when the run ends" in told(["run"], capfd)
    assert "run/checkpoint-3: is no LoRA but a whole model, by a full fine-tune" in told(["run/checkpoint-3"], capfd)


@pytest.mark.parametrize(
    ("flavour", "sizes"),
    [
        ("ti2v-5b-2.2", {"in_channels": 48, "out_channels": 48}),
        ("i2v-14b-2.1-480p", {"in_channels": 36, "image_dim": 24}),
        ("i2v-a14b-2.2-high", {"in_channels": 36}),
    ],
)
def test_every_task_keeps_what_diffusers_keeps_in_float32(flavour: str, sizes: dict[str, int]) -> None:
    tiny_transformer(**sizes).save_pretrained("run/transformer")
    Path("run/config.resolved.json").write_text(json.dumps({"model_flavour": flavour}))
    weights = Path("run/transformer/diffusion_pytorch_model.safetensors")
    state = load_file(weights)
    if "image_dim" in sizes:  # as the repositories of Wan 2.1 I2V have it; diffusers passes over it
        save_file({**state, "blocks.0.attn2.norm_added_q.weight": torch.ones(32)}, weights)
    assert main(["export", "run", "--to", "comfyui", "dtype=bf16", "output=one.safetensors"]) == 0
    as_bf16 = WanTransformer3DModel.from_pretrained("run/transformer", torch_dtype=torch.bfloat16).state_dict()
    ours = as_diffusers_reads(Path("one.safetensors"))
    assert ours.keys() == as_bf16.keys() == state.keys()
    assert all(ours[name].dtype == as_bf16[name].dtype and torch.equal(ours[name], as_bf16[name]) for name in ours)
    assert len({value.dtype for value in ours.values()}) == 2
    found = recognise(Path("one.safetensors"))
    assert found is not None and found.task == flavour.split("-")[0]
    assert found.expert == ("high" if flavour.endswith("high") else None)


def test_a_base_in_fp8_is_written_as_the_numbers_that_it_stands_for(capfd: pytest.CaptureFixture[str]) -> None:
    folder = Path("high_noise_model")
    folder.mkdir()
    transformer = tiny_transformer()
    state = original_transformer(transformer)
    (folder / "config.json").write_text(json.dumps(original_config(transformer, "t2v")))
    save_file(fp8_scaled(state, marker=True), folder / "diffusion_pytorch_model.safetensors")
    assert main(["export", str(folder), "--to", "comfyui", "output=out"]) == 0
    assert "high_noise_model holds weights in fp8: they are written in bf16" in capfd.readouterr().err
    written = load_file(Path("out") / FILE.format("_high_noise"))
    assert written.keys() == state.keys()
    name = "blocks.0.self_attn.q.weight"
    assert written[name].dtype == torch.bfloat16 and written["blocks.0.modulation"].dtype == torch.float32
    assert (written[name].float() - state[name]).norm() < 0.1 * state[name].norm()


def stored_run(flavour: str | None, *, precision: str | None = "bf16", **steps: tuple[str, ...]) -> None:
    """A full fine-tune that was stopped: run/checkpoint-N of `stepN` with the weights of these experts."""
    record = {"model_type": "full", "model_flavour": flavour, "mixed_precision": precision}
    known = {key: value for key, value in record.items() if value is not None}
    store = CheckpointStore(Path("run"), limit=0, emit=lambda _event: None)
    for name, experts in steps.items():
        step = int(name.removeprefix("step"))
        parts = {
            f"{each}.weights": tiny_transformer(seed=10 * step + number).state_dict()
            for number, each in enumerate(experts)
        }
        store.save(step, {**parts, "settled": {"boundary": 875.0 if "low" in experts else None}}, record=known)
    (Path("run") / "config.resolved.json").write_text(json.dumps(known))


def exported(words: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[dict[str, dict[str, str]], str]:
    """What was written, by the file's name, and what was said."""
    assert main(["export", *words, "--to", "comfyui", "--json"]) == 0
    captured = capfd.readouterr()
    return {Path(each["path"]).name: each for each in json.loads(captured.out)}, captured.err


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_a_checkpoint_becomes_what_the_run_would_have_ended_with(
    precision: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "model_type": "full",
        "mixed_precision": precision,
        "learning_rate": 1e-3,
        "checkpoint_step_interval": 1,
    }
    settings |= {"output_dir": "run", "max_train_steps": 2, "disable_benchmark": True}
    assert start("train", "--config", str(write_tiny_run(tmp_path, clips=2, **settings))) == 0
    capfd.readouterr()
    assert main(["export", "run", "run/checkpoint-2", "run/checkpoint-1", "--to", "comfyui"]) == 0
    captured = capfd.readouterr()
    said = captured.out.splitlines()
    assert "it went on since" not in captured.err
    dtype = "fp32" if precision == "no" else "bf16"
    assert len(said) == 3 and all(f" weights, in {dtype}, read back and equal" in line for line in said)
    final, last, first = (
        as_diffusers_reads(Path("run/export") / FILE.format(each)) for each in ("", "_step-2", "_step-1")
    )
    source = load_file("run/transformer/diffusion_pytorch_model.safetensors")
    for name, value in source.items():
        assert all(torch.equal(each[name], value) and each[name].dtype == value.dtype for each in (final, last))
    assert last.keys() == source.keys() and not all(torch.equal(first[name], last[name]) for name in last)
    with safe_open(Path("run/export") / FILE.format("_step-1"), framework="pt") as opened:
        assert opened.metadata()["step"] == "1" and "expert" not in opened.metadata()
    Path("run/finished.json").write_text('{"step": 1}')
    assert "it went on since: name run/checkpoint-2" in exported(["run", "--overwrite"], capfd)[1]
    shutil.rmtree("run/transformer")
    found, said = exported(["run", "--overwrite", "dtype=fp16"], capfd)
    assert "run holds no final transformer yet: checkpoint-2 is taken, its newest checkpoint" in said
    assert found[FILE.format("_step-2")]["dtype"] == "fp16"
    model = WanTransformer3DModel.from_single_file(
        "run/export/" + FILE.format("_step-2"), config="model/transformer", torch_dtype=torch.float32
    )
    stored = load_file("run/checkpoint-2/high.weights.safetensors")
    assert all(torch.allclose(value, stored[name], atol=1e-3) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("flavour", "experts", "endings"),
    [
        ("t2v-a14b-2.2", ("high", "low"), ("_high_noise", "_low_noise")),
        (None, ("high", "low"), ("_high_noise", "_low_noise")),  # what was inferred is not recorded
        ("t2v-a14b-2.2-high", ("high",), ("_high_noise",)),
        (None, ("low",), ("_low_noise",)),
        ("t2v-480p-1.3b-2.1", ("high",), ("",)),
        (None, ("high",), ("",)),
    ],
)
def test_a_checkpoints_files_tell_their_experts(
    flavour: str | None, experts: tuple[str, ...], endings: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    stored_run(flavour, step3=experts, step7=experts)
    for place, step in (("run/checkpoint-3", 3), ("run", 7)):
        found, _ = exported([place], capfd)
        assert list(found) == [FILE.format(f"_step-{step}{ending}") for ending in endings]
        for number, each in enumerate(found.values()):
            assert Path(each["path"]).parent == Path("run/export")
            ours = as_diffusers_reads(Path(each["path"]))
            source = tiny_transformer(seed=10 * step + number).state_dict()
            assert ours.keys() == source.keys()
            assert all(torch.equal(ours[name], source[name].to(ours[name].dtype)) for name in source)


def test_a_checkpoint_is_known_where_one_stands(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stored_run("t2v-a14b-2.2", step3=("low",), precision=None)
    here = Path().absolute()
    monkeypatch.chdir("run/checkpoint-3")
    found, _ = exported([".", str(here / "run/checkpoint-3")], capfd)
    (each,) = found.values()
    assert each["path"] == str(here / "run/export" / FILE.format("_step-3_low_noise")) and each["dtype"] == "bf16"
    monkeypatch.chdir(here)
    assert "the low-noise expert" in told(["run/checkpoint-3", "expert=high"], capfd)
    assert "is inside what is read" in told(["run/checkpoint-3", "output=run/checkpoint-3/x.safetensors"], capfd)


def test_a_damaged_checkpoint_is_passed_over_or_refused(capfd: pytest.CaptureFixture[str]) -> None:
    stored_run("t2v-480p-1.3b-2.1", step3=("high",), step7=("high",), precision="{env:PRECISION}")
    said = told(["run/checkpoint-3"], capfd)
    assert "its run does not tell a dtype: mixed_precision is '{env:PRECISION}'; say dtype=bf16" in said
    Path("run/checkpoint-3/settled.json").unlink()  # of what is not needed nothing is asked
    weights = Path("run/checkpoint-7/high.weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    found, said = exported(["run", "dtype=fp32"], capfd)
    assert list(found) == [FILE.format("_step-3")] and "skipping a damaged checkpoint: checkpoint-7" in said
    damaged = "high.weights.safetensors is not what was saved"
    assert damaged in told(["run/checkpoint-7", "typo.safetensors"], capfd)
    assert "typo.safetensors: there is no such file" in told(["run/checkpoint-7", "typo.safetensors"], capfd)
    Path("run/checkpoint-3/high.weights.safetensors").unlink()
    assert "holds no final transformer, and no checkpoint that is whole" in told(["run"], capfd)


def test_a_checkpoint_that_its_run_removes_is_no_fault_of_the_place(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stored_run("t2v-480p-1.3b-2.1", step3=("high",))
    merge_files = converting.merge_files

    def removing(*arguments: Any, **named: Any) -> None:
        shutil.rmtree("run/checkpoint-3")
        merge_files(*arguments, **named)

    monkeypatch.setattr(converting, "merge_files", removing)
    assert main(["export", "run/checkpoint-3", "--to", "comfyui"]) == 2
    said = capfd.readouterr().err
    assert "checkpoint-3/high.weights.safetensors: was removed while it was read" in said and "output =" not in said
    assert not list(Path("run").rglob("*comfyui*"))


@pytest.mark.parametrize("command", [["export", "--to", "diffusers"], ["export", "--to", "musubi"], ["lora", "doctor"]])
def test_whole_models_are_told_as_such_to_what_wants_loras(
    command: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    stored_run("t2v-480p-1.3b-2.1", step3=("high",))
    for place in ("run", "run/checkpoint-3"):
        assert main([*command, place]) == 2
        said = capfd.readouterr().err
        assert f"{place}: is no LoRA but a whole model, by a full fine-tune" in said
        assert "in diffusers' layout it is written to run/transformer" in said and "`export --to comfyui`" in said
    tiny_transformer().save_pretrained("run/transformer")
    assert main([*command, "run"]) == 2
    assert "load run/transformer with diffusers, in whose layout it is already" in capfd.readouterr().err
