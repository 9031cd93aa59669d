"""The supervised objective on a small network: gradients, bounds, weights, seeds; the evaluation loss."""

from dataclasses import dataclass

import pytest
import torch

from simplewan.objectives.distributions import Sampling
from simplewan.objectives.supervised import (
    SupervisedFlowMatching,
    draw_held,
    eval_loss,
    timestep_bands,
    velocity_errors,
)


@dataclass
class Batch:
    latents_BCFHW: torch.Tensor
    is_regularisation: bool = False
    first_frame_probabilities: tuple[float, ...] = ()


class Role:
    """A role whose network knows the clean latents, so that its velocity is right up to a factor it learns."""

    def __init__(self, batch, bounds=(0.0, 1.0)):
        self.name = "high"
        self.sigma_bounds = bounds
        self.scale = torch.nn.Parameter(torch.tensor(0.5))
        self.clean = batch.latents_BCFHW.float()
        self.seen = []

    base_predict = None

    def predict(self, latents, timesteps, batch):
        self.seen.append(timesteps)
        sigmas = (timesteps / 1000).view(-1, 1, 1, 1, 1)
        return self.scale * (latents - self.clean) / sigmas


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return Batch(torch.randn(4, 2, 3, 4, 6, generator=generator))


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def test_loss_is_that_of_the_velocity_and_has_a_gradient(batch):
    role = Role(batch)
    objective = SupervisedFlowMatching(sampling=Sampling("uniform"))
    loss = objective.loss(role, batch, seeded())
    loss.value.backward()
    # v = scale * target, so the loss is (1 - scale)^2 * mean(target^2) and its gradient -2 (1 - scale) * mean.
    mean_square = loss.value.item() / 0.25
    assert role.scale.grad.item() == pytest.approx(-mean_square, rel=1e-4) and 1.5 < mean_square < 2.5
    role.scale.data.fill_(1.0)
    assert objective.loss(role, batch, seeded()).value.item() < 1e-8


@pytest.mark.parametrize("bounds", [(0.875, 1.0), (0.0, 0.875)])
def test_timesteps_stay_on_the_expert_side(batch, bounds):
    role = Role(batch, bounds)
    objective = SupervisedFlowMatching(shift=3.0)
    metrics = [objective.loss(role, batch, seeded(seed)).metrics for seed in range(50)]
    seen = torch.cat(role.seen)
    assert seen.min() >= bounds[0] * 1000 and seen.max() <= bounds[1] * 1000
    assert len(seen.unique()) == 200 and seen.dtype == torch.float32
    assert metrics[-1]["timestep"] == pytest.approx(role.seen[-1].mean().item(), rel=1e-5)


