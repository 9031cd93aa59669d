"""The main job, end to end, on the bundled example: files, exact resume, refusals, failures that are survived."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from runs import losses, notice, records, start
from safetensors import safe_open
from safetensors.torch import load_file

from simplewan.app.hooks import SaveHook
from simplewan.checkpoints import store
from simplewan.events import Emit
from simplewan.options import Options
from simplewan.validation import histogram
from simplewan.validation.runner import Renderer

Run = Callable[..., int]
# Of single steps: an example's batch of 8 costs four times as much.
QUIET = ("validation_disable=true", "eval_steps_interval=0", "checkpoint_step_interval=100", "train_batch_size=2")


@pytest.fixture
def run(example: Path, tmp_path: Path, apart: None, fresh_accelerator: None, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SIMPLEWAN_CACHE", str(example.parents[1]))

    def run(output: str, *arguments: str) -> int:
        words = ("train", "example=mini", f"output_dir={tmp_path / output}", "model_flavour=t2v-mini-low")
        return start(*words, *arguments)

    return run


def weights(folder: Path) -> bytes:
    return (folder / "pytorch_lora_weights_low_noise.safetensors").read_bytes()


def stop_after(step: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process receive a signal when `step` is done."""
    after_step = SaveHook.after_step

    def then_signal(self: SaveHook, done: int) -> None:
        after_step(self, done)
        if done == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(SaveHook, "after_step", then_signal)


@pytest.mark.slow
def test_the_example_trains_saves_and_renders(run: Run, tmp_path: Path) -> None:
    assert run("out", "model_flavour=t2v-mini-high") == 0
    out = tmp_path / "out"
    losses = [record["loss"] for record in records(out, "eval_loss")]
    assert losses[-1] < 0.9 * losses[0]
    assert [record["step"] for record in records(out, "metric")] == list(range(1, 41))
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-20", "checkpoint-30", "checkpoint-40"}
    for step in (0, 20, 40):
        clips = sorted((out / "validation" / f"step-{step}").glob("*.mp4"))
        assert len(clips) == 3
        for clip in clips:
            with av.open(str(clip)) as container:
                frames = list(container.decode(video=0))
            assert (len(frames), frames[0].width, frames[0].height) == (17, 64, 64)
            assert Image.open(clip.with_suffix(".png")).width > 200
    assert Image.open(out / "timesteps.png").width > 200
    keys = load_file(out / "pytorch_lora_weights_high_noise.safetensors").keys()
    assert all(key.startswith("diffusion_model.blocks.") for key in keys)
    assert json.loads((out / "config.resolved.json").read_text())["max_train_steps"] == 40


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*QUIET, "max_train_steps=5", "lora_dropout=0.2", "caption_dropout_probability=0.3")
    assert run("straight", *arguments) == 0
    with monkeypatch.context() as patch:
        stop_after(2, signal.SIGINT, patch)
        assert run("stopped", *arguments) == 130
    assert (tmp_path / "stopped" / "checkpoint-2" / "manifest.json").exists()
    assert not (tmp_path / "stopped" / "pytorch_lora_weights_low_noise.safetensors").exists()
    assert run("stopped", *arguments) == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            ("optimizer=bnb-adamw8bit", "lr_scheduler=cosine", "gradient_accumulation_steps=2"),
            marks=pytest.mark.slow,
            id="adamw8bit",
        ),
        pytest.param(
            ("optimizer=optimi-lion", "learning_rate=1e-4", "grad_clip_method=value", "mixed_precision=bf16"),
            marks=pytest.mark.slow,
            id="lion",
        ),
        pytest.param(("gradient_checkpointing=true", "model_type=full", "learning_rate=1e-4"), id="full"),
    ],
)
def test_resume_is_exact_with_other_settings(
    arguments: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*QUIET, "max_train_steps=4", *arguments)
    assert run("straight", *arguments) == 0
    with monkeypatch.context() as patch:
        stop_after(1, signal.SIGTERM, patch)
        assert run("stopped", *arguments) == 143
    assert run("stopped", *arguments) == 0
    name = "checkpoint-4/low.weights.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    if "model_type=full" in arguments:
        saved = load_file(tmp_path / "stopped" / "transformer_2" / "diffusion_pytorch_model.safetensors")
        trained = load_file(tmp_path / "stopped" / name)
        assert all(torch.equal(saved[key], trained[key]) for key in trained)


