"""Timesteps from the options to the network: what a real run hands to the model, and the picture of what it draws."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers.models.embeddings import Timesteps
from PIL import Image
from runs import records, write_tiny_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simplewan.app import validating
from simplewan.app.roles import make_objective, sigma_bounds
from simplewan.cli import main
from simplewan.events import Event, PictureDrawn
from simplewan.flavours import find_flavour
from simplewan.objectives.distributions import Sampling, cdf
from simplewan.objectives.flow import unshift_sigma
from simplewan.objectives.supervised import FlowRole
from simplewan.options import load

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of one transformer and two clips."""
    folder = tmp_path_factory.mktemp("timesteps")
    settings = {"model_flavour": "t2v-480p-1.3b-2.1", "train_batch_size": 1, "max_train_steps": 8}
    write_tiny_run(folder, clips=2, **settings, eval_steps_interval=0)
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What reaches the sinusoids of the timesteps."""
    heard: list[torch.Tensor] = []
    sinusoids = Timesteps.forward
    monkeypatch.setattr(
        Timesteps, "forward", lambda self, timesteps: (heard.append(timesteps.clone()), sinusoids(self, timesteps))[1]
    )
    return heard


def context_of(place: Path, flavour: str, *overrides: tuple[str, object]) -> SimpleNamespace:
    """What the makers of objective and bounds read of a run's context."""
    loaded = load(place / "config.json", [("model_flavour", flavour), *overrides], environ={}, base=place)
    return SimpleNamespace(loaded=loaded, options=loaded.options, flavour=find_flavour(flavour))


@pytest.mark.parametrize(
    ("flavour", "expert", "low", "high", "bounds"),
    [
        ("t2v-480p-1.3b-2.1", "high", 0.875, 1, (0.875, 1.0)),
        ("t2v-480p-1.3b-2.1", "high", 875, 1000, (0.875, 1.0)),
        ("t2v-480p-1.3b-2.1", "high", 0, 125, (0.0, 0.125)),
        ("t2v-a14b-2.2", "high", 0, 1, (0.875, 1.0)),
        ("t2v-a14b-2.2", "low", 0, 1, (0.0, 0.875)),
        ("t2v-a14b-2.2", "high", 500, 950, (0.875, 0.95)),
        ("t2v-a14b-2.2", "low", 500, 950, (0.5, 0.875)),
        ("i2v-a14b-2.2-high", "high", 0, 1000, (0.9, 1.0)),
    ],
)
def test_the_trained_range(
    place: Path, flavour: str, expert: str, low: float, high: float, bounds: tuple[float, float]
) -> None:
    context = context_of(place, flavour, ("min_timestep", low), ("max_timestep", high))
    assert sigma_bounds(context, expert) == pytest.approx(bounds)


@pytest.mark.parametrize(
    ("given", "sampling"),
    [
        ({"flow_use_beta_schedule": True}, Sampling("beta")),
        (
            {"flow_sampling": "beta", "flow_beta_schedule_alpha": 1.5, "flow_beta_schedule_beta": 4},
            Sampling("beta", beta_alpha=1.5, beta_beta=4),
        ),
        ({"flow_sigmoid_scale": 0.5}, Sampling("sigmoid", sigmoid_scale=0.5)),
        ({"flow_sampling": "mode", "flow_mode_scale": 0.8}, Sampling("mode", mode_scale=0.8)),
    ],
)
def test_the_options_of_a_distribution_reach_the_objective(
    place: Path, given: dict[str, object], sampling: Sampling
) -> None:
    objective = make_objective(context_of(place, "t2v-480p-1.3b-2.1", *given.items()))
    assert objective.sampling == sampling
    assert objective.num_buckets == 0


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_model_receives_the_timesteps_as_they_were_drawn(
    precision: str, place: Path, tmp_path: Path, seen: list[torch.Tensor]
) -> None:
    """Between 937.25 and 937.75, where bfloat16 has no number; whole timesteps have none either."""
    arguments = ["train", "--config", str(place / "config.json"), f"output_dir={tmp_path}", "max_train_steps=3"]
    assert main([*arguments, "min_timestep=937.25", "max_timestep=937.75", f"mixed_precision={precision}"]) == 0
    assert len(seen) == 3
    assert all(timestep.dtype == torch.float32 and 937.25 <= timestep.item() <= 937.75 for timestep in seen)
    told = [event["timestep"] for event in records(tmp_path, "metric")]
    assert told == pytest.approx([timestep.item() for timestep in seen], abs=1e-3)


def test_a_run_of_875_to_1000_trains_that_and_every_part_of_it(
    place: Path, tmp_path: Path, seen: list[torch.Tensor]
) -> None:
    """With buckets, accumulated micro-batches visit each of them in each cycle, across a stop and a resume."""
    arguments = ["train", "--config", str(place / "config.json"), f"output_dir={tmp_path}", "min_timestep=0.875"]
    arguments += ["num_timestep_buckets=5", "gradient_accumulation_steps=2", "flow_schedule_shift=3"]
    arguments += ["report_to=tensorboard", "flow_sampling=uniform"]
    assert main([*arguments, "max_train_steps=4"]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*arguments, "max_train_steps=10"]) == 0
    sigmas = torch.cat(seen).double() / 1000
    assert len(sigmas) == 20 and sigmas.min() >= 0.875
    ends = unshift_sigma(torch.tensor([0.875, 1.0], dtype=torch.float64), 3.0)
    p = (cdf(Sampling("uniform"), unshift_sigma(sigmas, 3.0)) - ends[0]) / (ends[1] - ends[0])
    assert ((p * 5).long().view(4, 5).sort(dim=1)[0] == torch.arange(5)).all()
    kinds = [event["type"] for event in records(tmp_path, "picture", "metric")]
    assert kinds == ["picture", *["metric"] * 4, "picture", *["metric"] * 6]
    board = EventAccumulator(str(next((tmp_path / "logs").iterdir()))).Reload()
    with Image.open(tmp_path / "timesteps.png") as picture:
        assert {(each.width, each.height) for each in board.Images("timesteps")} == {picture.size}


def test_the_picture_holds_what_training_draws_of_both_experts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(validating, "save_histogram", lambda _path, draws, **_how: drawn.append(draws))
    context = context_of(
        place, "t2v-a14b-2.2", ("num_timestep_buckets", 50), ("flow_sampling", "beta"), ("flow_schedule_shift", 1)
    )
    said: list[Event] = []
    context.output, context.emit = tmp_path, said.append
    experts = {
        name: FlowRole(name, sigma_bounds(context, name), lambda latents, *_: latents) for name in ("high", "low")
    }
    clips = [SimpleNamespace(clip=SimpleNamespace(height=480, width=832))] * 3
    monkeypatch.setattr(validating, "sample_refs", lambda *_: [SimpleNamespace(rate=1.0)] * 3)
    validating.draw_histogram(context, experts, SimpleNamespace(training=clips), step=7)
    assert said == [PictureDrawn(7, "timesteps", str(tmp_path / "timesteps.png"))]
    sides = {"high": (0.875, 1.0), "low": (0.0, 0.875)}
    for name, sigmas in drawn[0].items():
        assert len(sigmas) == validating.HISTOGRAM_DRAWS
        ends = cdf(Sampling("beta"), torch.tensor(sides[name], dtype=torch.float64))
        p = (cdf(Sampling("beta"), sigmas.double()) - ends[0]) / (ends[1] - ends[0])
        assert (torch.bincount((p * 50).long().clamp(0, 49)) - 200).abs().max() <= 1  # rounding moves one at most