def test_loss_is_a_function_of_the_generator_and_leaves_the_global_one(batch):
    state = torch.get_rng_state()
    objective = SupervisedFlowMatching(shift=3.0)
    first, again, other = (objective.loss(Role(batch), batch, seeded(seed)).value for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_act_and_the_plain_loss_is_told(batch):
    plain = SupervisedFlowMatching(shift=3.0).loss(Role(batch), batch, seeded())
    weighted = SupervisedFlowMatching(shift=3.0, weighting="sigma_sqrt").loss(Role(batch), batch, seeded())
    assert "unweighted_loss" not in plain.metrics
    assert weighted.metrics["unweighted_loss"] == pytest.approx(plain.value.item())
    assert weighted.value > plain.value


def test_auto_shift_follows_the_token_grid():
    assert SupervisedFlowMatching(auto_shift=True).shift_for(60, 104) == pytest.approx(2.06, abs=0.005)
    assert SupervisedFlowMatching(shift=5.0).shift_for(60, 104) == 5.0


def test_eval_loss_is_fixed_and_falls_when_the_network_is_better(batch):
    bands = timestep_bands(4)
    assert bands == {"0-250": 125.0, "250-500": 375.0, "500-750": 625.0, "750-1000": 875.0}
    role = Role(batch)
    first = eval_loss(role.predict, [batch, batch], bands, 7)
    assert eval_loss(role.predict, [batch, batch], bands, 7) == first
    assert set(first.bands) == set(bands) and first.loss == pytest.approx(sum(first.bands.values()) / 4)
    assert eval_loss(role.predict, [batch, batch], bands, 8).loss != first.loss
    role.scale.data.fill_(0.9)
    better = eval_loss(role.predict, [batch, batch], bands, 7)
    assert better.loss == pytest.approx(first.loss * 0.04, rel=1e-4)
    with pytest.raises(ValueError):
        eval_loss(role.predict, [], bands, 7)


def test_bands_of_one_expert_lie_on_its_side():
    assert timestep_bands(2, (0.875, 1.0)) == {"875-938": 906.25, "938-1000": 968.75}


def test_narrow_bands_have_names_of_their_own():
    names = ["875.0-875.2", "875.2-875.5", "875.5-875.8", "875.8-876.0"]
    assert list(timestep_bands(4, (0.875, 0.876))) == names


@pytest.mark.parametrize(("probability", "is_given"), [(1.0, True), (0.5, True), (0.49, False), (0.0, False)])
def test_the_eval_loss_of_ti2v_gives_the_first_frame_where_that_is_as_likely_as_not(batch, probability, is_given):
    given = Batch(batch.latents_BCFHW, first_frame_probabilities=(probability,) * 4)
    seen = []

    def wrong_in_frame_0(latents, timesteps, _batch):
        seen.append((latents, timesteps))
        prediction = torch.zeros_like(latents)
        prediction[:, :, 0] = 100
        return prediction

    loss = eval_loss(wrong_in_frame_0, [given], {"all": 500.0}, 7).loss
    [(noisy, timesteps)] = seen
    assert torch.equal(noisy[:, :, 0], given.latents_BCFHW[:, :, 0]) == is_given
    assert timesteps.tolist() == ([[0, 500, 500]] * 4 if is_given else [500] * 4)
    assert (loss < 10) == is_given  # what is given has no part in it


def test_on_regularisation_data_the_target_is_the_base_models_own_prediction(batch):
    role = Role(batch)
    calls = []

    def base(latents, timesteps, given):
        calls.append(torch.is_grad_enabled())
        return 0.75 * (latents - role.clean) / (timesteps / 1000).view(-1, 1, 1, 1, 1)

    role.base_predict = base
    objective = SupervisedFlowMatching()
    plain = objective.loss(role, batch, seeded())
    assert calls == []
    regular = Batch(batch.latents_BCFHW, is_regularisation=True)
    kept = objective.loss(role, regular, seeded())
    # The network is off by half of the velocity from the data, by a quarter from the base model.
    torch.testing.assert_close(kept.value * 4, plain.value)
    assert calls == [False]
    kept.value.backward()
    assert role.scale.grad < 0  # towards the base model's 0.75
    role.scale.data.fill_(0.75)
    assert objective.loss(role, regular, seeded()).value == 0


def test_a_first_frame_that_is_given_is_clean_at_timestep_0_and_without_error(batch):
    seen = []

    def wrong_in_frame_0(latents, timesteps, _batch):
        seen.append((latents, timesteps))
        prediction = noise - batch.latents_BCFHW
        prediction[:, :, 0] += 7
        return prediction

    noise, sigmas = torch.randn(batch.latents_BCFHW.shape, generator=seeded()), torch.tensor([0.2, 0.4, 0.6, 0.8])
    held = torch.tensor([True, False, True, False])
    errors = velocity_errors(wrong_in_frame_0, batch, noise, sigmas, held_B=held)
    (noisy, timesteps), clean = seen[0], batch.latents_BCFHW
    assert errors[held].max() < 1e-10 and torch.allclose(errors[~held], torch.tensor(49 / 3))
    assert torch.equal(noisy[held, :, 0], clean[held, :, 0]) and not torch.equal(noisy[~held, :, 0], clean[~held, :, 0])
    assert timesteps.tolist() == [[0, 200, 200], [400] * 3, [0, 600, 600], [800] * 3]


def test_whose_first_frames_are_given():
    assert draw_held((), 3, seeded()) is None and draw_held((0.0, 0.0), 3, seeded()) is None
    assert draw_held((1.0, 1.0), 1, seeded()) is None
    generator = seeded()
    before = generator.get_state()
    assert draw_held((1.0, 0.0), 3, generator).tolist() == [True, False]
    assert torch.equal(generator.get_state(), before)
    drawn = draw_held((0.25,) * 4000, 3, generator)
    assert 0.22 < drawn.double().mean().item() < 0.28
