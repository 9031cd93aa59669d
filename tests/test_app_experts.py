"""Both experts in one run, on a tiny model: each ends with the bits that it would have alone, wherever one waits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from runs import notice, records, start, write_tiny_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import save_tiny_image_model

from simplewan.app import idle, roles
from simplewan.app.drawing import longest, step_limits
from simplewan.app.hooks import SaveHook
from simplewan.app.idle import IdleExperts
from simplewan.app.rendering import Turns
from simplewan.models.placement import Placement
from simplewan.objectives.distributions import Sampling
from simplewan.objectives.flow import resolution_shift, share_within
from simplewan.plan import TrainingTurns
from simplewan.plan.room import Load

BOTH = "model_flavour=t2v-a14b-2.2"
# 13 steps in runs of 2 at a share of 0.4: high takes 5, low 8.
COUNTS = {"high": 5, "low": 8}
TURNS = ("max_train_steps=13", "expert_share=0.4", "expert_run_steps=2")
FALLING = ("lr_scheduler=cosine", "lr_warmup_steps=2", "lr_end=0")
FAR_OUT = (
    "flow_schedule_shift=1",
    "flow_sampling=beta",
    "flow_beta_schedule_alpha=20",
    "flow_beta_schedule_beta=100",
)
Run = Callable[..., int]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of two experts, six clips and a configuration."""
    folder = tmp_path_factory.mktemp("experts")
    dropout = {"lora_dropout": 0.1, "caption_dropout_probability": 0.3}
    write_tiny_run(folder, two_experts=True, clips=6, **dropout, learning_rate=1e-2)
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path, fresh_accelerator: None) -> Run:
    config = str(place / "config.json")
    return lambda output, *arguments: start("train", "--config", config, f"output_dir={tmp_path / output}", *arguments)


def metrics(folder: Path, role: str) -> list[tuple[float, float, float, list[str]]]:
    """What each step of a role came to."""
    found = [record for record in records(folder, "metric") if record["role"] == role]
    return [(record["loss"], record["grad_norm"], record["lr"], record["samples"]) for record in found]


def lora(folder: Path, role: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"pytorch_lora_weights_{role}_noise.safetensors")


