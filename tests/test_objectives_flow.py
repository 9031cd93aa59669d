"""Noise levels: closed forms, exact cuts, the conditional distribution; identities of targets and weights."""

import math
import re
from pathlib import Path

import pytest
import torch

from simplewan.objectives.distributions import Sampling, cdf, quantile, truncated_quantile
from simplewan.objectives.flow import (
    add_noise,
    loss_weights,
    mse_per_sample,
    resolution_shift,
    sample_sigmas,
    share_within,
    shift_sigma,
    unshift_sigma,
    velocity_target,
)

EVERY_SAMPLING = (
    Sampling("uniform"),
    Sampling("sigmoid"),
    Sampling("sigmoid", sigmoid_scale=0.4),
    Sampling("logit_normal", logit_mean=0.7, logit_std=1.6),
    Sampling("mode"),
    Sampling("mode", mode_scale=-0.6),
    Sampling("beta"),
    Sampling("beta", beta_alpha=0.6, beta_beta=3.0),
)


def ids(sampling):
    return f"{sampling.name}-{sampling.sigmoid_scale}-{sampling.logit_mean}-{sampling.mode_scale}-{sampling.beta_alpha}"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("boundary", "shift", "share"), [(0.875, 1, 0.026), (0.875, 3, 0.20), (0.875, 12, 0.71), (0.9, 5, 0.28)]
)
def test_share_of_the_high_noise_expert(boundary, shift, share):
    sampling = Sampling("sigmoid")
    assert share_within(boundary, 1.0, sampling=sampling, shift=shift) == pytest.approx(share, abs=0.005)
    drawn = sample_sigmas(40_000, sampling=sampling, shift=shift, generator=seeded())
    assert (drawn >= boundary).float().mean().item() == pytest.approx(share, abs=0.01)


def test_the_shares_that_the_documentation_tells():
    page = (Path(__file__).parents[1] / "docs" / "timesteps.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|((?: [\d.]+% \|){4})$", page, re.MULTILINE)
    assert len(rows) == 4
    for name, shares in rows:
        places = ((0.875, 1), (0.875, 3), (0.875, 12), (0.9, 5))
        told = [float(share) / 100 for share in re.findall(r"[\d.]+", shares)]
        actual = [share_within(boundary, 1.0, sampling=Sampling(name), shift=shift) for boundary, shift in places]
        assert told == pytest.approx(actual, abs=0.0006), name


def test_a_share_far_out_in_a_tail_keeps_its_digits():
    """Of whole exponents P(draw >= x) is that of fewer than alpha hits among alpha + beta - 1."""
    sampling = Sampling("beta", beta_alpha=20, beta_beta=100)
    hits = [math.comb(119, j) * 0.7**j * 0.3 ** (119 - j) for j in range(20)]
    assert share_within(0.7, 1.0, sampling=sampling) == pytest.approx(sum(hits), rel=1e-9) and sum(hits) < 1e-30
    for each in (sampling, Sampling("sigmoid"), Sampling("logit_normal", logit_mean=-3, logit_std=0.2)):
        parts = [share_within(*ends, sampling=each, shift=1.5) for ends in ((0.7, 0.8), (0.8, 0.99))]
        assert min(parts) > 0 and sum(parts) == pytest.approx(share_within(0.7, 0.99, sampling=each, shift=1.5))


@pytest.mark.parametrize("sampling", EVERY_SAMPLING, ids=ids)
def test_quantile_inverts_cdf(sampling):
    p = torch.linspace(0, 1, 201, dtype=torch.float64)
    x = quantile(sampling, p)
    assert (x.diff() > 0).all()
    assert x[0] == pytest.approx(0, abs=1e-4) and x[-1] == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(cdf(sampling, x), p, rtol=0, atol=1e-9)


