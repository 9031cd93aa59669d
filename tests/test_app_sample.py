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
from diffusers import WanPipeline
from lora_files import lycoris_tensors
from PIL import Image
from runs import start, train_low
from safetensors.torch import save_file
from tiny import save_tiny_model, tiny_transformer

from simplewan.app import rendering
from simplewan.app import roles as roles_module
from simplewan.app import weights as weights_module
from simplewan.cli import main
from simplewan.cli.listing import SAMPLE_KEYS
from simplewan.flavours import find_flavour
from simplewan.models.adapters import adapter_parameters, adapter_state, add_lora
from simplewan.models.lora.write import lora_metadata, save_lora
from simplewan.options.catalogue import catalogue
from simplewan.options.declare import Group
from simplewan.options.groups.adapter import AdapterOptions
from simplewan.recognition import told_expert
from simplewan.validation.sampling import initial_noise

sample_module = importlib.import_module("simplewan.app.sample")  # simplewan.app.sample itself is the function
pytestmark = pytest.mark.usefixtures("apart", "fresh_accelerator")
train = partial(train_low, checkpoint_step_interval=1, validation_disable=False)
PROMPT = "a red circle moves left"
NEGATIVE = "static, blurry, low quality, watermark, text"
SIZE = ("validation_resolution=48x32", "validation_num_video_frames=5", "validation_num_inference_steps=6")
HIGH_FILE, LOW_FILE = (f"pytorch_lora_weights_{expert}_noise.safetensors" for expert in ("high", "low"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("sample") / "model", two_experts=True)


def sample(model: Path, *words: str) -> int:
    """The command with the tiny model and a tiny clip, unless `words` say otherwise."""
    place = (f"pretrained_model_name_or_path={model}", "mixed_precision=no", "vae_dtype=fp32")
    given = {word.split("=")[0] for word in words}
    usual = ("model_flavour=t2v-mini-low", *place, *SIZE)
    return start("sample", *(word for word in usual if word.split("=")[0] not in given), *words)


@pytest.fixture
def latents(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What goes into the VAE, clip by clip."""
    seen: list[torch.Tensor] = []
    decode = rendering.decode
    monkeypatch.setattr(rendering, "decode", lambda vae, each: (seen.append(each), decode(vae, each))[1])
    return seen


def write_lora(path: Path, expert: str, *, seed: int, layers: int = 2, rank: int = 4, tells: bool = True) -> Path:
    """A LoRA with an effect, made for a tiny transformer; without `tells` nothing in it names the expert."""
    transformer = tiny_transformer(layers=layers)
    add_lora(transformer, AdapterOptions(lora_rank=rank), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter_parameters(transformer).values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    flavour = find_flavour(f"t2v-mini-{expert}")
    metadata = lora_metadata(flavour, expert, rank=rank, alpha=rank, base_model="x", shift=None) if tells else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_lora(path, adapter_state(transformer), scale=1.0, metadata=metadata, transformer=transformer)
    return path


def by_diffusers(model: Path, *, loras: dict[str, tuple[Path, float]], seed: int = 42) -> torch.Tensor:
    """The latents of the same clip by WanPipeline, guidance 2 below the boundary and 4 above."""
    pipeline = WanPipeline.from_pretrained(model)  # its scheduler has shift 3
    pipeline.set_progress_bar_config(disable=True)
    for expert, (file, scale) in loras.items():
        pipeline.load_lora_weights(
            file.parent, weight_name=file.name, adapter_name="a", load_into_transformer_2=expert == "low"
        )
        (pipeline.transformer_2 if expert == "low" else pipeline.transformer).set_adapters("a", scale)
    return pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=48,
        height=32,
        num_frames=5,
        num_inference_steps=6,
        guidance_scale=4.0,
        guidance_scale_2=2.0,
        latents=initial_noise((1, 16, 2, 4, 6), seed=seed),
        output_type="latent",
    ).frames


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
    assert said.count("holds a full fine-tune (transformer_2/), no LoRA") == 3 and "name a checkpoint" not in said
    assert said.count("name them with pretrained_transformer_2_model_name_or_path=out, or load") == 3
    assert main(["lora", "doctor", "out/checkpoint-2"]) == 2
    said = capfd.readouterr().err
    assert "holds a full fine-tune, no LoRA" in said
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


def test_a_model_with_one_transformer_needs_no_expert(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = write_lora(tmp_path / "x.safetensors", "high", seed=1, tells=False)
    words = ("model_flavour=t2v-480p-1.3b-2.1", f"adapter={file}", "prompt=a cat", "--json")
    assert sample(model, *words) == 0
    captured = capfd.readouterr()
    (clip,) = json.loads(captured.out)
    assert clip["note"] is None and clip["boundary"] is None and "transformer, 6 of 6 steps" in captured.err