def whole(folder: Path, role: str) -> dict[str, torch.Tensor]:
    subfolder = {"high": "transformer", "low": "transformer_2"}[role]
    return load_file(folder / subfolder / "diffusion_pytorch_model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and one
    assert all(torch.equal(one[key], other[key]) for key in one)


def watch_where_experts_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when an expert computes that is not on the device: on a CPU it would not be noticed."""
    owners: dict[int, tuple[IdleExperts, str]] = {}
    take_in, call = IdleExperts.take_in, roles.WanForward.__call__

    def taking_in(self: IdleExperts, expert: roles.Expert, *rest: Any, **how: Any) -> None:
        owners[id(expert.transformer)] = (self, expert.name)
        take_in(self, expert, *rest, **how)

    def calling(self: Any, *arguments: Any, **how: Any) -> torch.Tensor:
        experts, name = owners[id(self.transformer)]
        assert not experts._placements.is_parked(name)
        return call(self, *arguments, **how)

    monkeypatch.setattr(IdleExperts, "take_in", taking_in)
    monkeypatch.setattr(roles.WanForward, "__call__", calling)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_each_expert_ends_as_if_it_were_alone_wherever_the_other_waits(
    kind: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = (f"model_type={kind}", *FALLING, "gradient_accumulation_steps=2")
    own = {"high": ("learning_rate=3e-3", "lora_rank=2"), "low": ("learning_rate=1e-2", "lora_alpha=8")}
    for role, steps in COUNTS.items():
        alone = (f"{BOTH}-{role}", f"max_train_steps={steps}")
        assert run(role, *common, *alone, *own[role]) == 0
    both = (*common, BOTH, *TURNS, "learning_rate_high=3e-3", "lora_rank_high=2", "lora_alpha_low=8")
    looking = ("validation_disable=false", "validation_step_interval=4", "eval_steps_interval=3", "num_eval_images=1")
    read = lora if kind == "lora" else whole
    fetched: list[Placement] = []
    fetch = Placement.fetch
    monkeypatch.setattr(Placement, "fetch", lambda self: (fetched.append(self), fetch(self))[1])
    watch_where_experts_compute(monkeypatch)
    for waiting in ("stay", "cpu", "disk"):
        fetched.clear()
        # In memory even here, where that is where the expert computes.
        monkeypatch.setattr(IdleExperts, "_choose", lambda *_, waiting=waiting: waiting)
        assert run(waiting, *both, *(looking if waiting == "disk" else ())) == 0
        assert bool(fetched) == (waiting != "stay")
        for role, steps in COUNTS.items():
            found = metrics(tmp_path / waiting, role)
            assert len(found) == steps and found == metrics(tmp_path / role, role)
            assert_equal(read(tmp_path / waiting, role), read(tmp_path / role, role))
        assert not list((tmp_path / waiting).glob(".idle*"))
    order = "".join(record["role"][0] for record in records(tmp_path / "stay", "metric"))
    assert order == "llhhllhhllllh"
    clips = {(record["step"], record.get("note")) for record in records(tmp_path / "disk", "validation")}
    assert clips == {(step, None) for step in (0, 4, 8, 12, 13)}  # no note: both experts rendered
    measured = [(record["step"], record["role"]) for record in records(tmp_path / "disk", "eval_loss")]
    assert measured == [(step, role) for step in (0, 3, 6, 9, 12, 13) for role in COUNTS]
    assert (
        Image.open(tmp_path / "disk" / "timesteps.png").height > 1.9 * Image.open(tmp_path / "low/timesteps.png").height
    )


def test_the_files_speak_of_their_own_expert(run: Run, tmp_path: Path) -> None:
    assert run("out", BOTH, "max_train_steps=2", "expert_run_steps=1", "lora_rank_high=2", "lora_alpha_high=6") == 0
    found = {}
    for role in COUNTS:
        with safe_open(tmp_path / "out" / f"pytorch_lora_weights_{role}_noise.safetensors", framework="pt") as file:
            metadata = file.metadata()
        found[role] = (metadata["expert"], metadata["rank"], metadata["alpha"])
    assert found == {"high": ("high_noise", "2", "6.0"), "low": ("low_noise", "4", "4")}
    assert {record["role"] for record in records(tmp_path / "out", "metric")} == {"high", "low"}
    sides = [(record["role"], record["timestep"] >= 875) for record in records(tmp_path / "out", "metric")]
    assert all((role == "high") == above for role, above in sides)


@pytest.mark.parametrize(("words", "boundary"), [(("timestep_boundary=500",), "0.5"), ((), "0.875")])
def test_the_files_tell_where_the_experts_of_their_run_change(
    words: tuple[str, ...], boundary: str, run: Run, tmp_path: Path
) -> None:
    assert run("out", BOTH, "max_train_steps=2", "expert_run_steps=1", "expert_share=0.5", *words) == 0
    for place in ("out", "out/checkpoint-2"):
        for role in COUNTS:
            with safe_open(tmp_path / place / f"pytorch_lora_weights_{role}_noise.safetensors", "pt") as file:
                assert file.metadata()["boundary"] == boundary


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process be interrupted when `step` is done."""
    after_step = SaveHook.after_step

    def then_stop(self: SaveHook, done: int) -> None:
        after_step(self, done)
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SaveHook, "after_step", then_stop)


