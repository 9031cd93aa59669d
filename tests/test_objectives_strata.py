"""Stratified timesteps over the steps of a role: coverage, an unchanged distribution, exact resume in the real loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from simplewan.objectives.distributions import Sampling, cdf
from simplewan.objectives.flow import unshift_sigma
from simplewan.objectives.strata import slices_of
from simplewan.objectives.supervised import FlowRole, SupervisedFlowMatching
from simplewan.training.loop import LoopSettings, train
from simplewan.training.roles import Role
from simplewan.training.signals import SignalWatch

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

SAMPLINGS = (
    Sampling("uniform"),
    Sampling("sigmoid", sigmoid_scale=1.7),
    Sampling("logit_normal", logit_mean=0.7, logit_std=1.6),
    Sampling("mode"),
    Sampling("beta", beta_alpha=0.6, beta_beta=3.0),
)
SHIFT = 3.0
BOUNDS = {"high": (0.875, 1.0), "low": (0.0, 0.875)}


def predict(latents: torch.Tensor, _timesteps: torch.Tensor, _batch: object) -> torch.Tensor:
    return latents


def probabilities(sigmas: torch.Tensor, sampling: Sampling, bounds: tuple[float, float]) -> torch.Tensor:
    """P(draw <= sigma) of the shifted distribution within the bounds."""
    ends = cdf(sampling, unshift_sigma(torch.tensor(bounds, dtype=torch.float64), SHIFT))
    return (cdf(sampling, unshift_sigma(sigmas.double(), SHIFT)) - ends[0]) / (ends[1] - ends[0])


def furthest_from_uniform(p: torch.Tensor) -> float:
    """The Kolmogorov-Smirnov statistic times sqrt(n); 1.95 is p = 0.001."""
    n = len(p)
    return (p.sort()[0] - (torch.arange(n) + 0.5) / n).abs().max().item() * math.sqrt(n)


@pytest.mark.parametrize("batch", [1, 3, 25])
def test_every_cycle_visits_every_slice_once_in_an_order_of_its_own(batch: int) -> None:
    drawn = torch.cat([slices_of(at, batch, num_slices=10, seed=5, role="low") for at in range(0, 300, batch)])
    cycles = drawn[:300].view(30, 10)
    assert (cycles.sort(dim=1)[0] == torch.arange(10)).all()
    assert len({tuple(cycle.tolist()) for cycle in cycles}) == 30
    assert not torch.equal(drawn[:10], slices_of(0, 10, num_slices=10, seed=6, role="low"))
    assert not torch.equal(drawn[:10], slices_of(0, 10, num_slices=10, seed=5, role="high"))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda sampling: sampling.name)
@pytest.mark.parametrize("role", BOUNDS)
def test_the_distribution_stays_what_it_is(sampling: Sampling, role: str) -> None:
    low, high = BOUNDS[role]
    objective = SupervisedFlowMatching(sampling, num_buckets=7)
    generator = torch.Generator().manual_seed(3)
    sigmas = objective.sigmas(FlowRole(role, (low, high), predict), 2000, shift=SHIFT, generator=generator, first=0)
    assert low <= sigmas.min().item() and sigmas.max().item() <= high
    assert furthest_from_uniform(probabilities(sigmas, sampling, (low, high))) < 1.95


def test_no_step_is_nearer_to_noise_than_another() -> None:
    """Each draw by itself has the whole distribution: over many seeds, wherever it stands in its cycle."""
    generator = torch.Generator().manual_seed(3)
    role = FlowRole("high", (0.0, 1.0), predict)
    objectives = [SupervisedFlowMatching(num_buckets=7, seed=seed) for seed in range(700)]
    for first in (0, 9):
        sigmas = [each.sigmas(role, 1, shift=SHIFT, generator=generator, first=first) for each in objectives]
        assert furthest_from_uniform(probabilities(torch.cat(sigmas), Sampling(), (0.0, 1.0))) < 1.95


def test_the_mean_of_a_few_steps_varies_far_less() -> None:
    generator = torch.Generator().manual_seed(1)
    role = FlowRole("high", (0.0, 1.0), predict)
    spread = {}
    for buckets in (0, 10):
        objective = SupervisedFlowMatching(num_buckets=buckets)
        sigmas = objective.sigmas(role, 1000, shift=SHIFT, generator=generator, first=0)
        spread[buckets] = sigmas.view(-1, 10).mean(dim=1).std().item()
    assert spread[10] < spread[0] / 4


@dataclass
class Batch:
    latents_BCFHW: torch.Tensor
    names: tuple[str, ...] = ("clip",)
    is_regularisation: bool = False
    first_frame_probabilities: tuple[float, ...] = (0.0,)


class Loader:
    def __init__(self, size: int) -> None:
        self.size = size

    def next(self) -> tuple[Batch, SimpleNamespace, dict]:
        return Batch(torch.ones(self.size, 1, 1, 2, 2)), SimpleNamespace(epoch=0), {}

    def close(self) -> None: ...


def trained_on(*goes: int, buckets: int, accumulation: int = 2, size: int = 2) -> dict[str, torch.Tensor]:
    """The sigmas that both roles' networks see in a run of as many steps, started anew at each of `goes`."""
    plugin = GradientAccumulationPlugin(num_steps=accumulation)
    accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)
    objective = SupervisedFlowMatching(shift=SHIFT, num_buckets=buckets, seed=4)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in BOUNDS}

    def make_role(name: str, done: int) -> Role:
        weight = torch.nn.Parameter(torch.zeros(1))

        def watched(latents: torch.Tensor, timesteps: torch.Tensor, _batch: Batch) -> torch.Tensor:
            seen[name].append(timesteps / 1000)
            return latents * weight

        expert = FlowRole(name, BOUNDS[name], watched)
        return Role(
            name=name,
            parameters=[weight],
            optimizer=accelerator.prepare(torch.optim.SGD([weight], lr=0.0)),
            learning_rate=lambda _step: 0.0,
            loader=Loader(size),
            loss=lambda batch, generator, number: objective.loss(expert, batch, generator, number),
            weights=dict,
            load_weights=lambda _state: None,
            step=done,
        )

    start = 0
    for end in goes:
        train(
            {name: make_role(name, start // 2) for name in BOUNDS},
            due=lambda step: ("high" if step % 2 else "low",),
            settings=LoopSettings(seed=1, total_steps=end, accumulation=accumulation, clip=0, clip_method="norm"),
            accelerator=accelerator,
            hooks=(),
            signals=SignalWatch(),
            emit=lambda _event: None,
            start=start,
        )
        start = end
    return {name: torch.cat(sigmas) for name, sigmas in seen.items()}


def test_both_experts_see_every_stratum_over_accumulated_micro_batches() -> None:
    seen = trained_on(36, buckets=12)  # 18 steps a role, 2 micro-batches of 2: six cycles
    for name, sigmas in seen.items():
        strata = (probabilities(sigmas, Sampling(), BOUNDS[name]) * 12).floor().long()
        assert (strata.view(6, 12).sort(dim=1)[0] == torch.arange(12)).all()


@pytest.mark.parametrize("stop", [2, 10])
def test_a_resumed_run_goes_on_with_the_same_timesteps(stop: int) -> None:
    whole, parts = trained_on(24, buckets=7), trained_on(stop, 24, buckets=7)
    assert all(torch.equal(whole[name], parts[name]) for name in BOUNDS)