def test_a_second_start_goes_on_or_says_that_it_is_done(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("out", *QUIET, "max_train_steps=2") == 0
    before = weights(tmp_path / "out")
    assert run("out", *QUIET, "max_train_steps=2") == 0
    assert "this run is finished" in capfd.readouterr().err
    assert weights(tmp_path / "out") == before
    assert run("out", *QUIET, "max_train_steps=4", "learning_rate=1e-5") == 0
    assert weights(tmp_path / "out") != before
    assert [record["step"] for record in records(tmp_path / "out", "metric")] == [1, 2, 3, 4]
    capfd.readouterr()
    assert run("out", *QUIET, "max_train_steps=3", "learning_rate=1e-5") == 0
    assert "this run is finished: 4 steps" in capfd.readouterr().err
    assert records(tmp_path / "out", "summary")[-1]["total_steps"] == 4


@pytest.mark.slow
def test_more_steps_continue_to_the_bits_of_a_longer_run(run: Run, tmp_path: Path) -> None:
    arguments = (*QUIET, "gradient_accumulation_steps=2")
    assert run("straight", *arguments, "max_train_steps=4") == 0
    assert run("longer", *arguments, "max_train_steps=2") == 0
    assert run("longer", *arguments, "max_train_steps=4") == 0
    assert weights(tmp_path / "longer") == weights(tmp_path / "straight")


@pytest.mark.slow
def test_resuming_from_a_named_checkpoint_abandons_what_came_after(run: Run, tmp_path: Path) -> None:
    arguments = (*QUIET, "max_train_steps=3", "checkpoint_step_interval=1")
    assert run("out", *arguments, "checkpoints_total_limit=none") == 0
    before = weights(tmp_path / "out")
    assert run("out", *arguments, "resume_from_checkpoint=checkpoint-1") == 0
    assert weights(tmp_path / "out") == before
    assert {path.name for path in (tmp_path / "out").glob("set-aside-*")} == {
        "set-aside-1-checkpoint-2",
        "set-aside-1-checkpoint-3",
    }
    assert [record["step"] for record in records(tmp_path / "out", "metric")] == [1, 2, 3]


def test_a_changed_configuration_is_refused_by_name(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("out", *QUIET, "max_train_steps=1") == 0
    assert run("out", *QUIET, "max_train_steps=2", "lora_rank=4", "seed=43") == 2
    message = capfd.readouterr().err
    assert "lora_rank" in message
    assert "seed" in message
    assert "Traceback" not in message


def test_epochs_end_a_run(run: Run, tmp_path: Path) -> None:
    assert (
        run(
            "out",
            *QUIET,
            "max_train_steps=0",
            "num_train_epochs=1",
            "checkpoint_epoch_interval=1",
            "train_batch_size=8",
        )
        == 0
    )
    assert len(losses(tmp_path / "out")) == 3  # 24 clips
    assert (tmp_path / "out" / "checkpoint-3" / "manifest.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = (*QUIET, "checkpoint_step_interval=1", "max_grad_norm=0")
    assert run("out", *arguments, "learning_rate=1e25", "max_train_steps=9") == 1
    message = capfd.readouterr().err
    assert "last good checkpoint is checkpoint-" in message
    assert "shapes/" in message
    assert not (tmp_path / "out" / "pytorch_lora_weights_low_noise.safetensors").exists()
    for path in (tmp_path / "out").glob("checkpoint-*/low.weights.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_the_log_has_the_last_words(
    error: type[Exception], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object, **_settings: object) -> None:
        raise error("CUDA says no")

    monkeypatch.setattr("simplewan.training.loop.seed_step", fail)
    if error is torch.OutOfMemoryError:
        assert run("out", *QUIET, "max_train_steps=1") == 1
        assert "gradient_checkpointing" in capfd.readouterr().err
    else:
        with pytest.raises(error):
            run("out", *QUIET, "max_train_steps=1")
        assert records(tmp_path / "out", "error")[-1]["message"] == "RuntimeError: CUDA says no"
    assert records(tmp_path / "out", "error")[-1]["fatal"]


def test_a_validation_that_fails_is_survived(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(Renderer, "_sample", fail)
    assert run("out", *QUIET, "validation_disable=false", "max_train_steps=2") == 0
    assert weights(tmp_path / "out")
    errors = records(tmp_path / "out", "error")
    assert len(errors) == 6
    assert all("out of memory, say" in error["message"] for error in errors)


@pytest.mark.slow
def test_saving_and_validating_on_demand(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, signal.SIGUSR1, patch)
        stop_after(2, signal.SIGUSR2, patch)
        quick = ("validation_num_inference_steps=1", "validation_num_video_frames=5")
        assert run("out", *QUIET, *quick, "validation_disable=false", "max_train_steps=4") == 0
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert {path.name for path in (tmp_path / "out" / "validation").iterdir()} == {"step-0", "step-2", "step-4"}


def test_a_validation_on_demand_that_is_switched_off_is_answered_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        stop_after(step, signal.SIGUSR2, monkeypatch)
    assert run("out", *QUIET, "max_train_steps=3") == 0
    said = [record["message"] for record in records(tmp_path / "out", "notice")]
    assert said.count("validation is switched off (validation_disable), nothing is rendered") == 1


@pytest.mark.slow
def test_the_time_limit_saves_and_leaves(run: Run, tmp_path: Path) -> None:
    assert run("out", *QUIET, "max_train_steps=100000", "max_train_seconds=1") == 0
    last = records(tmp_path / "out", "metric")[-1]["step"]
    assert (tmp_path / "out" / f"checkpoint-{last}" / "manifest.json").exists()
    assert records(tmp_path / "out", "summary")[-1]["reason"] == "max_train_seconds"


def test_a_full_disk_is_noticed_before_caching(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = clips_of_the_example(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: _Usage(free=1000))
    assert run("other", *QUIET, "max_train_steps=1", data) == 2
    message = capfd.readouterr().err
    assert "0.00 free" in message
    assert "cache_dir_vae" in message


def test_a_text_that_does_not_encode_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("simplewan.app.encoders.encode_prompts", lambda *_, **__: [torch.full((3, 8), float("nan"))])
    assert run("out", *QUIET, "max_train_steps=1", clips_of_the_example(tmp_path)) == 2
    message = capfd.readouterr().err
    assert "clips/clip-000.mp4, caption 1: cannot be encoded: its encoding holds NaN or infinity" in message


@pytest.mark.slow
def test_write_batch_size_bounds_the_files_of_both_caches(run: Run, tmp_path: Path) -> None:
    data = clips_of_the_example(tmp_path)
    assert run("out", *QUIET, "max_train_steps=1", data, "write_batch_size=10", "vae_batch_size=1") == 0
    for name in ("text", "latents"):
        shards = [len(load_file(path)) for path in (tmp_path / name).glob("*.safetensors")]
        assert max(shards) == 10, name


def clips_of_the_example(folder: Path, **changes: str) -> str:
    """The setting of a dataset whose caches, latents/ and text/, are nobody else's."""
    clips = {"id": "clips", "dataset_type": "video", "instance_data_dir": "{example}/clips", "resolution": 64}
    clips |= {"video": {"num_frames": 17}, "cache_dir_vae": str(folder / "latents"), **changes}
    texts = {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": str(folder / "text")}
    (folder / "data.json").write_text(json.dumps([texts, clips]))
    return f"data_backend_config={folder / 'data.json'}"


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


@pytest.mark.slow
def test_a_lora_starts_from_another(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("first", *QUIET, "max_train_steps=2", "lora_alpha=8") == 0
    start = f"init_lora={tmp_path / 'first' / 'pytorch_lora_weights_low_noise.safetensors'}"
    assert run("second", *QUIET, "max_train_steps=1", "learning_rate=0", "lora_alpha=4", start) == 0
    first, second = (
        load_file(tmp_path / name / "pytorch_lora_weights_low_noise.safetensors") for name in ("first", "second")
    )
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)
    assert run("third", *QUIET, "max_train_steps=1", "lora_rank=4", start) == 2
    assert "init_lora" in capfd.readouterr().err


def test_an_automatic_shift_is_drawn_and_is_not_recorded_as_a_fixed_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(
        histogram, "timestep_histogram", lambda draws, **_how: drawn.append(draws) or Image.new("L", (1, 1))
    )
    for name, auto in (("auto", "true"), ("fixed", "false")):
        whole = "timestep_boundary=1000"  # nothing is cut off
        assert run(name, *QUIET, "max_train_steps=1", whole, f"flow_schedule_auto_shift={auto}") == 0
    # 64x64 pixels are 16 tokens a frame: shift exp(0.46), and the median of a shifted draw is s / (1 + s)
    assert drawn[1]["low"].median().item() == pytest.approx(5 / 6, abs=0.02)
    assert drawn[0]["low"].median().item() == pytest.approx(0.613, abs=0.02)
    with safe_open(tmp_path / "auto" / "pytorch_lora_weights_low_noise.safetensors", framework="pt") as file:
        assert "shift" not in file.metadata()
    with safe_open(tmp_path / "fixed" / "pytorch_lora_weights_low_noise.safetensors", framework="pt") as file:
        assert file.metadata()["shift"] == "5.0"


@pytest.mark.slow
def test_a_bucket_that_is_left_out_is_said_once_and_no_validation_is_promised(
    run: Run, example: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(example / "clips", tmp_path / "clips")
    for index in (2, 5, 8, 11):  # half of those that are higher than wide
        (tmp_path / "clips" / f"clip-{index:03d}.mp4").unlink()
    data = clips_of_the_example(tmp_path, instance_data_dir=str(tmp_path / "clips"))
    assert run("out", *QUIET, "max_train_steps=1", "train_batch_size=7", data) == 0
    message = capfd.readouterr().err
    assert message.count("bucket 48x80@17 (4 samples) is left out") == 1
    assert "1 checkpoint, 0 validations" in message


def test_prefetching_changes_nothing(run: Run, tmp_path: Path) -> None:
    for name, prefetch in (("on", "true"), ("off", "false")):
        assert run(name, *QUIET, "max_train_steps=2", f"dataloader_prefetch={prefetch}") == 0
    assert weights(tmp_path / "on") == weights(tmp_path / "off")


def test_a_permitted_change_is_recorded(run: Run, tmp_path: Path) -> None:
    assert run("out", *QUIET, "max_train_steps=1") == 0
    assert run("out", *QUIET, "max_train_steps=2", "learning_rate=1e-5") == 0
    said = notice(tmp_path / "out", "resuming")
    assert "learning_rate 0.001 -> 1e-05" in said
    assert "max_train_steps 1 -> 2" in said


def test_a_cache_that_cannot_be_made_is_a_users_error(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    data = clips_of_the_example(tmp_path, cache_dir_vae=str(tmp_path / "file" / "vae"))
    assert run("out", *QUIET, "max_train_steps=1", data) == 2
    message = capfd.readouterr().err
    assert "cache_dir_vae" in message
    assert "Traceback" not in message


@pytest.mark.slow
def test_a_disk_that_fills_while_saving_names_the_last_good_checkpoint(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_part = store.write_part

    def full_from_the_second_on(folder: Path, name: str, state: dict) -> None:
        if "checkpoint-2" in folder.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        write_part(folder, name, state)

    arguments = (*QUIET, "checkpoint_step_interval=1", "max_train_steps=3")
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_part", full_from_the_second_on)
        assert run("out", *arguments) == 1
    message = capfd.readouterr().err
    assert "No space left on device" in message
    assert "the last good checkpoint is checkpoint-1" in message
    assert "Traceback" not in message
    assert run("out", *arguments) == 0
    assert run("straight", *arguments) == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "straight")


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision with its scaler on the CPU, which accelerate refuses, starting at a scale that overflows."""

    def make_scaled(_options: Options, _emit: Emit) -> Accelerator:
        accelerator = Accelerator(mixed_precision="no")
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=3)
        return accelerator

    monkeypatch.setattr(importlib.import_module("simplewan.app.train"), "make_accelerator", make_scaled)


@pytest.mark.slow
def test_half_precision_skips_what_overflows_and_resumes_to_the_same_bits(
    scaled: None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = (*QUIET, "mixed_precision=fp16", "max_train_steps=24")
    assert run("whole", *half) == 0
    scale = json.loads((tmp_path / "whole" / "checkpoint-24" / "scaler.json").read_text())["scale"]
    assert scale < 2.0**30
    with monkeypatch.context() as patch:
        stop_after(13, signal.SIGINT, patch)
        assert run("parted", *half) == 130
    assert run("parted", *half) == 0
    assert weights(tmp_path / "parted") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_in_half_precision_too_an_expert_is_trained_as_if_alone(scaled: None, run: Run, tmp_path: Path) -> None:
    both = ("model_flavour=t2v-mini", "max_train_steps=24", "expert_share=0.5", "expert_run_steps=2")
    both = (*QUIET, *both, "mixed_precision=fp16", "train_batch_size=2", "idle_expert=disk")
    assert run("alone", *both, "model_flavour=t2v-mini-low", "max_train_steps=12") == 0
    assert run("both", *both, "max_train_steps=14") == 0
    assert run("both", *both) == 0
    one, other = (
        load_file(tmp_path / name / "pytorch_lora_weights_low_noise.safetensors") for name in ("both", "alone")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    alone, low = (
        json.loads((tmp_path / name).read_text())["scale"]
        for name in ("alone/checkpoint-12/scaler.json", "both/checkpoint-24/low.scaler.json")
    )
    assert alone == low < 2.0**30