def test_beta_cdf_matches_the_polynomial_of_beta_2_2_and_the_arcsine_law():
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(cdf(Sampling("beta"), x), 3 * x**2 - 2 * x**3, rtol=0, atol=1e-12)
    arcsine = Sampling("beta", beta_alpha=0.5, beta_beta=0.5)
    torch.testing.assert_close(cdf(arcsine, x), 2 / math.pi * torch.asin(x.sqrt()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampling", EVERY_SAMPLING, ids=ids)
@pytest.mark.parametrize("bounds", [(0.875, 1.0), (0.0, 0.875), (0.0, 0.9), (0.2, 0.35)])
@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_cut_gives_the_conditional_distribution(sampling, bounds, shift):
    """Kolmogorov-Smirnov against the CDF of the shifted distribution given the bounds; 1.95 / sqrt(n) is p = 0.001."""
    n = 4000
    sigmas = sample_sigmas(n, sampling=sampling, shift=shift, bounds=bounds, generator=seeded(3)).double().sort()[0]
    ends = cdf(sampling, unshift_sigma(torch.tensor(bounds, dtype=torch.float64), shift))
    expected = (cdf(sampling, unshift_sigma(sigmas, shift)) - ends[0]) / (ends[1] - ends[0])
    empirical = (torch.arange(n) + 0.5) / n
    assert (expected - empirical).abs().max().item() < 1.95 / math.sqrt(n)
    assert bounds[0] <= sigmas[0] and sigmas[-1] <= bounds[1]


@pytest.mark.parametrize(
    "bounds", [(0.9, 1.0), (0.0, 0.9), (0.9, 0.9000001), (0.3, 0.3000001), (0.1, 0.7), (0.5, 0.5), (1.0, 1.0)]
)
@pytest.mark.parametrize("shift", [0.1, 1.0, 12.0])
def test_draws_never_leave_the_bounds(bounds, shift):
    for sampling in EVERY_SAMPLING:
        sigmas = sample_sigmas(1000, sampling=sampling, shift=shift, bounds=bounds, generator=seeded(1))
        assert sigmas.dtype == torch.float32
        assert sigmas.double().min() >= bounds[0] and sigmas.double().max() <= bounds[1]


@pytest.mark.parametrize("sampling", EVERY_SAMPLING, ids=ids)
def test_cut_quantile_rises_from_end_to_end(sampling):
    p = torch.linspace(0, 1, 50, dtype=torch.float64)
    for low, high in ((0.875, 1.0), (0.0, 0.2), (0.3, 0.8)):
        x = truncated_quantile(sampling, p, low, high)
        assert (x.diff() > 0).all() and x[0] == pytest.approx(low, abs=1e-4) and x[-1] == pytest.approx(high, abs=1e-4)


def test_far_tails_keep_their_spread():
    for bounds, shift in (((0.9995, 1.0), 0.1), ((0.0, 0.0005), 12.0)):
        sigmas = sample_sigmas(1000, sampling=Sampling(), shift=shift, bounds=bounds, generator=seeded())
        assert len(sigmas.unique()) > 500


def test_the_scale_of_sigmoid_is_the_deviation_of_a_logit_normal():
    p = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    narrow = quantile(Sampling("sigmoid", sigmoid_scale=0.4, logit_std=9), p)
    torch.testing.assert_close(narrow, quantile(Sampling("logit_normal", logit_std=0.4), p))
    assert (narrow - 0.5).abs().max() < 0.25


def test_a_draw_comes_from_the_slice_that_is_named():
    sampling, asked = Sampling("sigmoid"), torch.tensor([7, 0, 15, 7, 3])
    sigmas = sample_sigmas(5, sampling=sampling, shift=3.0, generator=seeded(), slices=asked, num_slices=16)
    slices = (cdf(sampling, unshift_sigma(sigmas.double(), 3.0)) * 16).floor().long()
    assert slices.tolist() == asked.tolist() and sigmas[0] != sigmas[3]


def test_drawing_is_a_function_of_the_generator_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = sample_sigmas(8, sampling=Sampling(), shift=3, generator=seeded(9))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, sample_sigmas(8, sampling=Sampling(), shift=3, generator=seeded(9)))
    assert not torch.equal(first, sample_sigmas(8, sampling=Sampling(), shift=3, generator=seeded(10)))


@pytest.mark.parametrize(
    "wrong",
    [{"bounds": (0.9, 0.1)}, {"bounds": (0.5, 1.2)}, {"shift": 0.0}],
)
def test_impossible_bounds_are_refused(wrong):
    with pytest.raises(ValueError):
        sample_sigmas(2, sampling=Sampling(), generator=seeded(), **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "sigmoids"},
        {"mode_scale": 2.0},
        {"logit_std": 0.0},
        {"sigmoid_scale": 0.0},
        {"name": "beta", "beta_alpha": 0.0},
    ],
)
def test_impossible_distributions_are_refused(wrong):
    with pytest.raises(ValueError):
        Sampling(**wrong)


def test_shift_is_inverted_by_unshift():
    sigmas = torch.linspace(0, 1, 50, dtype=torch.float64)
    for shift in (0.1, 1.0, 3.0, 12.0):
        torch.testing.assert_close(unshift_sigma(shift_sigma(sigmas, shift), shift), sigmas)
    assert shift_sigma(0.5, 3.0) == pytest.approx(0.75)


def test_resolution_shift():
    assert resolution_shift(256) == pytest.approx(math.exp(0.5))
    assert resolution_shift(4096) == pytest.approx(math.exp(1.15))
    assert resolution_shift(1560) == pytest.approx(2.06, abs=0.005)


def test_noise_target_and_estimate_fit_together():
    latents, noise = torch.randn(2, 3, 4, 5, 6, 7, generator=seeded()).unbind(0)
    sigmas = torch.tensor([0.0, 0.4, 1.0])
    noisy = add_noise(latents, noise, sigmas)
    assert torch.equal(noisy[0], latents[0]) and torch.equal(noisy[2], noise[2])
    target = velocity_target(latents, noise)
    torch.testing.assert_close(noisy - sigmas.view(-1, 1, 1, 1, 1) * target, latents)
    # x moves with the velocity: d x / d sigma = target.
    torch.testing.assert_close(add_noise(latents, noise, sigmas + 0.1) - noisy, 0.1 * target, rtol=1e-4, atol=1e-5)


def test_loss_weights():
    sigmas = torch.tensor([0.25, 0.5, 1.0])
    assert loss_weights(sigmas, "none").tolist() == [1, 1, 1]
    torch.testing.assert_close(loss_weights(sigmas, "sigma_sqrt"), torch.tensor([16.0, 4.0, 1.0]))
    torch.testing.assert_close(
        loss_weights(sigmas, "cosmap"), torch.tensor([2 / math.pi / 0.625, 4 / math.pi, 2 / math.pi])
    )
    with pytest.raises(ValueError):
        loss_weights(sigmas, "sigma")


def test_mse_is_per_sample_and_float32():
    prediction = torch.ones(2, 1, 1, 2, 2, dtype=torch.bfloat16)
    target = torch.stack([torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)])
    errors = mse_per_sample(prediction, target)
    assert errors.dtype == torch.float32 and errors.tolist() == [1.0, 4.0]
