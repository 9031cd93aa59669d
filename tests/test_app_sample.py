"""`simpletuner sample` through the real parser, on a tiny model of two experts; the oracle is WanPipeline."""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import pytest
import torch
from PIL import Image
from runs import train_low
from sampling import LOW_FILE, PROMPT, by_diffusers, latents_seen, sample, write_lora
from tiny import save_tiny_model

from simplewan.app import rendering
from simplewan.app import roles as roles_module
from simplewan.app import weights as weights_module
from simplewan.cli import main
from simplewan.cli.listing import SAMPLE_KEYS
from simplewan.options.catalogue import catalogue
from simplewan.options.declare import Group

sample_module = importlib.import_module("simplewan.app.sample")  # simplewan.app.sample itself is the function
pytestmark = pytest.mark.usefixtures("apart", "fresh_accelerator")
train = partial(train_low, checkpoint_step_interval=1, validation_disable=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("sample") / "model", two_experts=True)


@pytest.fixture
def latents(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    return latents_seen(monkeypatch)


@pytest.mark.parametrize(("experts", "scale"), [((), 1.0), (("low",), 0.5), (("high", "low"), 1.0)], ids=str)
def test_it_renders_what_diffusers_renders(
    experts: tuple[str, ...], scale: float, model: Path, tmp_path: Path, latents: list[torch.Tensor]
) -> None:
    """Six guided steps, three an expert; differences of float32 rounding stay below 1e-4 of latents around 1."""
    loras = {expert: (write_lora(tmp_path / expert / "x.safetensors", expert, seed=3), scale) for expert in experts}
    words = [f"adapter={file}" for file, _ in loras.values()] + [f"adapter_scale={scale}", "timestep_boundary=0.875"]
    assert sample(model, f"prompt={PROMPT}", "validation_guidance=[2, 4]", "validation_shift=3", *words) == 0
    theirs = by_diffusers(model, loras=loras)
    torch.testing.assert_close(latents[0], theirs, rtol=0, atol=1e-4)
    if loras:  # each of them does change the clip
        assert (by_diffusers(model, loras={}) - theirs).abs().max() > 1e-2


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.slow
def test_files_are_real_and_named_and_not_overwritten(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (f"prompt={PROMPT}", "--prompt", "a cat", "seed=1,2", "--output", "here", "--json")
    assert sample(model, *words) == 0
    records = json.loads(capfd.readouterr().out)
    names = ["a_red_circle_moves_left_s1", "a_red_circle_moves_left_s2", "a_cat_s1", "a_cat_s2"]
    assert [record["name"] for record in records] == names
    assert [record["seed"] for record in records] == [1, 2, 1, 2]
    assert {path.name for path in Path("here").iterdir()} == {
        f"{name}.{end}" for name in names for end in ("mp4", "png")
    }
    for record in records:
        with av.open(record["video"]) as container:
            frames = list(container.decode(video=0))
        assert (len(frames), frames[0].width, frames[0].height) == (5, 48, 32)
        assert Image.open(record["sheet"]).width > 100
        assert record["experts"] == {"high": 5, "low": 1} and record["boundary"] == 600 and record["note"] is None
        assert record["seconds"] > 0
    with (Path("here") / ".a_red_circle_moves_left.claim").open("a") as claim:  # of another process, not yet done
        fcntl.flock(claim, fcntl.LOCK_EX)
        assert sample(model, f"prompt={PROMPT}", "seed=1", "output=here") == 0
        assert "here/a_red_circle_moves_left_2.mp4" in capfd.readouterr().out
    for end in ("mp4", "png"):
        Path(f"here/a_red_circle_moves_left_2.{end}").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(sample_module.fcntl, "flock", no_locks)
        Path("here/a_dog.mp4").touch()
        assert sample(model, "--prompt", "a dog", "--prompt", "a, dog", "seed=1", "output=here") == 0
        assert capfd.readouterr().out.split()[::2] == ["here/a_dog_2.mp4", "here/a_dog_2_2.mp4"]
    first = Path(records[0]["video"]).read_bytes()
    assert Path(records[1]["video"]).read_bytes() != first
    assert sample(model, f"prompt={PROMPT}", "seed=1", "output=here") == 0
    assert capfd.readouterr().out.split() == ["here/a_red_circle_moves_left.mp4", "here/a_red_circle_moves_left.png"]
    assert sample(model, f"prompt={PROMPT}", "seed=1", "output=here") == 0
    assert "here/a_red_circle_moves_left_2.mp4" in capfd.readouterr().out
    assert Path("here/a_red_circle_moves_left_2.mp4").read_bytes() == first  # alone or among others


def test_prompts_come_from_files_and_from_the_configuration(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text("a cat\n\na dog\n")
    (tmp_path / "named.json").write_text('{"mine": "a hiker"}')
    words = ("validation_num_inference_steps=1", "--json")
    assert sample(model, "prompts=lines.txt", "prompts=named.json", *words) == 0
    assert [clip["prompt"] for clip in json.loads(capfd.readouterr().out)] == ["a cat", "a dog", "a hiker"]
    # The configuration of a run: neither its datasets nor its length are looked at.
    config = {
        "data_backend_config": "gone.json",
        "validation_prompt": "a cat",
        "user_prompt_library": "named.json",
        "validation_disable": True,
        "use_ema": True,
        "output_dir": "out",
        "validation_seed": 7,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert sample(model, "--config", "config.json", *words) == 0
    captured = capfd.readouterr()
    clips = json.loads(captured.out)
    assert [(clip["name"], clip["prompt"]) for clip in clips] == [("validation", "a cat"), ("mine", "a hiker")]
    assert {clip["seed"] for clip in clips} == {7} and clips[0]["video"] == "out/samples/validation.mp4"
    assert "out holds no trained weights yet" in captured.err


def rendered(model: Path, capfd: pytest.CaptureFixture[str], *words: str) -> tuple[bytes, str]:
    """The clip of the configuration's prompt, and what was said."""
    capfd.readouterr()
    assert sample(model, "--config", "config.json", *words) == 0
    captured = capfd.readouterr()
    return Path(captured.out.split()[0]).read_bytes(), captured.err


@pytest.mark.slow
def test_the_newest_trained_weights_are_used(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(model, tmp_path, "max_train_steps=3") == 0
    clip, said = rendered(model, capfd)
    validated = Path("out/validation/step-3/validation.mp4")
    assert clip == validated.read_bytes()  # the bits of validation, which had both experts too
    assert f"out/{LOW_FILE} (step 3)" in said and "transformer of" in said
    base, said = rendered(model, capfd, "adapter=none")
    assert base != clip and LOW_FILE not in said
    # A run that went back or goes on: its newest whole checkpoint, though the file of its earlier end is still there.
    Path("out/finished.json").unlink()
    (Path("out/checkpoint-3") / "manifest.json").unlink()
    older, said = rendered(model, capfd)
    assert older not in (clip, base) and f"out/checkpoint-2/{LOW_FILE} (step 2)" in said
    assert "skipping a damaged" in said
    Path(f"out/{LOW_FILE}").unlink()
    again, said = rendered(model, capfd)
    assert again == older and f"out/checkpoint-2/{LOW_FILE} (step 2)" in said
    assert rendered(model, capfd, "adapter=out/checkpoint-2")[0] == older  # a folder stands for its LoRAs


def test_a_running_training_is_not_disturbed(model: Path, tmp_path: Path) -> None:
    half = tmp_path / "out" / ".checkpoint-5.1.tmp"
    half.mkdir(parents=True)
    assert sample(model, "output_dir=out", "prompt=a cat", "validation_num_inference_steps=1") == 0
    assert half.is_dir()


def keep_from(name: str, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do `action` once, before app.sample's function `name` is called."""
    original, done = getattr(sample_module, name), []

    def wrapped(*arguments: object, **named: object) -> object:
        if not done:
            done.append(action())
        return original(*arguments, **named)

    monkeypatch.setattr(sample_module, name, wrapped)


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_checkpoints_may_be_removed_while_they_are_looked_at(
    full: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    kind = ("model_type=full", "learning_rate=1e-3") if full else ()
    assert train(model, tmp_path, "max_train_steps=3", "validation_disable=true", *kind) == 0
    for name in (LOW_FILE, "transformer_2"):
        shutil.rmtree(f"out/{name}") if Path(f"out/{name}").is_dir() else Path(f"out/{name}").unlink(missing_ok=True)
    Path("out/finished.json").unlink()
    newest, said = rendered(model, capfd, *kind)
    assert "(step 3)" in said
    # What was found stays usable, however long the loading takes.
    shutil.copytree("out", "kept")
    keep_from("encode_texts", monkeypatch, lambda: shutil.rmtree("out/checkpoint-3"))
    assert rendered(model, capfd, *kind)[0] == newest
    shutil.copytree("kept/checkpoint-3", "out/checkpoint-3")
    # What vanishes while it is found is not taken for a run without weights: the newest that is there now is found.
    reading = weights_module.read_part if full else weights_module.read_file
    left = ["out/checkpoint-3"]

    def vanishing(*arguments: Path) -> object:
        if left:
            shutil.rmtree(left.pop())
        return reading(*arguments)

    monkeypatch.setattr(weights_module, "read_part" if full else "read_file", vanishing)
    clip, said = rendered(model, capfd, *kind)
    assert clip != newest and "(step 2)" in said


@pytest.mark.slow
def test_a_full_fine_tune_is_used_finished_or_not(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(model, tmp_path, "max_train_steps=2", "model_type=full", "learning_rate=1e-3") == 0
    expected = Path("out/validation/step-2/validation.mp4").read_bytes()
    clip, said = rendered(model, capfd, "model_type=full")
    assert clip == expected and "out/transformer_2 (step 2)" in said
    rest = tmp_path / "rest"  # the base need not hold what the run has all of
    shutil.copytree(model, rest, ignore=lambda _folder, names: {"transformer", "transformer_2"} & set(names))
    assert "low-noise expert, 6 of 6 steps: out/transformer_2" in rendered(rest, capfd, "model_type=full")[1]
    clip, said = rendered(model, capfd)  # the run's own record says how it was trained
    assert clip == expected and "out/transformer_2 (step 2)" in said
    assert sample(model, "--config", "config.json", "model_flavour=t2v-480p-1.3b-2.1") == 2
    assert "model_flavour=t2v-mini-low, or adapter=none" in capfd.readouterr().err
    adapter = ("prompt=a cat", "adapter=out")
    words = (["export", "out", "--to", "merged", f"base={model}"], ["lora", "doctor", "out"])
    for code in (sample(model, *adapter), *map(main, words)):
        assert code == 2
    said = capfd.readouterr().err
    assert said.count("is no LoRA but a whole model, by a full fine-tune (transformer_2/)") == 3
    assert "name a checkpoint" not in said
    fix = "name it with pretrained_transformer_2_model_name_or_path=out, or load out/transformer_2 with diffusers"
    assert said.count(fix) == 3
    assert main(["lora", "doctor", "out/checkpoint-2"]) == 2
    said = capfd.readouterr().err
    assert "is no LoRA but a whole model, by a full fine-tune" in said
    assert "ended with: pretrained_transformer_2_model_name_or_path=out, or load" in said
    named = ("adapter=none", "pretrained_transformer_2_model_name_or_path=out")
    assert rendered(model, capfd, *named)[0] == expected
    shutil.rmtree("out/transformer_2")
    clip, said = rendered(model, capfd, "model_type=full")
    assert clip == expected and "checkpoint-2" in said
    assert main(["lora", "doctor", "out"]) == 2
    assert "when the run ends" in capfd.readouterr().err
    assert rendered(model, capfd, "adapter=none")[0] != expected


def test_one_expert_alone_is_named_so(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(model, alone, ignore=lambda _folder, names: {"transformer"} & set(names))
    assert sample(alone, f"prompt={PROMPT}", "--json") == 0
    captured = capfd.readouterr()
    (clip,) = json.loads(captured.out)
    assert clip["note"] == "single expert" and clip["experts"] == {"low": 6} and clip["boundary"] is None
    assert "single expert" in captured.err
    file = write_lora(tmp_path / "a.safetensors", "high", seed=1)
    assert sample(alone, f"prompt={PROMPT}", f"adapter={file}") == 2
    assert "has no transformer," in capfd.readouterr().err
    shutil.rmtree(alone / "transformer_2")
    assert sample(alone, f"prompt={PROMPT}") == 2
    assert "has no transformer_2/" in capfd.readouterr().err


def test_a_vae_that_cannot_be_read_is_told_before_anything_is_rendered(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    (file,) = broken.glob("vae/*.safetensors")
    os.truncate(file, file.stat().st_size // 2)
    monkeypatch.setattr(rendering.Turns, "load_all", lambda _turns: pytest.fail("experts were loaded"))
    assert sample(broken, "prompt=a cat") == 2


@pytest.mark.parametrize(("flavour", "guidance"), [("t2v-mini-low", "[1, 2, 3]"), ("t2v-480p-1.3b-2.1", "[5, 3]")])
def test_guidance_has_a_number_for_each_expert_at_most(
    flavour: str, guidance: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sample(model, "prompt=a cat", f"model_flavour={flavour}", f"validation_guidance={guidance}") == 2
    assert f"is too many numbers for {flavour}" in capfd.readouterr().err


def test_the_options_that_are_read_are_those_of_the_help(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(SAMPLE_KEYS) <= set(catalogue())
    read: set[str] = set()
    look_up = Group.__getattribute__

    def noting(group: Group, name: str) -> object:
        if name in catalogue():
            read.add(name)
        return look_up(group, name)

    keep_from("make_accelerator", monkeypatch, lambda: monkeypatch.setattr(Group, "__getattribute__", noting))
    file = write_lora(tmp_path / "x_high_noise.safetensors", "high", seed=1)
    (tmp_path / "config.json").write_text(json.dumps({"validation_prompt": "a cat"}))
    assert sample(model, "--config", "config.json", f"adapter={file}", "validation_num_inference_steps=1") == 0
    # Read with no bearing on clips: a switch that sampling overrides, and what only training does.
    idle = {"validation_disable", "gradient_accumulation_steps", "min_timestep", "max_timestep"}
    assert "deterministic" in read and read <= {*SAMPLE_KEYS, *idle}


def test_mistakes_are_told_all_at_once(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    words = ("promt=x", "seed=a", "adapter=nowhere.safetensors", "adapter_scale=x", "prompts=no.txt")
    assert (
        sample(model, *words, "prompts=empty.txt", "--json=maybe", "--prompt", "lerning_rate=1", "validation_seed=x")
        == 2
    )
    text = capfd.readouterr().err
    for wanted in (
        "promt is not an argument; did you mean prompt?",
        "seed = 'a' is not a list",
        "adapter = 'nowhere.safetensors' is not there",
        "adapter_scale = 'x' is not a number",
        "prompts = 'no.txt' cannot be read",
        "prompts = 'empty.txt' holds no prompt",
        "validation_seed = 'x' is not a whole number",
        "json = 'maybe' is neither true nor false",
    ):
        assert wanted in text, text
    for seed in ("seed", "validation_seed"):
        assert sample(model, "prompt=x", f"{seed}=18446744073709551616") == 2
        assert f"{seed} = " in capfd.readouterr().err
    assert sample(model, "prompt=x", "guidance_scale=3") == 2
    assert "guidance_scale is not an option; did you mean validation_guidance?" in capfd.readouterr().err
    assert sample(model) == 2
    assert "there is nothing to render" in capfd.readouterr().err
    assert sample(tmp_path / "none", "prompt=x") == 2
    assert "Traceback" not in capfd.readouterr().err
    (tmp_path / "file").write_text("")
    assert sample(model, "prompt=x", "output=file/below") == 2
    assert "output = 'file/below' cannot be written" in capfd.readouterr().err
    assert sample(model, "prompt=x", "validation_preview=true") == 2
    assert "still to come" in capfd.readouterr().err
    # What is to come for training alone does not matter here.
    quick = ("prompt=x", "validation_num_inference_steps=1")
    assert sample(model, *quick, "eval_steps_interval=5", "eval_dataset_id=x", "validation_epoch_interval=2") == 0


def test_ctrl_c_while_experts_are_loaded_waits_for_no_other(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded = []
    load = roles_module.load_transformer

    def interrupted(*arguments: object) -> object:
        loaded.append(None)
        os.kill(os.getpid(), signal.SIGINT)
        return load(*arguments)

    monkeypatch.setattr(roles_module, "load_transformer", interrupted)
    assert sample(model, "prompt=a cat") == 130
    assert len(loaded) == 1


def test_ctrl_c_ends_with_130_and_names_what_is_there(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    predict = rendering.Turns.predict
    calls = []

    def interrupted(self: rendering.Turns, *arguments: object) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 20:  # in the second clip: a clip has 12 passes
            os.kill(os.getpid(), signal.SIGINT)
        return predict(self, *arguments)

    monkeypatch.setattr(rendering.Turns, "predict", interrupted)
    assert sample(model, "prompt=a cat", "prompt=a dog", "--json") == 130
    assert [clip["name"] for clip in json.loads(capfd.readouterr().out)] == ["a_cat"]
    assert sorted(path.name for path in Path("samples").iterdir()) == ["a_cat.mp4", "a_cat.png"]