@pytest.mark.parametrize("waiting", [pytest.param("stay", marks=pytest.mark.slow), "disk"])
def test_a_run_that_is_stopped_and_made_longer_ends_with_the_same_bits(
    waiting: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (BOTH, *TURNS, f"idle_expert={waiting}")
    assert run("straight", *arguments) == 0
    assert run("stopped", *arguments, "max_train_steps=3") == 0  # in the midst of a run of steps
    with monkeypatch.context() as patch:
        stop_after(8, patch)
        assert run("stopped", *arguments) == 130
    assert not list((tmp_path / "stopped").glob(".idle*"))
    assert run("stopped", *arguments) == 0
    for role in COUNTS:
        assert_equal(lora(tmp_path / "stopped", role), lora(tmp_path / "straight", role))
        assert metrics(tmp_path / "stopped", role) == metrics(tmp_path / "straight", role)


@pytest.mark.slow
def test_a_changed_share_counts_the_steps_that_were_taken(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Load] = []
    measure = idle.measure_load
    monkeypatch.setattr(idle, "measure_load", lambda *rest: (loads.append(measure(*rest)), loads[-1])[1])
    falling = (BOTH, "expert_run_steps=2", "lr_scheduler=linear", "lr_warmup_steps=0", "lr_end=0", "learning_rate=1e-2")
    assert run("out", *falling, "expert_share=0.75", "max_train_steps=6") == 0
    before = {role: len(metrics(tmp_path / "out", role)) for role in COUNTS}
    assert run("out", *falling, "expert_share=0.25", "max_train_steps=8") == 0
    assert loads[0].held == 0 < loads[1].held  # the first one's optimiser has states by now
    counts = {role: len(metrics(tmp_path / "out", role)) for role in COUNTS}
    each = ", ".join(f"{role} {count} of 8 steps" for role, count in counts.items())
    assert sum(counts.values()) == 8 and each in notice(tmp_path / "out", "experts:")
    for role, count in counts.items():
        rates = [rate for _, _, rate, _ in metrics(tmp_path / "out", role)]
        wanted = [0.01 * (1 - step / count) for step in range(count)]
        assert rates[before[role] :] == pytest.approx(wanted[before[role] :])


@pytest.mark.slow
def test_another_place_may_be_taken_by_the_next_start_and_is_announced(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (BOTH, *TURNS)
    assert run("straight", *arguments, "idle_expert=stay") == 0
    assert run("out", *arguments, "max_train_steps=5", "idle_expert=disk") == 0
    assert json.loads((tmp_path / "out" / "checkpoint-5" / "run.json").read_text())["idle_expert"] == "disk"
    assert run("out", *arguments, "max_train_steps=9", "idle_expert=auto") == 0
    assert "stay, where it was disk before" in notice(tmp_path / "out", "idle_expert auto")
    monkeypatch.setattr(idle, "free_memory", lambda: (1000, 10**9))
    assert run("out", *arguments, "idle_expert=auto") == 0
    assert "disk, where it was stay before" in notice(tmp_path / "out", "idle_expert auto")
    for role in COUNTS:
        assert_equal(lora(tmp_path / "out", role), lora(tmp_path / "straight", role))


def test_room_nowhere_is_told_with_its_sizes(
    run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "free_memory", lambda: (1000, 10**9))
    monkeypatch.setattr(idle.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    assert run("out", BOTH, "max_train_steps=2") == 2
    assert "idle_expert" in capfd.readouterr().err


def test_a_full_disk_ends_the_run_with_a_sentence(
    run: Run, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert run("out", BOTH, "max_train_steps=2", "idle_expert=disk") == 1
    assert "no room for the expert that waits: No space left on device" in capfd.readouterr().err


def test_budgets_end_one_expert_and_then_the_run(run: Run, tmp_path: Path) -> None:
    arguments = (BOTH, "expert_share=0.5", "expert_run_steps=2", "max_train_steps_high=3", "max_train_steps_low=5")
    assert run("out", *arguments) == 0
    order = "".join(record["role"][0] for record in records(tmp_path / "out", "metric"))
    assert order == "hhllhlll"
    assert "high 3 of 8 steps, low 5 of 8 steps" in notice(tmp_path / "out", "experts:")
    assert run("high", f"{BOTH}-high", "max_train_steps=3") == 0
    assert_equal(lora(tmp_path / "out", "high"), lora(tmp_path / "high", "high"))


def test_an_expert_without_steps_is_warned_of(run: Run, tmp_path: Path) -> None:
    assert run("out", BOTH, "max_train_steps=2") == 0
    assert "the low-noise expert takes no step" in notice(tmp_path / "out", "too short")
    assert not any(value.any() for key, value in lora(tmp_path / "out", "low").items() if "lora_B" in key)
    written = notice(tmp_path / "out", "pytorch_lora_weights_low_noise.safetensors: ")
    assert "the low-noise expert has not been trained: all its changes are zero" in written


@pytest.mark.parametrize(
    ("arguments", "share"),
    [
        ((), 71.0),  # shift 12, the boundary at 875
        (("flow_schedule_shift=3",), 20.0),
        (("flow_sampling=uniform", "flow_schedule_shift=1", "min_timestep=500", "max_timestep=900"), 6.2),
        (("flow_sampling=uniform", "flow_schedule_shift=1", "timestep_boundary=400"), 60.0),
        (("flow_schedule_auto_shift=true",), 6.9),
        ((*FAR_OUT, "min_timestep=700"), 0.0),  # no draw comes there, yet one side is the likelier
    ],
)
def test_the_share_is_that_of_the_timesteps(arguments: tuple[str, ...], share: float, run: Run, tmp_path: Path) -> None:
    assert run("out", BOTH, "max_train_steps=1", *arguments) == 0
    said = notice(tmp_path / "out", "experts:")
    found = float(said.split("(")[1].split("%")[0])
    assert found == pytest.approx(share, abs=0.6)


def test_a_share_that_nothing_tells_is_asked_for(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    nowhere = (*FAR_OUT, "min_timestep=999.9", "timestep_boundary=999.95")
    assert run("out", BOTH, "max_train_steps=1", *nowhere) == 2
    said = capfd.readouterr().err
    assert "expert_share has to be set" in said and "from 999.9 to 1000" in said


@pytest.mark.slow
def test_the_share_follows_what_is_drawn_where_the_shift_follows_the_size(
    run: Run, place: Path, tmp_path: Path
) -> None:
    [entry] = json.loads((place / "data.json").read_text())
    large = {**entry, "id": "large", "resolution": 128, "repeats": 7}
    (tmp_path / "data.json").write_text(json.dumps([{**entry, "probability": 0.5}, large]))
    data = f"data_backend_config={tmp_path / 'data.json'}"
    assert run("out", BOTH, "max_train_steps=1", "flow_schedule_auto_shift=true", "flow_sampling=uniform", data) == 0
    wanted = 0.0
    for size, weight in ((64, 0.5), (128, 8)):
        share = share_within(0.875, 1.0, sampling=Sampling("uniform"), shift=resolution_shift((size // 16) ** 2))
        wanted += weight / 8.5 * share
    found = float(notice(tmp_path / "out", "experts:").split("(")[1].split("%")[0])
    assert found == pytest.approx(100 * wanted, abs=0.06)


def test_an_epoch_is_one_pass_shared_by_both(run: Run, tmp_path: Path) -> None:
    arguments = ("max_train_steps=0", "num_train_epochs=2", "expert_share=0.5", "expert_run_steps=1")
    assert run("out", BOTH, *arguments) == 0
    assert len(records(tmp_path / "out", "metric")) == 12  # six clips


def test_options_of_one_expert_count_when_it_is_trained(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str], place: Path
) -> None:
    own = ("lora_rank_low=2", "max_train_steps_low=1", "learning_rate_low=0.5")
    assert run("out", f"{BOTH}-low", "max_train_steps=9", *own, "lora_rank_high=3", "expert_run_steps=3") == 0
    said = notice(tmp_path / "out", "not read in this run")
    assert "lora_rank_high (needs a flavour that trains the high-noise expert" in said and "expert_run_steps" in said
    assert not any(option.partition("=")[0] in said for option in own)
    assert lora(tmp_path / "out", "low")["diffusion_model.blocks.0.self_attn.q.lora_A.weight"].shape[0] == 2
    (step,) = records(tmp_path / "out", "metric")  # its budget is one step
    assert step["lr"] == 0.5
    start = tmp_path / "out" / "pytorch_lora_weights_low_noise.safetensors"
    capfd.readouterr()
    assert run("no", BOTH, "max_train_steps=1", f"init_lora={start}", "expert_share=1") == 2
    told = capfd.readouterr().err
    assert "init_lora_low" in told and "expert_share" in told
    assert run("no", BOTH, "max_train_steps=1", "max_timestep=800") == 2
    assert "model_flavour=t2v-a14b-2.2-low" in capfd.readouterr().err
    began = lora(tmp_path / "out", "low")
    image = {f"diffusion_model.blocks.0.cross_attn.k_img.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    save_file(began | image, start)
    assert run("from", BOTH, "max_train_steps=1", "lora_rank_low=2", f"init_lora_low={start}", "learning_rate=0") == 0
    assert_equal(lora(tmp_path / "from", "low"), began)
    assert "1 of its linears, for image tokens" in notice(tmp_path / "from", f"init_lora_low {start}")
    assert run("no", BOTH, "max_train_steps=1", f"init_lora_high={tmp_path / 'nowhere.safetensors'}") == 2


@pytest.mark.slow
def test_sample_renders_with_what_both_have_learned(
    run: Run, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("out", BOTH, *TURNS, "checkpoint_step_interval=4") == 0
    asked: list[str] = []
    predict = Turns.predict
    monkeypatch.setattr(Turns, "predict", lambda self, *rest: (asked.append(rest[-1]), predict(self, *rest))[1])

    def sample(name: str, *arguments: str) -> bytes:
        command = ["sample", "--config", str(place / "config.json"), BOTH, f"output_dir={tmp_path / 'out'}"]
        assert start(*[*command, f"output={tmp_path / name}", "prompt=a red circle", *arguments]) == 0
        return next((tmp_path / name).glob("*.mp4")).read_bytes()

    trained = sample("trained")
    assert set(asked) == {"high", "low"}
    files = [f"adapter={tmp_path / 'out' / f'pytorch_lora_weights_{role}_noise.safetensors'}" for role in COUNTS]
    assert sample("named", *files) == trained
    assert sample("one", files[0]) != trained and sample("other", files[1]) != trained
    for file in (tmp_path / "out").glob("*.safetensors"):
        file.unlink()
    assert sample("checkpoint") == trained


@pytest.mark.slow
def test_both_experts_of_image_to_video(run: Run, tmp_path: Path) -> None:
    save_tiny_image_model(tmp_path / "model", "2.2")
    arguments = ("model_flavour=i2v-a14b-2.2", f"pretrained_model_name_or_path={tmp_path / 'model'}")
    arguments = (*arguments, "max_train_steps=4", "expert_share=0.5", "expert_run_steps=1", "idle_expert=disk")
    assert run("out", *arguments, f"cache_dir={tmp_path / 'cache'}") == 0
    for role in COUNTS:
        assert any(value.any() for key, value in lora(tmp_path / "out", role).items() if "lora_B" in key)
    sides = [(record["role"], record["timestep"] >= 900) for record in records(tmp_path / "out", "metric")]
    assert len(sides) == 4 and all((role == "high") == above for role, above in sides)


def test_the_limits_of_the_experts_count_what_they_have_taken() -> None:
    def limits(turns: TrainingTurns, steps: int, taken: dict[str, int] | None = None) -> dict[str, int | None]:
        options = SimpleNamespace(run=SimpleNamespace(max_train_steps=steps))
        return step_limits(SimpleNamespace(options=options), turns, taken)  # type: ignore[arg-type]

    both = ("high", "low")
    assert limits(TrainingTurns(both, share=0.5), 10) == {"high": 5, "low": 5}
    assert limits(TrainingTurns(both, share=0.5), 10, {"high": 0, "low": 8}) == {"high": 2, "low": 8}
    assert limits(TrainingTurns(both, share=0.01), 10) == {"high": 1, "low": 10}  # never 0, which is no limit
    assert limits(TrainingTurns(both, budgets={"low": 3}), 0) == {"high": None, "low": 3}
    assert limits(TrainingTurns(both, budgets={"high": 4, "low": 3}), 0) == {"high": 4, "low": 3}
    assert longest({"high": 4, "low": None}) == "low" and longest({"high": 4, "low": 3}) == "high"
